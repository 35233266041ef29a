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


def mean_over_parts(fn: Callable[[Any], Any], partition: Partition) -> Any:
    """Return the mean over the whole batch, in at least float32. `fn` returns a pytree of means over one part."""
    share = partition.share

    def shared(part: Any) -> Any:
        means = upcast(fn(part))
        return means if share is None else jax.tree.map(lambda mean: mean * share, means)

    means = _reduced(shared, jnp.add, partition)
    axis_name = partition.axis_name
    return means if axis_name is None else jax.tree.map(lambda mean: jax.lax.psum(mean, axis_name), means)


def max_over_parts(fn: Callable[[Any], Any], partition: Partition) -> Any:
    """Return the maximum over the whole batch. `fn` returns a pytree of maxima over one part, all >= 0."""
    largest = _reduced(fn, jnp.maximum, partition)
    axis_name = partition.axis_name
    return largest if axis_name is None else jax.tree.map(lambda number: jax.lax.pmax(number, axis_name), largest)


def _reduced(fn: Callable[[Any], Any], combine: Callable[[Array, Array], Array], partition: Partition) -> Any:
    """Combine the results of `fn` for this device's parts, holding only one of them at a time."""
    if partition.num_parts == 1:
        return fn(partition.parts)
    first = jax.tree.map(lambda leaf: leaf[0], partition.parts)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(fn, first))

    def accumulate(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(combine, total, fn(part)), None

    return jax.lax.scan(accumulate, local(zeros, partition.axis_name), partition.parts)[0]


def map_parts(fn: Callable[[Any], Any], partition: Partition) -> Partition:
    """Apply `fn` to each part; return the results as a partition."""
    parts = fn(partition.parts) if partition.num_parts == 1 else jax.lax.map(fn, partition.parts)
    return partition._replace(parts=parts)


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
