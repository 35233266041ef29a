"""Values and advantages of a rollout, of its rewards and of its costs, estimated by the critic."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from trpo_jax.agent.config import AgentConfig
from trpo_jax.agent.rollout import Transition
from trpo_jax.objective.advantages import generalized_advantage_estimation
from trpo_jax.weights import average, unit_weight

ValueFn = Callable[[Any], Float[Array, "..."]]
"""Maps an unnormalized observation to its value: the discounted sum of rewards, `[...]`, or of K costs, `[..., K]`."""


class CostEstimates(NamedTuple):
    """What a rollout says about the policy's K costs."""

    target: Float[Array, "T N K"]
    """λ-returns, the targets of the cost critic."""
    advantage: Float[Array, "T N K"]
    """With mean zero, times the length of an episode: the mean of (r - 1)·advantage predicts how the cost of an episode changes
    with the policy, where r is the ratio of new and old probability."""
    episode_cost: Float[Array, "K"]
    """Expected cost of an episode."""


def estimate_advantages(
    value_fn: ValueFn,
    transition: Transition,
    reward: Float[Array, "T N *K"],
    value: Float[Array, "T N *K"],
    *,
    weight: Float[Array, "T N"],
    hyperparameters: AgentConfig,
) -> Float[Array, "T N *K"]:
    """Return the advantages of a rollout, for its rewards or for its costs.

    A step of weight zero gets the advantage zero, and the step before it bootstraps from the critic: it is treated as a
    termination whose reward is the critic's value.

    Args:
        value_fn: values of observations, in units of `reward`.
        transition: the rollout.
        reward: of each step; scaled, or costs.
        value: the values of the steps' observations.
        weight: 0 for unusable steps.
        hyperparameters: for γ and λ.
    """
    next_value = _next_value(value_fn, transition, value)
    unusable = _like(weight == 0, value)
    terminated = _like(transition.terminated, value) | unusable
    return generalized_advantage_estimation(
        jnp.where(unusable, value, reward),
        value,
        next_value,
        terminated,
        terminated | _like(transition.truncated, value),
        discounting=hyperparameters.discounting,
        gae_lambda=hyperparameters.gae_lambda,
    )


def estimate_costs(
    value_fn: ValueFn,
    transition: Transition,
    value: Float[Array, "T N K"],
    *,
    weight: Float[Array, "T N"],
    hyperparameters: AgentConfig,
) -> CostEstimates:
    """Return the estimates for costs. `value` are the values of the observations, in units of cost.

    The expected cost of an episode is the mean cost of a step times the mean length of an episode, as the renewal reward
    theorem says for a policy that no longer changes and for environments that are all alike.
    """
    assert transition.cost is not None
    assert transition.episode_length is not None
    advantage = estimate_advantages(
        value_fn, transition, transition.cost, value, weight=weight, hyperparameters=hyperparameters
    )
    mean_over_samples = jax.vmap(average, in_axes=(-1, None))
    length = jnp.mean(transition.episode_length)
    unit = unit_weight(weight)
    centered = advantage - mean_over_samples(advantage, unit)
    return CostEstimates(value + advantage, length * centered, length * mean_over_samples(transition.cost, unit))


def _like(flag: Bool[Array, "T N"], value: Float[Array, "T N *K"]) -> Bool[Array, "T N *K"]:
    """Repeat a flag for each cost."""
    return jnp.broadcast_to(jax.lax.expand_dims(flag, range(2, value.ndim)), value.shape)


def _next_value(value_fn: ValueFn, transition: Transition, value: Float[Array, "T N *K"]) -> Float[Array, "T N *K"]:
    """Return the value of each step's next observation.

    It is the value of the next step, unless a truncation or fault separates them. After a termination it is never used.
    """
    following = jnp.concatenate([value[1:], value_fn(jax.tree.map(lambda leaf: leaf[-1:], transition.next_observation))])
    fault_next = jnp.concatenate([transition.fault[1:], jnp.zeros_like(transition.fault[:1])])
    parted = _like(transition.truncated | fault_next, value)

    def predict_all() -> Float[Array, "T N *K"]:
        return jnp.where(parted, value_fn(transition.next_observation), following)

    return jax.lax.cond(jnp.any(parted), predict_all, lambda: following)
