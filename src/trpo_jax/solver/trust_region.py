"""The trust-region step: a direction by conjugate gradients, its length by the constraint, then a line search."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from trpo_jax.solver.conjugate_gradient import CGInfo, solve_with_residual
from trpo_jax.solver.damping import average_squares, damping_shape
from trpo_jax.solver.line_search import LineSearchResult, backtracking_line_search
from trpo_jax.solver.outcome import StepOutcome, TrustRegionInfo
from trpo_jax.solver.tree import (
    MatVec,
    Params,
    add_scaled,
    all_finite,
    cast_like,
    check_floating,
    max_abs,
    scaled,
    structure_and_shapes,
    upcast,
    vdot,
    where_finite,
)
from trpo_jax.solver.trust_region_config import (
    TrustRegionConfig,
    TrustRegionState,
    check_state,
    check_stateless,
    init_trust_region_state,
)

LONGEST = 5.0
"""Longest step, as a multiple of the one whose length counts the damping as curvature: eight backtracks of 0.8."""

SLACK = 1e-3
"""Part of the KL bound that the first trial leaves: a KL that is quadratic ends just inside, where rounding cannot decide."""

AIM = 0.98
"""Part of the length to which a quadratic KL would allow a step that was just too long: others need a little less."""


class Evaluation(NamedTuple):
    """What a step needs to know of parameters, and what it reports of them."""

    objective: Float[Array, ""]
    constraint: Float[Array, ""]
    """What must not exceed max_kl."""
    kl: Float[Array, ""]
    """Mean KL."""
    max_kl: Float[Array, ""] | None
    entropy: Float[Array, ""] | None


class Problem(NamedTuple):
    """A constrained maximization around some parameters, as functions of the parameters or of vectors like them."""

    evaluate_fn: Callable[[Params], Evaluation]
    matvec: MatVec
    """v -> F v, undamped."""
    largest_curvature_fn: Callable[[Params], Float[Array, ""]] | None = None
    """x -> the largest xᵀF_i x of any state i; given where the constraint is the largest KL."""
    round_fn: Callable[[Params], Params] = lambda params: params
    """params -> what of them the leaves' dtypes can hold."""


class _Trial(NamedTuple):
    params: Params
    improvement: Float[Array, ""]
    evaluation: Evaluation
    outcome: Int[Array, ""]


class _Direction(NamedTuple):
    x: Params
    curvature: Float[Array, ""]
    """What decides the length; no direction was found where it is not positive."""
    cg: CGInfo
    cg_residual: Float[Array, ""]


def trust_region_step(
    objective_fn: Callable[[Params], Float[Array, ""]],
    kl_fn: Callable[[Params], Float[Array, ""]],
    matvec: MatVec,
    params: Params,
    config: TrustRegionConfig,
) -> tuple[Params, TrustRegionInfo]:
    """Maximize `objective_fn` around `params` subject to `kl_fn` <= max_kl, by one damped natural-gradient step.

        x ≈ (F + damping·D)⁻¹ g,    s = x · sqrt(2·max_kl / xᵀFx),    new = params + c^k · s

    with g = ∇objective, F v = `matvec`(v), D the identity (or what `damping_shape` says), and k the first of
    0 … max_backtracks whose trial is finite, satisfies kl_fn(new) <= max_kl, and improves the objective by more than 0 and
    at least accept_ratio · c^k · gᵀs. s is a hair shorter than that, and never longer than `LONGEST` times
    x · sqrt(2·max_kl / xᵀ(F + damping·D)x), since the KL is not quadratic where F is nearly zero along x. A first trial
    whose KL is just too large is shortened by what a quadratic KL would need, if that is less than c takes away. With
    line_search=False the damped length is taken, k = 0, and only the trial's finiteness is asked for.

    Args:
        objective_fn: params -> scalar to maximize.
        kl_fn: params -> scalar >= 0, zero at `params`: the constraint, in nats when it is a KL.
        matvec: v -> F v, the Hessian of `kl_fn` at `params` or its Gauss-Newton form, undamped.
        params: pytree of floating arrays.
        config: TrustRegionConfig; its float fields may be traced. What it says about batches (kl_constraint,
            curvature_*, num_microbatches) concerns `trust_region_update`, which makes such functions.

    Returns:
        (params, TrustRegionInfo). When no step is accepted the parameters are the ones passed in, bit for bit, and
        `info.outcome` says why. Runs in full matmul precision; nothing numerical raises.

    Raises:
        TypeError: a leaf of `params` is not floating.
        ConfigError: `damping_shape` is "gradient", which needs a state.

    Reference:
        Schulman et al. 2015 (arXiv 1502.05477), section 6 and appendix C.
    """
    check_stateless(config)
    state = init_trust_region_state(params, config)
    params, _, info = stateful_trust_region_step(objective_fn, kl_fn, matvec, params, state, config)
    return params, info


