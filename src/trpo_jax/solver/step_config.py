"""Settings of a trust-region step, and the state carried from step to step."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from trpo_jax.config import config, setting
from trpo_jax.errors import ConfigError
from trpo_jax.tree import Params, check_floating, structure_and_shapes, upcast


@config
class StepConfig:
    """Settings of a trust-region step. Its constraint is called KL throughout, though it may be another function."""

    max_kl: float = setting(default=0.01, above=0.0)
    """Bound on the constraint (δ): the largest KL(old ‖ new) of an update, in nats."""
    damping: float = setting(default=0.1, at_least=0.0)
    """Multiple λ of the matrix D that is added to the Fisher matrix in conjugate gradients (dimensionless)."""
    damping_shape: Literal["identity", "gradient"] = setting(default="identity")
    """The matrix D: the identity, or a diagonal that is large for parameters with large gradients in recent updates."""
    gradient_decay: float = setting(default=0.95, at_least=0.0, below=1.0)
    """Decay per update of the running average of squared gradients; only for `damping_shape="gradient"`."""
    cg_iterations: int = setting(default=10, at_least=1)
    """Largest number of conjugate-gradient iterations. Each costs a Fisher-vector product."""
    cg_tolerance: float = setting(default=1e-10, at_least=0.0)
    """Conjugate gradients stop once the squared relative residual (`cg_residual`) is below this."""
    backtrack_factor: float = setting(default=0.8, above=0.0, below=1.0)
    """The line search multiplies the step by this after a failed trial; by more if the first trial's KL was just too large."""
    max_backtracks: int = setting(default=15, at_least=0)
    """How often the line search shrinks the step before it gives up."""
    accept_ratio: float = setting(default=0.0, at_least=0.0, below=1.0)
    """Smallest accepted ratio of actual to predicted improvement, both for the step fraction tried."""
    line_search: bool = setting(default=True)
    """If False, the natural-gradient step is taken without checking KL or improvement: `max_kl` holds only to second order."""


class TrustRegionState(NamedTuple):
    """State carried from step to step."""

    squared_gradient: Params | None
    """Running average of each parameter's squared gradient, in at least float32; zeros before the first step. None unless
    `damping_shape` is "gradient"."""


def init_trust_region_state(params: Params, config: StepConfig) -> TrustRegionState:
    """Return the state before the first step.

    Args:
        params: pytree of floating arrays, like the one passed to the steps.
        config: its `damping_shape` decides what the state holds.
    """
    check_floating(params, "params")
    shaped = config.damping_shape == "gradient"
    return TrustRegionState(jax.tree.map(jnp.zeros_like, upcast(params)) if shaped else None)


def check_stateless(config: StepConfig) -> None:
    """Raise ConfigError if the config needs a step with a state."""
    if config.damping_shape == "gradient":
        allowed = '"identity"; "gradient" needs a state: use the function whose name begins with stateful_'
        raise ConfigError("damping_shape", config.damping_shape, allowed)


def check_state(state: TrustRegionState, params: Params, config: StepConfig) -> None:
    """Raise ValueError if the state does not match the config or the parameters."""
    got = state.squared_gradient
    if (got is not None) != (config.damping_shape == "gradient"):
        kind = "None" if got is None else "an average"
        raise ValueError(f"state.squared_gradient: got {kind}, allowed: the result of init_trust_region_state for this config")
    if got is not None and structure_and_shapes(got) != structure_and_shapes(params):
        raise ValueError("state.squared_gradient: got arrays unlike params, allowed: the structure and shapes of params")
