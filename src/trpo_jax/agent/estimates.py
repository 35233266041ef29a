"""Values and advantages of a rollout, estimated by the critic."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trpo_jax.agent.config import AgentConfig
from trpo_jax.agent.rollout import Transition
from trpo_jax.objective.advantages import generalized_advantage_estimation

ValueFn = Callable[[Any], Float[Array, "..."]]
"""Maps an unnormalized observation `[...]` to its value, in units of the scaled reward."""


def estimate_advantages(
    value_fn: ValueFn,
    transition: Transition,
    value: Float[Array, "T N"],
    *,
    weight: Float[Array, "T N"],
    hyperparameters: AgentConfig,
) -> Float[Array, "T N"]:
    """Return the advantages of a rollout. They and `value`, the values of the observations, are in units of scaled reward.

    A step of weight zero gets the advantage zero, and the step before it bootstraps from the critic: it is treated as a
    termination whose reward is the critic's value.
    """
    next_value = _next_value(value_fn, transition, value)
    unusable = weight == 0
    terminated = transition.terminated | unusable
    return generalized_advantage_estimation(
        jnp.where(unusable, value, transition.reward * hyperparameters.reward_scaling),
        value,
        next_value,
        terminated,
        terminated | transition.truncated,
        discounting=hyperparameters.discounting,
        gae_lambda=hyperparameters.gae_lambda,
    )


def _next_value(value_fn: ValueFn, transition: Transition, value: Float[Array, "T N"]) -> Float[Array, "T N"]:
    """Return the value of each step's next observation.

    It is the value of the next step, unless a truncation or fault separates them. After a termination it is never used.
    """
    following = jnp.concatenate([value[1:], value_fn(jax.tree.map(lambda leaf: leaf[-1:], transition.next_observation))])
    fault_next = jnp.concatenate([transition.fault[1:], jnp.zeros_like(transition.fault[:1])])
    parted = transition.truncated | fault_next

    def predict_all() -> Float[Array, "T N"]:
        return jnp.where(parted, value_fn(transition.next_observation), following)

    return jax.lax.cond(jnp.any(parted), predict_all, lambda: following)
