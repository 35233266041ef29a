"""The trust-region step with limits on other quantities: the best step in the ball that keeps them, then a line search."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from trpo_jax.solver.ball import BallSolution, maximize_in_ball
from trpo_jax.solver.conjugate_gradient import solve_with_residual
from trpo_jax.solver.line_search import LineSearchResult
from trpo_jax.solver.outcome import ConstrainedOutcome, ConstrainedStepInfo
from trpo_jax.solver.step_config import StepConfig
from trpo_jax.solver.vector_step import SLACK, backtrack, longest_step
from trpo_jax.tree import MatVec, Params, add_scaled, all_finite, cast_like, upcast, vdot
from trpo_jax.weights import power_of_two

RADII = 3
"""How often the radius of the ball is corrected. The first correction is exact if no limit shapes the step."""

CORRECTIONS = 3
"""How often the aim of the step is corrected for the curvature of the costs."""

MARGIN = 1.1
"""The correction is larger than the error by this factor: the next step has an error of its own."""


class LimitedEvaluation(NamedTuple):
    """Objective, constraint, K costs, and the caller's report for some parameters."""

    objective: Float[Array, ""]
    constraint: Float[Array, ""]
    """Must not exceed max_kl."""
    costs: Float[Array, "K"]
    report: Any = ()
    """Pytree of scalars; the one for the returned parameters goes to the caller."""


class LimitedProblem(NamedTuple):
    """A maximization with limited costs around some parameters, as functions of the parameters or of vectors like them."""

    evaluate_fn: Callable[[Params], LimitedEvaluation]
    matvec: MatVec
    """v -> F v, undamped."""
    excess: Float[Array, "L"]
    """How far L >= K quantities are above their limits at the given parameters; negative below them. The first K are the costs
    of `evaluate_fn`. Of the others only the gradients count: nothing measures them."""
    curvature_floor_fn: Callable[[Params], Float[Array, ""]] | None = None
    """x -> lower bound on the curvature along x that sets the step's length; None for no bound."""
    round_fn: Callable[[Params], Params] = lambda params: params
    """params -> params rounded to the dtypes of the leaves."""


class Start(NamedTuple):
    """Values and gradients at the given parameters."""

    objective: Float[Array, ""]
    gradient: Float[Array, "P"]
    costs: Float[Array, "K"]
    limited_gradients: Float[Array, "L P"]
    """Of the quantities that have limits, the costs first."""


class _Trial(NamedTuple):
    params: Float[Array, "P"]
    improvement: Float[Array, ""]
    cost_change: Float[Array, "K"]
    evaluation: LimitedEvaluation
    outcome: Int[Array, ""]


class _Span(NamedTuple):
    """Directions x_i = D^-½ y_i, and what the linear and quadratic models say about their sums Σ p_i x_i."""

    directions: Float[Array, "M P"]
    slopes: Float[Array, "M M"]
    """Slopes of the objective (first row) and of what is limited along each direction, divided by `scale`."""
    scale: Float[Array, "M"]
    damped: Float[Array, "M M"]
    """x_iᵀ(F + damping·D)x_j."""
    undamped: Float[Array, "M M"]
    """x_iᵀFx_j."""
    positive: Bool[Array, ""]
    """Whether the damped curvature is positive along each direction."""
    cg_iterations: Int[Array, ""]
    cg_residual: Float[Array, ""]


