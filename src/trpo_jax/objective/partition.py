"""A batch in parts: the samples that curvature is taken from, microbatches, and the share of each device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from trpo_jax.tree import upcast
from trpo_jax.weights import AxisName


class Partition(NamedTuple):
    """A batch in parts that are worked through one after another, on each of several devices."""

    parts: Any
    """Pytree of samples; with several parts every leaf has their number as a new leading axis."""
    share: float | None
    """What a part's mean counts for in the whole batch's; None where its weights say so, or where there is one part."""
    num_parts: int
    axis_name: AxisName | None


def partition(samples: Any, axes: tuple[int, ...], *, weighted: bool, num_parts: int, axis_name: AxisName | None) -> Partition:
    """Split samples along the last of their batch axes, into every `num_parts`-th one.

    Args:
        samples: pytree of `[*axes, *]`.
        axes: the sizes of the batch axes.
        weighted: whether samples have weights, with a sum of 1 over the whole batch.
        num_parts: must divide the last of the axes.
        axis_name: named axes (of shard_map or vmap) over which the batch is split further.
    """
    axis = len(axes) - 1

    def split(leaf: Array) -> Array:
        spread = leaf.reshape(*axes[:-1], axes[-1] // num_parts, num_parts, *leaf.shape[len(axes) :])
        return jnp.moveaxis(spread, axis + 1, 0)

    parts = samples if num_parts == 1 else jax.tree.map(split, samples)
    in_all = num_parts if axis_name is None else num_parts * jax.lax.axis_size(axis_name)
    return Partition(parts, None if weighted or in_all == 1 else 1.0 / in_all, num_parts, axis_name)


def mean_and_max(partition: Partition, fn: Callable[[Any], tuple[Any, Any]]) -> tuple[Any, Any]:
    """Return the mean over the whole batch of what `fn` averages over a part, and the largest of its other numbers.

    Args:
        partition: the batch.
        fn: part -> (pytree of `average`s over the part, pytree of numbers >= 0).

    Returns:
        The same structure for the whole batch, in at least float32.
    """
    share = partition.share

    def shared(part: Any) -> tuple[Any, Any]:
        means, largest = fn(part)
        means = upcast(means)
        return means if share is None else jax.tree.map(lambda mean: mean * share, means), largest

    if partition.num_parts == 1:
        means, largest = shared(partition.parts)
    else:
        first = jax.tree.map(lambda leaf: leaf[0], partition.parts)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(shared, first))

        def accumulate(total: Any, part: Any) -> tuple[Any, None]:
            means, largest = shared(part)
            return (jax.tree.map(jnp.add, total[0], means), jax.tree.map(jnp.maximum, total[1], largest)), None

        (means, largest), _ = jax.lax.scan(accumulate, local(zeros, partition.axis_name), partition.parts)
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
