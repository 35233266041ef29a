"""Settings and report of a trust-region update of a policy."""

from typing import Literal, NamedTuple

from jaxtyping import Array, Bool, Float, Int

from trpo_jax.config import config, setting
from trpo_jax.solver.step_config import StepConfig


@config
class TrustRegionConfig(StepConfig):
    """Settings of a trust-region update: how to take the step and how to use the batch."""

    kl_constraint: Literal["mean", "max"] = setting(default="mean")
    """The KL that `max_kl` bounds: the mean over the batch's states, or the largest of any state."""
    fisher: Literal["analytic", "empirical"] = setting(default="analytic")
    """The curvature of the step: the KL's own, which is the mean over all actions, or an estimate from the actions taken."""
    curvature_fraction: float = setting(default=1.0, static=True, above=0.0, at_most=1.0)
    """Fraction of the batch that Fisher-vector products use; gradient and line search always use all of it."""
    curvature_sampling: Literal["strided", "random"] = setting(default="strided")
    """How `curvature_fraction` picks samples: evenly spaced, or at random in each update."""
    num_microbatches: int = setting(default=1, at_least=1)
    """Number of pieces of the batch that are processed one after another: memory of one piece, result of the whole batch."""


class TrustRegionInfo(NamedTuple):
    """What happened in an update. Scalars that describe the step taken are zero if it was rejected."""

    outcome: Int[Array, ""]
    """A `StepOutcome`."""
    accepted: Bool[Array, ""]
    surrogate_improvement: Float[Array, ""]
    """Surrogate at the returned parameters minus surrogate at the given ones."""
    expected_improvement: Float[Array, ""]
    """Linear prediction gᵀs of the improvement, for the step fraction that was taken or, if none was, tried last."""
    kl: Float[Array, ""]
    """Mean KL(old ‖ new) of the returned parameters, nats."""
    max_kl: Float[Array, ""]
    """Largest KL(old ‖ new) of any state, nats."""
    entropy: Float[Array, ""]
    """Mean entropy of the returned policy, nats."""
    step_fraction: Float[Array, ""]
    """Fraction of the natural step that was taken."""
    backtracks: Int[Array, ""]
    """How often the line search shrank the step."""
    cg_iterations: Int[Array, ""]
    """Conjugate-gradient iterations done."""
    cg_residual: Float[Array, ""]
    """Relative residual ‖D^-½(g - (F + damping·D)x)‖ / ‖D^-½ g‖ at the end of conjugate gradients."""
    gradient_norm: Float[Array, ""]
    """‖g‖ over all parameters."""
    step_norm: Float[Array, ""]
    """Norm of the step taken."""
