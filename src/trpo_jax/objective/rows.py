"""A rollout's batch as rows of environments, for updates that use all of it at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from trpo_jax.objective.surrogate import Batch
from trpo_jax.policy.distributions import Distribution
from trpo_jax.policy.memory import Sequence

SAMPLES_A_ROW = 64
"""Smallest number of samples in a row: enough to choose the samples for Fisher-vector products evenly, few enough to spread
rows over many devices."""


def in_rows(batch: Batch, num_microbatches: int = 1) -> Batch:
    """Turn a batch `[T, N, ...]` into `[R, T·N/R, ...]`. A row holds all steps of one environment, then those of the next.

    Sequences stay as they are: their parts are environments.
    """
    if isinstance(batch.observation, Sequence):
        return batch
    num_steps, num_envs = batch.log_prob.shape
    rows = num_rows(num_steps, num_envs, num_microbatches)

    def arrange(leaf: Array) -> Array:
        return jnp.swapaxes(leaf, 0, 1).reshape(rows, -1, *leaf.shape[2:])

    return jax.tree.map(arrange, batch)


def num_rows(num_steps: int, num_envs: int, num_microbatches: int = 1) -> int:
    """Return R, the largest power of two that divides N and leaves rows long enough and divisible into microbatches."""

    def fits(rows: int) -> bool:
        length = num_envs * num_steps // rows
        return length >= SAMPLES_A_ROW and length % num_microbatches == 0

    rows = 1
    while num_envs % (2 * rows) == 0 and fits(2 * rows):
        rows *= 2
    return rows


def on_rows(policy_fn: Callable[[Any, Any], Distribution]) -> Callable[[Any, Any], Distribution]:
    """Return the policy for rows: it flattens them into one batch, since matrix products are fastest on two axes."""

    def of_rows(params: Any, observation: Any) -> Distribution:
        if isinstance(observation, Sequence):
            return policy_fn(params, observation)
        shape = jax.tree.leaves(observation)[0].shape[:2]
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), observation)
        return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), policy_fn(params, flat))

    return of_rows
