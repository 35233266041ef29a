"""What the critic makes of a rollout: values and advantages."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trpo_jax.objective.advantages import generalized_advantage_estimation
from trpo_jax.policy.networks import Network
from trpo_jax.training.normalization import NormalizerState, normalize
from trpo_jax.training.rollout import Transition
from trpo_jax.training.trpo_config import TRPOConfig


def estimate_advantages(
    network: Network,
    params: Any,
    normalizer: NormalizerState | None,
    observation: Any,
    transition: Transition,
    weight: Float[Array, "T N"],
    hyperparameters: TRPOConfig,
) -> tuple[Float[Array, "T N"], Float[Array, "T N"]]:
    """Return values and advantages of a rollout, in units of the scaled reward, by a critic's network and its parameters.

    A step of weight zero counts as an end that paid what the critic had expected: its own advantage is zero, and the
    step before it is bootstrapped.
    """
    value = network.apply(params, observation)
    next_value = _next_value(network, params, normalizer, transition, value)
    unusable = weight == 0
    terminated = transition.terminated | unusable
    advantage = generalized_advantage_estimation(
        jnp.where(unusable, value, transition.reward * hyperparameters.reward_scaling),
        value,
        next_value,
        terminated,
        terminated | transition.truncated,
        discounting=hyperparameters.discounting,
        gae_lambda=hyperparameters.gae_lambda,
    )
    return value, advantage


def _next_value(
    network: Network, params: Any, normalizer: NormalizerState | None, transition: Transition, value: Float[Array, "T N"]
) -> Float[Array, "T N"]:
    """Return the value of what each step led to: that of the next step's observation, unless an end or fault parts them.

    What a termination led to has a value that no one asks for.
    """

    def predict(observation: Any) -> Float[Array, "..."]:
        return network.apply(params, normalize(normalizer, observation))

    following = jnp.concatenate([value[1:], predict(jax.tree.map(lambda leaf: leaf[-1:], transition.next_observation))])
    fault_next = jnp.concatenate([transition.fault[1:], jnp.zeros_like(transition.fault[:1])])
    parted = transition.truncated | fault_next

    def predict_all() -> Float[Array, "T N"]:
        return jnp.where(parted, predict(transition.next_observation), following)

    return jax.lax.cond(jnp.any(parted), predict_all, lambda: following)
