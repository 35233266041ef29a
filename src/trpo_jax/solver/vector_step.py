"""The trust-region step on vectors: a direction by conjugate gradients, its length by the constraint, then a line search."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from trpo_jax.solver.conjugate_gradient import solve_with_residual
from trpo_jax.solver.line_search import LineSearchResult, backtracking_line_search
from trpo_jax.solver.outcome import StepInfo, StepOutcome
from trpo_jax.solver.step_config import StepConfig
from trpo_jax.tree import MatVec, Params, add_scaled, all_finite, cast_like, max_abs, scaled, upcast, vdot
from trpo_jax.weights import power_of_two

LONGEST = 5.0
"""Longest step, as a multiple of the damped step, whose length counts damping as curvature.

The limit is lower if all backtracks together shrink a step by less than this factor."""

SLACK = 1e-3
"""Relative margin on the curvature. Without it, a quadratic KL's first trial is on the bound: rounding decides if it passes."""

AIM = 0.98
"""The first backtrack aims at this fraction of the length that a quadratic KL would allow, as other KLs need a little less."""


class Evaluation(NamedTuple):
    """Objective, constraint, and the caller's report for some parameters."""

    objective: Float[Array, ""]
    constraint: Float[Array, ""]
    """Must not exceed max_kl."""
    report: Any = ()
    """Pytree of scalars; the one for the returned parameters goes to the caller."""


class Problem(NamedTuple):
    """A constrained maximization around some parameters, as functions of the parameters or of vectors like them."""

    evaluate_fn: Callable[[Params], Evaluation]
    matvec: MatVec
    """v -> F v, undamped."""
    curvature_floor_fn: Callable[[Params], Float[Array, ""]] | None = None
    """x -> lower bound on the curvature along x that sets the step's length; None for no bound."""
    round_fn: Callable[[Params], Params] = lambda params: params
    """params -> params rounded to the dtypes of the leaves."""


class _Trial(NamedTuple):
    params: Float[Array, "P"]
    improvement: Float[Array, ""]
    evaluation: Evaluation
    outcome: Int[Array, ""]


class _Direction(NamedTuple):
    x: Float[Array, "P"]
    curvature: Float[Array, ""]
    """Sets the step's length. If it is not positive, no direction was found."""
    cg_iterations: Int[Array, ""]
    cg_residual: Float[Array, ""]


def step_on_vectors(
    problem: Problem,
    objective: Float[Array, ""],
    gradient: Float[Array, "P"],
    diagonal: Float[Array, "P"] | None,
    params: Float[Array, "P"],
    config: StepConfig,
) -> tuple[Float[Array, "P"], StepInfo, Any]:
    """Take the step with D = `diagonal` (None for the identity); return (params, info, report on the returned params)."""
    # The direction does not depend on the gradient's scale: dividing by it keeps ‖g‖² in range for any finite gradient.
    largest = max_abs(gradient)
    scale = power_of_two(largest)
    unit_gradient = scaled(1.0 / scale, gradient)
    direction = _solve(problem, unit_gradient, diagonal, params, config)
    length = jnp.sqrt(2.0 * config.max_kl / jnp.where(direction.curvature > 0, direction.curvature, 1.0))
    step = scaled(length, direction.x)
    slope = scale * vdot(unit_gradient, step)
    search = _search(problem, objective, step, slope, params, config)
    trial = search.trial
    solvable = all_finite((objective, gradient, step, direction.curvature, direction.cg_residual))
    outcome = jnp.select(
        [~solvable, largest == 0, ~(direction.curvature > 0)],
        [jnp.int32(StepOutcome.NOT_FINITE), jnp.int32(StepOutcome.ZERO_GRADIENT), jnp.int32(StepOutcome.NEGATIVE_CURVATURE)],
        trial.outcome,
    )
    accepted = outcome == StepOutcome.ACCEPTED
    unit_norm = jnp.sqrt(vdot(unit_gradient, unit_gradient))
    info = StepInfo(
        outcome=outcome,
        accepted=accepted,
        improvement=jnp.where(accepted, trial.improvement, 0.0),
        expected_improvement=search.fraction * slope,
        constraint=jnp.where(accepted, trial.evaluation.constraint, 0.0),
        step_fraction=jnp.where(accepted, search.fraction, 0.0),
        backtracks=search.backtracks,
        cg_iterations=direction.cg_iterations,
        cg_residual=direction.cg_residual,
        gradient_norm=scale * unit_norm,
        step_norm=jnp.where(accepted, search.fraction * jnp.sqrt(vdot(step, step)), 0.0),
    )
    return jnp.where(accepted, trial.params, params), info, _report(accepted, trial, problem, params)


