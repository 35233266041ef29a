"""Running mean and standard deviation of observations."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trpo_jax.solver.tree import pytree_dataclass

MAX_ABS = 10.0
"""Normalized observations are clipped to ±10: a feature seen rarely must not saturate a network."""
STD_EPS = 1e-6
"""Added to the variance, so that a feature that has not varied (std 0) does not turn a change of 0.001 into 1000 σ."""


@pytree_dataclass
class NormalizerState:
    """Statistics of all observations so far; `mean`, `summed_variance` and `std` are pytrees like one observation."""

    count: Float[Array, ""]
    mean: Any
    summed_variance: Any
    std: Any


def init_normalizer(observation: Any) -> NormalizerState:
    """Start from mean 0 and standard deviation 1 for observations shaped like `observation` (one, unbatched)."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), observation)
    ones = jax.tree.map(lambda x: jnp.ones(x.shape, jnp.float32), observation)
    return NormalizerState(jnp.zeros((), jnp.float32), zeros, zeros, ones)


def update_normalizer(state: NormalizerState, observation: Any) -> NormalizerState:
    """Take a batch of observations `[..., *]` into the statistics.

    Reference:
        Chan, Golub and LeVeque 1979, the parallel form of Welford's algorithm.
    """
    mean_leaf, observation_leaf = jax.tree.leaves(state.mean)[0], jax.tree.leaves(observation)[0]
    axes = tuple(range(observation_leaf.ndim - mean_leaf.ndim))
    batch_count = jnp.float32(math.prod(observation_leaf.shape[: len(axes)]))
    count = state.count + batch_count

    def merge(mean, summed_variance, batch):
        batch_mean = jnp.mean(batch, axes)
        batch_summed_variance = jnp.sum((batch - batch_mean) ** 2, axes)
        shift = batch_mean - mean
        summed = summed_variance + batch_summed_variance + shift**2 * (state.count * batch_count / count)
        return mean + shift * (batch_count / count), summed

    merged = jax.tree.map(merge, state.mean, state.summed_variance, observation)
    mean = jax.tree.map(lambda _, pair: pair[0], state.mean, merged)
    summed_variance = jax.tree.map(lambda _, pair: pair[1], state.mean, merged)
    std = jax.tree.map(lambda summed: jnp.sqrt(summed / count + STD_EPS), summed_variance)
    return NormalizerState(count, mean, summed_variance, std)


def normalize(state: NormalizerState | None, observation: Any) -> Any:
    """Return (observation - mean) / std, clipped to ±MAX_ABS; with no normalizer, the observation as it is."""
    if state is None:
        return observation
    return jax.tree.map(lambda x, mean, std: jnp.clip((x - mean) / std, -MAX_ABS, MAX_ABS), observation, state.mean, state.std)
