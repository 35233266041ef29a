"""Copies arrays to the host's memory, and back to devices."""

import functools
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def to_host(tree: Any) -> Any:
    """Copy a pytree into the host's memory: numpy arrays, keys as their data. All processes must call it together."""
    return jax.tree.map(_to_host, tree)


def _to_host(leaf: jax.Array) -> np.ndarray:
    data = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    if data.is_fully_replicated:
        return np.array(data.addressable_data(0))
    return np.array(data if data.is_fully_addressable else multihost_utils.process_allgather(data, tiled=True))


def host_like(tree: Any) -> Any:
    """Return `jax.ShapeDtypeStruct`s of the result of `to_host`, given those of its argument."""
    return jax.eval_shape(functools.partial(jax.tree.map, lambda x: jax.random.key_data(x) if _is_key(x) else x), tree)


def place(host_tree: Any, like: Any, sharding: jax.sharding.Sharding) -> Any:
    """Move the result of `to_host` back to devices; `like` describes the original arrays."""
    placed = jax.tree.map(lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index]), host_tree)
    return jax.jit(functools.partial(jax.tree.map, _as_key_like, like), out_shardings=sharding)(placed)


def _as_key_like(like: Any, data: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(data) if _is_key(like) else data


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
