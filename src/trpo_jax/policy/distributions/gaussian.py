"""Distributions over real vectors: Gaussian, squashed Gaussian, Gaussian with correlations."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
from numpy.polynomial.hermite_e import hermegauss

from trpo_jax.policy.distributions.base import expm1_minus_identity
from trpo_jax.tree import pytree_dataclass, upcast


@pytree_dataclass
class DiagonalGaussian:
    """A Gaussian with independent components, N(mean, diag(exp(log_std))²)."""

    mean: Float[Array, "*batch A"]
    log_std: Float[Array, "*batch A"]

    def log_prob(self, action: Float[Array, "*batch A"]) -> Float[Array, "*batch"]:
        """Return Σ_a -½((action - mean)/std)² - log_std - ½log 2π."""
        log_std = upcast(self.log_std)
        standardized = (upcast(action) - upcast(self.mean)) * jnp.exp(-log_std)
        return jnp.sum(-0.5 * standardized**2 - log_std - 0.5 * math.log(2 * math.pi), axis=-1)

    def kl(self, other: "DiagonalGaussian") -> Float[Array, "*batch"]:
        """Return KL(self ‖ other) = Σ_a ½(e^r - 1 - r) + ½(mean₁ - mean₂)²/std₂², with r = 2(log_std₁ - log_std₂)."""
        log_variance_ratio = 2.0 * (upcast(self.log_std) - upcast(other.log_std))
        shift = (upcast(self.mean) - upcast(other.mean)) * jnp.exp(-upcast(other.log_std))
        return 0.5 * jnp.sum(expm1_minus_identity(log_variance_ratio) + shift**2, axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Return Σ_a log_std + ½ log 2πe."""
        return jnp.sum(upcast(self.log_std) + 0.5 * math.log(2 * math.pi * math.e), axis=-1)

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*batch A"]:
        """Draw one action per batch entry, with independent noise in every component."""
        mean = upcast(self.mean)
        return mean + jnp.exp(upcast(self.log_std)) * jax.random.normal(key, mean.shape, mean.dtype)

    def mode(self) -> Float[Array, "*batch A"]:
        """Return the mean."""
        return upcast(self.mean)


