"""Distributions against scipy, Monte Carlo, and decimal arithmetic."""

import decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from trpo_jax.policy.distributions import Categorical, DiagonalGaussian, Distribution, expm1_minus_identity

B, A = 5, 3


def make(name, dtype, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    if name == "gaussian":
        return DiagonalGaussian(*(jnp.asarray(scale * rng.normal(size=(B, A)), dtype) for _ in range(2)))
    return Categorical(jnp.asarray(scale * rng.normal(size=(B, A)), dtype))


def nearby(distribution, size, seed=9):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf + size * rng.normal(size=leaf.shape), leaf.dtype), distribution)


def oracle_kl(p, q):
    """KL(p ‖ q) in float64 numpy, of the very numbers that the leaves hold."""
    p, q = (jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), each) for each in (p, q))
    if isinstance(p, DiagonalGaussian):
        r = 2 * (p.log_std - q.log_std)
        return 0.5 * (np.expm1(r) - r + ((p.mean - q.mean) / np.exp(q.log_std)) ** 2).sum(-1)
    log_p, log_q = (scipy.special.log_softmax(each.logits, axis=-1) for each in (p, q))
    d = log_q - log_p
    close = np.expm1(np.minimum(d, 1.0)) - d
    return np.where(d < 1, np.exp(log_p) * close, np.exp(log_q) - np.exp(log_p) * (1 + d)).sum(-1)


NAMES = ("gaussian", "categorical")
jitted_kl = jax.jit(lambda p, q: p.kl(q))
kl_and_gradients = jax.jit(lambda p, q: (p.kl(q), jax.grad(lambda p, q: p.kl(q).sum(), argnums=(0, 1))(p, q)))


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0]))
@settings(max_examples=40)
def test_a_distribution_has_kl_exactly_zero_and_gradient_exactly_zero_to_itself(name, dtype, seed, scale):
    p = make(name, dtype, seed, scale)
    kl, gradients = kl_and_gradients(p, p)
    for leaf in jax.tree.leaves((kl, gradients)):
        np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))


