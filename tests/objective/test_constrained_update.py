"""The update with limited costs: its guarantees for any input, and its step where it is known."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trpo_jax.errors import ConfigError
from trpo_jax.objective.constrained_update import (
    MOST_AVERAGED_COSTS,
    _num_averages,
    constrained_trust_region_update,
    init_constrained_state,
    stateful_constrained_trust_region_update,
)
from trpo_jax.objective.surrogate import Batch
from trpo_jax.objective.trust_region_config import TrustRegionConfig
from trpo_jax.objective.trust_region_update import trust_region_update
from trpo_jax.policy.distributions import DiagonalGaussian
from trpo_jax.solver.outcome import ConstrainedOutcome
from update_problems import CONFIG, POLICIES, B, draw


@functools.partial(jax.jit, static_argnames="name")
def update(name, params, batch, excess, config):
    return constrained_trust_region_update(POLICIES[name], params, batch, excess, config)


def with_costs(name, dtype="float32", seed=0, number=1):
    """Parameters and a batch with advantages in some costs, those of the objective for a part: limits are in the way."""
    params, batch = draw(name, dtype, seed)
    rng = np.random.default_rng([seed, number])
    mixed = 0.6 * np.asarray(batch.advantage)[:, None] + rng.normal(size=(B, number))
    return params, batch._replace(cost_advantage=jnp.asarray(mixed, dtype))


def surrogates(name, params, batch):
    """Surrogates of objective and costs, and the KL, in float64."""
    with jax.enable_x64(True):
        params, batch = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), (params, batch))
        if name == "categorical":
            batch = batch._replace(action=batch.action.astype(jnp.int32))
        policy = POLICIES[name](params, batch.observation)
        ratio = np.asarray(jnp.exp(policy.log_prob(batch.action) - batch.log_prob))
        costs = np.asarray(batch.cost_advantage)
        return np.mean(ratio * np.asarray(batch.advantage)), np.mean(ratio[:, None] * costs, axis=0), policy


@pytest.mark.parametrize("name", POLICIES)
@given(
    seed=st.integers(0, 2**16),
    number=st.sampled_from([1, 2]),
    excess=st.lists(st.floats(-0.3, 0.3), min_size=2, max_size=2),
    max_kl=st.floats(1e-4, 0.3),
)
def test_an_accepted_update_keeps_the_bound_and_the_limits(name, seed, number, excess, max_kl):
    params, batch = with_costs(name, seed=seed, number=number)
    config, excess = dataclasses.replace(CONFIG, max_kl=max_kl), jnp.asarray(excess[:number], jnp.float32)
    new, info = update(name, params, batch, excess, config)
    check_guarantee(name, params, new, batch, excess, max_kl, info)


def check_guarantee(name, params, new, batch, excess, max_kl, info):
    """Bound and limits as float64 measures them, or the same parameters."""
    objective, costs, old_policy = surrogates(name, params, batch)
    new_objective, new_costs, new_policy = surrogates(name, new, batch)
    if info.accepted:
        with jax.enable_x64(True):
            kl = float(jnp.mean(old_policy.kl(new_policy)))
        assert kl <= max_kl * (1 + 1e-3)
        room = np.maximum(-np.asarray(excess), 0)
        size = 1e-4 * (1 + np.abs(costs) + np.abs(new_costs))  # rounding of float32: ratios may be large
        assert np.all(new_costs - costs <= room + size)
        assert np.all(np.abs(info.cost_change - (new_costs - costs)) <= size)
        if np.all(np.asarray(excess) <= 0):
            assert new_objective - objective > -1e-4 * (1 + abs(objective) + abs(new_objective))
            assert info.surrogate_improvement > 0
    else:
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(params), strict=True))
        assert info.outcome != ConstrainedOutcome.ACCEPTED


@pytest.mark.parametrize("name", POLICIES)
def test_far_from_its_limits_the_step_is_that_of_trpo(name, x64):
    params, batch = with_costs(name, "float64", number=2)
    config = dataclasses.replace(CONFIG, cg_iterations=60)  # to the solution: else the other directions improve on the step
    new, info = update(name, params, batch, jnp.full(2, -10.0), config)
    expected, told = jax.jit(lambda p, b: trust_region_update(POLICIES[name], p, b, config))(params, batch)
    assert info.accepted & told.accepted
    assert info.feasible & ~info.active.any()
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)


@pytest.mark.parametrize("name", POLICIES)
def test_a_limit_in_the_way_is_reached_and_not_passed(name):
    config = dataclasses.replace(CONFIG, max_kl=1e-4)  # where surrogates are nearly linear
    params, batch = with_costs(name, seed=3)
    _, free = update(name, params, batch, jnp.asarray([-10.0]), config)
    if free.cost_change[0] < 0:  # a cost that rises if nothing limits it
        batch = batch._replace(cost_advantage=-batch.cost_advantage)
    room = 0.3 * abs(float(free.cost_change[0]))
    _, info = update(name, params, batch, jnp.asarray([-room]), config)
    assert info.accepted & info.feasible & info.active[0]
    assert 0.8 * room < info.cost_change[0] <= room
    assert info.surrogate_improvement > 0


def test_near_a_limit_the_step_is_corrected_for_the_curvature_of_the_cost_instead_of_shrunk():
    params, batch = with_costs("gaussian", seed=3, number=2)
    config = dataclasses.replace(CONFIG, max_kl=0.1)  # where the costs curve
    steps = []
    for room in (1e-3, 1e-4):
        _, info = update("gaussian", params, batch, jnp.full(2, -room), config)
        assert info.accepted & info.feasible
        assert jnp.all(info.cost_change <= room)
        steps.append(float(info.kl))
    assert min(steps) > 0.2 * config.max_kl


@pytest.mark.parametrize("name", POLICIES)
def test_a_cost_that_no_step_can_bring_below_its_limit_is_lowered(name):
    params, batch = with_costs(name, seed=4, number=2)
    _, info = update(name, params, batch, jnp.asarray([10.0, -10.0]), CONFIG)
    assert info.accepted & ~info.feasible
    assert info.active.tolist() == [True, False]
    assert info.cost_change[0] < 0
    assert 0.5 * CONFIG.max_kl < info.kl <= CONFIG.max_kl


def test_microbatches_weights_and_shaped_damping_give_the_same_as_the_whole(x64):
    params, batch = with_costs("gaussian", "float64", number=2)
    excess = jnp.asarray([-0.01, 0.02])
    weighted = batch._replace(weight=jnp.full(B, 3.0))
    config = dataclasses.replace(CONFIG, damping_shape="gradient")
    state = init_constrained_state(params, config, 2)
    state = state._replace(cost_gradients=jax.tree.map(lambda leaf: leaf + 0.01, state.cost_gradients), weight=jnp.float32(0.5))

    def run(batch, config):
        return stateful_constrained_trust_region_update(
            POLICIES["gaussian"], params, batch, excess, state, config, cost_gradient_decay=0.9
        )

    whole = run(batch, config)
    for other in (run(weighted, config), run(batch, dataclasses.replace(config, num_microbatches=3))):
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("broken", ["advantage", "cost_advantage", "excess"])
def test_what_is_not_finite_leaves_the_parameters_as_they_are(broken):
    params, batch = with_costs("gaussian")
    excess = jnp.asarray([0.0])
    if broken == "excess":
        excess = jnp.asarray([jnp.nan])
    else:
        leaf = getattr(batch, broken)
        batch = batch._replace(**{broken: leaf.at[0].set(jnp.nan)})
    new, info = update("gaussian", params, batch, excess, CONFIG)
    assert info.outcome == ConstrainedOutcome.NOT_FINITE
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(params), strict=True))


def test_a_sample_of_weight_zero_does_not_count():
    params, batch = with_costs("gaussian")
    weight = jnp.ones(B).at[0].set(0.0)
    spoilt = batch._replace(weight=weight, cost_advantage=batch.cost_advantage.at[0].set(jnp.nan))
    sound = batch._replace(weight=weight, cost_advantage=batch.cost_advantage.at[0].set(0.0))
    results = [jax.tree.leaves(update("gaussian", params, each, jnp.zeros(1), CONFIG)) for each in (spoilt, sound)]
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_maps_over_limits_and_bounds():
    params, batch = with_costs("gaussian")
    excess = jnp.asarray([[-10.0], [-0.001], [10.0]])
    _, infos = jax.vmap(lambda excess: constrained_trust_region_update(POLICIES["gaussian"], params, batch, excess, CONFIG))(
        excess
    )
    assert infos.feasible.tolist() == [True, True, False]
    alone = [update("gaussian", params, batch, each, CONFIG)[1] for each in excess]
    np.testing.assert_allclose(infos.cost_change, jnp.stack([info.cost_change for info in alone]), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "excess", "message"),
    [
        ({"cost_advantage": None}, [], r"batch.cost_advantage: got 0 costs, allowed: 1 to 6"),
        ({"cost_advantage": np.zeros((B, 0), np.float32)}, [], r"batch.cost_advantage: got 0 costs, allowed: 1 to 6"),
        ({"cost_advantage": np.zeros((B, 7), np.float32)}, [0.0] * 7, r"batch.cost_advantage: got 7 costs, allowed: 1 to 6"),
        (
            {"cost_advantage": np.zeros((3, 1), np.float32)},
            [0.0],
            r"batch.cost_advantage: got shape \(3, 1\)",
        ),
        ({}, [0.0, 0.0], r"cost_excess: got shape \(2,\), allowed: \(1,\)"),
    ],
)
def test_costs_that_do_not_fit_are_refused(change, excess, message):
    params, batch = with_costs("gaussian")
    with pytest.raises(ValueError, match=message):
        constrained_trust_region_update(POLICIES["gaussian"], params, batch._replace(**change), jnp.asarray(excess), CONFIG)


def test_shaped_damping_needs_a_state():
    params, batch = with_costs("gaussian")
    config = dataclasses.replace(CONFIG, damping_shape="gradient")
    with pytest.raises(ConfigError, match="damping_shape: got 'gradient'"):
        constrained_trust_region_update(POLICIES["gaussian"], params, batch, jnp.zeros(1), config)


@pytest.mark.parametrize("kind", ["max_kl", "batch"])
def test_mixed_precision_is_no_error(x64, kind):
    params, batch = with_costs("gaussian", number=2)
    config = CONFIG
    if kind == "max_kl":
        config = dataclasses.replace(CONFIG, max_kl=jnp.float64(0.01))
    else:
        batch = jax.tree.map(lambda leaf: leaf.astype("float64"), batch)
    new, info = update("gaussian", params, batch, jnp.asarray([-0.01, 0.01], jnp.float32), config)
    assert info.accepted
    assert {leaf.dtype.name for leaf in jax.tree.leaves(new)} == {"float32"}


def test_the_largest_kl_sets_the_length_if_it_is_the_constraint():
    params, batch = with_costs("gaussian")
    config = dataclasses.replace(CONFIG, kl_constraint="max")
    _, info = update("gaussian", params, batch, jnp.asarray([-0.01]), config)
    assert info.accepted & (info.max_kl <= config.max_kl)
    assert info.backtracks <= 1


def test_infinite_limits_leave_the_step_of_trpo():
    params, batch = with_costs("gaussian")
    _, info = update("gaussian", params, batch, jnp.asarray([-jnp.inf]), CONFIG)
    assert info.accepted & info.feasible
    assert update("gaussian", params, batch, jnp.asarray([jnp.inf]), CONFIG)[1].outcome == ConstrainedOutcome.NOT_FINITE


def noisy_costs(key, size=500, dimension=50, noise=5.0):
    """A policy N(sᵀθ, 1) at θ = 0. The cost falls along one axis, but samples hardly tell: its gradient is mostly noise."""
    keys = jax.random.split(key, 3)
    state = jax.random.normal(keys[0], (size, dimension))
    action = jax.random.normal(keys[1], (size, 1))
    cost = action[:, 0] * state[:, 0] + noise * jax.random.normal(keys[2], (size,))
    policy = linear_fn(jnp.zeros(dimension), state)
    return Batch(state, action, policy.log_prob(action), action[:, 0] * state[:, 1], cost_advantage=cost[:, None])


def linear_fn(params, state):
    mean = (state @ params)[:, None]
    return DiagonalGaussian(mean, jnp.zeros_like(mean))


def test_a_step_that_averaged_gradients_allow_keeps_more_of_what_it_promises():
    """The true change of the mean cost is the first element of Δθ, here of states N(0, I)."""
    config = TrustRegionConfig(max_kl=0.2, damping=0.0, cg_iterations=20)

    @functools.partial(jax.jit, static_argnums=1)
    def last_change(key, decay):
        """Of 30 updates, all from θ = 0."""

        def step(state, key):
            new, state, info = stateful_constrained_trust_region_update(
                linear_fn, jnp.zeros(50), noisy_costs(key), jnp.asarray([0.1]), state, config, cost_gradient_decay=decay
            )
            return state, (new[0], info.accepted)

        start = init_constrained_state(jnp.zeros(50), config, 1)
        return jax.tree.map(lambda leaf: leaf[-1], jax.lax.scan(step, start, jax.random.split(key, 30))[1])

    keys, found = jax.random.split(jax.random.key(0), 50), {}
    for decay in (0.0, 0.9):
        change, accepted = jax.lax.map(lambda key, decay=decay: last_change(key, decay), keys)
        assert np.mean(accepted) > 0.9
        found[decay] = float(np.mean(change))
    assert found[0.0] > -0.05, "of the samples of one batch, less than half of the 0.1 that is asked for"
    assert -0.2 < found[0.9] < -0.06


def test_gradients_of_costs_are_averaged_as_adam_does_and_each_limit_is_kept_by_both():
    """Two updates of θ = 0 against the mean that is written down here; then one with NaNs, which changes nothing."""
    batches = [noisy_costs(jax.random.key(seed)) for seed in (0, 1)]
    gradients = [np.mean(batch.cost_advantage[:, 0, None] * batch.action * batch.observation, axis=0) for batch in batches]
    state, config = init_constrained_state(jnp.zeros(50), CONFIG, 1), dataclasses.replace(CONFIG, line_search=False)
    for batch in batches:
        params, state, info = stateful_constrained_trust_region_update(
            linear_fn, jnp.zeros(50), batch, jnp.asarray([1.0]), state, config, cost_gradient_decay=0.75
        )
    expected = (0.75 * gradients[0] + gradients[1]) / 1.75
    np.testing.assert_allclose(state.cost_gradients[0] / state.weight, expected, rtol=1e-4, atol=1e-6)

    by_average = jnp.asarray(_with_gradient(batches[1], expected), "float32")[:, None]
    both = batches[1]._replace(cost_advantage=jnp.concatenate([batches[1].cost_advantage, by_average], axis=1))
    same, _ = constrained_trust_region_update(linear_fn, jnp.zeros(50), both, jnp.ones(2), config)
    assert info.accepted
    np.testing.assert_allclose(params, same, rtol=1e-2, atol=1e-5)

    broken = batches[0]._replace(cost_advantage=batches[0].cost_advantage.at[0].set(jnp.nan))
    _, after, info = stateful_constrained_trust_region_update(
        linear_fn, jnp.zeros(50), broken, jnp.asarray([1.0]), state, config, cost_gradient_decay=0.75
    )
    assert info.outcome == ConstrainedOutcome.NOT_FINITE
    for now, before in zip(after[1:], state[1:], strict=True):
        np.testing.assert_array_equal(now, before)


def test_rounding_in_a_limit_that_nothing_measures_shrinks_no_step():
    """The step goes as far as the average allows, which no line search may tell from a little farther."""
    config = TrustRegionConfig(max_kl=0.02, damping=0.0, cg_iterations=20)

    def step(state, key):
        _, state, info = stateful_constrained_trust_region_update(
            linear_fn, jnp.zeros(50), noisy_costs(key), jnp.zeros(1), state, config, cost_gradient_decay=0.9
        )
        return state, (info.step_fraction, info.active[0])

    start = init_constrained_state(jnp.zeros(50), config, 1)
    fraction, active = jax.lax.scan(step, start, jax.random.split(jax.random.key(0), 100))[1]
    assert np.mean(active) > 0.3
    assert np.min(fraction) == 1.0


def _with_gradient(batch, gradient):
    """Advantages in a cost, the smallest that have this gradient at θ = 0."""
    rows = np.asarray(batch.action * batch.observation, np.float64) / len(batch.action)
    return rows @ np.linalg.solve(rows.T @ rows, gradient)


@given(
    seed=st.integers(0, 2**16),
    number=st.sampled_from([1, MOST_AVERAGED_COSTS]),
    excess=st.lists(st.floats(-0.3, 0.3), min_size=3, max_size=3),
    decay=st.floats(0.0, 0.99),
)
def test_averaged_gradients_keep_the_guarantee(seed, number, excess, decay):
    """The average holds the gradients of other samples of the policy, which the batch may contradict."""
    params, batch = with_costs("gaussian", seed=seed, number=number)
    other = batch._replace(cost_advantage=jnp.roll(batch.cost_advantage, 1, axis=0))
    state, excess = init_constrained_state(params, CONFIG, number), jnp.asarray(excess[:number], jnp.float32)
    for samples in (other, batch):
        new, state, info = averaged_update(params, samples, excess, state, decay)
    check_guarantee("gaussian", params, new, batch, excess, CONFIG.max_kl, info)


@jax.jit
def averaged_update(params, batch, excess, state, decay):
    return stateful_constrained_trust_region_update(
        POLICIES["gaussian"], params, batch, excess, state, CONFIG, cost_gradient_decay=decay
    )


@pytest.mark.parametrize("excess", [-0.1, 0.0, 0.1])
def test_a_batch_without_samples_changes_neither_policy_nor_averages(excess):
    params, batch = with_costs("gaussian", number=2)
    excess = jnp.full(2, excess)
    _, state, _ = averaged_update(params, batch, excess, init_constrained_state(params, CONFIG, 2), 0.9)
    new, after, info = averaged_update(params, batch._replace(weight=jnp.zeros(B)), excess, state, 0.9)
    assert not info.accepted
    for now, before in zip(jax.tree.leaves((new, after)), jax.tree.leaves((params, state)), strict=True):
        np.testing.assert_array_equal(now, before)


def test_a_state_of_another_kind_or_of_other_costs_or_parameters_and_a_decay_out_of_range_are_refused():
    params, batch = with_costs("gaussian", number=2)
    state = init_constrained_state(params, CONFIG, 2)
    wide = state._replace(cost_gradients=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state.cost_gradients))
    for other in (init_constrained_state({"other": jnp.zeros(3)}, CONFIG, 2), wide):
        with pytest.raises(ValueError, match=r"state.cost_gradients: got arrays unlike .* allowed: the result of init_constr"):
            averaged_update(params, batch, jnp.zeros(2), other, 0.9)
    with pytest.raises(TypeError, match="state: got a TrustRegionState, allowed: the result of init_constrained_state"):
        _num_averages(state.trust_region, params, CONFIG)
    with pytest.raises(ValueError, match=r"state.cost_gradients: got averages of 1 costs, allowed: of 2, as the batch has"):
        averaged_update(params, batch, jnp.zeros(2), init_constrained_state(params, CONFIG, 1), 0.9)
    many = batch._replace(cost_advantage=jnp.ones((B, 4)))
    with pytest.raises(ValueError, match=r"batch.cost_advantage: got 4 costs, allowed: 1 to 3"):
        averaged_update(params, many, jnp.zeros(4), init_constrained_state(params, CONFIG, 4), 0.9)
    for decay in (1.0, -0.1):
        with pytest.raises(ConfigError, match=r"cost_gradient_decay: got .*, allowed: at least 0 and below 1"):
            stateful_constrained_trust_region_update(
                POLICIES["gaussian"], params, batch, jnp.zeros(2), state, CONFIG, cost_gradient_decay=decay
            )
