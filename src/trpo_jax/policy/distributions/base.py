"""The protocol of action distributions, and a function that keeps a KL exact near zero."""

import functools
import math
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Action = Any


@runtime_checkable
class Distribution(Protocol):
    """Methods that a distribution over actions must have. It must also be a pytree of arrays with batch axes `[...]`.

    `log_prob(action)`, `kl(other)` = KL(self ‖ other) and `entropy()` return `[...]`, in nats; `sample(key)` and
    `mode()` return actions with batch axes `[...]`. `kl` must be twice differentiable in the floating leaves of `other`:
    the curvature of the trust region follows from it. The package's own distributions compute in at least float32.
    """

    def log_prob(self, action: Action) -> Float[Array, "..."]: ...

    def kl(self, other: Any) -> Float[Array, "..."]: ...

    def entropy(self) -> Float[Array, "..."]: ...

    def sample(self, key: PRNGKeyArray) -> Action: ...

    def mode(self) -> Action: ...


def expm1_minus_identity(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return exp(x) - 1 - x >= 0, without the cancellation of the direct formula near 0.

    A KL written as a sum of these terms is zero with zero gradient for equal distributions, and keeps its relative
    precision however close the two are: a bound on it is reliable in float32.
    """
    near = jnp.abs(x) < 0.35
    small = jnp.where(near, x, 0.0)
    # Taylor series to x⁸: the remainder is below 1e-7 of the value for |x| < 0.35; float64 needs a longer one.
    order = 8 if x.dtype != jnp.float64 else 16
    series = jnp.zeros_like(small)
    for k in range(order, 1, -1):
        series = series * small + 1.0 / math.factorial(k)
    return jnp.where(near, small * small * series, jnp.expm1(jnp.where(near, 0.0, x)) - x)


def sum_of(terms: Iterable[Float[Array, "..."]]) -> Float[Array, "..."]:
    """Return the sum of arrays of the same shape."""
    return functools.reduce(jnp.add, terms)
