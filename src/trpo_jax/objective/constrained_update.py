"""One policy update of constrained policy optimization, as a pure function."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

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
from trpo_jax.solver.step_config import TrustRegionState, check_stateless, init_trust_region_state
from trpo_jax.solver.trust_region import constrained_step_along_gradients
from trpo_jax.tree import Params, check_floating, upcast
from trpo_jax.weights import AxisName


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
    """Conjugate-gradient iterations done, over all K + 1 solves."""
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
    held_out: bool = False,
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
        held_out: predict how costs change by the other half of the samples than the one that makes the direction. A step
            fits the noise of its own samples, so that without this it keeps only part of what it promises about costs, the
            less the fewer samples there are. The halves are those of the first axis, or if its size is 1 of the last, and
            should be independent: other environments, or other episodes. The guarantees are the same.
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
    state = init_trust_region_state(params, config)
    params, _, info = stateful_constrained_trust_region_update(
        policy_fn, params, batch, cost_excess, state, config, held_out=held_out, key=key, axis_name=axis_name
    )
    return params, info


def stateful_constrained_trust_region_update(
    policy_fn: PolicyFn,
    params: Params,
    batch: Batch,
    cost_excess: Float[Array, "K"],
    state: TrustRegionState,
    config: TrustRegionConfig,
    *,
    held_out: bool = False,
    key: PRNGKeyArray | None = None,
    axis_name: AxisName | None = None,
) -> tuple[Params, TrustRegionState, ConstrainedInfo]:
    """Run `constrained_trust_region_update` with a state that is carried from update to update.

    As in `stateful_trust_region_update`, the state is a running average of the surrogate's squared gradient, which shapes the
    damping. Returns (params, state, `ConstrainedInfo`).

    Raises:
        ValueError: besides what `constrained_trust_region_update` raises, a state of another config or of other parameters.
    """
    check_floating(params, "params")
    check_batch(batch)
    check_policy(policy_fn, params, batch)
    check_config(config, batch, key)
    cost_excess = _checked_excess(cost_excess, batch)
    key = key if config.curvature_sampling == "random" else None
    with jax.default_matmul_precision("highest"):
        mine = local(params, axis_name)
        batch = mask_unweighted(batch)
        divided = divide(batch, config, axis_name)
        whole = map_parts(lambda part: Samples(part, jax.lax.stop_gradient(policy_fn(mine, part.observation))), divided)
        differentiated = divide(_with_differences(batch), config, axis_name) if held_out else divided
        values, gradients = mean_over_parts(lambda part: _surrogates_and_gradients(policy_fn, mine, part), differentiated)
        states = samples_for_curvature(batch, config.curvature_fraction, num_parts=config.num_microbatches, key=key)
        problem = LimitedProblem(
            evaluate_fn=_evaluation(policy_fn, whole, config),
            matvec=fisher(policy_fn, mine, divided if states is batch else divide(states, config, axis_name), config),
            excess=cost_excess,
            curvature_floor_fn=largest_curvature(policy_fn, mine, divided) if config.kl_constraint == "max" else None,
        )
        params, state, step, report = constrained_step_along_gradients(problem, values, gradients, params, state, config)
    return params, state, ConstrainedInfo(**fields_of_info(step, report))


def _checked_excess(cost_excess: Any, batch: Batch) -> Float[Array, "K"]:
    """Return the excess as an array; raise ValueError if the batch has no costs, too many, or others."""
    shape = jnp.shape(batch.cost_advantage) if batch.cost_advantage is not None else (0,)
    if not 1 <= shape[-1] <= MOST_LIMITS:
        raise ValueError(f"batch.cost_advantage: got {shape[-1]} costs, allowed: 1 to {MOST_LIMITS}, along the last axis")
    excess = upcast(jnp.asarray(cost_excess))
    if not jnp.issubdtype(excess.dtype, jnp.floating):
        raise TypeError(f"cost_excess: got dtype {excess.dtype}, allowed: a floating dtype")
    if excess.shape != shape[-1:]:
        raise ValueError(
            f"cost_excess: got shape {excess.shape}, allowed: {shape[-1:]}, as batch.cost_advantage has {shape[-1]} costs"
        )
    return excess


def _with_differences(batch: Batch) -> Batch:
    """Return the batch with more costs: objective and costs, with the opposite sign in the second half of the samples.

    The halves are contiguous, since neighbours may belong to the same episode.
    """
    assert batch.cost_advantage is not None
    shape = batch.log_prob.shape
    axis = 0 if shape[0] > 1 else len(shape) - 1
    first = jax.lax.broadcasted_iota(jnp.int32, shape, axis) < shape[axis] // 2
    all_of = jnp.concatenate([batch.advantage[..., None], batch.cost_advantage], axis=-1)
    signed = jnp.where(first[..., None], all_of, -all_of)
    return batch._replace(cost_advantage=jnp.concatenate([batch.cost_advantage, signed], axis=-1))


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
