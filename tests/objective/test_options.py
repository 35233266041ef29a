"""What each option of the policy update does, against the update without it or dense linear algebra."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from trpo_jax.errors import ConfigError
from trpo_jax.objective.partition import samples_for_curvature
from trpo_jax.objective.surrogate import Batch
from trpo_jax.objective.trust_region_update import stateful_trust_region_update, trust_region_update
from trpo_jax.policy.distributions import DiagonalGaussian
from trpo_jax.solver.curvature import fisher_vector_product
from trpo_jax.solver.step_config import StepConfig, init_trust_region_state
from update_problems import CONFIG, NAMES, POLICIES, A, B, O, draw, examine, gaussian_fn, same_bits, update

pytestmark = pytest.mark.quick_compilation
compiled_update = jax.jit(trust_region_update, static_argnums=0)
compiled_stateful_update = jax.jit(stateful_trust_region_update, static_argnums=0)


def config(**changes):
    return dataclasses.replace(CONFIG, cg_tolerance=0.0, **changes)


def assert_same_update(one, other, rtol):
    for key in one[0]:
        np.testing.assert_allclose(one[0][key], other[0][key], rtol=rtol, atol=rtol / 10)
    for field, value, expected in zip(one[1]._fields, one[1], other[1], strict=True):
        if field != "cg_residual":  # of rounding, once converged
            np.testing.assert_allclose(value, expected, rtol=100 * rtol, err_msg=field)


# --- microbatches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kl_constraint"),
    [
        pytest.param(name, constraint, marks=() if (name, constraint) == ("gaussian", "mean") else pytest.mark.slow)
        for name in NAMES
        for constraint in ("mean", "max")
    ],
)
def test_microbatches_change_nothing_but_memory(x64, name, kl_constraint):
    params, batch = draw(name, "float64", seed=1)
    batch = batch._replace(weight=jnp.asarray(np.random.default_rng(1).integers(0, 3, B), "float64"))
    whole = update(name, params, batch, config(kl_constraint=kl_constraint))
    assert whole[1].accepted
    for number in (2, 3, B):
        pieces = update(name, params, batch, config(kl_constraint=kl_constraint, num_microbatches=number))
        assert_same_update(pieces, whole, rtol=1e-9)


@pytest.mark.parametrize("name", ["gaussian", "categorical"])
def test_the_empirical_fisher_takes_another_step_within_the_same_bound_whatever_the_microbatches(x64, name):
    params, batch = draw(name, "float64", seed=1)
    batch = batch._replace(weight=jnp.asarray(np.random.default_rng(1).integers(0, 3, B), "float64"))
    analytic, empirical = (update(name, params, batch, config(fisher=kind)) for kind in ("analytic", "empirical"))
    assert empirical[1].accepted
    assert empirical[1].kl <= CONFIG.max_kl
    steps = [ravel_pytree(jax.tree.map(jnp.subtract, each[0], params))[0] for each in (analytic, empirical)]
    cosine = steps[0] @ steps[1] / (jnp.linalg.norm(steps[0]) * jnp.linalg.norm(steps[1]))
    assert 0.0 < cosine < 0.999
    assert_same_update(update(name, params, batch, config(fisher="empirical", num_microbatches=3)), empirical, rtol=1e-9)


@pytest.mark.parametrize("changes", [{}, {"num_microbatches": 3}, {"kl_constraint": "max"}, {"line_search": False}])
def test_a_policy_with_a_derivative_for_reverse_mode_only_takes_the_same_step(x64, changes):
    @jax.custom_vjp
    def tanh(x):
        return jnp.tanh(x)

    def own_fn(params, observation):
        mean = tanh(observation @ params["in"] + params["bias"][None]) @ params["out"]
        return DiagonalGaussian(mean, jnp.broadcast_to(params["log_std"], mean.shape))

    tanh.defvjp(lambda x: (jnp.tanh(x), jnp.tanh(x)), lambda y, cotangent: (cotangent * (1 - y**2),))
    params, batch = draw("gaussian", "float64", seed=3)
    own, plain = (compiled_update(fn, params, batch, config(**changes)) for fn in (own_fn, gaussian_fn))
    assert own[1].accepted
    assert_same_update(own, plain, rtol=1e-9)


def test_a_microbatch_without_weight_counts_for_nothing(x64):
    params, batch = draw("gaussian", "float64", seed=2)
    # With 4 pieces, piece 1 holds the samples 1, 5 and 9.
    weight = batch.weight.at[jnp.asarray([1, 5, 9])].set(0.0)
    batch = batch._replace(weight=weight, advantage=jnp.where(weight > 0, batch.advantage, jnp.nan))
    pieces = update("gaussian", params, batch, config(num_microbatches=4))
    assert pieces[1].accepted
    assert_same_update(pieces, update("gaussian", params, batch, config()), rtol=1e-9)


def test_microbatches_divide_the_last_axis_so_that_time_stays_whole(x64):
    params, batch = draw("gaussian", "float64", seed=3)
    grid = jax.tree.map(lambda leaf: leaf.reshape(3, 4, *leaf.shape[1:]), batch)

    def cumulative_policy(params, observation):
        assert observation.shape[0] == 3  # all of time, always
        mean = jnp.cumsum(jnp.tanh(observation @ params["in"] + params["bias"][None, None]) @ params["out"], axis=0)
        return DiagonalGaussian(mean, jnp.broadcast_to(params["log_std"], mean.shape))

    grid = grid._replace(log_prob=cumulative_policy(params, grid.observation).log_prob(grid.action))
    whole = compiled_update(cumulative_policy, params, grid, config())
    assert whole[1].accepted
    assert_same_update(compiled_update(cumulative_policy, params, grid, config(num_microbatches=2)), whole, rtol=1e-9)


def test_memory_falls_with_the_number_of_microbatches():
    rng = np.random.default_rng(0)
    size, width = 4096, 64
    params = {
        "in": jnp.asarray(rng.normal(size=(O, width)), "float32"),
        "bias": jnp.zeros(width),
        "out": jnp.asarray(0.1 * rng.normal(size=(width, A)), "float32"),
        "log_std": jnp.zeros(A),
    }
    observation = jnp.asarray(rng.normal(size=(size, O)), "float32")
    policy = gaussian_fn(params, observation)
    batch = Batch(observation, policy.mean, policy.log_prob(policy.mean), observation[:, 0])

    def memory(number):
        step = functools.partial(trust_region_update, gaussian_fn, config=config(num_microbatches=number))
        return jax.jit(step).lower(params, batch).compile().memory_analysis().temp_size_in_bytes

    assert memory(16) < 0.35 * memory(1)


def test_a_number_of_microbatches_that_does_not_divide_the_batch_is_refused():
    params, batch = draw("gaussian", "float32")
    with pytest.raises(
        ConfigError, match=r"num_microbatches: got 5, allowed: a divisor of 12, the size of the last batch axis"
    ):
        trust_region_update(gaussian_fn, params, batch, config(num_microbatches=5))


# --- curvature samples ----------------------------------------------------------------------------------


def chosen(size, fraction, num_parts=1, key=None):
    """Numbers of the samples that are chosen of `size`."""
    batch = Batch(*[jnp.arange(float(size))] * 4)
    return samples_for_curvature(batch, fraction, num_parts=num_parts, key=key).advantage.tolist()


def test_random_curvature_samples_are_a_part_without_repetition_drawn_anew_by_each_key():
    draws = [chosen(100, 0.3, 3, jax.random.key(i)) for i in range(200)]
    assert all(len(set(d)) == 30 for d in draws)
    counts = np.bincount(np.concatenate(draws).astype(int), minlength=100)
    assert abs(counts - 60).max() < 5 * np.sqrt(60 * 0.7)
    assert chosen(100, 1.0, 1, jax.random.key(0)) == list(range(100))


def test_evenly_spaced_curvature_samples_are_a_multiple_of_the_microbatches():
    assert chosen(12, 0.25) == [0, 4, 8]
    assert chosen(12, 0.5, 3) == [0, 2, 4, 6, 8, 10]
    assert len(chosen(12, 0.01, 3)) == 3


def test_random_sampling_changes_the_curvature_alone(x64):
    params, batch = draw("gaussian", "float64", seed=4)
    options = config(curvature_fraction=0.5, curvature_sampling="random")
    (_, a), (_, b) = (compiled_update(gaussian_fn, params, batch, options, key=jax.random.key(seed)) for seed in (0, 1))
    _, whole = compiled_update(gaussian_fn, params, batch, config())
    np.testing.assert_allclose([a.gradient_norm, b.gradient_norm], whole.gradient_norm, rtol=1e-12)
    assert len({float(info.step_norm) for info in (a, b, whole)}) == 3


def test_random_sampling_without_a_key_is_refused():
    params, batch = draw("gaussian", "float32")
    with pytest.raises(ConfigError, match='key: got None, allowed: a PRNG key, since curvature_sampling is "random"'):
        trust_region_update(gaussian_fn, params, batch, config(curvature_fraction=0.5, curvature_sampling="random"))


# --- constraint and step --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_maximum_constraint_bounds_the_kl_of_every_state_and_uses_what_it_allows(x64, name):
    params, batch = draw(name, "float64", seed=5)
    new, info = update(name, params, batch, config(kl_constraint="max"))
    assert info.accepted
    old, moved = (POLICIES[name](p, batch.observation) for p in (params, new))
    kl = old.kl(moved)
    np.testing.assert_allclose([info.max_kl, info.kl], [kl.max(), kl.mean()], rtol=1e-9)
    # The length comes from the worst state's curvature, so that the bound is met at once and nearly reached.
    assert 0.5 * CONFIG.max_kl < kl.max() <= CONFIG.max_kl
    _, mean = update(name, params, batch, config())
    assert mean.max_kl > CONFIG.max_kl >= mean.kl


def test_the_maximum_constraint_leaves_out_states_without_weight(x64):
    params, batch = draw("gaussian", "float64", seed=5)
    keep = np.arange(B) % 3 > 0
    removed = update("gaussian", params, jax.tree.map(lambda leaf: leaf[keep], batch), config(kl_constraint="max"))
    batch = batch._replace(weight=jnp.asarray(keep, "float64"), observation=batch.observation.at[~keep].mul(50.0))
    assert_same_update(update("gaussian", params, batch, config(kl_constraint="max")), removed, rtol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_natural_gradient_mode_takes_the_whole_step_whatever_the_kl_and_the_surrogate_say(x64, name):
    params, batch = draw(name, "float64", seed=6)
    # A step this large leaves the trust region, so that the line search would shorten it.
    options = config(max_kl=2.0, damping=1e-2, cg_iterations=30)
    searched, searched_info = update(name, params, batch, options)
    natural, info = update(name, params, batch, dataclasses.replace(options, line_search=False))
    assert searched_info.step_fraction < 1
    assert info.accepted
    assert (int(info.backtracks), float(info.step_fraction)) == (0, 1.0)
    flat, searched_flat, natural_flat = (np.asarray(ravel_pytree(p)[0]) for p in (params, searched, natural))
    searched_unit, natural_unit = (step / np.linalg.norm(step) for step in (searched_flat - flat, natural_flat - flat))
    np.testing.assert_allclose(searched_unit, natural_unit, rtol=1e-8, atol=1e-8)  # two programs, which round apart
    # Its length is that of the damped quadratic, sqrt(2δ / xᵀ(F+λI)x).
    matvec = fisher_vector_product(lambda p: POLICIES[name](p, batch.observation), params, weight=batch.weight)
    step = natural_flat - flat
    product = ravel_pytree(matvec(ravel_pytree(params)[1](jnp.asarray(step))))[0]
    np.testing.assert_allclose(step @ product + options.damping * step @ step, 2 * options.max_kl, rtol=1e-6)
    kl, _, improvement, _ = examine(name, params, natural, batch, 0.0)
    np.testing.assert_allclose([info.kl, info.surrogate_improvement], [kl, improvement], rtol=1e-8)


def test_natural_gradient_mode_still_returns_the_old_parameters_for_what_is_not_finite():
    params, batch = draw("gaussian", "float32")
    options = config(line_search=False)
    for bad in (batch._replace(advantage=batch.advantage.at[3].set(jnp.nan)), batch._replace(advantage=0 * batch.advantage)):
        new, info = update("gaussian", params, bad, options)
        assert not info.accepted
        assert same_bits(new, params)


def test_the_accept_ratio_compares_with_the_prediction_for_the_fraction_tried_bug_2(x64):
    params, batch = draw("gaussian", "float64", seed=7)
    lenient, strict = (config(max_kl=0.02, damping=0.1, cg_iterations=30, accept_ratio=ratio) for ratio in (0.0, 0.95))
    _, free = update("gaussian", params, batch, lenient)
    _, info = update("gaussian", params, batch, strict)
    assert info.accepted
    assert info.backtracks > free.backtracks
    full = info.expected_improvement / info.step_fraction
    np.testing.assert_allclose(full, free.expected_improvement / free.step_fraction, rtol=1e-9)
    assert info.surrogate_improvement >= 0.95 * info.expected_improvement
    assert free.surrogate_improvement < 0.95 * free.expected_improvement


# --- length ---------------------------------------------------------------------------------------------


def linear_policy(params, observation):
    """A Gaussian of fixed deviation, whose KL is exactly quadratic in its parameters."""
    mean = observation @ params
    return DiagonalGaussian(mean, jnp.zeros_like(mean))


def linear_problem(size, seed=0):
    rng = np.random.default_rng(seed)
    params = jnp.asarray(0.3 * rng.normal(size=(O, A)), "float32")
    observation = jnp.asarray(rng.normal(size=(size, O)) * np.linspace(0.2, 2.0, O), "float32")
    policy = linear_policy(params, observation)
    action = policy.mean + jnp.asarray(rng.normal(size=policy.mean.shape), "float32")
    return params, Batch(observation, action, policy.log_prob(action), jnp.asarray(rng.normal(size=size), "float32"))


@pytest.mark.parametrize("kl_constraint", ["mean", "max"])
def test_a_quadratic_kl_ends_on_its_bound_at_once(kl_constraint):
    for seed in range(5):
        params, batch = linear_problem(500, seed)
        options = config(kl_constraint=kl_constraint, damping=0.3, cg_iterations=20)
        _, info = compiled_update(linear_policy, params, batch, options)
        assert info.backtracks == 0
        constrained = info.max_kl if kl_constraint == "max" else info.kl
        assert 0.995 * CONFIG.max_kl < constrained <= CONFIG.max_kl


def test_curvature_of_a_part_of_the_batch_costs_little_of_the_bound():
    """Its estimate is off by some percent; what the first trial shows makes up for it."""
    shares = []
    for seed in range(20):
        params, batch = linear_problem(1000, seed)
        _, info = compiled_update(linear_policy, params, batch, config(curvature_fraction=0.05, damping=0.3, cg_iterations=20))
        assert info.accepted
        shares.append(float(info.kl) / CONFIG.max_kl)
    assert np.mean(shares) > 0.9
    assert min(shares) > 0.7


# --- shaped damping ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_shaped_damping_over_several_updates_is_that_of_dense_algebra(x64, name):
    """The average is of the surrogate's gradients, and the direction solves (F + λD) x = g."""
    params, batch = draw(name, "float64", seed=9)
    options = config(damping_shape="gradient", gradient_decay=0.8, damping=0.3, cg_iterations=200)
    state = init_trust_region_state(params, options)
    flat, unravel = ravel_pytree(params)
    average = np.zeros(flat.size)
    for shift in (0.0, 1.0, -0.5):
        shifted = batch._replace(advantage=batch.advantage + shift * batch.observation[:, 0])
        new, state, info = compiled_stateful_update(POLICIES[name], params, shifted, state, options)
        assert info.accepted

        def surrogate(vector, shifted=shifted):
            ratio = jnp.exp(POLICIES[name](unravel(vector), shifted.observation).log_prob(shifted.action) - shifted.log_prob)
            return jnp.average(ratio * shifted.advantage, weights=shifted.weight)

        gradient = np.asarray(jax.grad(surrogate)(flat))
        average = 0.8 * average + 0.2 * gradient**2
        np.testing.assert_allclose(ravel_pytree(state.squared_gradient)[0], average, rtol=1e-8, atol=1e-14)
    matvec = fisher_vector_product(lambda p: POLICIES[name](p, batch.observation), params, weight=batch.weight)
    fisher = np.asarray(jax.vmap(lambda column: ravel_pytree(matvec(unravel(column)))[0])(jnp.eye(flat.size)))
    shape = np.sqrt(average) / np.sqrt(average).mean() + 1e-4
    direction = np.linalg.solve(fisher + 0.3 * np.diag(shape), gradient)
    step = np.asarray(ravel_pytree(new)[0] - flat)
    assert step @ direction / np.linalg.norm(step) / np.linalg.norm(direction) > 1 - 1e-8


