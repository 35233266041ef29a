"""The value function: its parameters, what they predict, and how they are fitted."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from trpo_jax.config import config, setting
from trpo_jax.policy.networks import Activation, Network
from trpo_jax.solver.curvature import weighted_mean
from trpo_jax.solver.tree import pytree_dataclass, where_finite


@config
class CriticConfig:
    """The value network and its regression on λ-returns, by Adam over minibatches."""

    hidden_sizes: tuple[int, ...] = setting(default=(64, 64), at_least=1)
    """Units of each hidden layer."""
    activation: Activation = setting(default="tanh")
    """Nonlinearity between layers."""
    learning_rate: float = setting(default=3e-3, above=0.0)
    """Adam's step size."""
    num_epochs: int = setting(default=2, at_least=1)
    """Passes over the batch in each iteration."""
    num_minibatches: int = setting(default=32, at_least=1)
    """Gradient steps a pass; at most num_envs times unroll_length, and best a divisor of unroll_length."""
    observation_key: str = setting(default="state")
    """Entry that the critic sees where observations are a dict; it may hold what the policy is not to know."""


@pytree_dataclass
class CriticParams:
    """A value network's parameters, and with them all that is needed to use them."""

    params: Any
    reward_scaling: Float[Array, ""]
    """The network predicts the discounted sum of rewards times this."""
    network: Network = dataclasses.field(metadata={"static": True})


class CriticState(NamedTuple):
    critic: CriticParams
    optimizer: optax.OptState


_adam = optax.scale_by_adam()


def init_critic(
    network: Network, key: Key[Array, ""], observation: Any, reward_scaling: float | Float[Array, ""]
) -> CriticState:
    """Draw a critic's parameters; `observation` is one observation, or zeros like it."""
    params = network.init(key, observation)
    return CriticState(CriticParams(params, jnp.asarray(reward_scaling, jnp.float32), network), _adam.init(params))


def predict_scaled_value(critic: CriticParams, observation: Any) -> Float[Array, "..."]:
    """Return values `[...]` of normalized observations, in units of the scaled reward."""
    return critic.network.apply(critic.params, observation)


def fit_critic(
    state: CriticState,
    observation: Any,
    target: Float[Array, "T *N"],
    key: Key[Array, ""],
    config: CriticConfig,
    weight: Float[Array, "T *N"] | None = None,
) -> tuple[CriticState, Float[Array, ""]]:
    """Regress values on targets by least squares: `num_epochs` passes of Adam over shuffled minibatches.

    Samples are shuffled along the first axis only, in each column (environment) by itself: a minibatch of whole rows
    then has its part on every device that environments are spread over, and no sample moves between them.

    Args:
        state: critic and optimizer.
        observation: pytree of `[T, *N, *]`, normalized; finite, also where the weight is zero.
        target: `[T, *N]`, λ-returns in units of the scaled reward; finite.
        key: consumed, for the shuffles.
        config: CriticConfig. What does not fill a last minibatch sits out a pass.
        weight: `[T, *N]`, of each sample's squared error; None weighs all alike.

    Returns:
        (state, mean squared error during the last pass, in squared units of the scaled reward). Should numbers overflow,
        the state is the one passed in.
    """
    weight = jnp.ones_like(target) if weight is None else weight

    def loss_fn(params: Any, batch: _Regression) -> Float[Array, ""]:
        error = state.critic.network.apply(params, batch.observation) - batch.target
        return weighted_mean(error**2, batch.weight)

    def descend(carry, batch):
        params, optimizer = carry
        loss, gradient = jax.value_and_grad(loss_fn)(params, batch)
        updates, optimizer = _adam.update(gradient, optimizer)
        params = jax.tree.map(lambda p, u: p - config.learning_rate * u, params, updates)
        return (params, optimizer), (loss, jnp.sum(batch.weight))

    def pass_over(carry, key):
        batches = _minibatches(_Regression(observation, target, weight), key, config.num_minibatches)
        carry, (losses, weights) = jax.lax.scan(descend, carry, batches)
        return carry, weighted_mean(losses, weights)

    start = (state.critic.params, state.optimizer)
    fitted, losses = jax.lax.scan(pass_over, start, jax.random.split(key, config.num_epochs))
    params, optimizer = where_finite(fitted, start)
    return CriticState(dataclasses.replace(state.critic, params=params), optimizer), losses[-1]


class _Regression(NamedTuple):
    observation: Any
    target: Float[Array, "..."]
    weight: Float[Array, "..."]


def _minibatches(samples: _Regression, key: Key[Array, ""], count: int) -> _Regression:
    """Shuffle each column by itself and cut the rows, or where they are too few the samples, into `count` minibatches."""
    shape = samples.target.shape
    order = jnp.argsort(jax.random.bits(key, shape), axis=0)
    size = math.prod(shape) // count

    def cut(leaf: Array) -> Array:
        shuffled = jnp.take_along_axis(leaf, order.reshape(shape + (1,) * (leaf.ndim - len(shape))), axis=0)
        if shape[0] % count == 0:
            return shuffled.reshape(count, -1, *leaf.shape[1:])
        flat = shuffled.reshape(-1, *leaf.shape[len(shape) :])
        return flat[: count * size].reshape(count, size, *flat.shape[1:])

    return jax.tree.map(cut, samples)


def explained_variance(
    value: Float[Array, "..."], target: Float[Array, "..."], weight: Float[Array, "..."] | None = None
) -> Float[Array, ""]:
    """Return 1 - Var[target - value] / Var[target]: 1 is perfect, 0 no better than a constant."""
    return 1.0 - weighted_variance(target - value, weight) / jnp.maximum(weighted_variance(target, weight), 1e-12)


def weighted_variance(values: Float[Array, "..."], weight: Float[Array, "..."] | None = None) -> Float[Array, ""]:
    """Return Σ w·(x - mean)² / Σ w."""
    return weighted_mean((values - weighted_mean(values, weight)) ** 2, weight)


ValueFn = Callable[[Any], Float[Array, "..."]]
"""Observations `[..., *]`, as the environment gives them -> values `[...]`, in units of unscaled reward."""
