"""Statistics of weighted samples, accumulated in at least float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

AxisName = str | tuple[str, ...]


def unit_weight(
    weight: Float[Array, "..."], axis: tuple[int, ...] | None = None, axis_name: AxisName | None = None
) -> Float[Array, "..."]:
    """Scale non-negative weights to a sum of 1, in at least float32; weights that are all zero stay zero.

    Args:
        weight: `[...]`, any scale; a weight below the smallest normal number of its dtype (1e-38 in float32) counts as zero.
        axis: axes along which the sum is 1; None for all.
        axis_name: named axes of `jax.shard_map` or `jax.vmap` that are also summed over.
    """
    weight = jnp.asarray(weight, jnp.promote_types(weight.dtype, jnp.float32))
    largest = jnp.max(weight, axis, keepdims=True)
    if axis_name is not None:
        largest = jax.lax.pmax(largest, axis_name)
    scaled = weight / power_of_two(largest)  # so that the sum neither overflows nor vanishes
    total = jnp.sum(scaled, axis, keepdims=True)
    if axis_name is not None:
        total = jax.lax.psum(total, axis_name)
    unit = scaled / jnp.where(total > 0, total, 1.0)
    return jnp.where(weight > 0, jnp.maximum(unit, jnp.finfo(unit.dtype).tiny), unit)  # positive weights stay positive


def power_of_two(size: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the smallest power of two above each size >= 0 (1 for size 0). Dividing by it does not round.

    A compiler may multiply by the reciprocal instead of dividing. The reciprocal of a number near the largest float is too
    small for a normal float and may become zero, so the power is limited to those whose reciprocal is a normal float.
    """
    limits = jnp.finfo(size.dtype)
    _, exponent = jnp.frexp(jax.lax.stop_gradient(size))
    return jnp.ldexp(jnp.ones((), size.dtype), jnp.clip(exponent, limits.minexp, -limits.minexp))


def average(values: Float[Array, "..."], weight: Float[Array, "..."] | None) -> Float[Array, ""]:
    """Return Σ w·x for weights with a sum of 1 (see `unit_weight`); None weighs all equally.

    Values of weight zero are ignored, even NaN.
    """
    values = jnp.asarray(values, jnp.promote_types(values.dtype, jnp.float32))
    if weight is None:
        return jnp.mean(values)
    return jnp.sum(jnp.asarray(weight, values.dtype) * jnp.where(weight > 0, values, 0.0))


def variance(values: Float[Array, "..."], weight: Float[Array, "..."] | None) -> Float[Array, ""]:
    """Return Σ w·(x - mean)² for weights with a sum of 1; None weighs all equally."""
    return average((values - average(values, weight)) ** 2, weight)


def weighted_mean(values: Float[Array, "..."], weight: Float[Array, "..."] | None = None) -> Float[Array, ""]:
    """Return Σ w·x / Σ w for non-negative weights of any scale; see `average`."""
    return average(values, None if weight is None else unit_weight(weight))
