"""The policy update's numbers against dense numpy, and what it refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from trpo_jax.objective.trust_region_update import trust_region_update
from trpo_jax.policy.distributions import DiagonalGaussian
from trpo_jax.policy.networks import PolicyNetwork
from trpo_jax.solver.vector_step import AIM, LONGEST, SLACK
from trpo_jax.spaces import Box
from update_problems import (
    CONFIG,
    NAMES,
    POLICIES,
    A,
    B,
    O,
    as_array,
    draw,
    examine,
    gaussian_fn,
    numpy_forward,
    numpy_kl,
    update,
)


def dense_update(name, params, batch, config, states):
    """The same update in numpy float64 with explicit matrices, the Fisher's over `states`; only the Jacobians come from JAX."""
    flat, unravel = ravel_pytree(params)

    def leaves(flat, observation):
        return ravel_pytree(POLICIES[name](unravel(flat), observation[None]))[0]

    jacobians = np.asarray(jax.jit(jax.vmap(jax.jacfwd(leaves), (None, 0)))(flat, batch.observation))
    p = numpy_forward(name, params, batch.observation)
    action, advantage = np.asarray(batch.action), np.asarray(batch.advantage)
    gradient, fisher = np.zeros(flat.size), np.zeros((flat.size, flat.size))
    for i, jacobian in enumerate(jacobians):
        if name == "gaussian":
            std = np.exp(p["log_std"][i])
            z = (action[i] - p["mean"][i]) / std
            score, metric = np.concatenate([z / std, z**2 - 1]), np.diag(np.concatenate([1 / std**2, np.full(A, 2.0)]))
        else:
            probability = np.exp(p["log_p"][i])
            score, metric = np.eye(A)[action[i]] - probability, np.diag(probability) - np.outer(probability, probability)
        gradient += advantage[i] * jacobian.T @ score / len(jacobians)
        fisher += jacobian.T @ metric @ jacobian / len(states) if i in states else 0
    damped = fisher + config.damping * np.eye(flat.size)
    x = np.linalg.solve(damped, gradient)
    step = np.sqrt(2 * config.max_kl / ((1 + SLACK) * max(x @ fisher @ x, x @ damped @ x / LONGEST**2))) * x
    fraction = 1.0
    for k in range(config.max_backtracks + 1):
        new = unravel(jnp.asarray(np.asarray(flat) + fraction * step))
        kl, _, improvement, _ = examine(name, params, new, batch, 0.0)
        if kl <= config.max_kl and improvement >= config.accept_ratio * fraction * gradient @ step:
            q = numpy_forward(name, new, batch.observation)
            return new, {
                "surrogate_improvement": improvement,
                "expected_improvement": fraction * gradient @ step,
                "kl": kl,
                "max_kl": numpy_kl(name, p, q).max(),
                "backtracks": k,
                "step_fraction": fraction,
                "gradient_norm": np.linalg.norm(gradient),
                "step_norm": fraction * np.linalg.norm(step),
            }
        just_too_large = k == 0 and kl > config.max_kl
        factor = max(config.backtrack_factor, AIM * np.sqrt(config.max_kl / kl) if just_too_large else 0.0)
        fraction *= float(np.float32(factor))  # as the line search has them
    raise AssertionError("the oracle found no step")


def compare_with_dense(name, dtype, states=range(B), **changes):
    """Update in `dtype` and in numpy; return the numpy report once the two agree, in parameters and in every number."""
    params, batch = draw(name, dtype, seed=3)
    # Sums of powers of two, which float32 holds exactly.
    config = dataclasses.replace(CONFIG, damping=0.125, cg_iterations=30, backtrack_factor=0.75, **changes)
    new, info = update(name, params, batch, config)
    with jax.enable_x64(True):
        exact = jax.tree.map(functools.partial(as_array, dtype="float64"), (params, batch))
        expected, report = dense_update(name, *exact, config, states)
    tolerance = 1e-9 if dtype == "float64" else 1e-3
    for key in params:
        np.testing.assert_allclose(new[key], expected[key], rtol=tolerance, atol=tolerance / 10)
    for field, value in report.items():
        np.testing.assert_allclose(getattr(info, field), value, rtol=max(tolerance, 1e-6), err_msg=field)
    entropy = POLICIES[name](new, batch.observation).entropy().mean()
    np.testing.assert_allclose(info.entropy, entropy, rtol=1e-5)
    return report


