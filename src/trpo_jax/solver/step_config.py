"""How a trust-region step is taken, and what one step hands to the next."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from trpo_jax.config import config, setting
from trpo_jax.errors import ConfigError
from trpo_jax.tree import Params, check_floating, structure_and_shapes, upcast


@config
class StepConfig:
    """How a trust-region step is taken."""

    max_kl: float = setting(default=0.01, above=0.0)
    """Bound on the constraint (δ): the largest KL(old ‖ new) of an update, in nats."""
    damping: float = setting(default=0.1, at_least=0.0)
    """Multiple λ of the matrix D that is added to the Fisher matrix in conjugate gradients (dimensionless)."""
    damping_shape: Literal["identity", "gradient"] = setting(default="identity")
    """What D is: the identity, or a diagonal that is large where the gradients of recent updates were large."""
    gradient_decay: float = setting(default=0.95, at_least=0.0, below=1.0)
    """Decay of the running average of squared gradients, an update; only for `damping_shape="gradient"`."""
    cg_iterations: int = setting(default=10, at_least=1)
    """Most conjugate-gradient iterations, a Fisher-vector product each."""
    cg_tolerance: float = setting(default=1e-10, at_least=0.0)
    """Conjugate gradients stop once the squared relative residual (`cg_residual`) is below this."""
    backtrack_factor: float = setting(default=0.8, above=0.0, below=1.0)
    """The line search multiplies the step by this after a failed trial; by more if the first trial's KL was just too large."""
    max_backtracks: int = setting(default=15, at_least=0)
    """How often the line search shrinks the step before it gives up."""
    accept_ratio: float = setting(default=0.0, at_least=0.0, below=1.0)
    """Smallest accepted ratio of actual to predicted improvement, each for the step fraction tried."""
    line_search: bool = setting(default=True)
    """False takes the whole natural-gradient step unseen, so that `max_kl` holds to second order only."""


class TrustRegionState(NamedTuple):
    """What one step hands to the next."""

    squared_gradient: Params | None
    """Running average of each parameter's squared gradient, in at least float32; zeros before the first step. None where
    the config does not ask for it."""


def init_trust_region_state(params: Params, config: StepConfig) -> TrustRegionState:
    """Return the state before the first step.

    Args:
        params: pytree of floating arrays, as the steps will take it.
        config: its `damping_shape` says what is carried.
    """
    check_floating(params, "params")
    shaped = config.damping_shape == "gradient"
    return TrustRegionState(jax.tree.map(jnp.zeros_like, upcast(params)) if shaped else None)


def check_stateless(config: StepConfig) -> None:
    """Raise ConfigError if the config asks for what only a step with a state can do."""
    if config.damping_shape == "gradient":
        allowed = '"identity" where no state is carried; stateful_trust_region_step and …_update carry one'
        raise ConfigError("damping_shape", config.damping_shape, allowed)


def check_state(state: TrustRegionState, params: Params, config: StepConfig) -> None:
    """Raise ValueError if the state does not hold what the config asks for, or belongs to other parameters."""
    got = state.squared_gradient
    if (got is not None) != (config.damping_shape == "gradient"):
        kind = "None" if got is None else "an average"
        raise ValueError(f"state.squared_gradient: got {kind}, allowed: what init_trust_region_state gives this config")
    if got is not None and structure_and_shapes(got) != structure_and_shapes(params):
        raise ValueError("state.squared_gradient: got arrays of other shapes than params, allowed: those of params")
