"""The public trust-region step on pytrees, and its reduction to a step on vectors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from trpo_jax.solver.constrained_step import LimitedProblem, Start, constrained_step_on_vectors
from trpo_jax.solver.damping import average_squares, damping_diagonal
from trpo_jax.solver.outcome import ConstrainedStepInfo, StepInfo
from trpo_jax.solver.step_config import StepConfig, TrustRegionState, check_state, check_stateless, init_trust_region_state
from trpo_jax.solver.vector_step import Evaluation, Problem, step_on_vectors
from trpo_jax.tree import MatVec, Params, check_floating, structure_and_shapes, upcast, where_finite


def trust_region_step(
    objective_fn: Callable[[Params], Float[Array, ""]],
    kl_fn: Callable[[Params], Float[Array, ""]],
    matvec: MatVec,
    params: Params,
    config: StepConfig,
) -> tuple[Params, StepInfo]:
    """Maximize `objective_fn` around `params` subject to `kl_fn` <= max_kl, by one damped natural-gradient step.

        x ≈ (F + damping·D)⁻¹ g,    s = x · sqrt(2·max_kl / xᵀFx),    new = params + c^k · s

    Here g = ∇objective, F v = `matvec`(v), D is the identity (or see `damping_shape`), c is `backtrack_factor`, and k is the
    first of 0 … max_backtracks whose trial is finite, satisfies kl_fn(new) <= max_kl, and improves the objective by more
    than 0 and by at least accept_ratio · c^k · gᵀs. xᵀFx is increased by the fraction `SLACK`, which shortens s by half
    that fraction. s is at most min(`LONGEST`, c^-max_backtracks) times the damped step
    x · sqrt(2·max_kl / xᵀ(F + damping·D)x), since the KL is not quadratic if F is nearly zero along x. If the first trial's
    KL is too large, the first backtrack replaces c by the factor at which a quadratic KL would meet the bound, provided that
    it is larger than c. With line_search=False, s is the damped step, k = 0, and the trial only has to be finite.

    Args:
        objective_fn: params -> scalar to maximize.
        kl_fn: params -> scalar >= 0, zero at `params`: the constraint, in nats if it is a KL.
        matvec: v -> F v, the Hessian of `kl_fn` at `params` or its Gauss-Newton form, undamped.
        params: pytree of floating arrays.
        config: StepConfig; its float fields may be traced. Fields that only `TrustRegionConfig` has are ignored.

    Returns:
        (params, StepInfo). If no step is accepted, the parameters are the ones passed in, bit for bit, and
        `info.outcome` says why. Runs in full matmul precision. Numerical trouble never raises.

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
    config: StepConfig,
) -> tuple[Params, TrustRegionState, StepInfo]:
    """Take a `trust_region_step` from the state that the last step returned; return (params, state, info).

    Raises:
        TypeError: a leaf of `params` is not floating.
        ValueError: the state is not one of `init_trust_region_state` for this config.
    """
    check_floating(params, "params")
    with jax.default_matmul_precision("highest"):
        objective, gradient = jax.value_and_grad(objective_fn)(params)
        problem = bare_problem(objective_fn, kl_fn, matvec)
        params, state, info, _ = step_along_gradient(problem, objective, gradient, params, state, config)
    return params, state, info


def bare_problem(
    objective_fn: Callable[[Params], Float[Array, ""]],
    kl_fn: Callable[[Params], Float[Array, ""]],
    matvec: MatVec,
) -> Problem:
    """Return a problem whose evaluations have an empty report."""
    return Problem(lambda params: Evaluation(objective_fn(params), kl_fn(params)), matvec)


def step_along_gradient(
    problem: Problem,
    objective: Float[Array, ""],
    gradient: Params,
    params: Params,
    state: TrustRegionState,
    config: StepConfig,
) -> tuple[Params, TrustRegionState, StepInfo, Any]:
    """Take the step of `trust_region_step`, given the objective and its gradient.

    Returns (params, state, info, the problem's report on the returned params). Works on one vector of all parameters, since
    an accelerator starts a kernel for each array. The vector has the widest dtype of the leaves, so that unchanged
    parameters come back bit for bit.
    """
    check_state(state, params, config)
    vector, unravel = ravel_pytree(params)
    vectors = _on_vectors(problem, params, unravel)
    gradient = _ravel_like(params, upcast(gradient), "the gradient")
    state, diagonal = _shaped(state, gradient, params, config)
    vector, info, report = step_on_vectors(vectors, objective, gradient, diagonal, vector, config)
    return unravel(vector), state, info, report


