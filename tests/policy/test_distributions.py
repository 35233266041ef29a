"""What holds for every distribution: against sums and integrals over all actions, scipy, Monte Carlo, finite differences."""

import decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from policy.distribution_problems import (
    PROBLEMS,
    B,
    build,
    draw_allowed,
    draw_pair,
    everything,
    gradients,
    many_samples,
    quantities,
    scalars,
    scipy_entropy,
    scipy_log_prob,
    support,
    textbook_kl,
    unoptimized,
)
from trpo_jax.policy.distributions import Categorical, DiagonalGaussian, Distribution, expm1_minus_identity
from trpo_jax.solver.curvature import fisher_vector_product

every_distribution = pytest.mark.parametrize("name", PROBLEMS)


@every_distribution
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.0, 1e-3, 1.0, 10.0]))
@settings(max_examples=25)
def test_a_distribution_has_kl_exactly_zero_and_gradient_exactly_zero_to_itself(name, dtype, seed, scale):
    p, _ = draw_pair(name, dtype, seed, scale)
    found = everything(p, p, p.mode())
    for leaf in (found["kl"], *found["kl_gradients"]):
        np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))
    assert found["kl"].shape == (B,)


@every_distribution
def test_probability_adds_up_to_one_and_to_the_kl_and_the_entropy_that_it_defines(x64, name):
    p, q = draw_pair(name, "float64", 1, scale=0.4, axes=())
    actions, weights = support(p)

    @unoptimized
    def in_two_ways(p, q, actions):
        log_p, log_q = jax.vmap(p.log_prob)(actions), jax.vmap(q.log_prob)(actions)
        mass = weights * jnp.exp(log_p)
        return (mass.sum(), -(mass * log_p).sum(), (mass * (log_p - log_q)).sum()), (1.0, p.entropy(), p.kl(q))

    np.testing.assert_allclose(*in_two_ways(p, q, actions), rtol=1e-6)


@every_distribution
def test_kl_entropy_and_log_prob_equal_scipy(name, dtype):
    p, q = draw_pair(name, dtype, 2, distance=1.0)
    action = q.mode()
    expected = {"kl": textbook_kl(p, q), "entropy": scipy_entropy(p), "log_prob": scipy_log_prob(p, action)}
    found = everything(p, q, action)
    precision = {"float32": 1e-5, "float64": 1e-11}[dtype.name]
    for quantity, value in expected.items():
        by_quadrature = quantity == "entropy" and name in ("tanh_gaussian", "joint")
        rtol = max(1e-6, precision) if by_quadrature else precision
        assert found[quantity].shape == (B,)
        np.testing.assert_allclose(found[quantity], value, rtol=rtol, atol=rtol, err_msg=quantity)


@every_distribution
@pytest.mark.parametrize("distance", [1.0, 0.1, 1e-2, 1e-3, 1e-4])
def test_float32_keeps_the_relative_precision_of_the_kl_of_very_close_distributions(name, distance):
    # The textbook formulas lose everything below a distance of 1e-3, in float32.
    p, q = draw_pair(name, "float32", 1, distance=distance)
    np.testing.assert_allclose(everything(p, q, p.mode())["kl"], textbook_kl(p, q), rtol=3e-6)


@unoptimized
def log_probs(p, q, actions):
    return jax.vmap(lambda action: (p.log_prob(action), q.log_prob(action)))(actions)


@pytest.mark.quick_compilation
@every_distribution
def test_kl_and_entropy_equal_their_monte_carlo_estimates(name):
    p, q = draw_pair(name, "float32", 3, scale=0.3, distance=0.3)
    samples = many_samples(p, jax.random.split(jax.random.key(0), 20_000))
    log_p, log_q = (np.asarray(x, np.float64) for x in log_probs(p, q, samples))
    found = everything(p, q, p.mode())
    for exact, estimates in ((found["kl"], log_p - log_q), (found["entropy"], -log_p)):
        standard_error = estimates.std(0) / np.sqrt(len(estimates))
        assert (np.abs(estimates.mean(0) - exact) <= 4.5 * standard_error + 1e-6).all()  # one allowed action has no spread
        assert (standard_error < 0.03).all()  # else nothing would be proven


