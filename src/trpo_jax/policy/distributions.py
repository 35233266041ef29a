"""Action distributions: pytrees whose leaves carry the batch axes `[...]` first."""

import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trpo_jax.solver.tree import pytree_dataclass

Action = Any


@runtime_checkable
class Distribution(Protocol):
    """What the package needs of a distribution over actions; it must also be a pytree of arrays with batch axes `[...]`.

    `log_prob(action)`, `kl(other)` = KL(self ‖ other) and `entropy()` return `[...]`, in nats; `sample(key)` and
    `mode()` return actions with batch axes `[...]`. `kl` must be twice differentiable in the leaves of `other`.
    """

    def log_prob(self, action: Action) -> Float[Array, "..."]: ...

    def kl(self, other: Any) -> Float[Array, "..."]: ...

    def entropy(self) -> Float[Array, "..."]: ...

    def sample(self, key: PRNGKeyArray) -> Action: ...

    def mode(self) -> Action: ...


def expm1_minus_identity(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return exp(x) - 1 - x >= 0, without the cancellation of the direct formula near 0.

    A KL written as a sum of such terms is zero with zero gradient at equality, and keeps its relative precision however
    close the two distributions are: the trust region can be trusted in float32.
    """
    near = jnp.abs(x) < 0.35
    small = jnp.where(near, x, 0.0)
    # Taylor series to x⁸: the remainder is below 1e-7 of the value for |x| < 0.35; in float64 a longer one is taken.
    order = 8 if x.dtype != jnp.float64 else 16
    series = jnp.zeros_like(small)
    for k in range(order, 1, -1):
        series = series * small + 1.0 / math.factorial(k)
    return jnp.where(near, small * small * series, jnp.expm1(jnp.where(near, 0.0, x)) - x)


@pytree_dataclass
class DiagonalGaussian:
    """A Gaussian with independent components, N(mean, diag(exp(log_std))²)."""

    mean: Float[Array, "*batch A"]
    log_std: Float[Array, "*batch A"]

    def log_prob(self, action: Float[Array, "*batch A"]) -> Float[Array, "*batch"]:
        """Return Σ_a -½((action - mean)/std)² - log_std - ½log 2π."""
        standardized = (action - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * standardized**2 - self.log_std - 0.5 * math.log(2 * math.pi), axis=-1)

    def kl(self, other: "DiagonalGaussian") -> Float[Array, "*batch"]:
        """Return KL(self ‖ other) = Σ_a ½(e^r - 1 - r) + ½(mean₁ - mean₂)²/std₂², with r = 2(log_std₁ - log_std₂)."""
        log_variance_ratio = 2.0 * (self.log_std - other.log_std)
        shift = (self.mean - other.mean) * jnp.exp(-other.log_std)
        return 0.5 * jnp.sum(expm1_minus_identity(log_variance_ratio) + shift**2, axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Return Σ_a log_std + ½ log 2πe."""
        return jnp.sum(self.log_std + 0.5 * math.log(2 * math.pi * math.e), axis=-1)

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*batch A"]:
        """Draw one action a batch entry, with noise of its own in every component."""
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def mode(self) -> Float[Array, "*batch A"]:
        """Return the mean."""
        return self.mean


@pytree_dataclass
class Categorical:
    """A distribution over the integers 0 … K-1, with probabilities softmax(logits)."""

    logits: Float[Array, "*batch K"]

    def log_prob(self, action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Return log softmax(logits)[action]."""
        return jnp.take_along_axis(jax.nn.log_softmax(self.logits), action[..., None], axis=-1)[..., 0]

    def kl(self, other: "Categorical") -> Float[Array, "*batch"]:
        """Return KL(self ‖ other) = Σ_k p_k (e^d - 1 - d), with d = log q_k - log p_k; the first two terms sum to zero."""
        log_p, log_q = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(other.logits)
        p = jnp.exp(log_p)
        # Close by, d comes from the difference of the logits, which rounds less than the two normalized ones.
        shift = other.logits - self.logits
        shift = shift - jnp.sum(p * shift, axis=-1, keepdims=True)
        near = jnp.all(jnp.abs(shift) < 0.35, axis=-1, keepdims=True)
        shift = jnp.where(near, shift, 0.0)
        d = shift - jnp.log1p(jnp.sum(p * jnp.expm1(shift), axis=-1, keepdims=True))
        close = p * expm1_minus_identity(d)
        far = jnp.exp(log_q) - p - p * (log_q - log_p)  # never overflows, unlike e^d
        return jnp.sum(jnp.where(near, close, far), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Return -Σ_k p_k log p_k."""
        log_p = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    def sample(self, key: PRNGKeyArray) -> Int[Array, "*batch"]:
        """Draw one integer a batch entry."""
        return jax.random.categorical(key, self.logits, axis=-1)

    def mode(self) -> Int[Array, "*batch"]:
        """Return the most probable integer."""
        return jnp.argmax(self.logits, axis=-1)
