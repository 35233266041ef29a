"""A batch in parts: the samples that curvature is taken from, microbatches, and the share of each device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trpo_jax.solver.tree import scaled, upcast

AxisName = str | tuple[str, ...]


class Partition(NamedTuple):
    """A batch in parts that are worked through one after another, on each of several devices."""

    parts: Any
    """Pytree of samples; with several parts every leaf has their number as a new leading axis."""
    share: Float[Array, "..."] | None
    """Part of the whole batch's weight that a part holds: a scalar, or an entry for each part; None where there is one."""
    num_parts: int
    axis_name: AxisName | None


def partition(
    samples: Any, weight: Float[Array, "*batch"] | None, axes: tuple[int, ...], num_parts: int, axis_name: AxisName | None
) -> Partition:
    """Split samples along the last of their batch axes, into every `num_parts`-th one.

    Args:
        samples: pytree of `[*axes, *]`.
        weight: non-negative weights of any scale, or None.
        axes: the sizes of the batch axes.
        num_parts: must divide the last of them.
        axis_name: named axes (of shard_map or vmap) over which the batch is split further.
    """
    if num_parts == 1 and axis_name is None:
        return Partition(samples, None, 1, None)
    axis = len(axes) - 1

    def split(leaf: Array) -> Array:
        spread = leaf.reshape(*axes[:-1], axes[-1] // num_parts, num_parts, *leaf.shape[len(axes) :])
        return jnp.moveaxis(spread, axis + 1, 0)

    parts = samples if num_parts == 1 else jax.tree.map(split, samples)
    if weight is None:
        held = jnp.full((num_parts,), 1.0 / num_parts)
    else:
        largest = jnp.max(weight)
        if axis_name is not None:
            largest = jax.lax.pmax(largest, axis_name)
        scaled = weight / jnp.where(largest > 0, largest, 1.0)  # weights of any scale have a sum in range
        held = jnp.sum(scaled.reshape(-1, num_parts), axis=0)
    total = jnp.sum(held)
    if axis_name is not None:
        total = jax.lax.psum(total, axis_name)
    share = held / jnp.where(total > 0, total, 1.0)
    return Partition(parts, share[0] if num_parts == 1 else share, num_parts, axis_name)


def mean_and_max(partition: Partition, fn: Callable[[Any], tuple[Any, Any]]) -> tuple[Any, Any]:
    """Return the mean over the whole batch of what `fn` gives as mean over a part, and the largest of the other numbers.

    Args:
        partition: the batch.
        fn: part -> (pytree of weighted means over the part, pytree of numbers >= 0).

    Returns:
        The same structure for the whole batch, in at least float32.
    """
    if partition.share is None:
        return fn(partition.parts)

    def weighted(part: Any, share: Float[Array, ""]) -> tuple[Any, Any]:
        means, largest = fn(part)
        return scaled(share, upcast(means)), largest

    if partition.num_parts == 1:
        means, largest = weighted(partition.parts, partition.share)
    else:
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(lambda xs: weighted(*jax.tree.map(lambda leaf: leaf[0], xs)), (partition.parts, partition.share)),
        )

        def accumulate(total: Any, part_and_share: Any) -> tuple[Any, None]:
            means, largest = weighted(*part_and_share)
            return (jax.tree.map(jnp.add, total[0], means), jax.tree.map(jnp.maximum, total[1], largest)), None

        start = local(zeros, partition.axis_name)
        (means, largest), _ = jax.lax.scan(accumulate, start, (partition.parts, partition.share))
    if partition.axis_name is not None:
        means = jax.tree.map(lambda x: jax.lax.psum(x, partition.axis_name), means)
        largest = jax.tree.map(lambda x: jax.lax.pmax(x, partition.axis_name), largest)
    return means, largest


def map_parts(partition: Partition, fn: Callable[[Any], Any]) -> Any:
    """Return what `fn` gives for each part, with the parts' axis in front where there are several."""
    return fn(partition.parts) if partition.num_parts == 1 else jax.lax.map(fn, partition.parts)


def local(tree: Any, axis_name: AxisName | None) -> Any:
    """Return a copy of replicated arrays that belongs to this device, so that its derivatives are this device's alone."""
    if axis_name is None:
        return tree
    nothing = 0 * jax.lax.axis_index(axis_name)
    return jax.tree.map(lambda leaf: leaf + nothing.astype(leaf.dtype), tree)


def curvature_indices(
    size: int, fraction: float, num_parts: int, key: PRNGKeyArray | None
) -> Int[Array, "count"] | np.ndarray | None:
    """Return which samples along an axis of `size` curvature is taken from, a multiple of `num_parts`; None for all.

    With a key they are drawn by chance, without one they are evenly spaced.
    """
    count = max(1, round(fraction * size / num_parts)) * num_parts
    if count >= size:
        return None
    if key is not None:
        return jax.random.permutation(key, size)[:count]
    return np.arange(count) * size // count
