"""Constrained Policy Optimization: TRPO with limits on costs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from trpo_jax.agent.metrics import numbered
from trpo_jax.agent.policy_update import POLICY_MEANS, Metrics, PolicyFn, PolicyUpdate
from trpo_jax.algorithms.cost_limit import COST_MEANS, CostLimitConfig, cost_metrics
from trpo_jax.algorithms.reported import FIELDS, counted, reported
from trpo_jax.config import config, setting
from trpo_jax.objective.constrained_update import stateful_constrained_trust_region_update
from trpo_jax.objective.rows import in_rows, on_rows
from trpo_jax.objective.surrogate import Batch
from trpo_jax.solver.outcome import ConstrainedOutcome
from trpo_jax.solver.step_config import TrustRegionState, init_trust_region_state


@config
class CPOConfig(CostLimitConfig):
    """Everything that decides how CPO learns."""

    margin_gain: float = setting(default=0.03, at_least=0.0)
    """Costs are kept below their limit by a margin. It grows by this fraction of what the expected cost is above the limit, and
    shrinks alike below it, down to 0. That makes up for costs that rise by more than steps predict."""


class CPOState(NamedTuple):
    """State that each update passes to the next."""

    trust_region: TrustRegionState
    outcomes: Int[Array, "7"]
    """How many updates have ended in each `ConstrainedOutcome`."""
    recoveries: Int[Array, ""]
    """How many updates had no step within the trust region that keeps the limits, so that they lowered costs instead."""
    margin: Float[Array, "K"]
    """How far below its limit the next update is to keep each cost."""


def init(params: Any, config: CPOConfig, num_costs: int) -> CPOState:
    """Return the state before the first update."""
    outcomes = jnp.zeros(len(ConstrainedOutcome), jnp.int32)
    return CPOState(init_trust_region_state(params, config.trust_region), outcomes, jnp.int32(0), jnp.zeros(num_costs))


def update(
    policy_fn: PolicyFn,
    params: Any,
    state: CPOState,
    batch: Batch,
    config: CPOConfig,
    key: jax.Array,
    episode_cost: Float[Array, "K"],
) -> tuple[Any, CPOState, Metrics]:
    """Take `stateful_constrained_trust_region_update` on the whole batch, a margin below the limits; see `PolicyUpdate`.

    Reference:
        Achiam et al. 2017 (arXiv 1705.10528).
    """
    assert batch.weight is not None
    excess = episode_cost - config.cost_limit
    params, trust_region, info = stateful_constrained_trust_region_update(
        on_rows(policy_fn),
        params,
        in_rows(batch, config.trust_region.num_microbatches),
        excess + state.margin,
        state.trust_region,
        config.trust_region,
        held_out=True,
        key=key,
    )
    outcomes, counts = counted(state.outcomes, info.outcome, ConstrainedOutcome)
    recoveries = state.recoveries + ~info.feasible
    # A limit that no step of this size reaches says nothing about the margin.
    is_informed = info.feasible & jnp.any(batch.weight > 0)
    moved = jnp.clip(state.margin + config.margin_gain * excess, 0.0, config.cost_limit)
    margin = jnp.where(is_informed, moved, state.margin)
    metrics = reported(info, (*FIELDS, "feasible")) | counts
    metrics |= {"num_recoveries": recoveries.astype(jnp.float32), "kl_bound": jnp.asarray(config.trust_region.max_kl)}
    metrics |= cost_metrics(episode_cost, config.cost_limit) | numbered("cost_change", info.cost_change)
    metrics |= numbered("cost_margin", state.margin)
    return params, CPOState(trust_region, outcomes, recoveries, margin), metrics


CPO = PolicyUpdate(init, update, limits_costs=True, sample_means=(*POLICY_MEANS, *COST_MEANS, "cost_change"))
