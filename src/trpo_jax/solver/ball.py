"""The largest value of a linear function in a ball with a few linear limits."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MOST_LIMITS = 6
"""Every subset of the limits is tried, 2^K of them."""

TOLERANCE = 1e-4
"""A limit counts as kept if it is exceeded by no more than this share of what the whole ball can change about it."""

NEGLIGIBLE = 1e-6
"""Directions whose curvature is below this share of the largest are left out."""


class BallSolution(NamedTuple):
    """Where a linear function is largest."""

    point: Float[Array, "M"]
    feasible: Bool[Array, ""]
    """Whether the ball holds a point within all limits. If it does not, `point` is a step towards them."""
    active: Bool[Array, "K"]
    """Limits that hold with equality at the point; those that are exceeded at the origin if the ball holds no such point."""


def maximize_in_ball(
    gradient: Float[Array, "M"],
    slopes: Float[Array, "K M"],
    excess: Float[Array, "K"],
    curvature: Float[Array, "M M"],
    radius: float | Float[Array, ""],
) -> BallSolution:
    """Maximize gᵀy subject to ½yᵀGy <= δ and c + By <= 0.

    The maximum lies on the boundary of the ball, or where some limits meet inside it. So for every subset A of the limits the
    best point is computed at which those of A hold with equality,

        z = z₀ + u · sqrt(2δ - ‖z₀‖²) / ‖u‖,    z₀ = -B_Aᵀ(B_A B_Aᵀ)⁺ c_A,    u = g - B_Aᵀ(B_A B_Aᵀ)⁺ B_A g

    in coordinates in which G is the identity. The best of these points that keeps all limits is returned. If no point of the
    ball does, the step goes to the end of the ball in the direction of z₀ for the limits that are exceeded at the origin: the
    recovery step.

    Args:
        gradient: g `[M]`.
        slopes: B `[K, M]`, the gradients of the limited quantities; 1 <= K <= `MOST_LIMITS`, static.
        excess: c `[K]`, by how much each is above its limit at the origin; negative below it.
        curvature: G `[M, M]`, symmetric, positive semi-definite. Directions in which it is nearly zero are left out.
        radius: δ > 0.

    Returns:
        `BallSolution`.

    Raises:
        ValueError: no limits, or more than `MOST_LIMITS`.

    Reference:
        Achiam et al. 2017 (arXiv 1705.10528), appendix 10.2, for one limit, by its dual.
    """
    number = slopes.shape[0]
    if not 1 <= number <= MOST_LIMITS:
        raise ValueError(f"slopes: got {number} limits, allowed: 1 to {MOST_LIMITS}")
    values, vectors = jnp.linalg.eigh(0.5 * (curvature + curvature.T))
    kept = values > NEGLIGIBLE * jnp.max(values)
    whiten = vectors * jnp.where(kept, jax.lax.rsqrt(jnp.where(kept, values, 1.0)), 0.0)[None, :]
    gradient, slopes = whiten.T @ gradient, slopes @ whiten
    size = jnp.sqrt(2.0 * radius)
    reach = size * jnp.linalg.norm(slopes, axis=1)  # the most that the ball changes about each
    chosen = jnp.asarray(list(itertools.product((False, True), repeat=number)))
    points = jax.vmap(lambda mask: _best_with_equality(gradient, slopes, excess, mask, size))(chosen)
    within = jnp.all(excess[None, :] + points @ slopes.T <= TOLERANCE * reach[None, :], axis=1)
    inside = jnp.sum(points**2, axis=1) <= (1.0 + TOLERANCE) * size**2
    objective = jnp.where(within & inside, points @ gradient, -jnp.inf)
    best = jnp.argmax(objective)
    feasible = jnp.any(within & inside)
    exceeded = excess > 0
    towards, _ = _meeting(slopes, excess, exceeded)
    norm = jnp.linalg.norm(towards)
    recovery = towards * size / jnp.where(norm > 0, norm, 1.0)
    point = jnp.where(feasible, points[best], recovery)
    return BallSolution(whiten @ point, feasible, jnp.where(feasible, chosen[best], exceeded))


def _best_with_equality(
    gradient: Float[Array, "M"],
    slopes: Float[Array, "K M"],
    excess: Float[Array, "K"],
    mask: Bool[Array, "K"],
    size: Float[Array, ""],
) -> Float[Array, "M"]:
    """Return the best point of the ball of this size at which the masked limits hold with equality."""
    nearest, inverse = _meeting(slopes, excess, mask)
    masked = jnp.where(mask[:, None], slopes, 0.0)
    along = gradient - masked.T @ (inverse @ (masked @ gradient))
    norm = jnp.linalg.norm(along)
    usable = norm > TOLERANCE * jnp.linalg.norm(gradient)
    left = jnp.sqrt(jnp.maximum(size**2 - jnp.sum(nearest**2), 0.0))
    return nearest + jnp.where(usable, along / jnp.where(usable, norm, 1.0), 0.0) * left


def _meeting(
    slopes: Float[Array, "K M"], excess: Float[Array, "K"], mask: Bool[Array, "K"]
) -> tuple[Float[Array, "M"], Float[Array, "K K"]]:
    """Return the shortest point at which the masked limits hold with equality, and the pseudo-inverse that gives it."""
    masked = jnp.where(mask[:, None], slopes, 0.0)
    scale = jnp.linalg.norm(masked, axis=1)
    inverse_scale = jnp.where(scale > 0, 1.0 / jnp.where(scale > 0, scale, 1.0), 0.0)
    unit = masked * inverse_scale[:, None]
    inverse = jnp.linalg.pinv(unit @ unit.T, rtol=NEGLIGIBLE, hermitian=True) * inverse_scale[:, None] * inverse_scale[None, :]
    return -masked.T @ (inverse @ jnp.where(mask, excess, 0.0)), inverse
