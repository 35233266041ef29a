"""Running mean and standard deviation of observations."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trpo_jax.tree import upcast, where_finite

MAX_ABS = 10.0
"""Normalized observations are clipped to ±10, since a rarely seen feature must not saturate a network."""
IMAGE_RANK = 3
"""An observation's leaf of this rank is an image."""
STD_EPS = 1e-6
"""Added to the variance, so that a feature that has not varied (std 0) does not turn a change of 0.001 into 1000 σ."""


class NormalizerState(NamedTuple):
    """Statistics of all observations so far; `mean`, `summed_variance` and `std` are pytrees like one observation.

    Images, leaves `[H, W, C]`, and flags, leaves of bools, are left alone: their statistics stay 0 and 1.
    """

    count: Float[Array, ""]  # type: ignore[assignment]  # tuples have a method of that name
    mean: Any
    summed_variance: Any
    std: Any


def init_normalizer(observation: Any) -> NormalizerState:
    """Return statistics with mean 0 and standard deviation 1 for observations shaped like `observation` (one, unbatched).

    Statistics have at least the precision of the observations and of float32.
    """
    zeros = jax.tree.map(jnp.zeros_like, upcast(observation))
    ones = jax.tree.map(jnp.ones_like, zeros)
    return NormalizerState(jnp.zeros((), jnp.float32), zeros, zeros, ones)


def update_normalizer(state: NormalizerState, observation: Any, weight: Float[Array, "..."] | None = None) -> NormalizerState:
    """Update the statistics with a batch of observations `[..., *]`.

    Args:
        state: statistics so far.
        observation: pytree of `[..., *]`; must be finite, even if the weight is zero.
        weight: `[...]`, how often each observation counts; None counts each once.

    Returns:
        The new statistics, or the old ones if numbers overflow or all weights are zero.

    Reference:
        Chan, Golub and LeVeque 1979, the parallel form of Welford's algorithm.
    """
    mean_leaf, observation_leaf = jax.tree.leaves(state.mean)[0], jax.tree.leaves(observation)[0]
    batch_shape = observation_leaf.shape[: observation_leaf.ndim - mean_leaf.ndim]
    axes = tuple(range(len(batch_shape)))
    weight = jnp.ones(batch_shape, jnp.float32) if weight is None else weight
    batch_count = jnp.sum(weight)
    count = state.count + batch_count

    def merge(mean, summed_variance, batch):
        if _is_left_alone(mean, batch):
            return mean, summed_variance
        times = weight.reshape(batch_shape + (1,) * mean.ndim)
        batch_mean = jnp.sum(times * batch, axes) / batch_count
        batch_summed_variance = jnp.sum(times * (batch - jnp.expand_dims(batch_mean, axes)) ** 2, axes)
        shift = batch_mean - mean
        summed = summed_variance + batch_summed_variance + shift**2 * (state.count * batch_count / count)
        return mean + shift * (batch_count / count), summed

    merged = jax.tree.map(merge, state.mean, state.summed_variance, observation)
    mean = jax.tree.map(lambda _, pair: pair[0], state.mean, merged)
    summed_variance = jax.tree.map(lambda _, pair: pair[1], state.mean, merged)
    std = jax.tree.map(
        lambda summed, leaf: jnp.ones_like(summed) if _is_left_alone(summed, leaf) else jnp.sqrt(summed / count + STD_EPS),
        *(summed_variance, observation),
    )
    return where_finite(NormalizerState(count, mean, summed_variance, std), state)


def normalize(state: NormalizerState | None, observation: Any) -> Any:
    """Return (observation - mean) / std, clipped to ±MAX_ABS; without a normalizer, the observation unchanged."""
    if state is None:
        return observation

    def of_leaf(x, mean, std):
        if _is_left_alone(mean, x):
            return x
        mean, std = (jnp.expand_dims(statistic, tuple(range(x.ndim - statistic.ndim))) for statistic in (mean, std))
        return jnp.clip((x - mean) / std, -MAX_ABS, MAX_ABS)

    return jax.tree.map(of_leaf, observation, state.mean, state.std)


def _is_left_alone(statistic: Any, observation: Any) -> bool:
    """Tell whether a leaf of observations is not normalized."""
    return statistic.ndim == IMAGE_RANK or observation.dtype == bool
