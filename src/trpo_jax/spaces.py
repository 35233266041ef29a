"""Action spaces: what a policy's actions look like to the environment."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Box(NamedTuple):
    """Continuous actions: a vector of `size` components, each meant to lie in [low, high]."""

    size: int
    low: float = -1.0
    high: float = 1.0


class Discrete(NamedTuple):
    """Discrete actions: each is one of the integers 0 … num_actions-1."""

    num_actions: int


class MultiDiscrete(NamedTuple):
    """Several choices at once: a vector of integers, the i-th of them one of 0 … sizes[i]-1."""

    sizes: tuple[int, ...]


class MultiBinary(NamedTuple):
    """Independent bits: a vector of `size` integers 0 or 1."""

    size: int


class Composite(NamedTuple):
    """Actions with parts: a dict or tuple with an action of each part's own space."""

    parts: Any
    """A dict or tuple of action spaces, possibly nested."""


ActionSpace = Box | Discrete | MultiDiscrete | MultiBinary | Composite


def parts_of(space: Composite) -> dict[Any, ActionSpace]:
    """Return a composite's parts by key or position, in the order in which JAX flattens them."""
    if isinstance(space.parts, Mapping):
        return {key: space.parts[key] for key in sorted(space.parts)}
    return dict(enumerate(space.parts))


def with_parts(space: Composite, parts: Mapping[Any, Any]) -> Any:
    """Return a dict or tuple, whichever the composite has, of what belongs to each of its `parts_of`."""
    return dict(parts) if isinstance(space.parts, Mapping) else tuple(parts.values())


def num_numbers(space: ActionSpace) -> int:
    """Return how many numbers describe an action, or the distribution's mean or logits: a discrete choice has one for each."""
    if isinstance(space, Composite):
        return sum(num_numbers(part) for part in parts_of(space).values())
    if isinstance(space, Discrete):
        return int(space.num_actions)
    return sum(map(int, space.sizes)) if isinstance(space, MultiDiscrete) else int(space.size)


def check_action_space(space: Any) -> None:
    """Raise TypeError for anything but an action space, and ValueError for one with an invalid size or invalid bounds."""
    if isinstance(space, Discrete):
        _check_count(space, "num_actions", space.num_actions)
    elif isinstance(space, MultiBinary):
        _check_count(space, "size", space.size)
    elif isinstance(space, MultiDiscrete):
        if not isinstance(space.sizes, tuple) or not space.sizes:
            raise ValueError(f"action_space: got {space}, allowed: a tuple of integers >= 1 for sizes, at least one")
        for size in space.sizes:
            _check_count(space, "each of sizes", size)
    elif isinstance(space, Box):
        _check_count(space, "size", space.size)
        if np.ndim(space.low) or np.ndim(space.high):
            raise ValueError(f"action_space: got {space}, allowed: one low and one high for all components")
        if not space.low < space.high:
            raise ValueError(f"action_space: got {space}, allowed: low < high")
    elif isinstance(space, Composite):
        if not isinstance(space.parts, (dict, tuple)) or hasattr(space.parts, "_fields") or not space.parts:
            raise ValueError(f"action_space: got {space}, allowed: a dict or tuple of action spaces for parts, at least one")
        for part in parts_of(space).values():
            check_action_space(part)
    else:
        kinds = "Box, Discrete, MultiDiscrete, MultiBinary or Composite"
        raise TypeError(f"action_space: got {space!r}, allowed: a trpo_jax.{kinds}")


def is_bounded(space: Box) -> bool:
    """Tell whether both ends of the action box are finite."""
    return math.isfinite(space.low) and math.isfinite(space.high)


def _check_count(space: ActionSpace, name: str, value: Any) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise ValueError(f"action_space: got {space}, allowed: an integer >= 1 for {name}")
