"""Fisher and Hessian products against matrices that are built without them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from trpo_jax.policy.distributions import Categorical, DiagonalGaussian
from trpo_jax.solver.curvature import (
    curvature_of_states,
    empirical_fisher_vector_product,
    fisher_vector_product,
    hessian_vector_product,
)

B, OBSERVATION, HIDDEN, ACTION = 6, 3, 4, 3
WEIGHTS = {"unweighted": None, "weighted": np.array([0.5, 0.0, 2.0, 7.0, 0.0, 1.0])}


def gaussian_fn(params, observation):
    mean = jnp.tanh(observation @ params["in"]) @ params["out"]
    return DiagonalGaussian(mean, jnp.broadcast_to(params["log_std"], mean.shape))


def categorical_fn(params, observation):
    return Categorical(jnp.tanh(observation @ params["in"]) @ params["out"] + params["log_std"][None])


POLICIES = {"gaussian": gaussian_fn, "categorical": categorical_fn}


def draw(dtype, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"in": (OBSERVATION, HIDDEN), "out": (HIDDEN, ACTION), "log_std": (ACTION,)}
    params = {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}
    return params, jnp.asarray(rng.normal(size=(B, OBSERVATION)), dtype)


def dense(matvec, params):
    """The matrix of a map on pytrees, column by column."""
    flat, unravel = ravel_pytree(params)
    return jax.vmap(lambda column: ravel_pytree(matvec(unravel(column)))[0], out_axes=1)(jnp.eye(flat.size, dtype=flat.dtype))


def explicit_fisher(name, params, observation, weight):
    """Σ w JᵀMJ / Σ w in numpy, with the textbook M: diag(1/σ², 2) for a Gaussian, diag(p) - ppᵀ for a categorical."""
    flat, unravel = ravel_pytree(params)

    def leaves(flat, observation):
        return ravel_pytree(POLICIES[name](unravel(flat), observation[None]))[0]

    jacobians = np.asarray(jax.jit(jax.vmap(jax.jacfwd(leaves), (None, 0)))(flat, observation), np.float64)
    outputs = np.asarray(jax.vmap(leaves, (None, 0))(flat, observation), np.float64)
    total = np.zeros((flat.size, flat.size))
    weight = np.ones(B) if weight is None else weight
    for jacobian, output, w in zip(jacobians, outputs, weight, strict=True):
        if name == "gaussian":
            metric = np.diag(np.concatenate([np.exp(-2 * output[ACTION:]), np.full(ACTION, 2.0)]))
        else:
            p = np.exp(output - output.max()) / np.exp(output - output.max()).sum()
            metric = np.diag(p) - np.outer(p, p)
        total += w * jacobian.T @ metric @ jacobian
    return total / weight.sum()


@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("name", POLICIES)
def test_the_fisher_product_equals_the_dense_matrix_and_is_symmetric_and_positive(name, weighting, dtype):
    params, observation = draw(dtype)
    weight = WEIGHTS[weighting]
    product_weight = None if weight is None else jnp.asarray(weight, dtype)
    matrix = jax.jit(
        lambda p: dense(fisher_vector_product(lambda p: POLICIES[name](p, observation), p, weight=product_weight), p)
    )
    fisher = np.asarray(matrix(params), np.float64)
    expected = explicit_fisher(name, params, observation, weight)
    tolerance = 200 * float(jnp.finfo(dtype).eps) * np.abs(expected).max()
    np.testing.assert_allclose(fisher, expected, atol=tolerance)
    np.testing.assert_allclose(fisher, fisher.T, atol=tolerance)
    assert np.linalg.eigvalsh(fisher).min() > -tolerance


@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("name", POLICIES)
def test_the_fisher_product_equals_the_hessian_of_the_mean_kl_at_the_old_parameters(name, weighting, x64):
    params, observation = draw("float64", seed=1)
    flat, unravel = ravel_pytree(params)
    weight = WEIGHTS[weighting]
    old = POLICIES[name](params, observation)
    hessian = jax.jit(jax.hessian(lambda f: jnp.average(old.kl(POLICIES[name](unravel(f), observation)), weights=weight)))(flat)
    jax_weight = None if weight is None else jnp.asarray(weight)
    matvec = jax.jit(lambda v: fisher_vector_product(lambda p: POLICIES[name](p, observation), params, weight=jax_weight)(v))
    for v in np.random.default_rng(2).normal(size=(3, flat.size)):
        np.testing.assert_allclose(ravel_pytree(matvec(unravel(jnp.asarray(v))))[0], hessian @ v, rtol=1e-9, atol=1e-10)


def test_the_fisher_is_the_mean_over_samples_not_the_fisher_of_the_mean_output_bug_10():
    # The means θ·s of the states s = ±1 average to zero whatever θ is; the mean Fisher is s²/σ² = 1/4 all the same.
    states = jnp.asarray([[1.0], [-1.0]])

    @jax.jit
    def product(theta, v):
        return fisher_vector_product(lambda t: DiagonalGaussian(states * t, jnp.full((2, 1), jnp.log(2.0))), theta)(v)

    np.testing.assert_allclose(product(jnp.float32(3), jnp.float32(1)), 0.25, rtol=1e-6)


@pytest.mark.parametrize("name", POLICIES)
def test_a_weight_counts_like_repetition_and_its_scale_does_not_matter(name, x64):
    params, observation = draw("float64")
    counts = np.array([1, 0, 3, 2, 0, 1])

    @jax.jit
    def product(observation, weight):
        return ravel_pytree(fisher_vector_product(lambda p: POLICIES[name](p, observation), params, weight=weight)(params))[0]

    repeated = product(jnp.repeat(observation, counts, axis=0), None)
    for scale in (1.0, 1e-6, 1e6):
        np.testing.assert_allclose(product(observation, jnp.asarray(scale * counts)), repeated, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("make", [fisher_vector_product, hessian_vector_product])
def test_products_run_in_full_precision_whatever_the_default_is(make):
    # The CPU has no other precision, so what is asked of XLA is read off the program.
    params, observation = draw("float32")

    def distribution_fn(p):
        return gaussian_fn(p, observation)

    function = distribution_fn if make is fisher_vector_product else (lambda p: distribution_fn(p).log_prob(observation).sum())
    with jax.default_matmul_precision("bfloat16"):
        program = jax.jit(lambda p, v: make(function, p)(v)).lower(params, params).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) >= 6  # value, tangent and cotangent of two layers
    assert [line for line in products if "precision = [HIGHEST, HIGHEST]" not in line] == []


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Exponential:
    """A distribution that a user could write: it has a kl, and a leaf that is not floating."""

    log_rate: jax.Array
    event_count: jax.Array

    def kl(self, other):
        difference = other.log_rate - self.log_rate
        return self.event_count * (jnp.exp(difference) - 1 - difference)


def test_a_distribution_of_the_users_own_needs_a_kl_and_nothing_else():
    counts = jnp.asarray([1, 2, 6])

    @jax.jit
    def product(params, v):
        return fisher_vector_product(lambda p: Exponential(jnp.full(3, p["rate"]), counts), params)(v)

    result = product({"rate": jnp.float32(0.7)}, {"rate": jnp.float32(2)})
    np.testing.assert_allclose(result["rate"], 2 * 3, rtol=1e-6)  # Fisher information of log_rate: n


def test_short_floats_keep_their_dtype():
    params, observation = draw("bfloat16")
    product = jax.jit(lambda p: fisher_vector_product(lambda p: gaussian_fn(p, observation), p)(p))(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(product)} == {jnp.dtype("bfloat16")}
    flat = np.asarray(ravel_pytree(product)[0], np.float64)
    expected = explicit_fisher("gaussian", params, observation, None) @ np.asarray(ravel_pytree(params)[0], np.float64)
    assert np.linalg.norm(flat - expected) < 0.05 * np.linalg.norm(expected)


def rosenbrock(params):
    x = jnp.concatenate([params["a"], params["b"].reshape(-1)])
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def test_the_hessian_product_equals_the_dense_hessian_of_a_function_that_is_not_convex(dtype):
    params = {"a": jnp.asarray([0.3, -1.2], dtype), "b": jnp.asarray([[0.5, 2.0]], dtype)}
    flat, unravel = ravel_pytree(params)
    expected = np.asarray(jax.jit(jax.hessian(lambda f: rosenbrock(unravel(f))))(flat))
    assert np.linalg.eigvalsh(expected).min() < 0
    matrix = jax.jit(lambda p: dense(hessian_vector_product(rosenbrock, p), p))(params)
    np.testing.assert_allclose(matrix, expected, atol=20 * float(jnp.finfo(dtype).eps) * np.abs(expected).max())


@jax.custom_vjp
def own_tanh(x):
    """tanh with a derivative of its own, for reverse mode only, as kernels have."""
    return jnp.tanh(x)


own_tanh.defvjp(lambda x: (jnp.tanh(x), jnp.tanh(x)), lambda y, cotangent: (cotangent * (1 - y**2),))


def test_functions_without_a_forward_mode_have_the_same_products(x64):
    params, observation = draw("float64")

    def policy(tanh):
        def distribution_fn(params):
            mean = tanh(observation @ params["in"]) @ params["out"]
            return DiagonalGaussian(mean, jnp.broadcast_to(tanh(params["log_std"]), mean.shape))

        return distribution_fn

    def states(tanh):
        return jax.jit(lambda params: curvature_of_states(policy(tanh), params, params))(params)

    def hessian(tanh):
        return dense(hessian_vector_product(lambda params: rosenbrock({"a": tanh(params["a"]), "b": params["b"]}), few), few)

    few = {"a": jnp.asarray([0.3, -1.2]), "b": jnp.asarray([[0.5, 2.0]])}
    fisher = [jax.jit(lambda params, tanh=tanh: fisher_vector_product(policy(tanh), params)(params))(params) for tanh in TANHS]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), *fisher)
    for function in (states, hessian):
        np.testing.assert_allclose(*(function(tanh) for tanh in TANHS), rtol=1e-10)


TANHS = (jnp.tanh, own_tanh)


@pytest.mark.parametrize("name", POLICIES)
def test_the_curvature_of_each_state_is_that_of_its_own_fisher_matrix(name, x64):
    params, observation = draw("float64")
    x = draw("float64", seed=1)[0]
    flat = np.asarray(ravel_pytree(x)[0])
    curvature = curvature_of_states(lambda params: POLICIES[name](params, observation), params, x)
    for i in range(B):
        only = np.zeros(B)
        only[i] = 1.0
        np.testing.assert_allclose(curvature[i], flat @ explicit_fisher(name, params, observation, only) @ flat, rtol=1e-9)


def test_what_cannot_be_used_is_refused_by_name(own_errors):
    with pytest.raises(TypeError, match=r"params\['n'\]: got dtype int32, allowed: a floating dtype"):
        fisher_vector_product(lambda p: None, {"n": jnp.arange(2)})
    with pytest.raises(TypeError, match=r"params\['n'\]: got dtype int32"):
        hessian_vector_product(lambda p: p["n"].sum(), {"n": jnp.arange(2)})
    with pytest.raises(TypeError, match=r"distribution_fn: got a return value of type tuple, allowed: a distribution with kl"):
        fisher_vector_product(lambda p: (p, p), jnp.ones(2))


def test_the_curvature_of_each_state_is_not_rounded_to_the_policys_dtype(x64):
    params, observation = draw("bfloat16")
    x = draw("bfloat16", seed=1)[0]

    def policy(params):
        return POLICIES["gaussian"](params, observation)

    old, moved = jax.jvp(policy, (params,), (x,))
    mean, log_std, old_log_std = (np.asarray(leaf, np.float64) for leaf in (moved.mean, moved.log_std, old.log_std))
    expected = np.sum(mean**2 * np.exp(-2 * old_log_std) + 2 * log_std**2, axis=-1)
    np.testing.assert_allclose(curvature_of_states(policy, params, x), expected, rtol=1e-5)


@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("name", POLICIES)
def test_the_empirical_fisher_is_the_mean_outer_product_of_scores_and_its_expectation_the_fisher(name, weighting, x64):
    params, observation = draw("float64")
    flat, unravel = ravel_pytree(params)
    weight = WEIGHTS[weighting]
    jax_weight = None if weight is None else jnp.asarray(weight)

    def log_prob(params, action):
        return POLICIES[name](params, observation).log_prob(action)

    @jax.jit
    def both(key):
        action = POLICIES[name](params, observation).sample(key)
        product = empirical_fisher_vector_product(lambda params: log_prob(params, action), params, weight=jax_weight)
        return dense(product, params), jax.jacrev(lambda flat: log_prob(unravel(flat), action))(flat)

    matrix, scores = both(jax.random.key(0))
    expected = sum(
        w * np.outer(score, score) for w, score in zip(np.ones(B) if weight is None else weight, scores, strict=True)
    )
    np.testing.assert_allclose(matrix, expected / (B if weight is None else weight.sum()), rtol=1e-9, atol=1e-12)
    matrices = jax.lax.map(lambda key: both(key)[0], jax.random.split(jax.random.key(1), 20_000), batch_size=1000)
    analytic = dense(fisher_vector_product(lambda p: POLICIES[name](p, observation), params, weight=jax_weight), params)
    error, spread = matrices.mean(axis=0) - analytic, matrices.std(axis=0) / np.sqrt(len(matrices))
    assert (np.abs(error) < 5 * spread + 1e-9).all()
