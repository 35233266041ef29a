"""What the critic makes of a rollout: values and advantages."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trpo_jax.agent.config import AgentConfig
from trpo_jax.agent.rollout import Transition
from trpo_jax.objective.advantages import generalized_advantage_estimation

ValueFn = Callable[[Any], Float[Array, "..."]]
"""Observation `[...]`, as the simulator gives it -> value, in units of the scaled reward."""


def estimate_advantages(
    value_fn: ValueFn,
    transition: Transition,
    value: Float[Array, "T N"],
    *,
    weight: Float[Array, "T N"],
    hyperparameters: AgentConfig,
) -> Float[Array, "T N"]:
    """Return the advantages of a rollout whose steps begin with these values, in units of the scaled reward.

    A step of weight zero counts as an end that paid what the critic had expected: its own advantage is zero, and the
    step before it is bootstrapped.
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
    """Return the value of what each step led to: that of the next step's observation, unless an end or fault parts them.

    What a termination led to has a value that no one asks for.
    """
    following = jnp.concatenate([value[1:], value_fn(jax.tree.map(lambda leaf: leaf[-1:], transition.next_observation))])
    fault_next = jnp.concatenate([transition.fault[1:], jnp.zeros_like(transition.fault[:1])])
    parted = transition.truncated | fault_next

    def predict_all() -> Float[Array, "T N"]:
        return jnp.where(parted, value_fn(transition.next_observation), following)

    return jax.lax.cond(jnp.any(parted), predict_all, lambda: following)