@pytree_dataclass
class TanhGaussian:
    """The distribution of tanh(u) in (-1, 1)^A with u from a diagonal Gaussian N(mean, diag(exp(log_std))²).

    An action is the pre-tanh vector u everywhere: `sample` and `mode` return it, `log_prob` takes it, and `squash`
    turns it into the environment's action. So an action that tanh rounds to ±1 keeps its exact log-probability.
    `log_prob` and `entropy` are those of tanh(u), which has a density on (-1, 1)^A. The KL is that of the Gaussians,
    since a bijection does not change it.
    """

    mean: Float[Array, "*batch A"]
    log_std: Float[Array, "*batch A"]

    @property
    def base(self) -> DiagonalGaussian:
        """The distribution of u."""
        return DiagonalGaussian(self.mean, self.log_std)

    @staticmethod
    def squash(action: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return tanh(u), the action in the box (-1, 1)^A."""
        return jnp.tanh(action)

    def log_prob(self, action: Float[Array, "*batch A"]) -> Float[Array, "*batch"]:
        """Return log N(u) - Σ_a log(1 - tanh²u), with log(1 - tanh²u) = 2(log 2 - |u| - log(1 + e^(-2|u|)))."""
        size = jnp.abs(upcast(action))
        log_slope = 2.0 * (math.log(2.0) - size - jnp.log1p(jnp.exp(-2.0 * size)))
        return self.base.log_prob(action) - jnp.sum(log_slope, axis=-1)

    def kl(self, other: "TanhGaussian") -> Float[Array, "*batch"]:
        """Return the KL of the Gaussians."""
        return self.base.kl(other.base)

    def entropy(self) -> Float[Array, "*batch"]:
        """Return the Gaussian's entropy + Σ_a E[log(1 - tanh²u)], by quadrature, to about six digits."""
        log_slope = -2.0 * _mean_log_cosh(upcast(self.mean), jnp.exp(upcast(self.log_std)))
        return self.base.entropy() + jnp.sum(log_slope, axis=-1)

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*batch A"]:
        """Draw one pre-tanh action per batch entry."""
        return self.base.sample(key)

    def mode(self) -> Float[Array, "*batch A"]:
        """Return the Gaussian's mean. Its tanh is the median of every component, the usual deterministic action."""
        return upcast(self.mean)


_NARROW = 0.65
"""Standard deviations below this are integrated by Gauss-Hermite quadrature."""

_HERMITE = [(float(node), float(weight) / math.sqrt(2 * math.pi)) for node, weight in zip(*hermegauss(12), strict=True)]

_SMOOTHING = math.pi / math.sqrt(6)
"""√2 times the standard deviation of the Gaussian that smooths |u| so that log cosh u + log 2 and it have the same integral."""


def _smoothed_size(mean: Float[Array, "..."], spread: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return E|u| with u from N(mean, spread² / 2)."""
    standardized = mean / spread
    return mean * jax.lax.erf(standardized) + spread / math.sqrt(math.pi) * jnp.exp(-(standardized**2))


def _rest(u: float) -> float:
    """Return log cosh u + log 2 - |u| smoothed, which is small, smooth, and negligible beyond |u| = 7.5."""
    size = abs(u)
    standardized = size / _SMOOTHING
    smoothed = size * math.erf(standardized) + _SMOOTHING / math.sqrt(math.pi) * math.exp(-(standardized**2))
    return size + math.log1p(math.exp(-2.0 * size)) - smoothed


_SPACING = 0.55
_TRAPEZOID = [(u, _SPACING / math.sqrt(2 * math.pi) * _rest(u)) for u in (_SPACING * k for k in range(-14, 15))]


def _mean_log_cosh(mean: Float[Array, "..."], std: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return E[log cosh u], u from N(mean, std²), to about six digits.

    Narrow Gaussians: Gauss-Hermite quadrature. Wide ones: log cosh u + log 2 is |u| smoothed by a Gaussian, whose mean is
    known, and a small rest, for which the trapezoidal rule converges exponentially.
    """
    is_narrow = std < _NARROW
    narrow, wide = jnp.where(is_narrow, std, _NARROW), jnp.where(is_narrow, _NARROW, std)
    by_nodes, rest = jnp.zeros_like(mean), jnp.zeros_like(mean)
    # Written out, the sums are one loop over the elements; as sums over an axis of nodes they take several times as long.
    for node, weight in _HERMITE:
        size = jnp.abs(mean + narrow * node)
        by_nodes += weight * (size + jnp.log1p(jnp.exp(-2.0 * size)))
    for node, weight in _TRAPEZOID:
        rest += weight * jnp.exp(-0.5 * ((node - mean) / wide) ** 2)
    by_smoothing = _smoothed_size(mean, jnp.hypot(_SMOOTHING, math.sqrt(2.0) * wide)) + rest / wide
    return jnp.where(is_narrow, by_nodes, by_smoothing) - math.log(2.0)


@pytree_dataclass
class MultivariateGaussian:
    """A Gaussian with correlated components, N(mean, L Lᵀ), with L = `scale_tril`.

    L is lower triangular with a positive diagonal; elements above the diagonal are ignored. A network can
    make L from unconstrained outputs by an exponential or a softplus on the diagonal.
    """

    mean: Float[Array, "*batch A"]
    scale_tril: Float[Array, "*batch A A"]

    def log_prob(self, action: Float[Array, "*batch A"]) -> Float[Array, "*batch"]:
        """Return -½‖L⁻¹(action - mean)‖² - Σ_a log L_aa - ½A log 2π."""
        standardized = _solve(upcast(self.scale_tril), (upcast(action) - upcast(self.mean))[..., None])[..., 0]
        log_diagonal = jnp.log(_diagonal(upcast(self.scale_tril)))
        return jnp.sum(-0.5 * standardized**2 - log_diagonal - 0.5 * math.log(2 * math.pi), axis=-1)

    def kl(self, other: "MultivariateGaussian") -> Float[Array, "*batch"]:
        """Return KL(self ‖ other) = ½[Σ_i (e^rᵢ - 1 - rᵢ) + Σ_{i>j} D_ij² + ‖L₂⁻¹(mean₁ - mean₂)‖²].

        D = L₂⁻¹(L₁ - L₂) is lower triangular and rᵢ = 2 log(1 + D_ii) = 2 log(L₁_ii / L₂_ii).
        """
        scale, other_scale = jnp.tril(upcast(self.scale_tril)), jnp.tril(upcast(other.scale_tril))
        difference = _solve(other_scale, scale - other_scale)
        # log1p is precise if its argument is near zero; elsewhere a difference of logarithms is.
        relative = _diagonal(difference)
        near = jnp.abs(relative) < 0.5
        far_log_ratio = jnp.log(_diagonal(scale)) - jnp.log(_diagonal(other_scale))
        log_ratio = jnp.where(near, jnp.log1p(jnp.where(near, relative, 0.0)), far_log_ratio)
        shift = _solve(other_scale, (upcast(self.mean) - upcast(other.mean))[..., None])[..., 0]
        off_diagonal = jnp.sum(jnp.tril(difference, -1) ** 2, axis=-1)
        return 0.5 * jnp.sum(expm1_minus_identity(2.0 * log_ratio) + off_diagonal + shift**2, axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Return Σ_a log L_aa + ½ log 2πe."""
        return jnp.sum(jnp.log(_diagonal(upcast(self.scale_tril))) + 0.5 * math.log(2 * math.pi * math.e), axis=-1)

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*batch A"]:
        """Draw one action per batch entry."""
        mean = upcast(self.mean)
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        return mean + jnp.einsum("...ij,...j->...i", jnp.tril(upcast(self.scale_tril)), noise, precision="highest")

    def mode(self) -> Float[Array, "*batch A"]:
        """Return the mean."""
        return upcast(self.mean)


def _diagonal(matrix: Float[Array, "*batch A A"]) -> Float[Array, "*batch A"]:
    return jnp.diagonal(matrix, axis1=-2, axis2=-1)


def _solve(lower: Float[Array, "*batch A A"], right: Float[Array, "*batch A K"]) -> Float[Array, "*batch A K"]:
    """Return lower⁻¹ · right."""
    return jax.lax.linalg.triangular_solve(lower, right, left_side=True, lower=True)
