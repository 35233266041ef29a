"""Domain randomization: every episode of every environment gets its own physical model."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

RandomizationFn = Callable[[Any, jax.Array], tuple[Any, Any]]
"""Brax's signature: (model, raw keys `[N, 2]`) -> (model with N values in some leaves, in_axes as `jax.vmap` takes them)."""


def refuse_randomization(what: str, randomization_fn: RandomizationFn | None) -> None:
    """Raise TypeError if there is a function for an environment whose parameters cannot be drawn."""
    if randomization_fn is not None:
        raise TypeError(f"randomization_fn: got a function, allowed: None for {what}; only Brax and Playground are randomized")


class Randomized(NamedTuple):
    """State of N environments, each with its own model."""

    parameters: tuple[jax.Array, ...]
    """The randomized leaves of the model, `[N, ...]` each; the same from reset to the end of the episode."""
    state: Any
    """The simulator's own state."""


class Randomization:
    """Draws the randomized leaves of an environment's model and puts them into the environment while it is traced.

    Unbatched leaves (in_axes None) come from one call of randomization_fn at construction. They are constants of the
    program, shared by all environments.

    Args:
        environment: a Brax or Playground environment, neither vectorized nor time-limited.
        model_name: name of the attribute that holds its model, a pytree of arrays.
        randomization_fn: see `RandomizationFn`. It must accept any number of keys.

    Raises:
        TypeError: an environment without this model, or a randomization_fn that does not return a pair of a model and
            its in_axes, batches no leaf, or gives a batched leaf another length than the number of keys.
    """

    def __init__(self, environment: Any, model_name: str, randomization_fn: RandomizationFn):
        self._environment, self._model_name, self._randomization_fn = environment.unwrapped, model_name, randomization_fn
        if not callable(randomization_fn):
            raise _wrong(f"a {type(randomization_fn).__name__}", "a function (model, keys) -> (model, in_axes)")
        if not hasattr(self._environment, model_name):
            kind = type(self._environment).__name__
            raise _wrong("a function", f"None for a {kind}, which has no model in an attribute {model_name}")
        leaves, axes, self._treedef = self._randomized(jax.random.split(jax.random.key(0), 2))
        self._constants = [leaf if axis is None else None for leaf, axis in zip(leaves, axes, strict=True)]

    def draw(self, keys: Key[Array, "N"]) -> tuple[jax.Array, ...]:
        """Draw the randomized leaves of N models, `[N, ...]` each."""
        leaves, axes, _ = self._randomized(keys)
        return tuple(jnp.moveaxis(leaf, axis, 0) for leaf, axis in zip(leaves, axes, strict=True) if axis is not None)

    def vmap(self, method: Callable[..., Any], parameters: tuple[jax.Array, ...], *arguments: Any) -> Any:
        """Call a method for N environments in parallel, each with its own model."""
        return jax.vmap(functools.partial(self._call_under, method))(parameters, *arguments)

    def _call_under(self, method: Callable[..., Any], parameters: tuple[jax.Array, ...], *arguments: Any) -> Any:
        with self._model_with(parameters):
            return method(*arguments)

    @contextlib.contextmanager
    def _model_with(self, parameters: tuple[jax.Array, ...]) -> Iterator[None]:
        """Put these leaves of one environment into the model while the context is open.

        This changes the environment itself and then changes it back. In a copy, bound methods would still use the
        original environment.
        """
        drawn = iter(parameters)
        leaves = [next(drawn) if constant is None else constant for constant in self._constants]
        original = getattr(self._environment, self._model_name)
        setattr(self._environment, self._model_name, jax.tree.unflatten(self._treedef, leaves))
        try:
            yield
        finally:
            setattr(self._environment, self._model_name, original)

    def _randomized(self, keys: Key[Array, "N"]) -> tuple[list[Any], list[int | None], Any]:
        model = getattr(self._environment, self._model_name)
        returned = self._randomization_fn(model, jax.random.key_data(keys))
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise _wrong(f"a function that returns a {type(returned).__name__}", "one that returns (model, in_axes)")
        batched, in_axes = returned
        axes = _leaf_axes(in_axes, batched)
        leaves, treedef = jax.tree.flatten(batched)
        for leaf, axis in zip(leaves, axes, strict=True):
            if axis is not None and jnp.shape(leaf)[axis] != keys.shape[0]:
                got = f"a leaf of shape {jnp.shape(leaf)}, mapped along axis {axis}"
                raise _wrong(got, f"length {keys.shape[0]} along that axis, one entry for each key")
        if all(axis is None for axis in axes):
            raise _wrong("a function whose in_axes map no leaf", "one that randomizes at least one leaf of the model")
        return leaves, axes, treedef


def _leaf_axes(in_axes: Any, model: Any) -> list[int | None]:
    """Return the mapped axis of every leaf of a model. `in_axes` may be a prefix of the model's tree."""
    axes: list[int | None] = []

    def extend(axis: int | None, part: Any) -> None:
        axes.extend([axis] * len(jax.tree.leaves(part)))

    try:
        jax.tree.map(extend, in_axes, model, is_leaf=lambda axis: axis is None)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise _wrong("a function whose in_axes do not fit its model", f"in_axes of the model's structure ({reason})") from None
    return axes


def _wrong(got: str, allowed: str) -> TypeError:
    return TypeError(f"randomization_fn: got {got}, allowed: {allowed}")
