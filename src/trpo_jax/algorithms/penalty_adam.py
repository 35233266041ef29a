"""The penalty form of TRPO: the surrogate minus a multiple of the KL, maximized by Adam over minibatches."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from trpo_jax.agent.config import AgentConfig
from trpo_jax.agent.descent import Passes, descend, init_adam
from trpo_jax.agent.policy_update import Metrics, PolicyFn, PolicyUpdate, policy_change
from trpo_jax.algorithms.first_order import Samples, samples_of
from trpo_jax.algorithms.penalty import CoefficientConfig, adapted
from trpo_jax.config import config, setting
from trpo_jax.objective.surrogate import Batch, mean_and_max_kl, surrogate_objective


@config
class PenalizedAdamConfig(CoefficientConfig):
    """How the penalized surrogate L - β·KL is maximized."""

    learning_rate: float = setting(default=2e-3, above=0.0)
    """Adam's step size."""
    num_epochs: int = setting(default=8, at_least=1)
    """Passes over the batch in each iteration."""
    num_minibatches: int = setting(default=8, at_least=1)
    """Gradient steps per pass; at most num_envs times unroll_length, ideally a power of two."""


@config
class PenaltyAdamConfig(AgentConfig):
    """Everything that decides how the penalty form by Adam learns."""

    penalized: PenalizedAdamConfig = PenalizedAdamConfig()

    def at(self, progress: Float[Array, ""]) -> "PenaltyAdamConfig":
        """Return the configuration with its scheduled values at this progress (0 to 1)."""
        rate = self.rate_at(self.penalized.learning_rate, progress)
        return dataclasses.replace(super().at(progress), penalized=dataclasses.replace(self.penalized, learning_rate=rate))

    def check_batch(self) -> None:
        """Raise ConfigError if the batch size does not fit the other settings."""
        super().check_batch()
        self.check_minibatches("penalized.num_minibatches", self.penalized.num_minibatches)


class PenaltyAdamState(NamedTuple):
    """State that each update passes to the next."""

    optimizer: optax.OptState
    coefficient: Float[Array, ""]
    """β."""


def init(params: Any, config: PenaltyAdamConfig) -> PenaltyAdamState:
    """Return the state before the first update."""
    return PenaltyAdamState(init_adam(ravel_pytree(params)[0]), jnp.asarray(config.penalized.coefficient, jnp.float32))


def update(
    policy_fn: PolicyFn, params: Any, state: PenaltyAdamState, batch: Batch, config: PenaltyAdamConfig, key: jax.Array
) -> tuple[Any, PenaltyAdamState, Metrics]:
    """Maximize L(θ) - β·KL(old ‖ new) by `descend`; see `PolicyUpdate`.

    Reference:
        Schulman et al. 2017 (arXiv 1707.06347), section 4.
    """
    options, beta = config.penalized, state.coefficient
    vector, unravel = ravel_pytree(params)
    samples = samples_of(policy_fn, params, batch)

    def loss_fn(vector: Float[Array, "P"], part: Samples) -> tuple[Float[Array, ""], tuple[()]]:
        new = policy_fn(unravel(vector), part.batch.observation)
        surrogate = surrogate_objective(new, part.batch._replace(weight=part.weight))
        return beta * mean_and_max_kl(part.old, new, part.weight)[0] - surrogate, ()

    descended = descend(
        loss_fn,
        vector,
        state.optimizer,
        samples,
        key,
        Passes(options.learning_rate, num_epochs=options.num_epochs, num_minibatches=options.num_minibatches),
    )
    params = unravel(descended.vector)
    change = policy_change(samples.old, policy_fn(params, samples.batch.observation), samples.weight)
    metrics = {
        "accepted": descended.accepted.astype(jnp.float32),
        "penalty_coefficient": beta,
        "policy_learning_rate": jnp.asarray(options.learning_rate),
    }
    beta = jnp.where(descended.accepted, adapted(beta, change["kl"], options.target_kl), beta)
    return params, PenaltyAdamState(descended.optimizer, beta), change | metrics


PENALTY_ADAM = PolicyUpdate(init, update)
