"""Vanilla policy gradient: one gradient step on the whole batch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from trpo_jax.agent.config import AgentConfig
from trpo_jax.agent.descent import Passes, descend, init_adam
from trpo_jax.agent.policy_update import Metrics, PolicyFn, PolicyUpdate, policy_change
from trpo_jax.algorithms.first_order import Samples, samples_of
from trpo_jax.config import config, setting
from trpo_jax.objective.surrogate import Batch
from trpo_jax.weights import average


@config
class GradientStepConfig:
    """How the gradient step is taken, by Adam."""

    learning_rate: float = setting(default=1e-2, above=0.0)
    """Adam's step size."""


@config
class PolicyGradientConfig(AgentConfig):
    """Everything that decides how vanilla policy gradient learns."""

    gradient: GradientStepConfig = GradientStepConfig()

    def at(self, progress: Float[Array, ""]) -> "PolicyGradientConfig":
        """Return the configuration with its scheduled values at this progress (0 to 1)."""
        rate = self.rate_at(self.gradient.learning_rate, progress)
        return dataclasses.replace(super().at(progress), gradient=dataclasses.replace(self.gradient, learning_rate=rate))


def init(params: Any, config: PolicyGradientConfig) -> optax.OptState:
    """Return Adam's state before the first update."""
    return init_adam(ravel_pytree(params)[0])


def update(
    policy_fn: PolicyFn, params: Any, state: optax.OptState, batch: Batch, config: PolicyGradientConfig, key: jax.Array
) -> tuple[Any, optax.OptState, Metrics]:
    """Take one step of Adam along the gradient of mean log π(a|s)·A; see `PolicyUpdate`.

    If numbers overflow, parameters and state are those passed in.

    Reference:
        Sutton et al. 2000, Policy Gradient Methods for Reinforcement Learning with Function Approximation.
    """
    vector, unravel = ravel_pytree(params)
    samples = samples_of(policy_fn, params, batch)

    def loss_fn(vector: Float[Array, "P"], part: Samples) -> tuple[Float[Array, ""], tuple[()]]:
        log_prob = policy_fn(unravel(vector), part.batch.observation).log_prob(part.batch.action)
        return -average(log_prob * part.batch.advantage, part.weight), ()

    learning_rate = config.gradient.learning_rate
    descended = descend(loss_fn, vector, state, samples, key, Passes(learning_rate))
    params = unravel(descended.vector)
    metrics = policy_change(samples.old, policy_fn(params, samples.batch.observation), samples.weight) | {
        "accepted": descended.accepted.astype(jnp.float32),
        "policy_learning_rate": jnp.asarray(learning_rate),
    }
    return params, descended.optimizer, metrics


POLICY_GRADIENT = PolicyUpdate(init, update)
