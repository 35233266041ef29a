"""Linear schedules over a training."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from trpo_jax.config import config, setting


@config
class ScheduleConfig:
    """What falls linearly over a training, from its configured value to a share of that.

    The first iteration has the configured values; the last of N is an N-th of the way short of the share. A training whose
    length is not known, such as a loop of one's own around `update`, keeps the configured values.
    """

    max_kl_at_end: float = setting(default=0.1, above=0.0, at_most=1.0)
    """Share of `trust_region.max_kl` that is left at the end."""
    learning_rate_at_end: float = setting(default=0.1, at_least=0.0, at_most=1.0)
    """Share of `critic.learning_rate` that is left at the end."""


def progress_of(iteration: Int[Array, ""], num_iterations: Int[Array, ""]) -> Float[Array, ""]:
    """Return the share of a training that lies behind its iteration (counted from 0); 0 where it has no end."""
    share = iteration / jnp.maximum(num_iterations, 1)
    return jnp.where(num_iterations > 0, jnp.clip(share, 0.0, 1.0), 0.0).astype(jnp.float32)


def share_left(at_end: float | Float[Array, ""], progress: Float[Array, ""]) -> Float[Array, ""]:
    """Return 1 at the beginning, `at_end` at the end, and a linear mixture between them."""
    return (1.0 - progress) + at_end * progress
