"""Adam over shuffled minibatches of a rollout's samples."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from trpo_jax.agent.minibatches import minibatches
from trpo_jax.tree import upcast, where_finite
from trpo_jax.weights import unit_weight, weighted_mean

_adam = optax.scale_by_adam()


def init_adam(vector: Float[Array, "P"]) -> optax.OptState:
    """Return Adam's state before the first step, in at least float32, for all parameters as one vector."""
    return _adam.init(upcast(vector))


class Passes(NamedTuple):
    """Number of passes over the samples, minibatches per pass, and step size."""

    learning_rate: float | Float[Array, ""]
    """Adam's step size."""
    num_epochs: int = 1
    """Passes over the samples."""
    num_minibatches: int = 1
    """Gradient steps per pass. Samples that do not fill a last minibatch are skipped in that pass."""


class Descended(NamedTuple):
    """Result of `descend`."""

    vector: Float[Array, "P"]
    optimizer: optax.OptState
    values: Any
    """Scalars that the loss function returned, averaged over the last pass."""
    num_steps: Int[Array, ""]
    accepted: Bool[Array, ""]
    """Whether the vector has moved: some sample had a positive weight, and no number overflowed."""


class _Progress(NamedTuple):
    vector: Float[Array, "P"]
    optimizer: optax.OptState
    stopped: Bool[Array, ""]
    num_steps: Int[Array, ""]


def descend(
    loss_fn: Callable[[Float[Array, "P"], Any], tuple[Float[Array, ""], Any]],
    vector: Float[Array, "P"],
    optimizer: optax.OptState,
    samples: Any,
    key: Key[Array, ""],
    passes: Passes,
    *,
    stop_fn: Callable[[Any], Bool[Array, ""]] | None = None,
) -> Descended:
    """Minimize a loss by Adam over shuffled minibatches.

    Args:
        loss_fn: (vector, minibatch) -> (loss, pytree of scalars that are averaged). A minibatch's weights sum to 1; if
            all are zero, no step is taken.
        vector: all parameters. Steps are added up in at least float32, whatever its dtype.
        optimizer: Adam's state, from `init_adam` or the previous call.
        samples: NamedTuple of `[T, N, *]` with a field `weight`.
        key: for the shuffles; consumed.
        passes: number of passes, minibatches per pass, and learning rate.
        stop_fn: scalars of `loss_fn` before a step -> whether to skip this step and all later ones.

    Returns:
        `Descended`. If numbers overflow, vector and optimizer are those passed in.

    Reference:
        Kingma and Ba 2015 (arXiv 1412.6980).
    """

    def step(progress: _Progress, batch: Any) -> tuple[_Progress, Any]:
        def loss_of(fine: Float[Array, "P"]) -> tuple[Float[Array, ""], Any]:
            return loss_fn(fine.astype(vector.dtype), batch)

        (_, values), gradient = jax.value_and_grad(loss_of, has_aux=True)(progress.vector)
        updates, optimizer = _adam.update(gradient, progress.optimizer)
        moved = (progress.vector - passes.learning_rate * updates).astype(progress.vector.dtype)
        stopped = progress.stopped if stop_fn is None else progress.stopped | stop_fn(values)
        stays = stopped | ~jnp.any(batch.weight > 0)  # without samples, momentum alone would move it
        old, new = progress._replace(stopped=stopped), _Progress(moved, optimizer, stopped, progress.num_steps + 1)
        return jax.tree.map(lambda a, b: jnp.where(stays, a, b), old, new), values

    def pass_over(progress: _Progress, key: Key[Array, ""]) -> tuple[_Progress, Any]:
        batches = minibatches(samples, key, passes.num_minibatches)
        within = tuple(range(1, batches.weight.ndim))
        # Weights are scaled before the loop, because devices would wait for every sum inside it.
        progress, values = jax.lax.scan(step, progress, batches._replace(weight=unit_weight(batches.weight, within)))
        total = jnp.sum(batches.weight, within)
        return progress, jax.tree.map(lambda value: weighted_mean(value, total), values)

    start = _Progress(upcast(vector), optimizer, jnp.bool_(False), jnp.int32(0))
    end, values = jax.lax.scan(pass_over, start, jax.random.split(key, passes.num_epochs))
    new, old = (end.vector.astype(vector.dtype), end.optimizer, end.num_steps), (vector, optimizer, jnp.int32(0))
    vector, optimizer, num_steps = where_finite(new, old)
    return Descended(vector, optimizer, jax.tree.map(lambda value: value[-1], values), num_steps, num_steps > 0)
