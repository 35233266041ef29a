"""The value functions of reward and costs: their parameters, what they predict, and how they are fitted."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from trpo_jax.agent.descent import Passes, descend, init_adam
from trpo_jax.agent.policy_update import Metrics
from trpo_jax.config import config, setting
from trpo_jax.policy.layers import Activation
from trpo_jax.policy.memory import RecurrentNetwork, initial_carry
from trpo_jax.policy.networks import ImageConfig, Network, NetworkKind
from trpo_jax.policy.normalization import NormalizerState, init_normalizer, update_normalizer
from trpo_jax.weights import variance


@config
class CriticConfig:
    """The value network and its regression on λ-returns, by Adam over minibatches."""

    network: NetworkKind = setting(default="mlp")
    """As `policy.network`."""
    hidden_sizes: tuple[int, ...] = setting(default=(64, 64), at_least=1)
    """Units of each hidden layer."""
    activation: Activation = setting(default="tanh")
    """Nonlinearity between layers."""
    image: ImageConfig = ImageConfig()
    learning_rate: float = setting(default=3e-3, above=0.0)
    """Adam's step size."""
    num_epochs: int = setting(default=4, at_least=1)
    """Passes over the batch in each iteration."""
    num_minibatches: int = setting(default=32, at_least=1)
    """Gradient steps per pass; at most num_envs times unroll_length, ideally a power of two."""
    observation_key: str = setting(default="state")
    """Entry that the critic sees if observations are a dict, or several, as for the policy. It may hold information that is
    hidden from the policy."""


class CriticParams(NamedTuple):
    """A value network's parameters, and the scale of its predictions."""

    params: Any
    reward_scaling: Float[Array, ""]
    """The network predicts the discounted sum of rewards times this."""
    cost_params: Any = None
    """Parameters of K more such networks, along a new leading axis, one for each cost. None if no cost is predicted."""


class CriticState(NamedTuple):
    critic: CriticParams
    optimizer: optax.OptState
    """Adam's state, for all parameters as one vector."""
    carry: Any = None
    """A recurrent critic's memory after the last step, `[N, *]`, before any new episode."""
    returns: NormalizerState | None = None
    """Statistics of all λ-returns so far, in units of the reward. None if the scale of rewards is fixed."""


def init_critic(
    network: Network,
    key: Key[Array, ""],
    observation: Any,
    reward_scaling: float | Float[Array, ""],
    *,
    num_envs: int = 0,
    num_costs: int = 0,
    normalize_rewards: bool = False,
) -> CriticState:
    """Draw a critic's parameters; `observation` is one observation, or zeros like it. 0 costs: none is predicted.

    A critic with memory begins with that of `num_envs` environments. `normalize_rewards` is for `rescaled`.
    """
    params, cost_params = network.init(key, observation), None
    if num_costs:
        keys = jax.random.split(jax.random.fold_in(key, 1), num_costs)
        cost_params = jax.vmap(network.init, in_axes=(0, None))(keys, observation)
    critic = CriticParams(params, jnp.asarray(reward_scaling, jnp.float32), cost_params)
    carry = initial_carry(network, (num_envs,))
    returns = init_normalizer(jnp.zeros(())) if normalize_rewards else None
    return CriticState(critic, init_adam(ravel_pytree((params, cost_params))[0]), carry, returns)


def cost_values(network: Network, cost_params: Any, observation: Any) -> Float[Array, "... K"]:
    """Return the discounted sum of each cost, for normalized observations `[..., *]`."""
    return jax.vmap(network.apply, in_axes=(0, None), out_axes=-1)(cost_params, observation)


class Regression(NamedTuple):
    """The data that the critic is fitted to: T steps of N environments."""

    observation: Any
    """Pytree of `[T, N, *]`, normalized; finite, even if the weight is zero. A `Sequence` for a recurrent critic."""
    target: Float[Array, "T N"]
    """λ-returns in units of the scaled reward; finite."""
    weight: Float[Array, "T N"]
    """Weight of each sample's squared error."""
    cost_target: Float[Array, "T N K"] | None = None
    """λ-returns of the costs, if they are predicted."""


