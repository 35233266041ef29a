"""Outcome and report of a trust-region step."""

import enum
from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int


class StepOutcome(enum.IntEnum):
    """Why a step was accepted or rejected."""

    ACCEPTED = 0
    NO_IMPROVEMENT = 1
    """The smallest step fraction tried still did not improve the objective (enough)."""
    KL_TOO_LARGE = 2
    """The smallest step fraction tried still left the trust region."""
    NOT_FINITE = 3
    """The objective, the gradient, the direction or the smallest trial held a NaN or an infinity."""
    ZERO_GRADIENT = 4
    NEGATIVE_CURVATURE = 5
    """The first direction of conjugate gradients, D⁻¹g, has curvature <= 0, so that no natural step exists."""


class StepInfo(NamedTuple):
    """What happened in a step. Scalars that describe the step taken are zero if it was rejected."""

    outcome: Int[Array, ""]
    """A `StepOutcome`."""
    accepted: Bool[Array, ""]
    improvement: Float[Array, ""]
    """Objective at the returned parameters minus objective at the given ones."""
    expected_improvement: Float[Array, ""]
    """Linear prediction gᵀs of the improvement, for the step fraction that was taken or, if none was, tried last."""
    constraint: Float[Array, ""]
    """Value of the constraint at the returned parameters; with a line search at most `max_kl`."""
    step_fraction: Float[Array, ""]
    """Fraction of the natural step that was taken."""
    backtracks: Int[Array, ""]
    """How often the line search shrank the step."""
    cg_iterations: Int[Array, ""]
    """Number of conjugate-gradient iterations."""
    cg_residual: Float[Array, ""]
    """Relative residual ‖D^-½(g - (F + damping·D)x)‖ / ‖D^-½ g‖ at the end of conjugate gradients."""
    gradient_norm: Float[Array, ""]
    """‖g‖ over all parameters."""
    step_norm: Float[Array, ""]
    """Norm of the step that was taken."""


class ConstrainedOutcome(enum.IntEnum):
    """Why a step with limited costs was taken or not; the numbers are those of `StepOutcome`, with one more."""

    ACCEPTED = 0
    NO_IMPROVEMENT = 1
    """The smallest step fraction tried still did not improve the objective (enough). If a cost was above its limit, it improved
    neither the objective nor any cost."""
    KL_TOO_LARGE = 2
    """The smallest step fraction tried still left the trust region."""
    NOT_FINITE = 3
    """The objective, a cost, a gradient, the direction or the smallest trial held a NaN or an infinity."""
    ZERO_GRADIENT = 4
    """No direction improves the objective within the limits."""
    NEGATIVE_CURVATURE = 5
    """A gradient's first direction of conjugate gradients has curvature <= 0, so that no natural step exists."""
    COST_TOO_LARGE = 6
    """The smallest step fraction tried still raised a cost above its limit, or one that was above it already."""


class ConstrainedStepInfo(NamedTuple):
    """What happened in a step with K limited costs. Scalars that describe the step taken are zero if it was rejected."""

    outcome: Int[Array, ""]
    """A `ConstrainedOutcome`."""
    accepted: Bool[Array, ""]
    improvement: Float[Array, ""]
    """Objective at the returned parameters minus objective at the given ones."""
    expected_improvement: Float[Array, ""]
    """Its linear prediction, for the fraction of the step that was taken, or else tried last."""
    constraint: Float[Array, ""]
    """Value of the constraint at the returned parameters, at most `max_kl`."""
    cost_change: Float[Array, "K"]
    """Costs at the returned parameters minus costs at the given ones."""
    feasible: Bool[Array, ""]
    """Whether some step within the trust region keeps all limits, to first order. If none does, the step is a recovery step:
    it lowers the costs that are above their limits."""
    active: Bool[Array, "L"]
    """Limits that shape the step: those of the costs, then those of quantities that nothing measures."""
    step_fraction: Float[Array, ""]
    """Fraction of the step that was taken."""
    backtracks: Int[Array, ""]
    """How often the line search shrank the step."""
    cg_iterations: Int[Array, ""]
    """Conjugate-gradient iterations done, over all 1 + L solves."""
    cg_residual: Float[Array, ""]
    """Largest relative residual of the solves; see `StepInfo`."""
    step_norm: Float[Array, ""]
    """Norm of the step taken."""