@pytest.mark.quick_compilation
@every_distribution
def test_the_gradients_equal_finite_differences(x64, name):
    p, q = draw_pair(name, "float64", 6, distance=1.0)
    action = q.mode()
    rng = np.random.default_rng(6)
    directions = jax.tree.map(lambda x: rng.normal(size=x.shape) * (x.dtype != bool), (p, q))

    def moved(step):
        pair = jax.tree.map(lambda x, d: x if x.dtype == bool else x + step * d, (p, q), directions)
        found = everything(*pair, action)
        return np.asarray([found["kl"].sum(), (found["entropy"] + found["log_prob"]).sum()])

    here = everything(p, q, action)
    free = [d for x, d in zip(*map(jax.tree.leaves, ((p, q), directions)), strict=True) if x.dtype != bool]
    of_kl = sum((g * d).sum() for g, d in zip(here["kl_gradients"], free, strict=True))
    own = here["own_gradients"]  # in p alone
    of_entropy_and_log_prob = sum((g * d).sum() for g, d in zip(own, free[: len(own)], strict=True))
    np.testing.assert_allclose([of_kl, of_entropy_and_log_prob], (moved(1e-5) - moved(-1e-5)) / 2e-5, rtol=1e-6)


@pytest.mark.quick_compilation
@every_distribution
def test_the_gauss_newton_product_equals_the_dense_hessian_of_the_mean_kl(x64, name):
    width, allowed = len(PROBLEMS[name].extremes), draw_allowed(name, 7)
    rng = np.random.default_rng(7)
    observation, params = jnp.asarray(rng.normal(size=(B, 2))), jnp.asarray(0.5 * rng.normal(size=2 * width))

    def policy(params):
        return PROBLEMS[name].build(observation @ params.reshape(2, width), allowed)

    @unoptimized
    def matrices(params):
        old = policy(params)
        product = jax.vmap(fisher_vector_product(policy, params))(jnp.eye(params.size))
        return product, jax.hessian(lambda params: old.kl(policy(params)).mean())(params)

    product, hessian = matrices(params)
    assert np.abs(hessian).max() > 0.01
    np.testing.assert_allclose(product, hessian, rtol=1e-9, atol=1e-12 * np.abs(hessian).max())


@every_distribution
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_extreme_parameters_give_finite_numbers_finite_gradients_and_no_negative_kl(name, data, seed):
    extremes = np.asarray(PROBLEMS[name].extremes, "float32")
    fractions = hnp.arrays("float32", (2, B, len(extremes)), elements=st.floats(-1, 1, width=32))
    p, q = (build(name, jnp.asarray(x * extremes), draw_allowed(name, seed)) for x in data.draw(fractions))
    keys = jax.random.split(jax.random.key(seed), 2)
    samples = [jax.tree.map(lambda x: x[0], many_samples(each, keys)) for each in (p, q)]
    found = [everything(p, q, action) for action in samples]
    for path, leaf in jax.tree_util.tree_leaves_with_path((samples, found)):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
    assert (found[0]["kl"] >= 0).all()


kl_and_gradients = jax.jit(lambda p, q: (p.kl(q), gradients(lambda p, q: p.kl(q).sum(), p, q)))
EXTREMES = [
    (DiagonalGaussian, [[[0.0], [0.0]], [[20.0], [-20.0]]], [[[0.0], [0.0]], [[-20.0], [20.0]]]),
    (DiagonalGaussian, [[[1e4], [-1e4]], [[0.0], [20.0]]], [[[-1e4], [1e4]], [[-5.0], [-20.0]]]),
    (Categorical, [[[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4]]], [[[-1e4, 1e4, 0.0], [-1e4, 1e4, -1e4]]]),
    (Categorical, [[[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]]], [[[0.0, 0.0, 0.0], [1e4, -1e4, 0.0]]]),
    (Categorical, [[[3e37, -3e37, 0.0], [1e30, 1e30, 1e30]]], [[[-3e37, 3e37, 0.0], [1e30, 0.0, 1e30]]]),
]


