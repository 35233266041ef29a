"""The value function: its parameters, what they predict, and how they are fitted."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from trpo_jax.agent.descent import Passes, descend, init_adam
from trpo_jax.config import config, setting
from trpo_jax.policy.networks import Activation, Network
from trpo_jax.weights import variance


@config
class CriticConfig:
    """The value network and its regression on λ-returns, by Adam over minibatches."""

    hidden_sizes: tuple[int, ...] = setting(default=(64, 64), at_least=1)
    """Units of each hidden layer."""
    activation: Activation = setting(default="tanh")
    """Nonlinearity between layers."""
    learning_rate: float = setting(default=3e-3, above=0.0)
    """Adam's step size."""
    num_epochs: int = setting(default=4, at_least=1)
    """Passes over the batch in each iteration."""
    num_minibatches: int = setting(default=32, at_least=1)
    """Gradient steps per pass; at most num_envs times unroll_length, ideally a power of two."""
    observation_key: str = setting(default="state")
    """Entry that the critic sees if observations are a dict; it may hold information that is hidden from the policy."""


class CriticParams(NamedTuple):
    """A value network's parameters, and the scale of its predictions."""

    params: Any
    reward_scaling: Float[Array, ""]
    """The network predicts the discounted sum of rewards times this."""


class CriticState(NamedTuple):
    critic: CriticParams
    optimizer: optax.OptState
    """Adam's state, for all parameters as one vector."""


def init_critic(
    network: Network, key: Key[Array, ""], observation: Any, reward_scaling: float | Float[Array, ""]
) -> CriticState:
    """Draw a critic's parameters; `observation` is one observation, or zeros like it."""
    params = network.init(key, observation)
    critic = CriticParams(params, jnp.asarray(reward_scaling, jnp.float32))
    return CriticState(critic, init_adam(ravel_pytree(params)[0]))


class Regression(NamedTuple):
    """The data that the critic is fitted to: T steps of N environments."""

    observation: Any
    """Pytree of `[T, N, *]`, normalized; finite, even if the weight is zero."""
    target: Float[Array, "T N"]
    """λ-returns in units of the scaled reward; finite."""
    weight: Float[Array, "T N"]
    """Weight of each sample's squared error."""


def fit_critic(
    network: Network, state: CriticState, regression: Regression, key: Key[Array, ""], config: CriticConfig
) -> tuple[CriticState, Float[Array, ""]]:
    """Regress values on targets by least squares: `num_epochs` passes of Adam over shuffled minibatches.

    Args:
        network: the critic's; apply(params, normalized observation) -> value in units of the scaled reward.
        state: critic and optimizer.
        regression: the data to fit.
        key: consumed, for the shuffles.
        config: CriticConfig. Samples that do not fill a last minibatch are skipped in that pass.

    Returns:
        (state, mean squared error during the last pass, in squared units of the scaled reward). If numbers overflow,
        the state is the one passed in.
    """
    vector, unravel = ravel_pytree(state.critic.params)

    def loss_fn(vector: Float[Array, "P"], batch: Regression) -> tuple[Float[Array, ""], Float[Array, ""]]:
        error = network.apply(unravel(vector), batch.observation) - batch.target
        loss = jnp.sum(batch.weight * jnp.where(batch.weight > 0, error**2, 0.0))
        return loss, loss

    fitted = descend(
        loss_fn,
        vector,
        state.optimizer,
        regression,
        key,
        Passes(config.learning_rate, num_epochs=config.num_epochs, num_minibatches=config.num_minibatches),
    )
    return CriticState(state.critic._replace(params=unravel(fitted.vector)), fitted.optimizer), fitted.values


def explained_variance(
    error: Float[Array, "..."], target: Float[Array, "..."], weight: Float[Array, "..."] | None = None
) -> Float[Array, ""]:
    """Return 1 - Var[error] / Var[target] for error = target - value: 1 is perfect, 0 no better than a constant.

    Weights sum to 1; None weights all samples equally.
    """
    return 1.0 - variance(error, weight) / jnp.maximum(variance(target, weight), 1e-12)


ValueFn = Callable[[Any], Float[Array, "..."]]
"""Maps unnormalized observations `[..., *]` to values `[...]`, in units of unscaled reward."""
