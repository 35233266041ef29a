"""The trust-region step: the natural direction by conjugate gradients, its length by the constraint, then a line search."""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from trpo_jax.config import config, setting
from trpo_jax.solver.conjugate_gradient import solve_with_residual
from trpo_jax.solver.line_search import backtracking_line_search
from trpo_jax.solver.tree import (
    MatVec,
    Params,
    add_scaled,
    all_finite,
    cast_like,
    check_floating,
    max_abs,
    scaled,
    upcast,
    vdot,
)


@config
class TrustRegionConfig:
    """How a trust-region step is taken."""

    max_kl: float = setting(default=0.01, above=0.0)
    """Largest mean KL(old ‖ new) of an update (δ), in nats."""
    damping: float = setting(default=0.1, at_least=0.0)
    """Multiple of the identity added to the Fisher matrix in conjugate gradients (dimensionless)."""
    cg_iterations: int = setting(default=10, at_least=1)
    """Most conjugate-gradient iterations, a Fisher-vector product each."""
    cg_tolerance: float = setting(default=1e-10, at_least=0.0)
    """Conjugate gradients stop once the squared residual is below this multiple of the squared gradient norm."""
    curvature_fraction: float = setting(default=1.0, static=True, above=0.0, at_most=1.0)
    """Part of the batch that Fisher-vector products use, evenly spaced; gradient and line search always use all of it."""
    backtrack_factor: float = setting(default=0.8, above=0.0, below=1.0)
    """The line search multiplies the step by this after each failed trial."""
    max_backtracks: int = setting(default=15, at_least=0)
    """How often the line search shrinks the step before it gives up."""
    accept_ratio: float = setting(default=0.0, at_least=0.0, below=1.0)
    """Smallest accepted ratio of actual to predicted improvement, each for the step fraction tried."""


class StepOutcome(enum.IntEnum):
    """Why a step was taken or not."""

    ACCEPTED = 0
    NO_IMPROVEMENT = 1
    """The smallest step fraction tried still did not improve the objective (enough)."""
    KL_TOO_LARGE = 2
    """The smallest step fraction tried still left the trust region."""
    NOT_FINITE = 3
    """The objective, the gradient, the direction or the smallest trial held a NaN or an infinity."""
    ZERO_GRADIENT = 4
    NEGATIVE_CURVATURE = 5
    """The gradient direction itself has curvature <= 0, so that no natural step exists."""


class TrustRegionInfo(NamedTuple):
    """What happened in a step. Scalars that describe the step taken: zero where it was not."""

    outcome: Int[Array, ""]
    """A `StepOutcome`."""
    accepted: Bool[Array, ""]
    surrogate_improvement: Float[Array, ""]
    """Objective at the returned parameters minus objective at the given ones."""
    expected_improvement: Float[Array, ""]
    """The linear prediction gᵀs of the improvement, for the fraction of the step that was taken (last tried, if none was)."""
    kl: Float[Array, ""]
    """The constraint's value at the returned parameters: mean KL(old ‖ new), nats."""
    max_kl: Float[Array, ""] | None
    """Largest KL(old ‖ new) of any state, nats; None from a bare `trust_region_step`, which knows no states."""
    entropy: Float[Array, ""] | None
    """Mean entropy of the returned policy, nats; None from a bare `trust_region_step`, which knows no policy."""
    step_fraction: Float[Array, ""]
    backtracks: Int[Array, ""]
    cg_iterations: Int[Array, ""]
    cg_residual: Float[Array, ""]
    """‖g - A x‖ / ‖g‖ at the end of conjugate gradients."""
    gradient_norm: Float[Array, ""]
    step_norm: Float[Array, ""]


class _Trial(NamedTuple):
    params: Params
    improvement: Float[Array, ""]
    kl: Float[Array, ""]
    outcome: Int[Array, ""]
    diagnostics: Any


def trust_region_step(
    objective_fn: Callable[[Params], Float[Array, ""]],
    kl_fn: Callable[[Params], Float[Array, ""]],
    matvec: MatVec,
    params: Params,
    config: TrustRegionConfig,
    *,
    diagnostics_fn: Callable[[Params], tuple[Float[Array, ""], Float[Array, ""]]] | None = None,
) -> tuple[Params, TrustRegionInfo]:
    """Maximize `objective_fn` around `params` subject to `kl_fn` <= max_kl, by one natural-gradient step.

        x ≈ (F + damping·I)⁻¹ g,    s = x · sqrt(2·max_kl / xᵀ(F + damping·I)x),    new = params + c^k · s

    with g = ∇objective, F v = `matvec`(v), and k the first of 0 … max_backtracks whose trial is finite, satisfies
    kl_fn(new) <= max_kl, and improves the objective by more than 0 and at least accept_ratio · c^k · gᵀs.

    Args:
        objective_fn: params -> scalar to maximize.
        kl_fn: params -> scalar >= 0, zero at `params`: the constraint, in nats when it is a KL.
        matvec: v -> F v, the Hessian of `kl_fn` at `params` or its Gauss-Newton form, undamped.
        params: pytree of floating arrays.
        config: TrustRegionConfig; its float fields may be traced.
        diagnostics_fn: params -> (largest KL, entropy), evaluated with each trial and reported in the info.

    Returns:
        (params, TrustRegionInfo). When no step is accepted the parameters are the ones passed in, bit for bit, and
        `info.outcome` says why. Runs in full matmul precision; nothing numerical raises.

    Raises:
        TypeError: a leaf of `params` is not floating.

    Reference:
        Schulman et al. 2015 (arXiv 1502.05477), section 6 and appendix C.
    """
    check_floating(params, "params")
    with jax.default_matmul_precision("highest"):
        objective, gradient = jax.value_and_grad(objective_fn)(params)
        return step_along_gradient(objective, gradient, objective_fn, kl_fn, matvec, params, config, diagnostics_fn)


