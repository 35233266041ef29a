"""TRPO on the rewards minus a multiple of the costs; a PID controller sets the multiple so that costs meet their limit."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trpo_jax.agent.metrics import numbered
from trpo_jax.agent.policy_update import POLICY_MEANS, Metrics, PolicyFn, PolicyUpdate
from trpo_jax.algorithms import trpo
from trpo_jax.algorithms.cost_limit import COST_MEANS, CostLimitConfig, cost_metrics
from trpo_jax.config import config, setting
from trpo_jax.objective.surrogate import Batch
from trpo_jax.weights import unit_weight, variance

LARGEST = 100.0
"""Multipliers stay below this."""


@config
class MultiplierConfig:
    """The PID controller of a cost's multiplier. Its error is (expected cost - limit) / limit, at most 1."""

    proportional: float = setting(default=1.0, at_least=0.0)
    """Gain of the error, averaged over updates."""
    integral: float = setting(default=0.1, at_least=0.0)
    """Gain of the sum of the errors of all updates."""
    derivative: float = setting(default=1.0, at_least=0.0)
    """Gain of the rise of the averaged error since the update before; a fall counts as zero."""
    averaging: float = setting(default=0.8, at_least=0.0, below=1.0)
    """Weight of the past in the averaged error."""


@config
class TRPOLagrangianConfig(CostLimitConfig):
    """Everything that decides how TRPO with multipliers learns."""

    multiplier: MultiplierConfig = MultiplierConfig()


class LagrangianState(NamedTuple):
    """State that each update passes to the next."""

    trpo: trpo.TRPOState
    error: Float[Array, "K"]
    """Averaged error of each cost."""
    integral: Float[Array, "K"]
    """Each controller's sum."""
    multiplier: Float[Array, "K"]


def init(params: Any, config: TRPOLagrangianConfig, num_costs: int) -> LagrangianState:
    """Return the state before the first update."""
    return LagrangianState(trpo.init(params, config), *(jnp.zeros(num_costs) for _ in range(3)))


def update(
    policy_fn: PolicyFn,
    params: Any,
    state: LagrangianState,
    batch: Batch,
    config: TRPOLagrangianConfig,
    key: jax.Array,
    episode_cost: Float[Array, "K"],
) -> tuple[Any, LagrangianState, Metrics]:
    """Take TRPO's step with the advantages (A - Σ_k m_k·C_k) / (1 + Σ_k m_k); see `PolicyUpdate`.

    A are the advantages of the rewards, C_k those of cost k, divided by the ratio of their standard deviations, and m_k its
    multiplier.

    Reference:
        Stooke, Achiam and Abbeel 2020 (arXiv 2007.03964), algorithm 2.
    """
    assert batch.cost_advantage is not None
    assert batch.weight is not None
    before, has_samples = (state.error, state.integral, state.multiplier), jnp.any(batch.weight > 0)
    measured = _controlled(state, episode_cost, config)
    error, integral, multiplier = jax.tree.map(lambda new, old: jnp.where(has_samples, new, old), measured, before)
    unit = unit_weight(batch.weight)
    spread = jnp.sqrt(variance(batch.advantage, unit))
    cost_spread = jnp.sqrt(jax.vmap(variance, in_axes=(-1, None))(batch.cost_advantage, unit))
    cost = spread * jnp.sum(multiplier * batch.cost_advantage / (cost_spread + 1e-8), axis=-1)
    advantage = (batch.advantage - cost) / (1.0 + jnp.sum(multiplier))
    batch = batch._replace(advantage=advantage, cost_advantage=None)
    params, trpo_state, metrics = trpo.update(policy_fn, params, state.trpo, batch, config, key)
    # It is the change of the penalized surrogate, from which the bound on the return does not follow.
    metrics["penalized_improvement"] = metrics.pop("surrogate_improvement")
    metrics |= cost_metrics(episode_cost, config.cost_limit) | numbered("multiplier", multiplier)
    return params, LagrangianState(trpo_state, error, integral, multiplier), metrics


def _controlled(
    state: LagrangianState, episode_cost: Float[Array, "K"], config: TRPOLagrangianConfig
) -> tuple[Float[Array, "K"], Float[Array, "K"], Float[Array, "K"]]:
    """Return the averaged error, the sum and the multiplier of each cost after an update's measurement."""
    gains, limit = config.multiplier, config.cost_limit
    now = jnp.minimum((episode_cost - limit) / jnp.maximum(limit, 1e-3), 1.0)
    error = gains.averaging * state.error + (1.0 - gains.averaging) * now
    integral = jnp.clip(state.integral + gains.integral * now, 0.0, LARGEST)
    rise = jnp.maximum(error - state.error, 0.0)
    multiplier = gains.proportional * error + integral + gains.derivative * rise
    return error, integral, jnp.clip(multiplier, 0.0, LARGEST)


TRPO_LAGRANGIAN = PolicyUpdate(init, update, limits_costs=True, sample_means=(*POLICY_MEANS, *COST_MEANS))
