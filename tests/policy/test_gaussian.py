"""What Gaussians promise beyond what every distribution does: test_distributions.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.stats

from policy.distribution_problems import draw_pair, everything, many_samples, scalars, tanh_gaussian_entropy
from trpo_jax.policy.distributions import DiagonalGaussian, MultivariateGaussian, TanhGaussian

NUM_SAMPLES = 20_000


def one(value, dtype="float64"):
    return jnp.full((1,), value, dtype)


@pytest.mark.parametrize("kind", [DiagonalGaussian, MultivariateGaussian, TanhGaussian])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.7, 0.1), (2.0, 0.8)])
def test_a_density_in_one_dimension_integrates_to_one_by_adaptive_quadrature(x64, kind, mean, std):
    p = kind(one(mean), jnp.full((1, 1), std) if kind is MultivariateGaussian else one(np.log(std)))
    log_prob = jax.jit(p.log_prob)
    squash, unsquash, low, high = (lambda u: u,) * 2 + (-40.0, 40.0)
    if kind is TanhGaussian:
        squash, unsquash, low, high = np.tanh, np.arctanh, np.nextafter(-1, 0), np.nextafter(1, 0)
    breaks = [squash(mean + z * std) for z in (-6, -3, -1, 1, 3, 6) if low < squash(mean + z * std) < high]
    total, _ = scipy.integrate.quad(
        lambda a: np.exp(float(log_prob(one(unsquash(a))))), low, high, points=breaks, limit=300, epsabs=1e-8
    )
    np.testing.assert_allclose(total, 1.0, atol=1e-6)


def test_raising_sigma_gives_the_positive_kl_of_the_closed_form_bug_1():
    narrow, wide = (DiagonalGaussian(jnp.zeros((1, 1)), jnp.full((1, 1), s)) for s in (0.0, 1.0))
    np.testing.assert_allclose(narrow.kl(wide), 1 + 0.5 * np.exp(-2) - 0.5, rtol=1e-6)  # log σ₂/σ₁ + σ₁²/2σ₂² - ½
    np.testing.assert_allclose(wide.kl(narrow), -1 + 0.5 * np.exp(2) - 0.5, rtol=1e-6)


@pytest.mark.parametrize("name", ["gaussian", "tanh_gaussian", "multivariate_gaussian"])
def test_noise_is_standard_and_independent_across_components_and_batch_entries_bug_10(name):
    p, _ = draw_pair(name, "float32", 1)
    samples = np.asarray(many_samples(p, jax.random.split(jax.random.key(1), NUM_SAMPLES)), "float64")
    centred = samples - np.asarray(p.mean)[None]
    if name == "multivariate_gaussian":
        standardized = np.einsum("bij,nbj->nbi", np.linalg.inv(np.asarray(p.scale_tril, "float64")), centred)
    else:
        standardized = centred / np.exp(p.log_std)[None]
    standardized = standardized.reshape(NUM_SAMPLES, -1)
    size = standardized.shape[1]
    np.testing.assert_allclose(np.cov(standardized.T), np.eye(size), atol=5 * np.sqrt(2 / NUM_SAMPLES))
    np.testing.assert_allclose(standardized.mean(0), np.zeros(size), atol=5 / np.sqrt(NUM_SAMPLES))
    assert scipy.stats.kstest(standardized.ravel(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("std", [0.01, 0.3, 1.0, 5.0, 100.0])
def test_the_entropy_of_a_squashed_gaussian_equals_adaptive_quadrature(dtype, std):
    means = np.asarray([0.0, 0.005, -0.7, 2.0, 11.9, -30.0])
    log_std = jnp.full(6, np.log(std), dtype)
    p = TanhGaussian(jnp.asarray(means, dtype)[:, None], log_std[:, None])
    expected = [tanh_gaussian_entropy(mean, std) for mean in np.asarray(p.mean[:, 0], "float64")]
    np.testing.assert_allclose(jax.jit(lambda p: p.entropy())(p), expected, rtol=2e-6, atol=2e-6)


def test_a_squashed_sample_has_the_distribution_of_tanh_of_a_gaussian_with_the_mode_as_median():
    p, _ = draw_pair("tanh_gaussian", "float32", 2, scale=0.5)
    samples = np.asarray(p.squash(many_samples(p, jax.random.split(jax.random.key(2), NUM_SAMPLES))), "float64")
    mean, std = np.asarray(p.mean), np.exp(p.log_std)
    for index in np.ndindex(mean.shape):
        of_component = samples[:, *index]
        assert abs((of_component < p.squash(p.mode())[index]).mean() - 0.5) < 4.5 * 0.5 / np.sqrt(NUM_SAMPLES)
        found = scipy.stats.kstest(of_component, lambda a, i=index: scipy.stats.norm.cdf(np.arctanh(a), mean[i], std[i]))
        assert found.pvalue > 1e-3


@pytest.mark.parametrize("u", [12.0, -30.0, 50.0, -1e4])
def test_an_action_that_tanh_rounds_to_one_keeps_its_log_prob_and_gradient(u):
    p = TanhGaussian(jnp.asarray([u - 0.5]), jnp.zeros(1))
    assert abs(p.squash(jnp.float32(u))) == 1.0
    value, gradient = jax.value_and_grad(p.log_prob)(jnp.asarray([u], "float32"))
    # Out there log(1 - tanh²u) = 2(log 2 - |u|), to within e^(-2|u|).
    expected = -0.5 * 0.5**2 - 0.5 * np.log(2 * np.pi) - 2 * (np.log(2) - abs(u))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, [-0.5 + 2 * np.sign(u)], rtol=1e-6)


def test_a_multivariate_gaussian_with_a_diagonal_scale_is_a_diagonal_gaussian(x64):
    diagonal = draw_pair("gaussian", "float64", 3)
    multivariate = [MultivariateGaussian(p.mean, jax.vmap(jnp.diag)(jnp.exp(p.log_std))) for p in diagonal]
    action = diagonal[1].sample(jax.random.key(0))
    np.testing.assert_allclose(multivariate[1].sample(jax.random.key(0)), action, rtol=1e-12)
    found, expected = scalars(*multivariate, action), scalars(*diagonal, action)
    for quantity, value in expected.items():
        np.testing.assert_allclose(found[quantity], value, rtol=1e-11)


def test_what_stands_above_the_diagonal_is_not_read():
    p, q = draw_pair("multivariate_gaussian", "float32", 4)
    above = jnp.triu(jnp.full((3, 3), jnp.nan), 1)[None]
    dirty_p, dirty_q = (MultivariateGaussian(each.mean, each.scale_tril + above) for each in (p, q))
    assert jnp.isnan(dirty_p.scale_tril).any()
    found, expected = everything(dirty_p, dirty_q, q.mode()), everything(p, q, q.mode())
    for value, like in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(value, like)
    (of_scale,) = (x for x in expected["own_gradients"] if x.ndim == 3)
    np.testing.assert_array_equal(jnp.triu(of_scale, 1), jnp.zeros_like(of_scale))
    keys = jax.random.split(jax.random.key(0), 2)
    np.testing.assert_array_equal(many_samples(dirty_p, keys), many_samples(p, keys))


@pytest.mark.parametrize("signs", [(1, 1, 1), (1, -1, 1), (-1, -1, -1)])
def test_scales_from_e_minus_20_to_e_20_give_the_kl_that_mathematics_has(signs):
    # Rows in proportion to their diagonal; with others L⁻¹ alone may reach e^60, and the KL its square.
    unit = np.array([[1, 0, 0], [-0.5, 1, 0], [0.3, -0.8, 1]])
    scale, other = (np.asarray(np.exp(20.0 * sign * np.array(signs))[:, None] * unit, "float32") for sign in (1, -1))
    mean = np.array([1.0, 1e4, -50.0], "float32")
    p, q = (MultivariateGaussian(jnp.asarray(m)[None], jnp.asarray(each)[None]) for m, each in ((mean, scale), (-mean, other)))
    ratio = scipy.linalg.solve_triangular(other.astype("float64"), scale.astype("float64"), lower=True)
    shift = scipy.linalg.solve_triangular(other.astype("float64"), 2.0 * mean, lower=True)
    expected = 0.5 * ((ratio**2).sum() - 3 - 2 * np.log(np.diag(ratio)).sum() + (shift**2).sum())
    np.testing.assert_allclose(p.kl(q), [expected], rtol=1e-5)
    np.testing.assert_allclose(p.entropy(), [20.0 * sum(signs) + 1.5 * np.log(2 * np.pi * np.e)], rtol=1e-5)
