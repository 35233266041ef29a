"""The largest value of a linear function in a ball with a few linear limits."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MOST_LIMITS = 6
"""Every subset of the limits is tried, 2^K of them."""

TOLERANCE = 1e-4
"""A limit counts as kept if it is exceeded by at most this share of what the whole ball can change about it."""

NEGLIGIBLE = 1e-6
"""Directions that are parallel but for this share of curvature are left out, and gains below this share of the ball's."""

FARTHEST = 1e6
"""Limits that are farther away than so many times the radius count as being so far away."""

REFINEMENTS = 2
"""How often a projection is repeated on what it has left: float32 loses digits if limits are nearly parallel."""


class BallSolution(NamedTuple):
    """Where a linear function is largest."""

    point: Float[Array, "M"]
    feasible: Bool[Array, ""]
    """Whether the ball holds a point within all limits. If it does not, `point` is a step towards the nearest one."""
    active: Bool[Array, "K"]
    """Limits that hold with equality at the point, or at the nearest point outside the ball that keeps all limits."""


class _Projections(NamedTuple):
    """Of the origin and of the gradient, on the points at which some limits hold with equality."""

    nearest: Float[Array, "M"]
    along: Float[Array, "M"]


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
    ball does, the step goes to the end of the ball in the direction of the shortest z₀ that keeps all limits: the recovery
    step. On its way every exceeded limit comes nearer, and no other is broken.

    Args:
        gradient: g `[M]`.
        slopes: B `[K, M]`, the gradients of the limited quantities; 1 <= K <= `MOST_LIMITS`, static. A limit whose slope is
            zero is none: no step changes it.
        excess: c `[K]`, by how much each is above its limit at the origin; negative below it. -inf is no limit.
        curvature: G `[M, M]`, symmetric, positive semi-definite. Directions in which it is nearly zero are left out.
        radius: δ > 0.

    Returns:
        `BallSolution`. No point improves on the origin if `point` is zero.

    Raises:
        ValueError: no limits, or more than `MOST_LIMITS`.

    Reference:
        Achiam et al. 2017 (arXiv 1705.10528), appendix 10.2, for one limit, by its dual.
    """
    number = slopes.shape[0]
    if not 1 <= number <= MOST_LIMITS:
        raise ValueError(f"slopes: got {number} limits, allowed: 1 to {MOST_LIMITS}")
    to_sphere = jnp.sqrt(2.0 * radius) * _whitening(curvature)  # y = to_sphere @ w, in the ball if ‖w‖ <= 1
    gradient, _ = _unit(to_sphere.T @ gradient)
    units, sizes = _unit(slopes @ to_sphere)
    excess = jnp.where(sizes > 0, excess / jnp.where(sizes > 0, sizes, 1.0), -FARTHEST)
    excess = jnp.clip(excess, -FARTHEST, FARTHEST)
    subsets = jnp.asarray(list(itertools.product((False, True), repeat=number)))
    projections = jax.vmap(lambda mask: _project(gradient, units, excess, mask))(subsets)
    nearest, lengths = projections.nearest, jnp.linalg.norm(projections.nearest, axis=1)
    points = jax.vmap(_best_of)(projections)

    def keeps_all(points: Float[Array, "N M"], slack: Float[Array, "N"]) -> Bool[Array, "N"]:
        return jnp.all(excess[None, :] + points @ units.T <= slack[:, None], axis=1)

    valid = keeps_all(points, jnp.full_like(lengths, TOLERANCE)) & (jnp.linalg.norm(points, axis=1) <= 1.0 + TOLERANCE)
    gains = jnp.where(valid, points @ gradient, -jnp.inf)
    best = jnp.argmax(gains)
    at_origin = jnp.all(excess <= 0)
    stays = at_origin & (gains[best] <= NEGLIGIBLE)
    feasible = at_origin | jnp.any(valid)
    distances = jnp.where(keeps_all(nearest, TOLERANCE * (1.0 + lengths)), lengths, jnp.inf)
    closest = jnp.where(jnp.any(jnp.isfinite(distances)), jnp.argmin(distances), jnp.argmax(_is_subset(subsets, excess > 0)))
    recovery, _ = _unit(nearest[closest])
    point = jnp.where(feasible, points[best], recovery)
    point = jnp.where(stays, 0.0, point)
    active = jnp.where(feasible, subsets[best] & ~stays, subsets[closest])
    return BallSolution(to_sphere @ point, feasible, active)


def _whitening(curvature: Float[Array, "M M"]) -> Float[Array, "M M"]:
    """Return W with WᵀGW = I, but for directions of negligible curvature, which become zero."""
    diagonal = jnp.diagonal(curvature)
    scale = jnp.where(diagonal > 0, jax.lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1.0)), 0.0)
    values, vectors = jnp.linalg.eigh(scale[:, None] * (0.5 * (curvature + curvature.T)) * scale[None, :])
    kept = values > NEGLIGIBLE * jnp.max(values)
    return scale[:, None] * vectors * jnp.where(kept, jax.lax.rsqrt(jnp.where(kept, values, 1.0)), 0.0)[None, :]


def _unit(vectors: Float[Array, "*batch M"]) -> tuple[Float[Array, "*batch M"], Float[Array, "*batch"]]:
    """Return vectors divided by their norms, and these; zero stays zero. No square leaves the range of floats."""
    largest = jnp.max(jnp.abs(vectors), axis=-1)
    safe = jnp.where(largest > 0, largest, 1.0)
    scaled = vectors / safe[..., None]
    norm = jnp.where(largest > 0, jnp.linalg.norm(scaled, axis=-1), 1.0)
    return scaled / norm[..., None], jnp.where(largest > 0, safe * norm, 0.0)


def _project(
    gradient: Float[Array, "M"], units: Float[Array, "K M"], excess: Float[Array, "K"], mask: Bool[Array, "K"]
) -> _Projections:
    masked, aimed = jnp.where(mask[:, None], units, 0.0), jnp.where(mask, excess, 0.0)
    inverse = jnp.linalg.pinv(masked @ masked.T, rtol=NEGLIGIBLE, hermitian=True)
    nearest, along = jnp.zeros_like(gradient), gradient
    for _ in range(1 + REFINEMENTS):
        nearest = nearest - masked.T @ (inverse @ (aimed + masked @ nearest))
        along = along - masked.T @ (inverse @ (masked @ along))
    return _Projections(nearest, along)


def _best_of(projections: _Projections) -> Float[Array, "M"]:
    """Return the best point of the unit ball at which the limits of the projections hold with equality."""
    nearest, along = projections
    norm = jnp.linalg.norm(along)
    usable = norm > TOLERANCE  # of a gradient of norm 1
    left = jnp.sqrt(jnp.maximum(1.0 - jnp.sum(nearest**2), 0.0))
    return nearest + jnp.where(usable, along / jnp.where(usable, norm, 1.0), 0.0) * left


def _is_subset(subsets: Bool[Array, "N K"], wanted: Bool[Array, "K"]) -> Bool[Array, "N"]:
    """Tell which of the subsets is the one that is wanted."""
    return jnp.all(subsets == wanted[None, :], axis=1)