def step_along_gradient(
    objective: Float[Array, ""],
    gradient: Params,
    objective_fn: Callable[[Params], Float[Array, ""]],
    kl_fn: Callable[[Params], Float[Array, ""]],
    matvec: MatVec,
    params: Params,
    config: TrustRegionConfig,
    diagnostics_fn: Callable[[Params], Any] | None = None,
) -> tuple[Params, TrustRegionInfo]:
    """Take the step of `trust_region_step` from an objective and a gradient that are known already."""
    # The direction does not depend on the gradient's scale: dividing by it keeps ‖g‖² in range for any finite gradient.
    gradient = upcast(gradient)
    scale = max_abs(gradient)
    usable = jnp.isfinite(scale) & (scale > 0)
    unit_gradient = scaled(1.0 / jnp.where(usable, scale, 1.0), gradient)

    def damped(v: Params) -> Params:
        return add_scaled(matvec(v), jnp.asarray(config.damping, jnp.float32), v)

    direction, residual, cg = solve_with_residual(
        damped, cast_like(unit_gradient, params), max_iterations=config.cg_iterations, tolerance=config.cg_tolerance
    )
    curvature = vdot(direction, unit_gradient) - vdot(direction, residual)  # xᵀAx = xᵀ(g - r)
    length = jnp.sqrt(2.0 * config.max_kl / jnp.where(curvature > 0, curvature, 1.0))
    step = scaled(length, direction)
    slope = scale * vdot(unit_gradient, step)

    def trial_fn(fraction: Float[Array, ""]) -> tuple[Bool[Array, ""], _Trial]:
        candidate = cast_like(add_scaled(upcast(params), fraction, step), params)
        improvement, kl = objective_fn(candidate) - objective, kl_fn(candidate)
        finite = all_finite((candidate, improvement, kl))
        improved = (improvement > 0) & (improvement >= config.accept_ratio * fraction * slope)
        outcome = jnp.select(
            [~finite, ~(kl <= config.max_kl), ~improved],
            [jnp.int32(StepOutcome.NOT_FINITE), jnp.int32(StepOutcome.KL_TOO_LARGE), jnp.int32(StepOutcome.NO_IMPROVEMENT)],
            jnp.int32(StepOutcome.ACCEPTED),
        )
        diagnostics = None if diagnostics_fn is None else diagnostics_fn(candidate)
        return outcome == StepOutcome.ACCEPTED, _Trial(candidate, improvement, kl, outcome, diagnostics)

    search = backtracking_line_search(trial_fn, backtrack_factor=config.backtrack_factor, max_backtracks=config.max_backtracks)
    trial = search.trial
    solvable = all_finite((objective, gradient, step, curvature, cg.residual_norm))
    outcome = jnp.select(
        [~solvable, scale == 0, ~(curvature > 0)],
        [jnp.int32(StepOutcome.NOT_FINITE), jnp.int32(StepOutcome.ZERO_GRADIENT), jnp.int32(StepOutcome.NEGATIVE_CURVATURE)],
        trial.outcome,
    )
    accepted = outcome == StepOutcome.ACCEPTED
    largest_kl, entropy = (None, None) if diagnostics_fn is None else _diagnose(accepted, trial, diagnostics_fn, params)
    unit_norm = jnp.sqrt(vdot(unit_gradient, unit_gradient))
    info = TrustRegionInfo(
        outcome=outcome,
        accepted=accepted,
        surrogate_improvement=jnp.where(accepted, trial.improvement, 0.0),
        expected_improvement=search.fraction * slope,
        kl=jnp.where(accepted, trial.kl, 0.0),
        max_kl=largest_kl,
        entropy=entropy,
        step_fraction=jnp.where(accepted, search.fraction, 0.0),
        backtracks=search.backtracks,
        cg_iterations=cg.iterations,
        cg_residual=cg.residual_norm / jnp.where(unit_norm > 0, unit_norm, 1.0),
        gradient_norm=scale * unit_norm,
        step_norm=jnp.where(accepted, search.fraction * jnp.sqrt(vdot(step, step)), 0.0),
    )
    return jax.tree.map(lambda new, old: jnp.where(accepted, new, old), trial.params, params), info


def _diagnose(accepted, trial: _Trial, diagnostics_fn, params: Params):
    """Return (largest KL, entropy) of the returned parameters, without a pass over the batch when the step was taken."""
    return jax.lax.cond(accepted, lambda: trial.diagnostics, lambda: diagnostics_fn(params))
