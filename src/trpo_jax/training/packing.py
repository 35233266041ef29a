"""A pytree as a few long arrays."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np


class Packed(NamedTuple):
    """A pytree as one long array per dtype, because a simulator's hundreds of small arrays would be slow to store."""

    arrays: dict[str, Any]
    layout: list[list[Any]]
    """Path, dtype and shape of each leaf."""

    @classmethod
    def of(cls, tree: Any) -> "Packed":
        """Pack arrays, or `jax.ShapeDtypeStruct`s."""
        leaves = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
        layout = [[path, str(leaf.dtype), list(leaf.shape)] for path, leaf in leaves]
        groups: dict[str, list[Any]] = {}
        for _, leaf in leaves:
            groups.setdefault(str(leaf.dtype), []).append(leaf)
        return cls({dtype: _concatenate(group) for dtype, group in groups.items()}, layout)

    def misfit(self, layout: list[list[Any]], name: str) -> str:
        """Describe how another layout of the tree called `name` differs; return "" if it does not."""
        if layout == self.layout:
            return ""
        for ours, theirs in zip(self.layout, layout, strict=False):
            if ours != theirs:
                return f"it holds {name}{theirs[0]} as {theirs[1]}{theirs[2]}, expected {name}{ours[0]} as {ours[1]}{ours[2]}"
        return f"its {name} has {len(layout)} arrays, expected {len(self.layout)}"

    def unpack(self, arrays: dict[str, np.ndarray], like: Any) -> Any:
        """Split the arrays into leaves again, in the structure of `like`."""
        position = dict.fromkeys(arrays, 0)
        leaves = []
        for _, dtype, shape in self.layout:
            start, stop = position[dtype], position[dtype] + math.prod(shape)
            leaves.append(np.asarray(arrays[dtype])[start:stop].reshape(shape))
            position[dtype] = stop
        return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _concatenate(leaves: list[Any]) -> Any:
    if isinstance(leaves[0], jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((sum(math.prod(leaf.shape) for leaf in leaves),), leaves[0].dtype)
    return np.concatenate([np.ravel(leaf) for leaf in leaves])