# The second asks so much that the line search has to work.
@pytest.mark.parametrize(("max_kl", "accept_ratio", "backtracks"), [(2**-7, 0.0, range(2)), (0.5, 0.875, range(1, 7))])
@pytest.mark.parametrize("name", NAMES)
def test_the_update_and_its_report_equal_dense_linear_algebra(name, max_kl, accept_ratio, backtracks, dtype):
    report = compare_with_dense(name, dtype, max_kl=max_kl, accept_ratio=accept_ratio)
    assert report["backtracks"] in backtracks


def test_subsampling_thins_the_curvature_but_neither_the_gradient_nor_the_line_search_bug_8(x64):
    compare_with_dense("gaussian", jnp.dtype("float64"), states=(0, 4, 8), curvature_fraction=0.25)


def test_log_std_is_among_the_optimized_parameters_bug_7():
    network = PolicyNetwork(Box(A), (4,))
    params, batch = draw("gaussian", "float32")
    params = jax.jit(network.init)(jax.random.key(0), batch.observation)
    # Reward actions far from the mean: the standard deviation has to grow.
    batch = batch._replace(advantage=jnp.sum(batch.action**2, axis=-1) - 1)
    batch = batch._replace(log_prob=network.apply(params, batch.observation).log_prob(batch.action))
    new, info = jax.jit(functools.partial(trust_region_update, network.apply))(params, batch)
    assert bool(info.accepted)
    assert (new["params"]["log_std"] > params["params"]["log_std"]).all()