def constrained_step_on_vectors(
    problem: LimitedProblem,
    start: Start,
    diagonal: Float[Array, "P"] | None,
    params: Float[Array, "P"],
    config: StepConfig,
) -> tuple[Float[Array, "P"], ConstrainedStepInfo, Any]:
    """Take the step with D = `diagonal` (None for the identity); return (params, info, report on the returned params)."""
    span = _span(problem, start, diagonal, params, config)
    solution = _best(span, problem, jnp.zeros_like(span.scale[1:]), config)
    if config.line_search:
        solution = _corrected(solution, span, problem, start, params, config)
    step, slope = solution.point @ span.directions, span.scale[0] * (span.slopes[0] @ solution.point)
    search = _search(problem, start, step, slope, params, config)
    trial = search.trial
    finite = all_finite((start, step, slope, span.cg_residual))
    solvable = finite & jnp.all(problem.excess < jnp.inf)  # -inf is no limit
    outcome = jnp.select(
        [~solvable, ~jnp.any(step != 0), ~span.positive],
        [
            jnp.int32(ConstrainedOutcome.NOT_FINITE),
            jnp.int32(ConstrainedOutcome.ZERO_GRADIENT),
            jnp.int32(ConstrainedOutcome.NEGATIVE_CURVATURE),
        ],
        trial.outcome,
    )
    accepted = outcome == ConstrainedOutcome.ACCEPTED
    info = ConstrainedStepInfo(
        outcome=outcome,
        accepted=accepted,
        improvement=jnp.where(accepted, trial.improvement, 0.0),
        expected_improvement=search.fraction * slope,
        constraint=jnp.where(accepted, trial.evaluation.constraint, 0.0),
        cost_change=jnp.where(accepted, trial.cost_change, 0.0),
        feasible=solution.feasible,
        active=solution.active,
        step_fraction=jnp.where(accepted, search.fraction, 0.0),
        backtracks=search.backtracks,
        cg_iterations=span.cg_iterations,
        cg_residual=span.cg_residual,
        step_norm=jnp.where(accepted, search.fraction * jnp.sqrt(vdot(step, step)), 0.0),
    )
    report = jax.lax.cond(accepted, lambda: trial.evaluation.report, lambda: problem.evaluate_fn(params).report)
    return jnp.where(accepted, trial.params, params), info, report


def _span(
    problem: LimitedProblem, start: Start, diagonal: Float[Array, "P"] | None, params: Float[Array, "P"], config: StepConfig
) -> _Span:
    """Solve for x_i ≈ (F + damping·D)⁻¹ g_i, of the objective's gradient and of what is limited.

    Conjugate gradients solve for y = D^½ x, since the damping is a multiple of the identity in these coordinates.
    """
    gradients = upcast(jnp.concatenate([start.gradient[None], start.limited_gradients]))
    inverse_root = jnp.ones_like(gradients[0]) if diagonal is None else jax.lax.rsqrt(diagonal)
    damping = jnp.asarray(config.damping, gradients.dtype)
    scale = power_of_two(jnp.max(jnp.abs(gradients), axis=1))  # so that squared norms stay in range
    b = gradients / scale[:, None] * inverse_root[None, :]

    def damped(y: Float[Array, "P"]) -> Float[Array, "P"]:
        image = problem.matvec(cast_like(inverse_root * y, params))
        return add_scaled(inverse_root * upcast(image), damping, y)

    def solve(b: Float[Array, "P"]) -> tuple[Any, Any, Any]:
        return solve_with_residual(damped, b, max_iterations=config.cg_iterations, tolerance=config.cg_tolerance)

    y, residual, cg = jax.lax.map(solve, b)
    curvature = y @ (b - residual).T  # yᵀAy = yᵀ(b - r)
    curvature = 0.5 * (curvature + curvature.T)
    norm = jnp.linalg.norm(b, axis=1)
    return _Span(
        directions=inverse_root[None, :] * y,
        slopes=b @ y.T,
        scale=scale,
        damped=curvature,
        undamped=curvature - damping * (y @ y.T),
        positive=jnp.all((jnp.diagonal(curvature) > 0) | (norm == 0)),
        cg_iterations=jnp.sum(cg.iterations),
        cg_residual=jnp.max(cg.residual_norm / jnp.where(norm > 0, norm, 1.0)),
    )


def _best(span: _Span, problem: LimitedProblem, error: Float[Array, "L"], config: StepConfig) -> BallSolution:
    """Return the best step of the span in the ball of the damped curvature, within the limits less an error.

    With a line search the radius of the ball is chosen so that the step's undamped curvature (bounded below) is the one that
    max_kl allows: as in `trust_region_step`, damping turns the step and hardly shortens it.
    """
    dtype = span.damped.dtype
    excess = (jnp.asarray(problem.excess, dtype) + error) / span.scale[1:]
    max_kl = jnp.asarray(config.max_kl, dtype)

    def in_ball(radius: Float[Array, ""]) -> BallSolution:
        return maximize_in_ball(span.slopes[0], span.slopes[1:], excess, span.damped, radius)

    if not config.line_search:
        return in_ball(max_kl)
    longest = longest_step(config, dtype)

    def lengthened(_: Any, solution: BallSolution) -> BallSolution:
        damped = solution.point @ span.damped @ solution.point
        undamped = jnp.maximum(solution.point @ span.undamped @ solution.point, damped / longest**2)
        if problem.curvature_floor_fn is not None:
            floor = problem.curvature_floor_fn(solution.point @ span.directions)
            undamped = jnp.maximum(undamped, jnp.asarray(floor, dtype))
        ratio = jnp.where(undamped > 0, damped / jnp.where(undamped > 0, undamped, 1.0), 1.0)
        return in_ball(max_kl * ratio / (1.0 + SLACK))

    return jax.lax.fori_loop(0, RADII, lengthened, in_ball(max_kl))


