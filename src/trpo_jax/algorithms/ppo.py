"""Proximal Policy Optimization: many small gradient steps on a surrogate that is clipped where the policy has moved far."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from trpo_jax.agent.config import AgentConfig
from trpo_jax.agent.descent import Passes, descend, init_adam
from trpo_jax.agent.policy_update import POLICY_MEANS, Metrics, PolicyFn, PolicyUpdate, policy_change
from trpo_jax.algorithms.first_order import Samples, samples_of
from trpo_jax.config import config, setting
from trpo_jax.objective.surrogate import Batch, mean_and_max_kl
from trpo_jax.weights import average


@config
class ClippedConfig:
    """How the clipped surrogate is maximized, by Adam over minibatches."""

    clipping_epsilon: float = setting(default=0.3, above=0.0)
    """The probability ratio of an action is clipped to [1 - ε, 1 + ε] (ε)."""
    learning_rate: float = setting(default=1e-3, above=0.0)
    """Adam's step size."""
    num_epochs: int = setting(default=8, at_least=1)
    """Passes over the batch in each iteration."""
    num_minibatches: int = setting(default=8, at_least=1)
    """Gradient steps per pass; at most num_envs times unroll_length, ideally a power of two."""
    entropy_cost: float = setting(default=0.0, at_least=0.0)
    """Weight of the policy's entropy in the objective."""
    stop_at_kl: float = setting(default=0.0, at_least=0.0)
    """An iteration takes no further step once a minibatch's mean KL(old ‖ new), in nats, exceeds this; 0 never stops."""


@config
class PPOConfig(AgentConfig):
    """Everything that decides how PPO learns."""

    gae_lambda: float = setting(default=0.97, at_least=0.0, at_most=1.0)
    """Decay of generalized advantage estimation (λ): 0 trusts the critic, 1 the returns."""
    clipped: ClippedConfig = ClippedConfig()

    def at(self, progress: Float[Array, ""]) -> "PPOConfig":
        """Return the configuration with its scheduled values at this progress (0 to 1)."""
        rate = self.rate_at(self.clipped.learning_rate, progress)
        return dataclasses.replace(super().at(progress), clipped=dataclasses.replace(self.clipped, learning_rate=rate))

    def check_batch(self) -> None:
        """Raise ConfigError if the batch size does not fit the other settings."""
        super().check_batch()
        self.check_minibatches("clipped.num_minibatches", self.clipped.num_minibatches)


def init(params: Any, config: PPOConfig) -> optax.OptState:
    """Return Adam's state before the first update."""
    return init_adam(ravel_pytree(params)[0])


def update(
    policy_fn: PolicyFn, params: Any, state: optax.OptState, batch: Batch, config: PPOConfig, key: jax.Array
) -> tuple[Any, optax.OptState, Metrics]:
    """Maximize mean min(rA, clip(r, 1 - ε, 1 + ε)A) + entropy_cost·H with r = π(a|s) / π_old(a|s); see `PolicyUpdate`.

    If numbers overflow, parameters and state are those passed in.

    Reference:
        Schulman et al. 2017 (arXiv 1707.06347), equation 7.
    """
    options = config.clipped
    vector, unravel = ravel_pytree(params)
    samples = samples_of(policy_fn, params, batch)

    def loss_fn(vector: Float[Array, "P"], part: Samples) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        new = policy_fn(unravel(vector), part.batch.observation)
        ratio = jnp.exp(new.log_prob(part.batch.action) - part.batch.log_prob)
        inside = jnp.clip(ratio, 1.0 - options.clipping_epsilon, 1.0 + options.clipping_epsilon)
        gain = jnp.minimum(ratio * part.batch.advantage, inside * part.batch.advantage)
        kl, _ = mean_and_max_kl(part.old, new, part.weight)
        clip_fraction = average((ratio != inside).astype(jnp.float32), part.weight)
        loss = -average(gain, part.weight) - options.entropy_cost * average(new.entropy(), part.weight)
        return loss, {"kl": kl, "clip_fraction": clip_fraction}

    descended = descend(
        loss_fn,
        vector,
        state,
        samples,
        key,
        Passes(options.learning_rate, num_epochs=options.num_epochs, num_minibatches=options.num_minibatches),
        stop_fn=lambda values: (options.stop_at_kl > 0) & (values["kl"] > options.stop_at_kl),
    )
    params = unravel(descended.vector)
    metrics = policy_change(samples.old, policy_fn(params, samples.batch.observation), samples.weight) | {
        "clip_fraction": descended.values["clip_fraction"],
        "accepted": descended.accepted.astype(jnp.float32),
        "gradient_steps": descended.num_steps.astype(jnp.float32),
        "policy_learning_rate": jnp.asarray(options.learning_rate),
    }
    return params, descended.optimizer, metrics


BRAX_KEYWORDS = {
    "learning_rate": ("clipped.learning_rate", "critic.learning_rate"),
    "num_updates_per_batch": ("clipped.num_epochs", "critic.num_epochs"),
    "num_minibatches": ("clipped.num_minibatches", "critic.num_minibatches"),
    "clipping_epsilon": ("clipped.clipping_epsilon",),
    "entropy_cost": ("clipped.entropy_cost",),
}
"""Keywords of `brax.training.agents.ppo.train`, and the fields that they set."""

PPO = PolicyUpdate(init, update, sample_means=(*POLICY_MEANS, "clip_fraction"))
