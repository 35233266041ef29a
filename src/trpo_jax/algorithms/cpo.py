"""Constrained Policy Optimization: TRPO with limits on costs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from trpo_jax.agent.metrics import numbered
from trpo_jax.agent.policy_update import POLICY_MEANS, Metrics, PolicyFn, PolicyUpdate
from trpo_jax.algorithms.cost_limit import COST_MEANS, CostLimitConfig, cost_metrics
from trpo_jax.algorithms.reported import FIELDS, counted, reported
from trpo_jax.config import config
from trpo_jax.objective.constrained_update import stateful_constrained_trust_region_update
from trpo_jax.objective.rows import in_rows, on_rows
from trpo_jax.objective.surrogate import Batch
from trpo_jax.solver.outcome import ConstrainedOutcome
from trpo_jax.solver.step_config import TrustRegionState, init_trust_region_state


@config
class CPOConfig(CostLimitConfig):
    """Everything that decides how CPO learns."""


class CPOState(NamedTuple):
    """State that each update passes to the next."""

    trust_region: TrustRegionState
    outcomes: Int[Array, "7"]
    """How many updates have ended in each `ConstrainedOutcome`."""
    recoveries: Int[Array, ""]
    """How many updates had no step within the trust region that keeps the limits, so that they lowered costs instead."""


def init(params: Any, config: CPOConfig, num_costs: int) -> CPOState:
    """Return the state before the first update."""
    outcomes = jnp.zeros(len(ConstrainedOutcome), jnp.int32)
    return CPOState(init_trust_region_state(params, config.trust_region), outcomes, jnp.int32(0))


def update(
    policy_fn: PolicyFn,
    params: Any,
    state: CPOState,
    batch: Batch,
    config: CPOConfig,
    key: jax.Array,
    episode_cost: Float[Array, "K"],
) -> tuple[Any, CPOState, Metrics]:
    """Take `stateful_constrained_trust_region_update` on the whole batch; see `PolicyUpdate`.

    Reference:
        Achiam et al. 2017 (arXiv 1705.10528).
    """
    params, trust_region, info = stateful_constrained_trust_region_update(
        on_rows(policy_fn),
        params,
        in_rows(batch, config.trust_region.num_microbatches),
        episode_cost - config.cost_limit,
        state.trust_region,
        config.trust_region,
        held_out=True,
        key=key,
    )
    outcomes, counts = counted(state.outcomes, info.outcome, ConstrainedOutcome)
    recoveries = state.recoveries + ~info.feasible
    metrics = reported(info, (*FIELDS, "feasible")) | counts
    metrics |= {"num_recoveries": recoveries.astype(jnp.float32), "kl_bound": jnp.asarray(config.trust_region.max_kl)}
    metrics |= cost_metrics(episode_cost, config.cost_limit) | numbered("cost_change", info.cost_change)
    return params, CPOState(trust_region, outcomes, recoveries), metrics


CPO = PolicyUpdate(init, update, limits_costs=True, sample_means=(*POLICY_MEANS, *COST_MEANS, "cost_change"))