@pytest.mark.parametrize(("kind", "p", "q"), EXTREMES)
def test_extreme_parameters_give_the_kl_that_mathematics_has(kind, p, q):
    p, q = (kind(*jnp.asarray(leaves, "float32")) for leaves in (p, q))
    kl, grads = kl_and_gradients(p, q)
    np.testing.assert_allclose(kl, textbook_kl(p, q), rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in grads)


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name not in ("tanh_gaussian", "joint")])
def test_the_mode_has_the_largest_log_prob(name):
    # A squashed Gaussian's `mode` is its median: test_gaussian.py
    p, q = draw_pair(name, "float32", 4)
    of_samples, _ = log_probs(p, q, many_samples(p, jax.random.split(jax.random.key(3), 20_000)))
    of_the_mode = everything(p, q, p.mode())["log_prob"]
    assert (of_the_mode[None] >= of_samples).all()


@pytest.mark.quick_compilation
@every_distribution
def test_a_distribution_is_a_pytree_whose_batch_axes_may_be_mapped_and_be_many(name):
    axes = (2, 3)
    p, q = draw_pair(name, "float32", 5, axes=axes)
    assert isinstance(p, Distribution)
    copy = jax.tree.map(lambda leaf: leaf, p)
    assert jax.tree.structure(copy) == jax.tree.structure(p)
    assert all(a is b for a, b in zip(jax.tree.leaves(copy), jax.tree.leaves(p), strict=True))

    mode = p.mode()
    drawn = jax.eval_shape(p.sample, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), mode) == jax.tree.map(lambda x: (x.shape, x.dtype), drawn)
    assert all(x.shape[:2] == axes for x in jax.tree.leaves(drawn))
    whole, mapped = unoptimized(lambda *args: (quantities(*args), jax.vmap(jax.vmap(quantities))(*args)))(p, q, mode)
    for quantity, value in whole.items():
        assert value.shape == axes
        np.testing.assert_allclose(mapped[quantity], value, rtol=1e-5, atol=1e-6)


@every_distribution
def test_bfloat16_parameters_are_computed_with_in_float32(name):
    p, q = draw_pair(name, "bfloat16", 8)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(p)} <= {"bfloat16", "bool"}
    drawn = jax.tree.leaves(jax.eval_shape(p.sample, jax.random.key(0)))
    assert {leaf.dtype.name for leaf in drawn} <= {"float32", "int32"}
    wide_p, wide_q = jax.tree.map(lambda x: x.astype("float32") if x.dtype == "bfloat16" else x, (p, q))
    expected = everything(wide_p, wide_q, wide_p.mode())
    for quantity, value in scalars(p, q, p.mode()).items():
        assert value.dtype == "float32"
        np.testing.assert_allclose(value, expected[quantity], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype_of_x", ["float32", "float64"])
def test_the_function_inside_the_kl_keeps_its_precision_everywhere(x64, dtype_of_x):
    decimal.getcontext().prec = 60
    sizes = [1e-9, 1e-5, 1e-3, 0.03, 0.2, 0.3499, 0.3501, 0.5, 2.0, 20.0]
    x = np.asarray([sign * size for size in sizes for sign in (1, -1)], dtype_of_x)
    exact = [float(decimal.Decimal(float(v)).exp() - 1 - decimal.Decimal(float(v))) for v in x]
    rounding = 12 * float(jnp.finfo(dtype_of_x).eps)  # just outside the series, 6 of them are lost by cancellation
    np.testing.assert_allclose(jax.jit(expm1_minus_identity)(jnp.asarray(x)), exact, rtol=rounding)
