"""A rollout's samples in shuffled minibatches."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from trpo_jax.errors import ConfigError
from trpo_jax.policy.memory import Sequence


def has_sequences(samples: Any) -> bool:
    """Tell whether any part of the samples is a `Sequence`."""
    parts = jax.tree.leaves(samples, is_leaf=lambda part: isinstance(part, Sequence))
    return any(isinstance(part, Sequence) for part in parts)


def minibatches(samples: Any, key: Key[Array, ""], count: int) -> Any:
    """Shuffle the steps of each environment and cut the samples into `count` minibatches, along a new first axis.

    If `count` divides T, each minibatch is a slice of the steps, with all environments. Otherwise there are a = gcd(T, count)
    slices, and each is divided among b = count / a minibatches, which take every b-th environment. Either way every device
    holds a part of each minibatch, so no sample moves between devices. If b does not divide N, minibatches are cut from the
    flattened samples, and the remainder is left out.

    If a part is a `Sequence`, whole environments are shuffled instead and keep their steps in order.

    Args:
        samples: pytree of `[T, N, *]`.
        key: for the shuffle; consumed.
        count: at most T·N.

    Returns:
        The pytree, of `[count, T/a, N/b, *]`, or `[count, T·N // count, *]` from flattened samples, or of sequences
        `[count, T, N // count, *]`.
    """
    if has_sequences(samples):
        return _of_environments(samples, key, count)
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


def _of_environments(samples: Any, key: Key[Array, ""], count: int) -> Any:
    """Shuffle environments and cut them into minibatches; leave out the remainder."""
    num_envs = jax.tree.leaves(samples)[0].shape[1]
    if count > num_envs:
        raise ConfigError("num_minibatches", count, f"at most num_envs = {num_envs} for a network with memory")
    order = jax.random.permutation(key, num_envs)[: num_envs // count * count]

    def cut(leaf: Array) -> Array:
        chosen = jnp.take(leaf, order, axis=1)
        return jnp.moveaxis(chosen.reshape(leaf.shape[0], count, -1, *leaf.shape[2:]), 1, 0)

    return jax.tree.map(cut, samples)
