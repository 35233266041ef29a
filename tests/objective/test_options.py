"""What each option of the policy update does, against the update without it or dense linear algebra."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from trpo_jax.config import ConfigError
from trpo_jax.objective.fisher_diagonal import fisher_diagonal
from trpo_jax.objective.partition import curvature_indices
from trpo_jax.objective.surrogate import Batch
from trpo_jax.objective.update import stateful_trust_region_update, trust_region_update
from trpo_jax.policy.distributions import DiagonalGaussian
from trpo_jax.solver.curvature import fisher_vector_product
from trpo_jax.solver.trust_region_config import adapt_damping, init_trust_region_state
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


@pytest.mark.parametrize("kl_constraint", ["mean", "max"])
@pytest.mark.parametrize("name", NAMES)
def test_microbatches_change_nothing_but_memory(x64, name, kl_constraint):
    params, batch = draw(name, "float64", seed=1)
    batch = batch._replace(weight=jnp.asarray(np.random.default_rng(1).integers(0, 3, B), "float64"))
    whole = update(name, params, batch, config(kl_constraint=kl_constraint))
    assert whole[1].accepted
    for number in (2, 3, B):
        pieces = update(name, params, batch, config(kl_constraint=kl_constraint, num_microbatches=number))
        assert_same_update(pieces, whole, rtol=1e-9)


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


def test_random_curvature_samples_are_a_part_without_repetition_drawn_anew_by_each_key():
    draws = [np.asarray(curvature_indices(100, 0.3, 3, jax.random.key(i))) for i in range(200)]
    assert all(len(set(d.tolist())) == 30 for d in draws)
    counts = np.bincount(np.concatenate(draws), minlength=100)
    assert abs(counts - 60).max() < 5 * np.sqrt(60 * 0.7)
    assert curvature_indices(100, 1.0, 1, jax.random.key(0)) is None


def test_evenly_spaced_curvature_samples_are_a_multiple_of_the_microbatches():
    assert curvature_indices(12, 0.25, 1, None).tolist() == [0, 4, 8]
    assert curvature_indices(12, 0.5, 3, None).tolist() == [0, 2, 4, 6, 8, 10]
    assert len(curvature_indices(12, 0.01, 3, None)) == 3


def test_random_sampling_changes_the_curvature_alone(x64):
    params, batch = draw("gaussian", "float64", seed=4)
    options = config(curvature_fraction=0.5, curvature_sampling="random")
    (_, a), (_, b) = (compiled_update(gaussian_fn, params, batch, options, key=jax.random.key(seed)) for seed in (0, 1))
    _, whole = compiled_update(gaussian_fn, params, batch, config())
    np.testing.assert_allclose([a.gradient_norm, b.gradient_norm], whole.gradient_norm, rtol=1e-12)
    assert len({float(info.step_norm) for info in (a, b, whole)}) == 3


def test_random_sampling_without_a_key_is_refused():
    params, batch = draw("gaussian", "float32")
    with pytest.raises(ConfigError, match='key: got None, allowed: a PRNG key where curvature_sampling is "random"'):
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
    options = config(max_kl=2.0, damping=1e-3, cg_iterations=30)
    searched, searched_info = update(name, params, batch, options)
    natural, info = update(name, params, batch, dataclasses.replace(options, line_search=False))
    assert searched_info.step_fraction < 1
    assert info.accepted
    assert (int(info.backtracks), float(info.step_fraction)) == (0, 1.0)
    flat, searched_flat, natural_flat = (np.asarray(ravel_pytree(p)[0]) for p in (params, searched, natural))
    np.testing.assert_allclose((searched_flat - flat) / searched_info.step_fraction, natural_flat - flat, rtol=1e-8, atol=1e-12)
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
    lenient, strict = (config(max_kl=0.2, damping=0.1, cg_iterations=30, accept_ratio=ratio) for ratio in (0.0, 0.95))
    _, free = update("gaussian", params, batch, lenient)
    _, info = update("gaussian", params, batch, strict)
    assert info.accepted
    assert info.backtracks > free.backtracks
    full = info.expected_improvement / info.step_fraction
    np.testing.assert_allclose(full, free.expected_improvement / free.step_fraction, rtol=1e-9)
    assert info.surrogate_improvement >= 0.95 * info.expected_improvement
    assert free.surrogate_improvement < 0.95 * free.expected_improvement


# --- preconditioning, warm start, adaptive damping --------------------------------------------------------


def linear_fn(params, observation):
    mean = observation @ params["in"]
    return DiagonalGaussian(mean, jnp.broadcast_to(params["log_std"], mean.shape))


def badly_scaled(dtype, batch_size=256):
    """A Gaussian policy whose inputs differ in scale by 10⁴: its Fisher matrix is ill-conditioned, mostly by its diagonal."""
    rng = np.random.default_rng(0)
    scales = np.logspace(-2, 2, 30)
    params = {"in": jnp.asarray(rng.normal(size=(30, A)) / scales[:, None], dtype), "log_std": jnp.zeros(A, dtype)}
    observation = jnp.asarray(rng.normal(size=(batch_size, 30)) * scales, dtype)
    policy = linear_fn(params, observation)
    action = policy.mean + jnp.asarray(rng.normal(size=policy.mean.shape), dtype)
    return params, Batch(observation, action, policy.log_prob(action), jnp.asarray(rng.normal(size=batch_size), dtype))


def test_the_diagonal_estimate_is_the_fisher_matrixs_diagonal_up_to_its_sampling_error(x64):
    rng = np.random.default_rng(1)
    params, small = draw("gaussian", "float64", seed=9)
    many = 256 * 40
    observation = jnp.tile(small.observation, (many // B + 1, 1))[:many]
    policy = gaussian_fn(params, observation)
    action = policy.mean + jnp.exp(policy.log_std) * jnp.asarray(rng.normal(size=policy.mean.shape))
    weight = jnp.asarray(rng.random(many))
    batch = Batch(observation, action, policy.log_prob(action), jnp.zeros(many), weight)
    diagonal = jax.jit(fisher_diagonal, static_argnums=0)
    estimates = [
        ravel_pytree(diagonal(gaussian_fn, params, jax.tree.map(lambda leaf, i=i: leaf[i::40], batch)))[0] for i in range(40)
    ]
    matvec = fisher_vector_product(lambda p: gaussian_fn(p, observation), params, weight=weight)
    flat, unravel = ravel_pytree(params)
    exact = jnp.diag(jax.vmap(lambda column: ravel_pytree(matvec(unravel(column)))[0])(jnp.eye(flat.size)))
    error = np.std(estimates, axis=0) / np.sqrt(40)
    assert (np.abs(np.mean(estimates, axis=0) - exact) < 5 * error + 1e-12).all()
    assert (error < 0.2 * exact + 1e-9).all()


def test_the_diagonal_preconditioner_saves_iterations_and_changes_no_solution(x64):
    params, batch = badly_scaled("float64")
    options = dataclasses.replace(config(damping=1e-6, cg_iterations=1000), cg_tolerance=1e-16)
    plain, plain_info = compiled_update(linear_fn, params, batch, options)
    options = dataclasses.replace(options, preconditioner="diagonal")
    preconditioned, info = compiled_update(linear_fn, params, batch, options)
    assert plain_info.accepted
    for key in params:
        np.testing.assert_allclose(preconditioned[key], plain[key], rtol=1e-4)
    assert info.cg_iterations < 0.7 * plain_info.cg_iterations


def test_a_warm_start_from_the_solution_itself_needs_no_iteration_whatever_the_gradients_scale(x64):
    params, batch = badly_scaled("float64")
    options = dataclasses.replace(config(warm_start=True, cg_iterations=100), cg_tolerance=1e-10)
    start = init_trust_region_state(params, options)
    new, state, cold = compiled_stateful_update(linear_fn, params, batch, start, options)
    plain, plain_info = compiled_update(linear_fn, params, batch, dataclasses.replace(options, warm_start=False))
    assert_same_update((new, cold), (plain, plain_info), rtol=1e-6)
    assert cold.cg_iterations > 5
    opposite = batch._replace(advantage=-3.0 * batch.advantage)
    again, _, warm = compiled_stateful_update(linear_fn, params, opposite, state, options)
    assert warm.cg_iterations == 0
    for key in params:
        np.testing.assert_allclose(again[key] - params[key], -(new[key] - params[key]), rtol=0.5, atol=1e-2)


def test_adaptive_damping_grows_after_a_shortened_step_shrinks_after_a_good_one_and_is_carried(x64):
    params, batch = draw("gaussian", "float64", seed=10)
    for max_kl, factor in ((1e-4, 1 / 1.5), (5.0, 1.5)):
        options = config(max_kl=max_kl, adaptive_damping=True)
        state = init_trust_region_state(params, options)
        _, state, info = compiled_stateful_update(gaussian_fn, params, batch, state, options)
        np.testing.assert_allclose(info.damping, CONFIG.damping, rtol=1e-6)
        np.testing.assert_allclose(state.damping, factor * CONFIG.damping, rtol=1e-6)
        _, _, second = compiled_stateful_update(gaussian_fn, params, batch, state, options)
        np.testing.assert_allclose(second.damping, factor * CONFIG.damping, rtol=1e-6)
        assert (info.step_fraction < 1) == (factor > 1)


def test_adaptive_damping_stays_in_range_and_is_left_alone_where_nothing_was_tried():
    params, batch = draw("gaussian", "float32")
    options = config(adaptive_damping=True)
    state = init_trust_region_state(params, options)
    _, untouched, _ = compiled_stateful_update(gaussian_fn, params, batch._replace(advantage=jnp.zeros(B)), state, options)
    assert untouched.damping == state.damping
    refused = batch._replace(advantage=jnp.nan * batch.advantage)
    _, grown, _ = compiled_stateful_update(gaussian_fn, params, refused, state._replace(damping=jnp.float32(900)), options)
    np.testing.assert_allclose(grown.damping, 1000, rtol=1e-6)
    yes, no = jnp.asarray(True), jnp.asarray(False)
    np.testing.assert_allclose(adapt_damping(jnp.float32(1.2e-6), good=yes, poor=no), 1e-6, rtol=1e-6)
    np.testing.assert_allclose(adapt_damping(jnp.float32(0.3), good=no, poor=no), 0.3, rtol=1e-6)


@pytest.mark.parametrize("option", ["warm_start", "adaptive_damping"])
def test_options_that_need_a_state_are_refused_without_one_and_states_of_others_too(option):
    params, batch = draw("gaussian", "float32")
    with pytest.raises(ConfigError, match=f"{option}: got True, allowed: false where no state is carried"):
        trust_region_update(gaussian_fn, params, batch, config(**{option: True}))
    plain = init_trust_region_state(params, config())
    with pytest.raises(ValueError, match=r"state\.(direction|damping): got None, allowed: what init_trust_region_state"):
        stateful_trust_region_update(gaussian_fn, params, batch, plain, config(**{option: True}))


def test_a_direction_of_other_parameters_is_refused():
    params, batch = draw("gaussian", "float32")
    options = config(warm_start=True)
    other = init_trust_region_state({**params, "bias": jnp.zeros(7)}, options)
    with pytest.raises(ValueError, match=r"state.direction: got arrays of other shapes than params"):
        stateful_trust_region_update(gaussian_fn, params, batch, other, options)


def test_actions_of_another_kind_than_the_policys_are_refused(own_errors):
    params, batch = draw("categorical", "float32")
    with pytest.raises(TypeError, match=r"batch.action: got dtype float32, allowed: one like int32"):
        trust_region_update(POLICIES["categorical"], params, batch._replace(action=batch.action.astype("float32")), CONFIG)


@pytest.mark.parametrize("num_parts", [3, 6])
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
