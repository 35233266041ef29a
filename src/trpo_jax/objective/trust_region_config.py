"""How a trust-region update of a policy is made, and what it reports."""

from typing import Literal, NamedTuple

from jaxtyping import Array, Bool, Float, Int

from trpo_jax.config import config, setting
from trpo_jax.solver.step_config import StepConfig


@config
class TrustRegionConfig(StepConfig):
    """How a trust-region update is made: how the step is taken, and how the batch is used."""

    kl_constraint: Literal["mean", "max"] = setting(default="mean")
    """What `max_kl` bounds: the mean KL over the states of the batch, or the largest KL of any of them."""
    curvature_fraction: float = setting(default=1.0, static=True, above=0.0, at_most=1.0)
    """Part of the batch that Fisher-vector products use; gradient and line search always use all of it."""
    curvature_sampling: Literal["strided", "random"] = setting(default="strided")
    """Which part: evenly spaced samples, or others by chance in each update."""
    num_microbatches: int = setting(default=1, at_least=1)
    """Pieces in which the batch is worked through, one after another; memory is that of one, results are those of all."""


class TrustRegionInfo(NamedTuple):
    """What happened in an update. Scalars that describe the step taken are zero if it was rejected."""

    outcome: Int[Array, ""]
    """A `StepOutcome`."""
    accepted: Bool[Array, ""]
    surrogate_improvement: Float[Array, ""]
    """Surrogate at the returned parameters minus surrogate at the given ones."""
    expected_improvement: Float[Array, ""]
    """The linear prediction gᵀs of the improvement, for the fraction of the step that was taken, or else tried last."""
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