def rescaled(
    state: CriticState, regression: Regression, reward_scaling: float | Float[Array, ""]
) -> tuple[CriticState, Regression]:
    """Measure λ-returns in units of their running standard deviation, which this batch's are added to.

    Args:
        state: a critic that has statistics of returns; its network is left alone, so that its predictions change until it is
            fitted again.
        regression: the data that it will be fitted to, in units of `state.critic.reward_scaling`.
        reward_scaling: the standard deviation becomes this instead of 1.

    Returns:
        The critic with new statistics and a new scale, and the data in units of it.
    """
    assert state.returns is not None
    in_rewards = regression.target / state.critic.reward_scaling
    returns = update_normalizer(state.returns, in_rewards, regression.weight)
    scaling = reward_scaling / returns.std
    critic = state.critic._replace(reward_scaling=scaling)
    return state._replace(critic=critic, returns=returns), regression._replace(target=in_rewards * scaling)


def fit_critic(
    network: Network, state: CriticState, regression: Regression, key: Key[Array, ""], config: CriticConfig
) -> tuple[CriticState, Metrics]:
    """Regress values on targets by least squares: `num_epochs` passes of Adam over shuffled minibatches.

    Args:
        network: the critic's; apply(params, normalized observation) -> value in units of the scaled reward.
        state: critic and optimizer.
        regression: the data to fit.
        key: for the shuffles; consumed.
        config: CriticConfig. Samples that do not fill a last minibatch are skipped in that pass.

    Returns:
        (state, metrics). "value_loss" is the mean squared error during the last pass, in squared units of the scaled reward,
        and "cost_value_loss" that of costs. If numbers overflow, the state is the one passed in.
    """
    vector, unravel = ravel_pytree((state.critic.params, state.critic.cost_params))

    def loss_fn(vector: Float[Array, "P"], batch: Regression) -> tuple[Float[Array, ""], Metrics]:
        params, cost_params = unravel(vector)
        error = network.apply(params, batch.observation) - batch.target
        loss = _squares(error, batch.weight)
        if batch.cost_target is None:
            return loss, {"value_loss": loss}
        # The networks share no parameters, and Adam's steps do not depend on the scale of a loss, so they can be added.
        error = cost_values(network, cost_params, batch.observation) - batch.cost_target
        cost_loss = _squares(error, batch.weight[..., None])
        return loss + cost_loss, {"value_loss": loss, "cost_value_loss": cost_loss}

    fitted = descend(
        loss_fn,
        vector,
        state.optimizer,
        regression,
        key,
        Passes(config.learning_rate, num_epochs=config.num_epochs, num_minibatches=config.num_minibatches),
    )
    params, cost_params = unravel(fitted.vector)
    carry = state.carry
    if isinstance(network, RecurrentNetwork):
        carry = jax.tree.map(lambda leaf: leaf[-1], network.unroll(params, regression.observation)[0])
    critic = state.critic._replace(params=params, cost_params=cost_params)
    return state._replace(critic=critic, optimizer=fitted.optimizer, carry=carry), fitted.values


def _squares(error: Float[Array, "..."], weight: Float[Array, "..."]) -> Float[Array, ""]:
    """Return the weighted sum of squares; an error of weight zero may be anything."""
    return jnp.sum(weight * jnp.where(weight > 0, error**2, 0.0))


def explained_variance(
    error: Float[Array, "..."], target: Float[Array, "..."], weight: Float[Array, "..."] | None = None
) -> Float[Array, ""]:
    """Return 1 - Var[error] / Var[target] for error = target - value: 1 is perfect, 0 no better than a constant.

    Weights sum to 1; None weights all samples equally.
    """
    return 1.0 - variance(error, weight) / jnp.maximum(variance(target, weight), 1e-12)


ValueFn = Callable[[Any], Float[Array, "..."]]
"""Maps unnormalized observations `[..., *]` to values `[...]`, in units of unscaled reward."""