def stateful_trust_region_step(
    objective_fn: Callable[[Params], Float[Array, ""]],
    kl_fn: Callable[[Params], Float[Array, ""]],
    matvec: MatVec,
    params: Params,
    state: TrustRegionState,
    config: TrustRegionConfig,
) -> tuple[Params, TrustRegionState, TrustRegionInfo]:
    """Take `trust_region_step` with what the last step left in `state`; return (params, state, info).

    Raises:
        TypeError: a leaf of `params` is not floating.
        ValueError: the state is not one of `init_trust_region_state` for this config.
    """
    check_floating(params, "params")
    with jax.default_matmul_precision("highest"):
        objective, gradient = jax.value_and_grad(objective_fn)(params)
        problem = bare_problem(objective_fn, kl_fn, matvec)
        return step_along_gradient(problem, objective, gradient, params, state, config)


def bare_problem(
    objective_fn: Callable[[Params], Float[Array, ""]],
    kl_fn: Callable[[Params], Float[Array, ""]],
    matvec: MatVec,
) -> Problem:
    """Make a problem of functions that know no states and no policy."""

    def evaluate(params: Params) -> Evaluation:
        kl = kl_fn(params)
        return Evaluation(objective_fn(params), kl, kl, None, None)

    return Problem(evaluate, matvec)


def step_along_gradient(
    problem: Problem,
    objective: Float[Array, ""],
    gradient: Params,
    params: Params,
    state: TrustRegionState,
    config: TrustRegionConfig,
) -> tuple[Params, TrustRegionState, TrustRegionInfo]:
    """Take the step of `trust_region_step` from an objective and a gradient that are known already.

    On vectors of all parameters: an accelerator starts a kernel for each array that it works on. A vector has the widest of
    its leaves' dtypes, so that what does not change comes back bit for bit.
    """
    check_state(state, params, config)
    vector, unravel = ravel_pytree(params)
    _, unravel_direction = ravel_pytree(upcast(params))
    vectors = _on_vectors(problem, params, unravel, unravel_direction)
    gradient = _ravel_like(params, upcast(gradient), "the gradient")
    shape = None
    if state.squared_gradient is not None:
        average = average_squares(ravel_pytree(state.squared_gradient)[0], gradient, config.gradient_decay)
        # A gradient that cannot be squared in a leaf's dtype leaves the average as it was.
        state = TrustRegionState(where_finite(unravel_direction(average), state.squared_gradient))
        shape = damping_shape(ravel_pytree(state.squared_gradient)[0])
    new, info = _step_on_vectors(vectors, objective, gradient, shape, vector, config)
    return unravel(new), state, info


def _ravel_like(params: Params, tree: Params, name: str) -> Float[Array, "P"]:
    """Return a tree as one vector; raise ValueError if it has not the structure and shapes of the parameters."""
    wanted, got = (structure_and_shapes(each) for each in (params, tree))
    if got != wanted:
        raise ValueError(f"{name}: got {got[0]} of shapes {got[1]}, allowed: {wanted[0]} of shapes {wanted[1]}, as params are")
    return ravel_pytree(tree)[0]


def _on_vectors(
    problem: Problem, params: Params, unravel: Callable[[Array], Params], unravel_direction: Callable[[Array], Params]
) -> Problem:
    """Pose a problem for vectors instead of trees.

    Directions, unlike parameters and what a product is taken with, have at least float32.
    """

    def largest_curvature_fn(x: Float[Array, "P"]) -> Float[Array, ""]:
        assert problem.largest_curvature_fn is not None
        return problem.largest_curvature_fn(unravel_direction(x))

    return Problem(
        evaluate_fn=lambda vector: problem.evaluate_fn(unravel(vector)),
        matvec=lambda vector: _ravel_like(params, problem.matvec(unravel(vector)), "what matvec returns"),
        largest_curvature_fn=None if problem.largest_curvature_fn is None else largest_curvature_fn,
        round_fn=_rounding(params, unravel),
    )


def _rounding(params: Params, unravel: Callable[[Array], Params]) -> Callable[[Float[Array, "P"]], Float[Array, "P"]]:
    """Return the map from a vector to what is left of it in the leaves, some of which may have narrower dtypes."""
    if len({jnp.result_type(leaf) for leaf in jax.tree.leaves(params)}) == 1:
        return lambda vector: vector
    return lambda vector: ravel_pytree(unravel(vector))[0]


