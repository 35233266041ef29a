"""Natural policy gradient: one step along the natural gradient, without a line search."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trpo_jax.agent.config import AgentConfig
from trpo_jax.agent.policy_update import Metrics, PolicyFn, PolicyUpdate
from trpo_jax.agent.schedule import ScheduleConfig, share_left
from trpo_jax.algorithms.reported import reported
from trpo_jax.config import config, setting
from trpo_jax.objective.rows import in_rows, on_rows
from trpo_jax.objective.surrogate import Batch
from trpo_jax.objective.trust_region_config import TrustRegionConfig
from trpo_jax.objective.trust_region_update import trust_region_update

REPORTED = ("kl", "max_kl", "entropy", "surrogate_improvement", "accepted", "cg_iterations", "cg_residual")
"""Fields of `TrustRegionInfo` that become metrics. Without a line search, a trial step is rejected only if it is not finite."""


@config
class NaturalStepConfig:
    """How the natural-gradient step is taken."""

    step_kl: float = setting(default=0.03, above=0.0)
    """Mean KL, in nats, that the step would have under a quadratic model with curvature F + λI."""
    damping: float = setting(default=0.1, at_least=0.0)
    """Multiple λ of the identity that is added to the Fisher matrix F (dimensionless)."""
    cg_iterations: int = setting(default=10, at_least=1)
    """Maximum number of conjugate-gradient iterations; each takes one Fisher-vector product."""
    cg_tolerance: float = setting(default=1e-10, at_least=0.0)
    """Conjugate gradients stop once the squared relative residual is below this."""
    curvature_fraction: float = setting(default=0.1, static=True, above=0.0, at_most=1.0)
    """Fraction of the batch that Fisher-vector products use; the gradient always uses the whole batch."""


@config
class NaturalGradientScheduleConfig(ScheduleConfig):
    """Values that decay linearly over a training; see `ScheduleConfig`."""

    step_kl_at_end: float = setting(default=0.1, above=0.0, at_most=1.0)
    """Final value of `natural.step_kl`, as a fraction of its configured value."""


@config
class NaturalGradientConfig(AgentConfig):
    """Everything that decides how natural policy gradient learns."""

    natural: NaturalStepConfig = NaturalStepConfig()
    schedule: NaturalGradientScheduleConfig = NaturalGradientScheduleConfig()

    def at(self, progress: Float[Array, ""]) -> "NaturalGradientConfig":
        """Return the configuration with its scheduled values at this progress (0 to 1)."""
        step_kl: Any = self.natural.step_kl * share_left(self.schedule.step_kl_at_end, progress)
        return dataclasses.replace(super().at(progress), natural=dataclasses.replace(self.natural, step_kl=step_kl))


def init(params: Any, config: NaturalGradientConfig) -> tuple[()]:
    """Return an empty state: no update passes anything to the next."""
    return ()


def update(
    policy_fn: PolicyFn, params: Any, state: tuple[()], batch: Batch, config: NaturalGradientConfig, key: jax.Array
) -> tuple[Any, tuple[()], Metrics]:
    """Add s = x · sqrt(2·step_kl / xᵀ(F + λI)x) with x = (F + λI)⁻¹ g and g the surrogate's gradient; see `PolicyUpdate`.

    Reference:
        Kakade 2001, A Natural Policy Gradient; with the step length of Peters and Schaal 2008.
    """
    step = config.natural
    options = TrustRegionConfig(
        max_kl=step.step_kl,
        damping=step.damping,
        cg_iterations=step.cg_iterations,
        cg_tolerance=step.cg_tolerance,
        curvature_fraction=step.curvature_fraction,
        line_search=False,
    )
    params, info = trust_region_update(on_rows(policy_fn), params, in_rows(batch), options)
    return params, state, reported(info, REPORTED) | {"step_kl": jnp.asarray(step.step_kl)}


NATURAL_GRADIENT = PolicyUpdate(init, update, takes_vines=True)
