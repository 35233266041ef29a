"""Linear schedules over a training."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from trpo_jax.config import config, setting


@config
class ScheduleConfig:
    """Values that decay linearly over a training, from the configured value to a fraction of it.

    Iteration i of N, counted from 0, is i/N of the way. A training of unknown length, such as your own loop around `update`,
    keeps the configured values.
    """

    learning_rate_at_end: float = setting(default=0.1, at_least=0.0, at_most=1.0)
    """Final value of every learning rate, as a fraction of its configured value."""


def progress_of(iteration: Int[Array, ""], num_iterations: Int[Array, ""]) -> Float[Array, ""]:
    """Return the share of a training that precedes this iteration (counted from 0); 0 if the training has no end."""
    share = iteration / jnp.maximum(num_iterations, 1)
    return jnp.where(num_iterations > 0, jnp.clip(share, 0.0, 1.0), 0.0).astype(jnp.float32)


def share_left(at_end: float | Float[Array, ""], progress: Float[Array, ""]) -> Float[Array, ""]:
    """Interpolate linearly from 1 at the beginning to `at_end` at the end."""
    return (1.0 - progress) + at_end * progress