def test_raising_sigma_gives_the_positive_kl_of_the_closed_form_bug_1():
    narrow, wide = (DiagonalGaussian(jnp.zeros((1, 1)), jnp.full((1, 1), s)) for s in (0.0, 1.0))
    np.testing.assert_allclose(narrow.kl(wide), 1 + 0.5 * np.exp(-2) - 0.5, rtol=1e-6)  # log σ₂/σ₁ + σ₁²/2σ₂² - ½
    np.testing.assert_allclose(wide.kl(narrow), -1 + 0.5 * np.exp(2) - 0.5, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("distance", [3.0, 0.3, 1e-2])
def test_the_kl_equals_the_textbook_formula_in_float64(x64, name, distance):
    p = make(name, "float64", 0)
    q = nearby(p, distance)
    if name == "gaussian":
        mean, std, other_mean, other_std = p.mean, jnp.exp(p.log_std), q.mean, jnp.exp(q.log_std)
        textbook = (jnp.log(other_std / std) + (std**2 + (mean - other_mean) ** 2) / (2 * other_std**2) - 0.5).sum(-1)
    else:
        textbook = scipy.stats.entropy(*(scipy.special.softmax(each.logits, axis=-1) for each in (p, q)), axis=-1)
    np.testing.assert_allclose(p.kl(q), textbook, rtol=1e-9)


@pytest.mark.parametrize(("name", "rtol"), [("gaussian", 1e-6), ("categorical", 2e-6)])
@pytest.mark.parametrize("distance", [1.0, 0.1, 1e-2, 1e-3, 1e-4])
def test_float32_keeps_the_relative_precision_of_the_kl_of_very_close_distributions(name, rtol, distance):
    # The textbook formulas lose everything below a distance of 1e-3.
    p = make(name, "float32", 1)
    q = nearby(p, distance)
    np.testing.assert_allclose(jitted_kl(p, q), oracle_kl(p, q), rtol=rtol)


@pytest.mark.parametrize("dtype_of_x", ["float32", "float64"])
def test_the_function_inside_the_kl_keeps_its_precision_everywhere(x64, dtype_of_x):
    decimal.getcontext().prec = 60
    sizes = [1e-9, 1e-5, 1e-3, 0.03, 0.2, 0.3499, 0.3501, 0.5, 2.0, 20.0]
    x = np.asarray([sign * size for size in sizes for sign in (1, -1)], dtype_of_x)
    exact = [float(decimal.Decimal(float(v)).exp() - 1 - decimal.Decimal(float(v))) for v in x]
    rounding = 12 * float(jnp.finfo(dtype_of_x).eps)  # just outside the series, 6 of them are lost by cancellation
    np.testing.assert_allclose(jax.jit(expm1_minus_identity)(jnp.asarray(x)), exact, rtol=rounding)


@pytest.mark.parametrize("name", NAMES)
def test_entropy_and_log_prob_equal_scipy(name, dtype):
    p = make(name, dtype, 2)
    rtol = 100 * float(jnp.finfo(dtype).eps)
    if name == "gaussian":
        action = p.mean + jnp.asarray([-2.0, 0.0, 5.0], dtype)[None]
        reference = scipy.stats.norm(np.asarray(p.mean, "float64"), np.exp(np.asarray(p.log_std, "float64")))
        log_prob, entropy = reference.logpdf(np.asarray(action, "float64")).sum(-1), reference.entropy().sum(-1)
    else:
        action = jnp.asarray([0, 1, 2, 1, 0])
        probabilities = scipy.special.softmax(np.asarray(p.logits, "float64"), axis=-1)
        log_prob, entropy = np.log(probabilities[np.arange(B), np.asarray(action)]), scipy.stats.entropy(probabilities, axis=-1)
    np.testing.assert_allclose(p.log_prob(action), log_prob, rtol=rtol)
    np.testing.assert_allclose(p.entropy(), entropy, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", NAMES)
def test_kl_and_entropy_equal_their_monte_carlo_estimates(name):
    p = make(name, "float32", 3, scale=0.5)
    q = nearby(p, 0.5)

    @jax.jit
    def log_probs(p, q, keys):
        return jax.vmap(lambda action: (p.log_prob(action), q.log_prob(action)))(jax.vmap(p.sample)(keys))

    log_p, log_q = (np.asarray(x, np.float64) for x in log_probs(p, q, jax.random.split(jax.random.key(0), 40_000)))
    for exact, estimates in ((p.kl(q), log_p - log_q), (p.entropy(), -log_p)):
        standard_error = estimates.std(0) / np.sqrt(len(estimates))
        assert (np.abs(estimates.mean(0) - exact) < 4.5 * standard_error).all()
        assert (standard_error < 0.02).all()  # else nothing would be proven


def test_noise_is_independent_across_action_dimensions_and_batch_entries_bug_10():
    p = DiagonalGaussian(jnp.asarray([[1.0, -2.0, 0.0], [0.5, 0.5, 3.0]]), jnp.log(jnp.asarray([[1.0, 0.1, 3.0]] * 2)))
    n = 20_000
    samples = np.asarray(jax.vmap(p.sample)(jax.random.split(jax.random.key(1), n)))
    standardized = ((samples - p.mean[None]) / np.exp(p.log_std)[None]).reshape(n, -1)
    np.testing.assert_allclose(np.cov(standardized.T), np.eye(6), atol=5 * np.sqrt(2 / n))
    np.testing.assert_allclose(standardized.mean(0), np.zeros(6), atol=5 / np.sqrt(n))
    assert scipy.stats.kstest(standardized.ravel(), "norm").pvalue > 1e-3


def test_a_categorical_draws_each_number_as_often_as_its_probability_says():
    p = Categorical(jnp.log(jnp.asarray([[0.5, 0.3, 0.2], [0.01, 0.09, 0.9]])))
    samples = np.asarray(jax.vmap(p.sample)(jax.random.split(jax.random.key(2), 20_000)))
    for i, probabilities in enumerate(([0.5, 0.3, 0.2], [0.01, 0.09, 0.9])):
        counts = np.bincount(samples[:, i], minlength=3)
        assert scipy.stats.chisquare(counts, 20_000 * np.array(probabilities)).pvalue > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_the_mode_has_the_largest_log_prob(name):
    p = make(name, "float32", 4)

    @jax.jit
    def log_probs(p, keys):
        return p.log_prob(p.mode()), jax.vmap(lambda key: p.log_prob(p.sample(key)))(keys)

    of_the_mode, of_samples = log_probs(p, jax.random.split(jax.random.key(3), 50))
    assert (of_the_mode[None] >= of_samples).all()


EXTREMES = [
    (DiagonalGaussian, [[[0.0], [0.0]], [[20.0], [-20.0]]], [[[0.0], [0.0]], [[-20.0], [20.0]]]),
    (DiagonalGaussian, [[[1e4], [-1e4]], [[0.0], [20.0]]], [[[-1e4], [1e4]], [[-5.0], [-20.0]]]),
    (Categorical, [[[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4]]], [[[-1e4, 1e4, 0.0], [-1e4, 1e4, -1e4]]]),
    (Categorical, [[[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]]], [[[0.0, 0.0, 0.0], [1e4, -1e4, 0.0]]]),
    (Categorical, [[[3e37, -3e37, 0.0], [1e30, 1e30, 1e30]]], [[[-3e37, 3e37, 0.0], [1e30, 0.0, 1e30]]]),
]


@pytest.mark.parametrize(("kind", "p", "q"), EXTREMES)
def test_extreme_parameters_give_the_finite_kl_that_mathematics_has_and_finite_gradients(kind, p, q):
    p, q = (kind(*jnp.asarray(leaves, "float32")) for leaves in (p, q))
    kl, gradients = kl_and_gradients(p, q)
    np.testing.assert_allclose(kl, oracle_kl(p, q), rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("name", NAMES)
def test_a_distribution_is_a_pytree_whose_batch_axes_may_be_mapped(name):
    p = make(name, "float32", 5)
    q = nearby(p, 0.1)
    assert isinstance(p, Distribution)
    assert type(jax.tree.map(lambda leaf: leaf, p)) is type(p)
    assert p.kl(q).shape == p.entropy().shape == p.log_prob(p.mode()).shape == (B,)
    np.testing.assert_allclose(jax.vmap(lambda p, q: p.kl(q))(p, q), p.kl(q), rtol=1e-6)
    single = jax.tree.map(lambda leaf: leaf[0], p)
    assert single.kl(single).shape == ()
    wide = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), p)
    assert wide.sample(jax.random.key(0)).shape[:2] == (2, B)