def _step_on_vectors(
    problem: Problem,
    objective: Float[Array, ""],
    gradient: Float[Array, "P"],
    shape: Float[Array, "P"] | None,
    params: Float[Array, "P"],
    config: TrustRegionConfig,
) -> tuple[Params, TrustRegionInfo]:
    """Take the step; `shape` is the diagonal of D, None for the identity."""
    # The direction does not depend on the gradient's scale: dividing by it keeps ‖g‖² in range for any finite gradient.
    scale = max_abs(gradient)
    usable = jnp.isfinite(scale) & (scale > 0)
    unit_gradient = scaled(1.0 / jnp.where(usable, scale, 1.0), gradient)
    direction = _solve(problem, unit_gradient, shape, params, config)
    length = jnp.sqrt(2.0 * config.max_kl / jnp.where(direction.curvature > 0, direction.curvature, 1.0))
    step = scaled(length, direction.x)
    slope = scale * vdot(unit_gradient, step)
    search = _search(problem, objective, step, slope, params, config)
    trial = search.trial
    solvable = all_finite((objective, gradient, step, direction.curvature, direction.cg.residual_norm))
    outcome = jnp.select(
        [~solvable, scale == 0, ~(direction.curvature > 0)],
        [jnp.int32(StepOutcome.NOT_FINITE), jnp.int32(StepOutcome.ZERO_GRADIENT), jnp.int32(StepOutcome.NEGATIVE_CURVATURE)],
        trial.outcome,
    )
    accepted = outcome == StepOutcome.ACCEPTED
    returned = _returned(accepted, trial, problem, params)
    unit_norm = jnp.sqrt(vdot(unit_gradient, unit_gradient))
    info = TrustRegionInfo(
        outcome=outcome,
        accepted=accepted,
        surrogate_improvement=jnp.where(accepted, trial.improvement, 0.0),
        expected_improvement=search.fraction * slope,
        kl=jnp.where(accepted, trial.evaluation.kl, 0.0),
        max_kl=returned.max_kl,
        entropy=returned.entropy,
        step_fraction=jnp.where(accepted, search.fraction, 0.0),
        backtracks=search.backtracks,
        cg_iterations=direction.cg.iterations,
        cg_residual=direction.cg_residual,
        gradient_norm=scale * unit_norm,
        step_norm=jnp.where(accepted, search.fraction * jnp.sqrt(vdot(step, step)), 0.0),
    )
    new_params = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), trial.params, params)
    return new_params, info


def _solve(
    problem: Problem,
    unit_gradient: Float[Array, "P"],
    shape: Float[Array, "P"] | None,
    params: Float[Array, "P"],
    config: TrustRegionConfig,
) -> _Direction:
    """Return x ≈ (F + damping·D)⁻¹ g and the curvature that decides its length.

    Solved for y = D^½ x, in whose coordinates the damping is a multiple of the identity.
    """
    inverse_root = None if shape is None else jax.lax.rsqrt(shape)
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
        curvature = jnp.maximum(undamped, damped_curvature / LONGEST**2) * (1.0 + SLACK)
    if problem.largest_curvature_fn is not None:
        largest = problem.largest_curvature_fn(x) * (1.0 + SLACK)
        curvature = jnp.where(curvature > 0, jnp.maximum(curvature, largest), curvature)
    norm = jnp.sqrt(vdot(b, b))
    return _Direction(x, curvature, cg, cg.residual_norm / jnp.where(norm > 0, norm, 1.0))


def _search(
    problem: Problem,
    objective: Float[Array, ""],
    step: Params,
    slope: Float[Array, ""],
    params: Params,
    config: TrustRegionConfig,
) -> LineSearchResult:
    """Look for the largest fraction of the step that is accepted; without line search, try the whole step only."""

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

    def first_factor_fn(trial: _Trial) -> Float[Array, ""]:
        too_large = trial.outcome == StepOutcome.KL_TOO_LARGE
        length = AIM * jnp.sqrt(config.max_kl / jnp.where(too_large, trial.evaluation.constraint, 1.0))
        return jnp.where(too_large, jnp.maximum(length, config.backtrack_factor), config.backtrack_factor)

    if config.line_search:
        return backtracking_line_search(
            trial_fn,
            backtrack_factor=config.backtrack_factor,
            max_backtracks=config.max_backtracks,
            first_factor_fn=first_factor_fn,
        )
    accepted, trial = trial_fn(jnp.float32(1))
    return LineSearchResult(accepted, jnp.float32(1), jnp.int32(0), trial)


def _returned(accepted: Bool[Array, ""], trial: _Trial, problem: Problem, params: Params) -> Evaluation:
    """Return the evaluation of the returned parameters, without a pass over the batch when the step was taken."""
    if trial.evaluation.entropy is None:
        return trial.evaluation
    return jax.lax.cond(accepted, lambda: trial.evaluation, lambda: problem.evaluate_fn(params))
