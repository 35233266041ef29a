"""What the algorithms that limit costs have in common."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from trpo_jax.agent.metrics import numbered
from trpo_jax.agent.policy_update import Metrics
from trpo_jax.algorithms.trpo import TRPOConfig
from trpo_jax.config import config, setting
from trpo_jax.objective.trust_region_config import TrustRegionConfig


@config
class CostLimitConfig(TRPOConfig):
    """TRPO's settings and a limit on costs.

    Steps are shorter than TRPO's: what a batch says about rare costs holds only near the policy that collected it. A batch is
    as large, but of fewer environments for longer: how much a policy costs shows only after a good part of an episode. With
    short rollouts several updates pass before the effect of one is measured.
    """

    num_envs: int = setting(default=32, at_least=1)
    """Environments simulated side by side (N)."""
    unroll_length: int = setting(default=160, at_least=1)
    """Environment steps each environment takes in an iteration (T); a batch holds N times T samples."""

    trust_region: TrustRegionConfig = dataclasses.replace(TRPOConfig().trust_region, max_kl=0.02)
    cost_limit: float = setting(default=25.0, at_least=0.0)
    """Upper limit of the expected cost of an episode, a sum over its steps that is not discounted. If the environment has
    several costs, it is the limit of each."""


COST_MEANS = ("expected_cost", "above_limit")
"""Metrics of costs that are averages over samples."""


def cost_metrics(episode_cost: Float[Array, "K"], cost_limit: float | Array) -> Metrics:
    """Return the metrics that say how costs compare with their limit."""
    limit = jnp.asarray(cost_limit, jnp.float32)
    metrics = {"cost_limit": limit, "above_limit": jnp.any(episode_cost > limit).astype(jnp.float32)}
    return metrics | numbered("expected_cost", episode_cost)
