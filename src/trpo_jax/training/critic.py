"""The value function: its parameters, what they predict, and how they are fitted."""

from collections.abc import Callable
from dataclasses import field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from trpo_jax.config import config, setting
from trpo_jax.policy.networks import Activation, Network
from trpo_jax.solver.tree import pytree_dataclass


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
    """Gradient steps a pass; must divide num_envs times unroll_length."""


@pytree_dataclass
class CriticParams:
    """A value network's parameters, and with them all that is needed to use them."""

    params: Any
    reward_scaling: Float[Array, ""]
    """The network predicts the discounted sum of rewards times this."""
    network: Network = field(metadata={"static": True})


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
    state: CriticState, observation: Any, target: Float[Array, "B"], key: Key[Array, ""], config: CriticConfig
) -> tuple[CriticState, Float[Array, ""]]:
    """Regress values on targets by least squares: `num_epochs` passes of Adam over shuffled minibatches.

    Args:
        state: critic and optimizer.
        observation: pytree of `[B, *]`, normalized.
        target: `[B]`, λ-returns in units of the scaled reward.
        key: consumed, for the shuffles.
        config: CriticConfig.

    Returns:
        (state, mean squared error during the last pass, in squared units of the scaled reward).
    """
    batch_size = target.shape[0]

    def loss_fn(params: Any, observation: Any, target: Float[Array, "M"]) -> Float[Array, ""]:
        return jnp.mean((state.critic.network.apply(params, observation) - target) ** 2)

    def descend(carry, indices):
        params, optimizer = carry
        loss, gradient = jax.value_and_grad(loss_fn)(params, jax.tree.map(lambda x: x[indices], observation), target[indices])
        updates, optimizer = _adam.update(gradient, optimizer)
        params = jax.tree.map(lambda p, u: p - config.learning_rate * u, params, updates)
        return (params, optimizer), loss

    def pass_over(carry, key):
        indices = jax.random.permutation(key, batch_size).reshape(config.num_minibatches, -1)
        carry, losses = jax.lax.scan(descend, carry, indices)
        return carry, jnp.mean(losses)

    start = (state.critic.params, state.optimizer)
    (params, optimizer), losses = jax.lax.scan(pass_over, start, jax.random.split(key, config.num_epochs))
    critic = CriticParams(params, state.critic.reward_scaling, state.critic.network)
    return CriticState(critic, optimizer), losses[-1]


def explained_variance(value: Float[Array, "..."], target: Float[Array, "..."]) -> Float[Array, ""]:
    """Return 1 - Var[target - value] / Var[target]: 1 is perfect, 0 no better than a constant."""
    return 1.0 - jnp.var(target - value) / jnp.maximum(jnp.var(target), 1e-12)


ValueFn = Callable[[Any], Float[Array, "..."]]
"""Observations `[..., *]`, as the environment gives them -> values `[...]`, in units of unscaled reward."""