def test_shaped_damping_without_a_state_is_refused():
    params, batch = draw("gaussian", "float32")
    with pytest.raises(ConfigError, match='damping_shape: got \'gradient\', allowed: "identity"; "gradient" needs a state'):
        trust_region_update(gaussian_fn, params, batch, config(damping_shape="gradient"))


def test_a_config_of_the_step_alone_is_refused(own_errors):
    params, batch = draw("gaussian", "float32")
    with pytest.raises(TypeError, match="config: got a StepConfig, allowed: a TrustRegionConfig"):
        trust_region_update(gaussian_fn, params, batch, StepConfig())


def test_actions_of_another_kind_than_the_policys_are_refused(own_errors):
    params, batch = draw("categorical", "float32")
    with pytest.raises(TypeError, match=r"batch.action: got dtype float32, allowed: the same kind as int32"):
        trust_region_update(POLICIES["categorical"], params, batch._replace(action=batch.action.astype("float32")), CONFIG)


@pytest.mark.parametrize("num_parts", [3, pytest.param(6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("weighted", [False, True])
def test_microbatches_lose_no_precision_in_float64(x64, num_parts, weighted):
    """The share of a part, 1/3, is no number that float32 holds."""
    params, batch = draw("gaussian", "float64", seed=7)
    size = 12 * (batch.log_prob.shape[-1] // 12)
    batch = jax.tree.map(lambda leaf: leaf[:size], batch)
    batch = batch._replace(weight=jnp.ones(size) if weighted else None)
    whole, parts = (
        update("gaussian", params, batch, dataclasses.replace(CONFIG, num_microbatches=count))[1] for count in (1, num_parts)
    )
    np.testing.assert_allclose([parts.kl, parts.gradient_norm], [whole.kl, whole.gradient_norm], rtol=1e-11)
