"""The self-normalized surrogate, for several actions in the same state."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from trpo_jax.policy.distributions import Distribution
from trpo_jax.policy.distributions.base import Action
from trpo_jax.tree import pytree_dataclass


@pytree_dataclass
class SelfNormalized:
    """A policy whose ratios π(a|s) / q(a|s) have the mean 1 over the actions of each state.

    A batch holds `siblings` actions of a state one after the other along its last axis, each as a sample of its own. With
    this distribution as the policy, the surrogate is the paper's self-normalized estimator

        L = mean over states of Σ_k r_k·A_k / Σ_k r_k,    r_k = π(a_k|s) / q(a_k|s)

    KL, entropy, samples and mode are the policy's own.

    Reference:
        Schulman et al. 2015 (arXiv 1502.05477), equation 16.
    """

    policy: Distribution
    log_q: Float[Array, "*batch"]
    """log q(a|s) of the batch's actions, under the distribution that they were drawn from."""
    siblings: int = dataclasses.field(metadata={"static": True})

    def log_prob(self, action: Action) -> Float[Array, "*batch"]:
        """Return log π(a|s) minus the log of the mean ratio of the state's actions."""
        log_prob = self.policy.log_prob(action)
        log_ratio = (log_prob - self.log_q).reshape(*log_prob.shape[:-1], -1, self.siblings)
        log_mean = jax.nn.logsumexp(log_ratio, axis=-1, keepdims=True) - jnp.log(float(self.siblings))
        return (log_prob.reshape(log_ratio.shape) - log_mean).reshape(log_prob.shape)

    def kl(self, other: "SelfNormalized") -> Float[Array, "*batch"]:
        """Return the policy's KL."""
        return self.policy.kl(other.policy)

    def entropy(self) -> Float[Array, "*batch"]:
        """Return the policy's entropy."""
        return self.policy.entropy()

    def sample(self, key: PRNGKeyArray) -> Action:
        """Draw from the policy."""
        return self.policy.sample(key)

    def mode(self) -> Action:
        """Return the policy's mode."""
        return self.policy.mode()
