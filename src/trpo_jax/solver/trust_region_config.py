"""How a trust-region step is taken, and what one step hands to the next when it adapts."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from trpo_jax.config import ConfigError, config, setting
from trpo_jax.solver.tree import Params, check_floating, upcast


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
    backtrack_factor: float = setting(default=0.8, above=0.0, below=1.0)
    """The line search multiplies the step by this after each failed trial."""
    max_backtracks: int = setting(default=15, at_least=0)
    """How often the line search shrinks the step before it gives up."""
    accept_ratio: float = setting(default=0.0, at_least=0.0, below=1.0)
    """Smallest accepted ratio of actual to predicted improvement, each for the step fraction tried."""
    line_search: bool = setting(default=True)
    """False takes the whole natural-gradient step unseen, so that `max_kl` holds to second order only."""
    warm_start: bool = setting(default=False)
    """Start conjugate gradients from the last step's direction, for one more product."""
    adaptive_damping: bool = setting(default=False)
    """Let damping grow after a step that was shortened or disappointed, and shrink after one as good as predicted."""
    kl_constraint: Literal["mean", "max"] = setting(default="mean")
    """What `max_kl` bounds: the mean KL over the states of the batch, or the largest KL of any of them."""
    curvature_fraction: float = setting(default=1.0, static=True, above=0.0, at_most=1.0)
    """Part of the batch that Fisher-vector products use; gradient and line search always use all of it."""
    curvature_sampling: Literal["strided", "random"] = setting(default="strided")
    """Which part: evenly spaced samples, or others by chance in each update."""
    num_microbatches: int = setting(default=1, at_least=1)
    """Pieces in which the batch is worked through, one after another; memory is that of one, results are those of all."""
    preconditioner: Literal["none", "diagonal"] = setting(default="none")
    """Precondition conjugate gradients by an estimate of the Fisher matrix's diagonal."""


DAMPING_FACTOR = 1.5
"""What adaptive damping multiplies or divides by after a step."""
DAMPING_RANGE = (1e-6, 1e3)
"""Where adaptive damping stays."""


class TrustRegionState(NamedTuple):
    """What one adaptive step hands to the next; an entry is None where the config does not ask for it."""

    direction: Params | None
    """The last solution x of (F + damping·I) x = g, up to its length; zeros before the first step."""
    damping: Float[Array, ""] | None


def init_trust_region_state(params: Params, config: TrustRegionConfig) -> TrustRegionState:
    """Return the state before the first step: no direction yet, and the config's damping.

    Args:
        params: pytree of floating arrays, as the steps will take it.
        config: TrustRegionConfig; `warm_start` and `adaptive_damping` say what is carried.
    """
    check_floating(params, "params")
    return TrustRegionState(
        direction=jax.tree.map(jnp.zeros_like, upcast(params)) if config.warm_start else None,
        damping=jnp.asarray(config.damping, jnp.float32) if config.adaptive_damping else None,
    )


def check_stateless(config: TrustRegionConfig) -> None:
    """Raise ConfigError if the config asks for what only a step with a state can do."""
    for name in ("warm_start", "adaptive_damping"):
        if getattr(config, name):
            raise ConfigError(name, True, "false where no state is carried; stateful_trust_region_update carries one")


def check_state(state: TrustRegionState, params: Params, config: TrustRegionConfig) -> None:
    """Raise ValueError if the state does not hold what the config asks for, or belongs to other parameters."""
    for name, wanted in (("direction", config.warm_start), ("damping", config.adaptive_damping)):
        if (getattr(state, name) is not None) != wanted:
            raise ValueError(
                f"state.{name}: got {getattr(state, name)}, allowed: what init_trust_region_state gives this config"
            )
    if state.direction is not None and jax.tree.map(jnp.shape, state.direction) != jax.tree.map(jnp.shape, params):
        raise ValueError("state.direction: got arrays of other shapes than params, allowed: the state of these parameters")


def adapt_damping(damping: Float[Array, ""], *, good: Bool[Array, ""], poor: Bool[Array, ""]) -> Float[Array, ""]:
    """Return the damping for the next step.

    Reference:
        Nocedal and Wright 2006, algorithm 4.1 and section 10.3 (Levenberg-Marquardt); Martens 2010, section 4.1, whose
        thresholds (¼, ¾) and factor these are.
    """
    factor = jnp.where(poor, DAMPING_FACTOR, jnp.where(good, 1.0 / DAMPING_FACTOR, 1.0))
    return jnp.clip(damping * factor.astype(damping.dtype), *DAMPING_RANGE)
