"""Constrained Policy Optimization: TRPO with limits on costs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from trpo_jax.agent.metrics import numbered
from trpo_jax.agent.policy_update import POLICY_MEANS, Metrics, PolicyFn, PolicyUpdate
from trpo_jax.algorithms.cost_limit import COST_MEANS, CostLimitConfig, cost_metrics
from trpo_jax.algorithms.reported import FIELDS, counted, reported
from trpo_jax.config import config, setting
from trpo_jax.objective.constrained_update import (
    MOST_AVERAGED_COSTS,
    ConstrainedState,
    init_constrained_state,
    stateful_constrained_trust_region_update,
)
from trpo_jax.objective.rows import in_rows, on_rows
from trpo_jax.objective.surrogate import Batch
from trpo_jax.solver.outcome import ConstrainedOutcome
from trpo_jax.tree import where_finite

AIM = 0.95
"""Fraction of the limit at which the expected cost is to settle: it is uncertain, and swings."""


@config
class CPOConfig(CostLimitConfig):
    """Everything that decides how CPO learns."""

    cost_gradient_decay: float = setting(default=0.9, at_least=0.0, below=1.0)
    """Decay per update of the running average of the costs' gradients. Steps keep the limits both by it and by the batch's
    gradients, which are the average at 0."""
    margin_gain: float = setting(default=0.03, at_least=0.0)
    """Costs are kept below their limit by a margin, which makes up for what steps predict wrongly. Each update adds this times
    min(expected cost - `AIM`·limit, limit), then clips the margin to [-limit/2, limit]. It falls below 0 only while the limit
    shapes the steps: then costs rise by less than predicted."""


class CPOState(NamedTuple):
    """State that each update passes to the next."""

    trust_region: ConstrainedState
    outcomes: Int[Array, "7"]
    """How many updates have ended in each `ConstrainedOutcome`."""
    recoveries: Int[Array, ""]
    """How many updates had no step within the trust region that keeps limits and margins, and lowered costs instead."""
    margin: Float[Array, "K"]
    """How far below its limit the next update is to keep each cost; negative where it may predict costs above it."""


def init(params: Any, config: CPOConfig, num_costs: int) -> CPOState:
    """Return the state before the first update."""
    outcomes = jnp.zeros(len(ConstrainedOutcome), jnp.int32)
    trust_region = init_constrained_state(params, config.trust_region, num_costs)
    return CPOState(trust_region, outcomes, jnp.int32(0), jnp.zeros(num_costs))


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
        aimed_excess(excess, state.margin),
        state.trust_region,
        config.trust_region,
        cost_gradient_decay=config.cost_gradient_decay,
        key=key,
    )
    outcomes, counts = counted(state.outcomes, info.outcome, ConstrainedOutcome)
    recoveries = state.recoveries + ~info.feasible
    moved = where_finite(moved_margin(state.margin, excess, info.active, config), state.margin)
    margin = jnp.where(jnp.any(batch.weight > 0), moved, state.margin)
    metrics = reported(info, (*FIELDS, "feasible")) | counts
    metrics |= {"num_recoveries": recoveries.astype(jnp.float32), "kl_bound": jnp.asarray(config.trust_region.max_kl)}
    metrics |= cost_metrics(episode_cost, config.cost_limit) | numbered("cost_change", info.cost_change)
    metrics |= numbered("cost_margin", state.margin)
    return params, CPOState(trust_region, outcomes, recoveries, margin), metrics


def aimed_excess(excess: Float[Array, "K"], margin: Float[Array, "K"]) -> Float[Array, "K"]:
    """Return the excess to take a step with. A negative margin is for costs below their limits only."""
    return excess + jnp.where(excess < 0, margin, jnp.maximum(margin, 0.0))


def moved_margin(
    margin: Float[Array, "K"], excess: Float[Array, "K"], active: Bool[Array, "K"], config: CPOConfig
) -> Float[Array, "K"]:
    """Return the next update's margin."""
    limit = jnp.asarray(config.cost_limit, jnp.float32)
    moved = margin + config.margin_gain * jnp.minimum(excess + (1.0 - AIM) * limit, limit)
    least = jnp.where(active, -0.5 * limit, jnp.minimum(margin, 0.0))
    return jnp.clip(moved, least, limit)


CPO = PolicyUpdate(
    init,
    update,
    limits_costs=True,
    most_costs=MOST_AVERAGED_COSTS,
    sample_means=(*POLICY_MEANS, *COST_MEANS, "cost_change"),
)
