"""The policy improvement bound from which TRPO is derived."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class ImprovementBound(NamedTuple):
    """Lower bound on the change of the expected discounted return, in units of return."""

    surrogate: Float[Array, "..."]
    """Predicted change, L(π̃) - η(π)."""
    penalty: Float[Array, "..."]
    """By how much the prediction can be wrong, C · max KL."""
    change: Float[Array, "..."]
    """The bound: surrogate - penalty."""


def improvement_bound(
    surrogate_improvement: Float[Array, "..."],
    max_advantage: Float[Array, "..."],
    max_kl: Float[Array, "..."],
    *,
    discounting: float | Float[Array, ""],
) -> ImprovementBound:
    """Bound the change of the expected discounted return from below, for a new policy π̃ in place of π.

        η(π̃) - η(π) >= L(π̃) - η(π) - C·max_s KL(π(·|s) ‖ π̃(·|s)),    C = 4εγ / (1 - γ)²,    ε = max_{s,a} |A(s, a)|

    where L(π̃) - η(π) = E[r·A] / (1 - γ), with r = π̃(a|s) / π(a|s), over states as π visits them, discounted, and actions of π.
    The bound holds exactly if its arguments are those of all states and actions. From a batch it is an estimate: the means
    have errors, and the largest values in a batch are smaller than the largest of all.

    Args:
        surrogate_improvement: E[r·A] - E[A], in units of return; E[A] = 0 for true advantages.
        max_advantage: ε, in units of return.
        max_kl: largest KL(π ‖ π̃) of any state, nats.
        discounting: γ in [0, 1]. At 1 there is no bound; a huge penalty says so.

    Returns:
        `ImprovementBound`, of the arguments' shape.

    Reference:
        Schulman et al. 2015 (arXiv 1502.05477), theorem 1 and equations 9 and 10.
    """
    dtype = jnp.promote_types(jnp.result_type(surrogate_improvement), jnp.float32)
    left = 1.0 - jnp.asarray(discounting, dtype)
    horizon = 1.0 / jnp.maximum(left, jnp.finfo(left.dtype).eps)
    surrogate = surrogate_improvement * horizon
    penalty = 4.0 * max_advantage * (1.0 - left) * horizon**2 * max_kl
    return ImprovementBound(surrogate, penalty, surrogate - penalty)