def constrained_step_along_gradients(
    problem: LimitedProblem,
    values: Float[Array, "M"],
    gradients: Params,
    params: Params,
    state: TrustRegionState,
    config: StepConfig,
) -> tuple[Params, TrustRegionState, ConstrainedStepInfo, Any]:
    """Take a step with limited costs, given the values of objective and costs and the gradients.

    Args:
        problem: as functions of the parameters.
        values: `[1 + K]`, the objective and the K costs at `params`.
        gradients: of the objective and of what is limited, a tree like `params` with a new leading axis `[1 + L]`.
        params: pytree of floating arrays.
        state: of the shaped damping, for which the objective's gradient counts.
        config: how to take the step.

    Returns (params, state, info, the problem's report on the returned params), as `step_along_gradient` does.
    """
    check_state(state, params, config)
    vector, unravel = ravel_pytree(params)
    rows = jax.vmap(lambda tree: ravel_pytree(tree)[0])(upcast(gradients))
    on_vectors = LimitedProblem(
        evaluate_fn=lambda vector: problem.evaluate_fn(unravel(vector)),
        matvec=lambda vector: _ravel_like(params, problem.matvec(unravel(vector)), "the result of matvec"),
        excess=problem.excess,
        curvature_floor_fn=_on_directions(problem.curvature_floor_fn, params),
        round_fn=_rounding(params, unravel),
    )
    start = Start(values[0], rows[0], values[1:], rows[1:])
    state, diagonal = _shaped(state, rows[0], params, config)
    vector, info, report = constrained_step_on_vectors(on_vectors, start, diagonal, vector, config)
    return unravel(vector), state, info, report


def _on_directions(fn: Callable[[Params], Array] | None, params: Params) -> Callable[[Float[Array, "P"]], Array] | None:
    """Return a function of trees as one of vectors of at least float32; None for None."""
    if fn is None:
        return None
    _, unravel = ravel_pytree(upcast(params))
    return lambda x: fn(unravel(x))


def _shaped(
    state: TrustRegionState, gradient: Float[Array, "P"], params: Params, config: StepConfig
) -> tuple[TrustRegionState, Float[Array, "P"] | None]:
    """Put a gradient into the running average of squares; return the state and the diagonal of the damping."""
    if state.squared_gradient is None:
        return state, None
    old, unravel = ravel_pytree(state.squared_gradient)
    new = _rounding(upcast(params), unravel)(average_squares(old, gradient, config.gradient_decay))
    average = where_finite(new, old)  # keep the old average if a square overflows its leaf's dtype
    return TrustRegionState(unravel(average)), damping_diagonal(average)


def _ravel_like(params: Params, tree: Params, name: str) -> Float[Array, "P"]:
    """Return a tree as one vector; raise ValueError if its structure or shapes differ from the parameters'."""
    wanted, got = (structure_and_shapes(each) for each in (params, tree))
    if got != wanted:
        raise ValueError(f"{name}: got {got[0]} of shapes {got[1]}, allowed: {wanted[0]} of shapes {wanted[1]}, as in params")
    return ravel_pytree(tree)[0]


def _on_vectors(problem: Problem, params: Params, unravel: Callable[[Array], Params]) -> Problem:
    """Return the problem as functions of vectors instead of trees.

    Directions have at least float32. Parameters and the arguments of `matvec` keep the parameters' dtype.
    """
    return Problem(
        evaluate_fn=lambda vector: problem.evaluate_fn(unravel(vector)),
        matvec=lambda vector: _ravel_like(params, problem.matvec(unravel(vector)), "the result of matvec"),
        curvature_floor_fn=_on_directions(problem.curvature_floor_fn, params),
        round_fn=_rounding(params, unravel),
    )


def _rounding(params: Params, unravel: Callable[[Array], Params]) -> Callable[[Float[Array, "P"]], Float[Array, "P"]]:
    """Return the map that rounds a vector to the dtypes of the leaves, some of which may be narrower."""
    if len({jnp.result_type(leaf) for leaf in jax.tree.leaves(params)}) == 1:
        return lambda vector: vector
    return lambda vector: ravel_pytree(unravel(vector))[0]
