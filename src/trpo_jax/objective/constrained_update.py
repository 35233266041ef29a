"""One policy update of constrained policy optimization, as a pure function."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from trpo_jax.errors import ConfigError
from trpo_jax.objective.partition import (
    Partition,
    local,
    map_parts,
    mean_over_parts,
    samples_for_curvature,
)
from trpo_jax.objective.surrogate import Batch, check_batch, mask_unweighted, surrogate_objective
from trpo_jax.objective.trust_region_config import TrustRegionConfig
from trpo_jax.objective.trust_region_update import (
    PolicyFn,
    Report,
    Samples,
    check_config,
    check_policy,
    divide,
    evaluation_of_batch,
    fields_of_info,
    fisher,
    largest_curvature,
)
from trpo_jax.policy.distributions import Distribution
from trpo_jax.solver.ball import MOST_LIMITS
from trpo_jax.solver.constrained_step import LimitedEvaluation, LimitedProblem
from trpo_jax.solver.outcome import ConstrainedStepInfo
from trpo_jax.solver.step_config import TrustRegionState, check_stateless, init_trust_region_state
from trpo_jax.solver.trust_region import constrained_step_along_gradients
from trpo_jax.tree import Params, check_floating, upcast, where_finite
from trpo_jax.weights import AxisName

MOST_AVERAGED_COSTS = MOST_LIMITS // 2
"""With averages each cost has two limits."""


class ConstrainedState(NamedTuple):
    """State that is carried from update to update."""

    trust_region: TrustRegionState
    cost_gradients: Params
    """Σ (1 - d)·dⁿ⁻ⁱ·gᵢ over the updates i = 1 … n, where gᵢ are the gradients of the costs and d is the decay: a tree like the
    parameters with a new leading axis `[K]`, in at least float32. `[0]` if no averages are kept."""
    weight: Float[Array, ""]
    """The same sum with 1 for gᵢ, so that the average is `cost_gradients` / `weight`; 0 before the first update."""


def init_constrained_state(params: Params, config: TrustRegionConfig, num_costs: int) -> ConstrainedState:
    """Return the state before the first update.

    Args:
        params: pytree of floating arrays, like the one passed to the updates.
        config: its `damping_shape` decides what the state holds.
        num_costs: K; 0 keeps no averages, so that each limit counts by the gradient of one batch alone.
    """
    trust_region = init_trust_region_state(params, config)
    nothing = jax.tree.map(lambda leaf: jnp.zeros((num_costs, *leaf.shape), leaf.dtype), upcast(params))
    return ConstrainedState(trust_region, nothing, jnp.float32(0))


class ConstrainedInfo(NamedTuple):
    """What happened in an update with K limited costs. Scalars that describe the step taken are zero if it was rejected."""

    outcome: Int[Array, ""]
    """A `ConstrainedOutcome`."""
    accepted: Bool[Array, ""]
    surrogate_improvement: Float[Array, ""]
    """Surrogate at the returned parameters minus surrogate at the given ones."""
    expected_improvement: Float[Array, ""]
    """Its linear prediction, for the fraction of the step that was taken, or else tried last."""
    kl: Float[Array, ""]
    """Mean KL(old ‖ new) of the returned parameters, nats."""
    max_kl: Float[Array, ""]
    """Largest KL(old ‖ new) of any state, nats."""
    entropy: Float[Array, ""]
    """Mean entropy of the returned policy, nats."""
    cost_change: Float[Array, "K"]
    """Surrogates of the costs at the returned parameters minus those at the given ones."""
    feasible: Bool[Array, ""]
    """Whether some step within the trust region keeps all limits, to first order. If none does, the step is a recovery step:
    it lowers the costs that are above their limits."""
    active: Bool[Array, "K"]
    """Costs whose limits shape the step."""
    step_fraction: Float[Array, ""]
    """Fraction of the step that was taken."""
    backtracks: Int[Array, ""]
    """How often the line search shrank the step."""
    cg_iterations: Int[Array, ""]
    """Conjugate-gradient iterations done, over all solves: 1 + K, or 1 + 2K with averages."""
    cg_residual: Float[Array, ""]
    """Largest relative residual of the solves."""
    step_norm: Float[Array, ""]
    """Norm of the step taken."""


def constrained_trust_region_update(
    policy_fn: PolicyFn,
    params: Params,
    batch: Batch,
    cost_excess: Float[Array, "K"],
    config: TrustRegionConfig = TrustRegionConfig(),  # noqa: B008 - frozen
    *,
    key: PRNGKeyArray | None = None,
    axis_name: AxisName | None = None,
) -> tuple[Params, ConstrainedInfo]:
    """Improve a policy as far as a bound on its KL and limits on K costs allow, on one batch of experience.

        maximize  mean r·A   subject to   mean KL(π_old ‖ π_θ) <= max_kl   and   c_k + mean (r - 1)·C_k <= 0

    with r = exp(log π_θ(a|s) - log_prob), C_k = `batch.cost_advantage` and c_k = `cost_excess`. The best step of the linearized
    problem is taken in the span of the natural gradients of the surrogate and of each cost, then a backtracking line search
    on the whole batch. If no step within the trust region keeps the limits, the step lowers the costs that exceed them.

    What it guarantees, for every input:
        - accepted: KL(old ‖ new) <= max_kl as in `trust_region_update`; the surrogate of a cost that starts within its limit
          stays within it, and that of any other does not rise; if all costs start within their limits the surrogate has
          improved; every parameter is finite. With `line_search=False` only the last of these holds;
        - otherwise: the parameters returned are the ones passed in, bit for bit, and `info.outcome` says why.

    Args:
        policy_fn: as for `trust_region_update`.
        params: pytree of floating arrays.
        batch: `Batch` with a `cost_advantage` `[..., K]`.
        cost_excess: `[K]`, how far the old policy's costs are above their limits, negative below them, in units of the mean of
            `cost_advantage`. For undiscounted costs of an episode that is (cost - limit) / (steps of an episode).
        config: `TrustRegionConfig`; its float fields may be traced.
        key: needed and consumed if `curvature_sampling` is "random".
        axis_name: as for `trust_region_update`; `cost_excess` is the same on every device.

    Returns:
        (params, `ConstrainedInfo`).

    Raises:
        TypeError, ValueError, ConfigError: as `trust_region_update`; no costs, or more than `MOST_LIMITS`.
        All before compilation. Numerical trouble never raises.

    Reference:
        Achiam et al. 2017 (arXiv 1705.10528), equations 11 to 14. The damping turns the step and hardly shortens it, as in
        `trust_region_step`; the paper's dual counts it as curvature.
    """
    check_stateless(config)
    check_floating(params, "params")
    state = init_constrained_state(params, config, num_costs=0)
    params, _, info = stateful_constrained_trust_region_update(
        policy_fn, params, batch, cost_excess, state, config, cost_gradient_decay=0.0, key=key, axis_name=axis_name
    )
    return params, info


def stateful_constrained_trust_region_update(
    policy_fn: PolicyFn,
    params: Params,
    batch: Batch,
    cost_excess: Float[Array, "K"],
    state: ConstrainedState,
    config: TrustRegionConfig,
    *,
    cost_gradient_decay: float | Float[Array, ""],
    key: PRNGKeyArray | None = None,
    axis_name: AxisName | None = None,
) -> tuple[Params, ConstrainedState, ConstrainedInfo]:
    """Run `constrained_trust_region_update` with a state that is carried from update to update.

    The gradient of a single batch fits the noise of its samples: where costs are rare, a step that keeps the limits by this
    gradient keeps only a small part of what it promises. So each limit is imposed twice, to first order: by the batch's
    gradient, and by a running average of all batches' gradients, whose decay per update is `cost_gradient_decay`, in [0, 1).
    That takes one more solve for each cost, at a decay of 0 too. A batch without samples that count, or with gradients that
    are not finite, leaves the average as it is.

    The guarantees are the same: the line search measures surrogates, costs and KL on this batch. `info.feasible` and
    `info.active` are by both gradients. The state holds the averages, and what shapes the damping. Start with
    `init_constrained_state`. All other arguments are those of `constrained_trust_region_update`. Returns (params, state,
    `ConstrainedInfo`).

    Raises:
        ConfigError: besides what `constrained_trust_region_update` raises, a decay out of range.
        TypeError, ValueError: a state of another kind, of another config, of other parameters or of another number of costs;
            with averages, more than `MOST_AVERAGED_COSTS` costs.
    """
    check_floating(params, "params")
    check_batch(batch)
    check_policy(policy_fn, params, batch)
    check_config(config, batch, key)
    num_averages = _num_averages(state, params, config)
    cost_excess = _checked_excess(cost_excess, batch, num_averages)
    if not isinstance(cost_gradient_decay, jax.core.Tracer) and not 0.0 <= cost_gradient_decay < 1.0:
        raise ConfigError("cost_gradient_decay", cost_gradient_decay, "at least 0 and below 1")
    key = key if config.curvature_sampling == "random" else None
    with jax.default_matmul_precision("highest"):
        mine = local(params, axis_name)
        batch = mask_unweighted(batch)
        divided = divide(batch, config, axis_name)
        whole = map_parts(lambda part: Samples(part, jax.lax.stop_gradient(policy_fn(mine, part.observation))), divided)
        values, gradients = mean_over_parts(lambda part: _surrogates_and_gradients(policy_fn, mine, part), divided)
        state, averages = _averaged(state, gradients, cost_gradient_decay, counts=_has_samples(divided))
        states = samples_for_curvature(batch, config.curvature_fraction, num_parts=config.num_microbatches, key=key)
        problem = LimitedProblem(
            evaluate_fn=_evaluation(policy_fn, whole, config),
            matvec=fisher(policy_fn, mine, divided if states is batch else divide(states, config, axis_name), config),
            excess=jnp.concatenate([cost_excess, cost_excess[:num_averages]]),
            curvature_floor_fn=largest_curvature(policy_fn, mine, divided) if config.kl_constraint == "max" else None,
        )
        gradients = jax.tree.map(lambda new, average: jnp.concatenate([new, average]), gradients, averages)
        params, shaping, step, report = constrained_step_along_gradients(
            problem, values, gradients, params, state.trust_region, config
        )
    return params, state._replace(trust_region=shaping), _info(step, report, len(cost_excess))


def _checked_excess(cost_excess: Any, batch: Batch, num_averages: int) -> Float[Array, "K"]:
    """Return the excess as an array; raise ValueError if the batch has no costs, too many, or others than the averages."""
    shape = jnp.shape(batch.cost_advantage) if batch.cost_advantage is not None else (0,)
    most = MOST_AVERAGED_COSTS if num_averages else MOST_LIMITS
    if not 1 <= shape[-1] <= most:
        raise ValueError(f"batch.cost_advantage: got {shape[-1]} costs, allowed: 1 to {most}, along the last axis")
    if num_averages not in (0, shape[-1]):
        got = f"averages of {num_averages} costs"
        raise ValueError(f"state.cost_gradients: got {got}, allowed: of {shape[-1]}, as the batch has")
    excess = upcast(jnp.asarray(cost_excess))
    if not jnp.issubdtype(excess.dtype, jnp.floating):
        raise TypeError(f"cost_excess: got dtype {excess.dtype}, allowed: a floating dtype")
    if excess.shape != shape[-1:]:
        raise ValueError(
            f"cost_excess: got shape {excess.shape}, allowed: {shape[-1:]}, as batch.cost_advantage has {shape[-1]} costs"
        )
    return excess


def _num_averages(state: Any, params: Params, config: TrustRegionConfig) -> int:
    """Return for how many costs a state keeps averages; raise TypeError or ValueError if it does not fit the parameters."""
    allowed = "the result of init_constrained_state for these params and costs"
    if not isinstance(state, ConstrainedState):
        raise TypeError(f"state: got a {type(state).__name__}, allowed: {allowed}")
    leaves = jax.tree.leaves(state.cost_gradients)
    number = len(leaves[0]) if leaves and jnp.ndim(leaves[0]) else 0
    fitting = jax.eval_shape(lambda params: init_constrained_state(params, config, number).cost_gradients, params)
    got, wanted = (
        (jax.tree.structure(tree), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)])
        for tree in (state.cost_gradients, fitting)
    )
    if got != wanted:
        raise ValueError(f"state.cost_gradients: got arrays unlike those of params and {number} costs, allowed: {allowed}")
    return number


def _has_samples(divided: Partition) -> Bool[Array, ""]:
    """Tell whether any sample of the batch has a weight."""
    if divided.parts.weight is None:
        return jnp.asarray(True)
    return mean_over_parts(lambda part: jnp.sum(part.weight), divided) > 0


def _averaged(
    state: ConstrainedState, gradients: Params, decay: float | Float[Array, ""], *, counts: Bool[Array, ""]
) -> tuple[ConstrainedState, Params]:
    """Put the gradients of the costs, all rows but the first, into their averages; return the state and the averages."""
    decay = jnp.asarray(decay, jnp.float32)
    of_costs = jax.tree.map(lambda total, leaf: leaf[1 : 1 + len(total)], state.cost_gradients, gradients)
    old = state.cost_gradients, state.weight
    sums, weight = jax.tree.map(
        lambda total, new: (decay * total + (1.0 - decay) * new).astype(total.dtype), old, (of_costs, 1.0)
    )
    averages = jax.tree.map(lambda total: total / weight, sums)
    kept = jax.tree.map(lambda new, old: jnp.where(counts, new, old), where_finite((sums, weight), old), old)
    return ConstrainedState(state.trust_region, *kept), averages


def _surrogates(policy: Distribution, batch: Batch) -> Float[Array, "M"]:
    """Return the surrogates of the objective and of each cost."""
    assert batch.cost_advantage is not None
    of_costs = [batch._replace(advantage=batch.cost_advantage[..., k]) for k in range(batch.cost_advantage.shape[-1])]
    return jnp.stack([surrogate_objective(policy, each) for each in (batch, *of_costs)])


def _surrogates_and_gradients(policy_fn: PolicyFn, params: Params, batch: Batch) -> tuple[Float[Array, "M"], Params]:
    """Return the surrogates `[M]` and their gradients, a tree like the parameters with a new leading axis `[M]`."""
    values, pullback = jax.vjp(lambda params: _surrogates(policy_fn(params, batch.observation), batch), params)
    return values, jax.vmap(lambda row: pullback(row)[0])(jnp.eye(len(values), dtype=values.dtype))


def _evaluation(policy_fn: PolicyFn, whole: Partition, config: TrustRegionConfig) -> Callable[[Params], LimitedEvaluation]:
    """Return the map from parameters to surrogates, KL and entropy."""
    evaluate_batch = evaluation_of_batch(policy_fn, whole, _surrogates)

    def evaluate(params: Params) -> LimitedEvaluation:
        surrogates, report = evaluate_batch(params)
        return LimitedEvaluation(surrogates[0], report.constraint(config), surrogates[1:], report)

    return evaluate


def _info(step: ConstrainedStepInfo, report: Report, num_costs: int) -> ConstrainedInfo:
    """Return the info of an update whose step had each limit once, or twice."""
    active = jnp.any(step.active.reshape(-1, num_costs), axis=0)
    told = fields_of_info(step._replace(active=active), report)
    return ConstrainedInfo(**told)