class _Correction(NamedTuple):
    solution: BallSolution
    error: Float[Array, "L"]
    """By how much more than their linear models the costs have risen, at most; 0 for what nothing measures."""
    exceeds: Bool[Array, ""]
    """Whether the whole step takes a cost above its limit."""
    attempts: Int[Array, ""]


def _corrected(
    solution: BallSolution,
    span: _Span,
    problem: LimitedProblem,
    start: Start,
    params: Float[Array, "P"],
    config: StepConfig,
) -> BallSolution:
    """Aim further inside the limits by as much as the costs have risen more than their linear models say.

    Otherwise the line search would have to shrink the step until the curvature of the costs does not count: near a limit that
    is almost to nothing. If no step of the ball reaches the new aim, the old solution stays.
    """
    dtype, num_costs = span.damped.dtype, len(start.costs)
    room = jnp.maximum(-jnp.asarray(problem.excess[:num_costs], dtype), 0.0)

    def looked_at(solution: BallSolution, error: Float[Array, "L"], attempts: Int[Array, ""]) -> _Correction:
        step = solution.point @ span.directions
        costs = problem.evaluate_fn(problem.round_fn(cast_like(add_scaled(upcast(params), jnp.float32(1), step), params))).costs
        change = jnp.asarray(costs - start.costs, dtype)
        predicted = (span.scale[1:] * (span.slopes[1:] @ solution.point))[:num_costs]
        error = error.at[:num_costs].max(change - predicted)
        return _Correction(solution, error, jnp.any(change > room), attempts)

    def correct(last: _Correction) -> _Correction:
        aimed = _best(span, problem, jnp.asarray(MARGIN, dtype) * last.error, config)
        usable = aimed.feasible | ~last.solution.feasible
        better = jax.tree.map(lambda new, old: jnp.where(usable, new, old), aimed, last.solution)
        looked = looked_at(better, last.error, last.attempts + 1)
        return looked._replace(exceeds=looked.exceeds & usable)

    first = looked_at(solution, jnp.zeros_like(span.scale[1:]), jnp.int32(0))
    return jax.lax.while_loop(lambda last: last.exceeds & (last.attempts < CORRECTIONS), correct, first).solution


def _search(
    problem: LimitedProblem,
    start: Start,
    step: Float[Array, "P"],
    slope: Float[Array, ""],
    params: Float[Array, "P"],
    config: StepConfig,
) -> LineSearchResult:
    """Find the largest accepted fraction of the step; without line search, try only the whole step.

    A cost below its limit may rise up to it, and one above must not rise. The objective must improve if all costs start
    within their limits; otherwise it may have to fall, if a cost falls.
    """
    excess = problem.excess[: len(start.costs)]
    room, must_improve = jnp.maximum(-excess, 0.0), jnp.all(excess <= 0)

    def trial_fn(fraction: Float[Array, ""]) -> tuple[Bool[Array, ""], _Trial]:
        candidate = problem.round_fn(cast_like(add_scaled(upcast(params), fraction, step), params))
        evaluation = problem.evaluate_fn(candidate)
        improvement, change = evaluation.objective - start.objective, evaluation.costs - start.costs
        failures = {
            ConstrainedOutcome.NOT_FINITE: ~all_finite((candidate, improvement, change, evaluation.constraint)),
            ConstrainedOutcome.KL_TOO_LARGE: ~(evaluation.constraint <= config.max_kl),
            ConstrainedOutcome.COST_TOO_LARGE: ~jnp.all(change <= room),
            ConstrainedOutcome.NO_IMPROVEMENT: jnp.where(
                must_improve,
                ~((improvement > 0) & (improvement >= config.accept_ratio * fraction * slope)),
                ~((improvement > 0) | jnp.any(change < 0)),
            ),
        }
        if not config.line_search:
            failures = {ConstrainedOutcome.NOT_FINITE: failures[ConstrainedOutcome.NOT_FINITE]}
        reasons = [jnp.int32(reason) for reason in failures]
        outcome = jnp.select(list(failures.values()), reasons, jnp.int32(ConstrainedOutcome.ACCEPTED))
        trial = _Trial(candidate, improvement, change, evaluation, outcome)
        return outcome == ConstrainedOutcome.ACCEPTED, trial

    return backtrack(trial_fn, config)
