"""A rollout's samples in shuffled minibatches."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key


def minibatches(samples: Any, key: Key[Array, ""], count: int) -> Any:
    """Shuffle the steps of each environment and cut the samples into `count` minibatches, along a new first axis.

    If `count` divides T, each minibatch is a slice of the steps, with all environments. Otherwise there are a = gcd(T, count)
    slices, and each is divided among b = count / a minibatches, which take every b-th environment. Either way every device
    holds a part of each minibatch, so no sample moves between devices. If b does not divide N, minibatches are cut from the
    flattened samples, and the remainder is left out.

    Args:
        samples: pytree of `[T, N, *]`.
        key: for the shuffle; consumed.
        count: at most T·N.

    Returns:
        The pytree, of `[count, T/a, N/b, *]`, or `[count, T·N // count, *]` from flattened samples.
    """
    num_steps, num_envs = jax.tree.leaves(samples)[0].shape[:2]
    order = jnp.argsort(jax.random.bits(key, (num_steps, num_envs)), axis=0)
    by_steps = math.gcd(num_steps, count)
    by_envs = count // by_steps
    size = num_steps * num_envs // count

    def cut(leaf: Array) -> Array:
        shuffled = jnp.take_along_axis(leaf, order.reshape(order.shape + (1,) * (leaf.ndim - 2)), axis=0)
        rest = leaf.shape[2:]
        if num_envs % by_envs:
            return shuffled.reshape(-1, *rest)[: count * size].reshape(count, size, *rest)
        parts = shuffled.reshape(by_steps, num_steps // by_steps, num_envs // by_envs, by_envs, *rest)
        return jnp.moveaxis(parts, 3, 1).reshape(count, num_steps // by_steps, num_envs // by_envs, *rest)

    return jax.tree.map(cut, samples)