@pytest.mark.parametrize("name", NAMES)
def test_an_integer_weight_equals_repetition_and_its_scale_does_not_matter(name, x64):
    params, batch = draw(name, "float64", seed=5)
    counts = np.array([1, 2, 0, 3, 1, 0, 0, 1, 2, 1, 1, 0])
    repeated, _ = update(name, params, jax.tree.map(lambda leaf: jnp.repeat(leaf, counts, axis=0), batch), CONFIG)
    for scale in (1.0, 1e-9, 1e9):
        weighted, info = update(name, params, batch._replace(weight=jnp.asarray(scale * counts)), CONFIG)
        assert bool(info.accepted)
        for key in params:
            np.testing.assert_allclose(weighted[key], repeated[key], rtol=1e-8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_a_masked_sample_equals_a_removed_one_whatever_it_holds(x64, bad):
    params, batch = draw("gaussian", "float64", seed=6)
    keep = np.array([0, 2, 3, 4, 5, 7, 8, 9, 10])
    removed, info = update("gaussian", params, jax.tree.map(lambda leaf: leaf[keep], batch), CONFIG)
    assert bool(info.accepted)
    drop = np.setdiff1d(np.arange(B), keep)
    spoilt = jax.tree.map(lambda leaf: leaf.at[drop].set(bad), batch._replace(weight=None))
    masked, masked_info = update("gaussian", params, spoilt._replace(weight=batch.weight.at[drop].set(0.0)), CONFIG)
    for key in params:
        np.testing.assert_allclose(masked[key], removed[key], rtol=1e-8)
    for one, other in zip(masked_info, info, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_floats_of_the_config_are_traced_so_that_a_sweep_compiles_once_and_equals_a_loop():
    params, batch = draw("gaussian", "float32", seed=7)
    traces = []

    @jax.jit
    def one(max_kl, damping):
        traces.append(1)
        return trust_region_update(gaussian_fn, params, batch, dataclasses.replace(CONFIG, max_kl=max_kl, damping=damping))

    max_kl, damping = jnp.asarray([1e-4, 0.02, 0.5]), jnp.asarray([0.1, 0.01, 1.0])
    alone = [one(*pair) for pair in zip(max_kl, damping, strict=True)]
    assert len(traces) == 1
    swept, infos = jax.vmap(one)(max_kl, damping)
    for i, (new, info) in enumerate(alone):
        np.testing.assert_allclose(infos.kl[i], info.kl, rtol=1e-3)
        assert infos.kl[i] <= max_kl[i]
        for key in params:
            np.testing.assert_allclose(swept[key][i], new[key], rtol=1e-4, atol=1e-6)


def test_updates_under_scan_are_updates_one_by_one_and_batch_axes_do_not_matter():
    params, batch = draw("gaussian", "float32", seed=8)
    grid = jax.tree.map(lambda leaf: leaf.reshape(3, 4, *leaf.shape[1:]), batch)

    def policy_fn(params, observation):
        p = gaussian_fn(params, observation.reshape(B, O))
        return jax.tree.map(lambda leaf: leaf.reshape(*observation.shape[:-1], A), p)

    end, infos = jax.lax.scan(lambda p, _: trust_region_update(policy_fn, p, grid, CONFIG), params, None, length=2)
    new, _ = update("gaussian", params, batch, CONFIG)
    new, info = update("gaussian", new, batch, CONFIG)
    assert infos.accepted.tolist() == [True, True]
    np.testing.assert_allclose(infos.surrogate_improvement[-1], info.surrogate_improvement, rtol=1e-3)
    for key in params:
        np.testing.assert_allclose(end[key], new[key], rtol=1e-3, atol=1e-5)


def test_every_matrix_product_of_an_update_runs_in_full_precision_whatever_the_default_is():
    # The CPU has no other precision, so what is asked of XLA is read off the lowered program.
    params, batch = draw("gaussian", "float32")
    with jax.default_matmul_precision("bfloat16"):
        program = jax.jit(functools.partial(trust_region_update, gaussian_fn)).lower(params, batch).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) > 20
    assert [line for line in products if "precision = [HIGHEST, HIGHEST]" not in line] == []


@pytest.mark.parametrize(
    ("policy_fn", "change", "error", "message"),
    [
        (
            lambda p, x: x @ p["in"],
            {},
            TypeError,
            "policy_fn: got a return value of type .*, allowed: a Distribution with log_prob",
        ),
        (lambda p, x: None, {}, TypeError, "policy_fn: got a return value of type NoneType, allowed: a Distribution"),
        (
            lambda p, x: DiagonalGaussian(x[:1, :A], x[:1, :A]),
            {},
            ValueError,
            r"batch.action: got shape \(12, 2\), allowed: \(1, 2\), the shape of the policy's actions",
        ),
        (gaussian_fn, {"advantage": jnp.zeros(3)}, ValueError, r"batch.advantage: got shape \(3,\), allowed: \(12,\)"),
        (gaussian_fn, {"weight": jnp.ones(B, "int32")}, TypeError, "batch.weight: got dtype int32, allowed: a floating dtype"),
    ],
)
def test_what_does_not_fit_together_raises_while_tracing(own_errors, policy_fn, change, error, message):
    params, batch = draw("gaussian", "float32")
    with pytest.raises(error, match=message):
        jax.eval_shape(functools.partial(trust_region_update, policy_fn), params, batch._replace(**change))  # runs nothing


def test_integer_parameters_are_refused_by_name(own_errors):
    params, batch = draw("gaussian", "float32")
    with pytest.raises(TypeError, match=r"params\['count'\]: got dtype int32, allowed: a floating dtype"):
        jax.eval_shape(functools.partial(trust_region_update, gaussian_fn), {**params, "count": jnp.arange(2)}, batch)


@pytest.mark.parametrize("scale", [2e-38, 1e-30, 1e30, 1e37])
def test_the_scale_of_weights_does_not_matter_at_the_ends_of_float32(scale):
    params, batch = draw("gaussian", "float32")
    _, expected = update("gaussian", params, batch, CONFIG)
    _, info = update("gaussian", params, batch._replace(weight=scale * batch.weight), CONFIG)
    assert info.accepted
    np.testing.assert_allclose(info.kl, expected.kl, rtol=1e-3)


def test_actions_of_another_shape_than_the_policys_are_refused(own_errors):
    params, batch = draw("gaussian", "float32")
    with pytest.raises(
        ValueError, match=r"batch.action: got shape \(12, 1\), allowed: \(12, 2\), the shape of the policy's actions"
    ):
        trust_region_update(gaussian_fn, params, batch._replace(action=batch.action[:, :1]), CONFIG)
