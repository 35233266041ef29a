"""Random distributions of every kind, the sums and integrals over their actions, and what scipy says of them."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
import scipy.special
import scipy.stats

from trpo_jax.policy.distributions import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    Distribution,
    Joint,
    MultiCategorical,
    MultivariateGaussian,
    TanhGaussian,
)

B = 5


class Problem(NamedTuple):
    """How to make one kind of distribution of unconstrained reals, as the last layer of a network gives them."""

    build: Callable[[Any, Any], Distribution]  # (raw [..., K], allowed [..., K]) -> distribution with batch axes [...]
    extremes: tuple[float, ...]  # [K], the largest |raw| at which all that is computed has a finite float32
    choices: tuple[tuple[int, int], ...] = ()  # the columns of `allowed` of which at least one must be True


def diagonal(kind, raw):
    mean, log_std = jnp.split(raw, 2, axis=-1)
    return kind(mean, log_std)


def multivariate(raw):
    """Three components: mean, log of the diagonal, and what stands left of the diagonal in units of it."""
    mean, log_diagonal, left = jnp.split(raw, 3, axis=-1)
    unit = jnp.zeros((*raw.shape[:-1], 3, 3), raw.dtype).at[..., *np.diag_indices(3)].set(1.0)
    return MultivariateGaussian(mean, jnp.exp(log_diagonal)[..., None] * unit.at[..., *np.tril_indices(3, -1)].set(left))


def nested_joint(raw, allowed):
    move, turn, tool = jnp.split(raw, [2, 4], axis=-1)
    arm = {"turn": (diagonal(TanhGaussian, turn),), "tool": Categorical(tool, allowed[..., 4:])}
    return Joint((diagonal(DiagonalGaussian, move), arm))


PROBLEMS = {
    "gaussian": Problem(lambda raw, _: diagonal(DiagonalGaussian, raw), (1e4, 1e4, 20.0, 20.0)),
    "tanh_gaussian": Problem(lambda raw, _: diagonal(TanhGaussian, raw), (50.0, 50.0, 20.0, 20.0)),
    # The gradient of the KL in the diagonal grows with e^5x: of x = 20 it would be e^100, beyond float32.
    "multivariate_gaussian": Problem(lambda raw, _: multivariate(raw), (1e4,) * 3 + (14.0,) * 3 + (1.0,) * 3),
    "categorical": Problem(lambda raw, _: Categorical(raw), (1e4,) * 5),
    "masked_categorical": Problem(Categorical, (1e4,) * 5, ((0, 5),)),
    "multi_categorical": Problem(lambda raw, ok: MultiCategorical(raw, (2, 3), ok), (1e4,) * 5, ((0, 2), (2, 5))),
    "bernoulli": Problem(lambda raw, _: Bernoulli(raw), (1e4,) * 3),
    "joint": Problem(nested_joint, (1e4, 20.0, 50.0, 20.0) + (1e4,) * 3, ((4, 7),)),
}


def gradients(scalar_fn, *distributions):
    """The gradients in all floating leaves: masks have none."""
    grads = jax.grad(scalar_fn, argnums=tuple(range(len(distributions))), allow_int=True)(*distributions)
    return [leaf for leaf in jax.tree.leaves(grads) if leaf.dtype != jax.dtypes.float0]


def quantities(p, q, action):
    return {"kl": p.kl(q), "entropy": p.entropy(), "log_prob": p.log_prob(action)}


# Compiled once for each kind and precision, whichever test calls: nearly all of the time is spent there. What is compiled
# for one test alone is `unoptimized`, which halves it.
unoptimized = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
build = functools.partial(jax.jit, static_argnums=0)(lambda name, raw, allowed: PROBLEMS[name].build(raw, allowed))
many_samples = jax.jit(lambda p, keys: jax.vmap(p.sample)(keys))
scalars = unoptimized(quantities)


@jax.jit
def everything(p, q, action):
    kl_gradients = gradients(lambda p, q: p.kl(q).sum(), p, q)
    own_gradients = gradients(lambda p: p.entropy().sum() + p.log_prob(action).sum(), p)
    return {**quantities(p, q, action), "kl_gradients": kl_gradients, "own_gradients": own_gradients}


def draw_allowed(name, seed, axes=(B,)):
    """A mask [*axes, K] that leaves every choice at least one action."""
    rng = np.random.default_rng([seed, 1])
    allowed = rng.random((*axes, len(PROBLEMS[name].extremes))) < 0.5
    for start, stop in PROBLEMS[name].choices:
        np.put_along_axis(allowed, rng.integers(start, stop, size=axes)[..., None], True, axis=-1)
    return jnp.asarray(allowed)


def draw_pair(name, dtype, seed, scale=1.0, distance=0.5, axes=(B,)):
    """Two distributions with the same mask, from raw numbers of size `scale` that are `distance` apart."""
    rng = np.random.default_rng(seed)
    raw, noise = rng.normal(size=(2, *axes, len(PROBLEMS[name].extremes)))
    allowed = draw_allowed(name, seed, axes)
    return tuple(build(name, jnp.asarray(x, dtype), allowed) for x in (scale * raw, scale * raw + distance * noise))


def parts_of(joint):
    return jax.tree.flatten(joint.parts, is_leaf=lambda x: isinstance(x, Distribution))


def support(p):
    """Actions [M, …] and weights [M] such that Σ w·f(action) is the sum or the integral of f, for p without batch axes.

    Gaussians by the trapezoidal rule, which is exact to rounding for smooth functions that vanish at both ends; squashed
    ones by Gauss-Legendre over a = tanh(u) in (-1, 1).
    """
    if isinstance(p, Joint):
        parts, structure = parts_of(p)
        actions, weights = zip(*map(support, parts), strict=True)
        index = np.indices([len(each) for each in weights]).reshape(len(parts), -1)
        actions = [jax.tree.map(lambda x, i=i: x[i], each) for each, i in zip(actions, index, strict=True)]
        return jax.tree.unflatten(structure, actions), np.prod([w[i] for w, i in zip(weights, index, strict=True)], axis=0)
    if isinstance(p, Categorical):
        return jnp.arange(p.logits.size), np.ones(p.logits.size)
    if isinstance(p, MultiCategorical | Bernoulli):
        rules = [(np.arange(size), np.ones(size)) for size in getattr(p, "sizes", (2,) * p.logits.size)]
    elif isinstance(p, TanhGaussian):
        nodes, weights = np.polynomial.legendre.leggauss(400)
        rules = [(np.arctanh(nodes), weights)] * p.mean.size
    else:
        scale = p.scale_tril if isinstance(p, MultivariateGaussian) else jnp.diag(jnp.exp(p.log_std))
        reach = 9 * np.linalg.norm(scale, axis=-1)
        rules = [(np.linspace(m - r, m + r, 61), np.full(61, r / 30)) for m, r in zip(p.mean, reach, strict=True)]
    actions, weights = (
        np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(rules)) for axes in zip(*rules, strict=True)
    )
    return jnp.asarray(actions), weights.prod(-1)


def as_float64(p):
    """The very numbers that the leaves hold, in numpy."""
    return jax.tree.map(lambda x: np.asarray(x, "float64" if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype), p)


def log_tables(p):
    """The log-probabilities [..., K] of each independent choice of a discrete distribution."""
    if isinstance(p, Bernoulli):
        return [scipy.special.log_expit(np.stack([-logit, logit], axis=-1)) for logit in np.moveaxis(p.logits, -1, 0)]
    logits = p.logits if p.mask is None else np.where(p.mask, p.logits, -np.inf)
    bounds = np.cumsum(getattr(p, "sizes", ()))[:-1].astype(int)
    return [scipy.special.log_softmax(each, axis=-1) for each in np.split(logits, bounds, axis=-1)]


def covariance(p):
    return np.einsum("...ij,...kj->...ik", np.tril(p.scale_tril), np.tril(p.scale_tril))


def textbook_kl(p, q):
    """KL(p ‖ q) in float64 by the formulas of textbooks."""
    p, q = as_float64(p), as_float64(q)
    if isinstance(p, Joint):
        return sum(textbook_kl(*each) for each in zip(parts_of(p)[0], parts_of(q)[0], strict=True))
    if isinstance(p, DiagonalGaussian | TanhGaussian):
        std, other_std = np.exp(p.log_std), np.exp(q.log_std)
        quotient = (std**2 + (p.mean - q.mean) ** 2) / (2 * other_std**2)
        return (q.log_std - p.log_std + quotient - 0.5).sum(-1)
    if isinstance(p, MultivariateGaussian):
        ratio = np.linalg.solve(covariance(q), covariance(p))
        shift = (p.mean - q.mean)[..., None]
        distance = (shift * np.linalg.solve(covariance(q), shift)).sum((-2, -1))
        return 0.5 * (np.trace(ratio, axis1=-2, axis2=-1) - p.mean.shape[-1] - np.linalg.slogdet(ratio)[1] + distance)
    return sum(itertools.starmap(table_kl, zip(log_tables(p), log_tables(q), strict=True)))


def table_kl(log_p, log_q):
    """Σ p log(p/q) = Σ (p log(p/q) - p + q), in terms that keep their digits where p and q are close."""
    possible = log_p > -np.inf
    d = np.where(possible, log_q, 0) - np.where(possible, log_p, 0)
    close = np.exp(log_p) * (np.expm1(np.minimum(d, 1.0)) - d)
    return np.where(possible & (d < 1), close, np.exp(log_q) - np.exp(log_p) * (1 + d)).sum(-1)


def scipy_entropy(p):
    p = as_float64(p)
    if isinstance(p, Joint):
        return sum(map(scipy_entropy, parts_of(p)[0]))
    if isinstance(p, DiagonalGaussian):
        return scipy.stats.norm.entropy(p.mean, np.exp(p.log_std)).sum(-1)
    if isinstance(p, TanhGaussian):
        return np.vectorize(tanh_gaussian_entropy)(p.mean, np.exp(p.log_std)).sum(-1)
    if isinstance(p, MultivariateGaussian):
        return np.stack([scipy.stats.multivariate_normal.entropy(*each) for each in zip(p.mean, covariance(p), strict=True)])
    return sum(scipy.stats.entropy(np.exp(table), axis=-1) for table in log_tables(p))


def tanh_gaussian_entropy(mean, std):
    """The entropy of the Gaussian and E[log(1 - tanh²u)], by adaptive quadrature between the places where u bends it."""

    def integrand(z):
        return scipy.stats.norm.pdf(z) * -2 * np.logaddexp(mean + std * z, -mean - std * z)

    breaks = [z for z in ((u - mean) / std for u in (-20, -1, 0, 1, 20)) if abs(z) < 10]
    integral, _ = scipy.integrate.quad(integrand, -10, 10, points=breaks or None, limit=500, epsabs=1e-11, epsrel=1e-11)
    return scipy.stats.norm.entropy(mean, std) + integral + 2 * np.log(2)


def scipy_log_prob(p, action):
    p, action = as_float64(p), as_float64(action)
    if isinstance(p, Joint):
        actions = parts_of(p)[1].flatten_up_to(action)
        return sum(scipy_log_prob(*each) for each in zip(parts_of(p)[0], actions, strict=True))
    if isinstance(p, DiagonalGaussian | TanhGaussian):
        log_slope = 2 * (np.log(2) - np.logaddexp(action, -action)) if isinstance(p, TanhGaussian) else 0.0
        return (scipy.stats.norm.logpdf(action, p.mean, np.exp(p.log_std)) - log_slope).sum(-1)
    if isinstance(p, MultivariateGaussian):
        entries = zip(action, p.mean, covariance(p), strict=True)
        return np.stack([scipy.stats.multivariate_normal.logpdf(*each) for each in entries])
    choices = [action] if isinstance(p, Categorical) else np.moveaxis(action, -1, 0)
    tables = zip(log_tables(p), choices, strict=True)
    return sum(np.take_along_axis(table, choice[..., None], axis=-1)[..., 0] for table, choice in tables)
