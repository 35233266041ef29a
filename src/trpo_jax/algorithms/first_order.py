"""Shared by the algorithms that take Adam steps over minibatches."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from trpo_jax.agent.policy_update import PolicyFn
from trpo_jax.objective.surrogate import Batch, mask_unweighted
from trpo_jax.policy.distributions import Distribution


class Samples(NamedTuple):
    """Experience, and the distributions of the policy that collected it."""

    batch: Batch
    """Its own weight is None."""
    weight: Float[Array, "T N"]
    old: Distribution


def samples_of(policy_fn: PolicyFn, params: Any, batch: Batch) -> Samples:
    """Return the samples for `descend`; `params` belong to the policy that collected the batch."""
    batch = mask_unweighted(batch)
    weight = jnp.ones_like(batch.log_prob) if batch.weight is None else batch.weight
    return Samples(batch._replace(weight=None), weight, policy_fn(params, batch.observation))
