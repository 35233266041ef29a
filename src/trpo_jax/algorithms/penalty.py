"""The penalty form of TRPO: the surrogate minus a multiple of the KL, maximized by conjugate gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from trpo_jax.agent.config import AgentConfig
from trpo_jax.agent.policy_update import Metrics, PolicyFn, PolicyUpdate, policy_change
from trpo_jax.config import config, setting
from trpo_jax.objective.partition import samples_for_curvature
from trpo_jax.objective.rows import in_rows, on_rows
from trpo_jax.objective.surrogate import Batch, mask_unweighted, mean_and_max_kl, surrogate_objective
from trpo_jax.solver.conjugate_gradient import CGInfo, conjugate_gradient
from trpo_jax.solver.curvature import fisher_vector_product
from trpo_jax.solver.line_search import backtracking_line_search
from trpo_jax.tree import add_scaled, all_finite, cast_like, max_abs, scaled, upcast
from trpo_jax.weights import unit_weight

FAR = 1.5
"""β changes if KL > FAR · target_kl or KL < target_kl / FAR."""

LARGEST = 1e6
"""Adaptation keeps β below this, and above its inverse."""


@config
class CoefficientConfig:
    """The coefficient β of the penalized surrogate L - β·KL."""

    coefficient: float = setting(default=1.0, above=0.0)
    """Initial β, in units of standardized advantage per nat."""
    target_kl: float = setting(default=0.03, at_least=0.0)
    """Mean KL(old ‖ new) per update, in nats, that β is doubled or halved to reach; 0 keeps β constant."""


@config
class PenalizedConfig(CoefficientConfig):
    """How the penalized surrogate L - β·KL is maximized."""

    damping: float = setting(default=0.1, at_least=0.0)
    """Multiple of the identity that is added to the Fisher matrix (dimensionless)."""
    cg_iterations: int = setting(default=10, at_least=1)
    """Maximum number of conjugate-gradient iterations; each takes one Fisher-vector product."""
    cg_tolerance: float = setting(default=1e-10, at_least=0.0)
    """Conjugate gradients stop once the squared relative residual is below this."""
    curvature_fraction: float = setting(default=0.1, static=True, above=0.0, at_most=1.0)
    """Fraction of the batch that Fisher-vector products use; everything else uses the whole batch."""
    max_backtracks: int = setting(default=15, at_least=0)
    """How often the line search shrinks the step, by 0.8, before it gives up."""


@config
class PenaltyConfig(AgentConfig):
    """Everything that decides how the penalty form learns."""

    penalized: PenalizedConfig = PenalizedConfig()


class PenaltyState(NamedTuple):
    """State that each update passes to the next."""

    coefficient: Float[Array, ""]
    """β."""


class _Trial(NamedTuple):
    params: Any
    gain: Float[Array, ""]


def init(params: Any, config: PenaltyConfig) -> PenaltyState:
    """Return the state before the first update."""
    return PenaltyState(jnp.asarray(config.penalized.coefficient, jnp.float32))


def update(
    policy_fn: PolicyFn, params: Any, state: PenaltyState, batch: Batch, config: PenaltyConfig, key: jax.Array
) -> tuple[Any, PenaltyState, Metrics]:
    """Maximize L(θ) - β·KL(old ‖ new) by the step (F + λI)⁻¹ g / β, shortened until it improves; see `PolicyUpdate`.

    The full step is the maximum if L is linear and the KL quadratic. If no fraction of it improves, the parameters are those
    passed in.

    Reference:
        Schulman et al. 2015 (arXiv 1502.05477), section 4 and section 8, without its theory's coefficient, which is too
        large in practice; β as in Schulman et al. 2017 (arXiv 1707.06347), section 4.
    """
    options, beta = config.penalized, state.coefficient
    batch = mask_unweighted(batch)
    batch = batch._replace(weight=None if batch.weight is None else unit_weight(batch.weight))
    with jax.default_matmul_precision("highest"):
        old = policy_fn(params, batch.observation)

        def penalized(params: Any) -> Float[Array, ""]:
            new = policy_fn(params, batch.observation)
            return surrogate_objective(new, batch) - beta * mean_and_max_kl(old, new, batch.weight)[0]

        objective, gradient = jax.value_and_grad(penalized)(params)  # the KL's gradient is zero at the old parameters
        direction, solved = _natural_gradient(policy_fn, params, batch, gradient, options)
        step = scaled(1.0 / beta, direction)

        def trial_fn(fraction: Float[Array, ""]) -> tuple[Bool[Array, ""], _Trial]:
            candidate = cast_like(add_scaled(upcast(params), fraction, step), params)
            gain = penalized(candidate) - objective
            return all_finite((candidate, gain)) & (gain > 0), _Trial(candidate, gain)

        search = backtracking_line_search(trial_fn, backtrack_factor=0.8, max_backtracks=options.max_backtracks)
        params = jax.tree.map(lambda new, old: jnp.where(search.accepted, new, old), search.trial.params, params)
        change = policy_change(old, policy_fn(params, batch.observation), batch.weight)
    metrics = change | {
        "penalized_improvement": jnp.where(search.accepted, search.trial.gain, 0.0),
        "accepted": search.accepted.astype(jnp.float32),
        "step_fraction": jnp.where(search.accepted, search.fraction, 0.0),
        "cg_iterations": solved.iterations.astype(jnp.float32),
        "penalty_coefficient": beta,
    }
    missed = after_a_miss(beta, gradient, options.target_kl)
    beta = jnp.where(search.accepted, adapted(beta, change["kl"], options.target_kl), missed)
    return params, PenaltyState(beta), metrics


def _natural_gradient(
    policy_fn: PolicyFn, params: Any, batch: Batch, gradient: Any, options: PenalizedConfig
) -> tuple[Any, CGInfo]:
    """Return (F + λI)⁻¹ g by conjugate gradients, in at least float32."""
    states = samples_for_curvature(in_rows(batch), options.curvature_fraction)
    of_states = on_rows(policy_fn)
    fisher = fisher_vector_product(lambda params: of_states(params, states.observation), params, weight=states.weight)
    damping = jnp.asarray(options.damping, jnp.float32)
    return conjugate_gradient(
        lambda v: add_scaled(upcast(fisher(cast_like(v, params))), damping, v),
        upcast(gradient),
        max_iterations=options.cg_iterations,
        tolerance=options.cg_tolerance,
    )


def adapted(beta: Float[Array, ""], kl: Float[Array, ""], target_kl: float | Array) -> Float[Array, ""]:
    """Return β for the next update: doubled or halved if the KL was far from `target_kl`, unless that is 0."""
    target = jnp.asarray(target_kl, jnp.float32)
    factor = jnp.where(kl > FAR * target, 2.0, jnp.where(kl < target / FAR, 0.5, 1.0))
    return jnp.where(target > 0, jnp.clip(beta * factor, 1.0 / LARGEST, LARGEST), beta)


def after_a_miss(beta: Float[Array, ""], gradient: Any, target_kl: float | Array) -> Float[Array, ""]:
    """Return β for the next update if no fraction of the step has improved: the step was too long, whatever its KL.

    A zero gradient says nothing about β.
    """
    doubles = (jnp.asarray(target_kl) > 0) & (max_abs(gradient) > 0)
    return jnp.where(doubles, jnp.minimum(2.0 * beta, LARGEST), beta)


PENALTY = PolicyUpdate(init, update)