def _solve(
    problem: Problem,
    unit_gradient: Float[Array, "P"],
    diagonal: Float[Array, "P"] | None,
    params: Float[Array, "P"],
    config: StepConfig,
) -> _Direction:
    """Return x ≈ (F + damping·D)⁻¹ g and the curvature along x that sets its length.

    The curvature is xᵀFx (bounded below) with a line search and xᵀ(F + damping·D)x without, and at least
    `curvature_floor_fn`(x). Conjugate gradients solve for y = D^½ x, since the damping is a multiple of the identity in
    these coordinates.
    """
    inverse_root = None if diagonal is None else jax.lax.rsqrt(diagonal)
    damping = jnp.asarray(config.damping, unit_gradient.dtype)

    def rescaled(v: Float[Array, "P"]) -> Float[Array, "P"]:
        return v if inverse_root is None else inverse_root * v

    def damped(y: Float[Array, "P"]) -> Float[Array, "P"]:
        image = problem.matvec(cast_like(rescaled(y), params))
        return add_scaled(rescaled(upcast(image)), damping, y)

    b = rescaled(unit_gradient)
    y, residual, cg = solve_with_residual(damped, b, max_iterations=config.cg_iterations, tolerance=config.cg_tolerance)
    damped_curvature = vdot(y, b) - vdot(y, residual)  # yᵀAy = yᵀ(b - r)
    x = rescaled(y)
    curvature = damped_curvature
    if config.line_search:
        undamped = damped_curvature - vdot(scaled(damping, y), y)
        curvature = jnp.maximum(undamped, damped_curvature / longest_step(config, b.dtype) ** 2)
    if problem.curvature_floor_fn is not None:
        curvature = jnp.where(curvature > 0, jnp.maximum(curvature, problem.curvature_floor_fn(x)), curvature)
    if config.line_search:
        curvature = curvature * (1.0 + SLACK)
    norm = jnp.sqrt(vdot(b, b))
    return _Direction(x, curvature, cg.iterations, cg.residual_norm / jnp.where(norm > 0, norm, 1.0))


def _search(
    problem: Problem,
    objective: Float[Array, ""],
    step: Float[Array, "P"],
    slope: Float[Array, ""],
    params: Float[Array, "P"],
    config: StepConfig,
) -> LineSearchResult:
    """Find the largest accepted fraction of the step; without line search, try only the whole step."""

    def trial_fn(fraction: Float[Array, ""]) -> tuple[Bool[Array, ""], _Trial]:
        candidate = problem.round_fn(cast_like(add_scaled(upcast(params), fraction, step), params))
        evaluation = problem.evaluate_fn(candidate)
        improvement = evaluation.objective - objective
        finite = all_finite((candidate, improvement, evaluation.constraint))
        inside = evaluation.constraint <= config.max_kl
        improved = (improvement > 0) & (improvement >= config.accept_ratio * fraction * slope)
        failures = [~finite, ~inside, ~improved] if config.line_search else [~finite]
        reasons = [StepOutcome.NOT_FINITE, StepOutcome.KL_TOO_LARGE, StepOutcome.NO_IMPROVEMENT][: len(failures)]
        outcome = jnp.select(failures, [jnp.int32(reason) for reason in reasons], jnp.int32(StepOutcome.ACCEPTED))
        return outcome == StepOutcome.ACCEPTED, _Trial(candidate, improvement, evaluation, outcome)

    return backtrack(trial_fn, config)


def backtrack(trial_fn: Callable[[Float[Array, ""]], tuple[Bool[Array, ""], Any]], config: StepConfig) -> LineSearchResult:
    """Run the configured line search; without one, try only the whole step.

    Args:
        trial_fn: fraction -> (accepted, trial), the trial with fields `outcome` and `evaluation`.
        config: how to backtrack.
    """
    if not config.line_search:
        accepted, trial = trial_fn(jnp.float32(1))
        return LineSearchResult(accepted, jnp.float32(1), jnp.int32(0), trial)

    def first_factor_fn(trial: Any) -> Float[Array, ""]:
        too_large = trial.outcome == StepOutcome.KL_TOO_LARGE
        length = AIM * jnp.sqrt(config.max_kl / jnp.where(too_large, trial.evaluation.constraint, 1.0))
        return jnp.where(too_large, jnp.maximum(length, config.backtrack_factor), config.backtrack_factor)

    return backtracking_line_search(
        trial_fn,
        backtrack_factor=config.backtrack_factor,
        max_backtracks=config.max_backtracks,
        first_factor_fn=first_factor_fn,
    )


def longest_step(config: StepConfig, dtype: Any) -> Float[Array, ""]:
    """Return the longest step, as a multiple of the damped one: `LONGEST`, or less if backtracks cannot undo it."""
    return jnp.minimum(LONGEST, jnp.asarray(config.backtrack_factor, dtype) ** -float(config.max_backtracks))


def _report(accepted: Bool[Array, ""], trial: _Trial, problem: Problem, params: Float[Array, "P"]) -> Any:
    """Return the report on the returned parameters; an accepted trial has it already."""
    if not jax.tree.leaves(trial.evaluation.report):
        return trial.evaluation.report
    return jax.lax.cond(accepted, lambda: trial.evaluation.report, lambda: problem.evaluate_fn(params).report)
