"""What algorithms have in common that take steps of Adam over minibatches."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from trpo_jax.agent.policy_update import PolicyFn
from trpo_jax.objective.surrogate import Batch, mask_unweighted
from trpo_jax.policy.distributions import Distribution


class Samples(NamedTuple):
    """Experience, and the distributions of the policy that gathered it."""

    batch: Batch
    """Without weights."""
    weight: Float[Array, "T N"]
    old: Distribution


def samples_of(policy_fn: PolicyFn, params: Any, batch: Batch) -> Samples:
    """Return what `descend` takes: samples of the policy whose parameters these are."""
    batch = mask_unweighted(batch)
    weight = jnp.ones_like(batch.log_prob) if batch.weight is None else batch.weight
    return Samples(batch._replace(weight=None), weight, policy_fn(params, batch.observation))
