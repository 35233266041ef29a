"""Parts of a batch: microbatches, the shares of devices, and the samples for Fisher-vector products."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from trpo_jax.objective.surrogate import Batch
from trpo_jax.tree import upcast
from trpo_jax.weights import AxisName


class Partition(NamedTuple):
    """A batch in parts, which every device processes one after another."""

    parts: Any
    """Pytree of samples. With several parts, every leaf has a new leading axis of size `num_parts`."""
    share: float | None
    """Weight of a part's mean in the mean of the whole batch. None if the samples' weights include it or there is one part."""
    num_parts: int
    axis_name: AxisName | None


def partition(samples: Any, axes: tuple[int, ...], *, weighted: bool, num_parts: int, axis_name: AxisName | None) -> Partition:
    """Split samples along their last batch axis. Part p holds samples p, p + num_parts, p + 2·num_parts, and so on.

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


def map_parts(fn: Callable[[Any], Any], partition: Partition) -> Partition:
    """Return a partition of the results of `fn` for each part."""
    parts = fn(partition.parts) if partition.num_parts == 1 else jax.lax.map(fn, partition.parts)
    return partition._replace(parts=parts)


def mean_of_parts(averages: Partition) -> Any:
    """Return the mean over the whole batch, given each part's averages, a pytree; in at least float32."""
    total = _shared(averages.parts, averages.share)
    if averages.num_parts > 1:
        total = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), total)
    return _over_devices(jax.lax.psum, total, averages.axis_name)


def max_of_parts(largest: Partition) -> Any:
    """Return the largest over the whole batch of numbers >= 0, given each part's largest, a pytree."""
    total = largest.parts
    if largest.num_parts > 1:
        total = jax.tree.map(lambda leaf: jnp.max(leaf, axis=0), total)
    return _over_devices(jax.lax.pmax, total, largest.axis_name)


def mean_over_parts(fn: Callable[[Any], Any], partition: Partition) -> Any:
    """Return `mean_of_parts` of the averages that `fn` returns, without holding those of more than one part."""
    if partition.num_parts == 1:
        return mean_of_parts(map_parts(fn, partition))

    def shared(part: Any) -> Any:
        return _shared(fn(part), partition.share)

    def accumulate(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, shared(part)), None

    first = jax.tree.map(lambda leaf: leaf[0], partition.parts)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(shared, first))
    total, _ = jax.lax.scan(accumulate, local(zeros, partition.axis_name), partition.parts)
    return _over_devices(jax.lax.psum, total, partition.axis_name)


def _shared(averages: Any, share: float | None) -> Any:
    """Multiply averages by a part's share of the whole batch, in at least float32."""
    averages = upcast(averages)
    return averages if share is None else jax.tree.map(lambda average: average * share, averages)


def _over_devices(combine: Callable[..., Array], tree: Any, axis_name: AxisName | None) -> Any:
    return tree if axis_name is None else jax.tree.map(lambda leaf: combine(leaf, axis_name), tree)


def local(tree: Any, axis_name: AxisName | None) -> Any:
    """Return a device-local copy of replicated arrays, so that derivatives with respect to it are this device's only."""
    if axis_name is None:
        return tree
    nothing = 0 * jax.lax.axis_index(axis_name)
    return jax.tree.map(lambda leaf: leaf + nothing.astype(leaf.dtype), tree)


def samples_for_curvature(batch: Batch, fraction: float, *, num_parts: int = 1, key: PRNGKeyArray | None = None) -> Batch:
    """Return a fraction of a batch's samples: the same indices of the last batch axis for all other batch axes.

    Args:
        batch: the whole batch.
        fraction: fraction of the samples, in (0, 1]; their number is rounded to a non-zero multiple of `num_parts`.
        num_parts: number of parts into which the chosen samples will be divided.
        key: draws the samples without replacement; None takes evenly spaced ones.
    """
    axes = batch.log_prob.shape
    size = axes[-1]
    count = max(1, round(fraction * size / num_parts)) * num_parts
    if count >= size:
        return batch
    indices = np.arange(count) * size // count if key is None else jax.random.permutation(key, size)[:count]
    return jax.tree.map(lambda leaf: jnp.take(leaf, indices, len(axes) - 1), batch)
