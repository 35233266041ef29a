"""What is measured along the way."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from trpo_jax.solver.outcome import StepOutcome, TrustRegionInfo

Metrics = dict[str, Float[Array, ""]]


class EpisodeStatistics(NamedTuple):
    """Return and length of the running and of the latest finished episode of each of N environments."""

    running_return: Float[Array, "N"]
    running_length: Float[Array, "N"]
    last_return: Float[Array, "N"]
    last_length: Float[Array, "N"]
    has_finished: Bool[Array, "N"]


def init_episode_statistics(num_envs: int) -> EpisodeStatistics:
    """Start with no episode finished."""
    zeros = jnp.zeros(num_envs, jnp.float32)
    return EpisodeStatistics(zeros, zeros, zeros, zeros, jnp.zeros(num_envs, bool))


def record_step(
    statistics: EpisodeStatistics, reward: Float[Array, "N"], done: Bool[Array, "N"], fault: Bool[Array, "N"]
) -> EpisodeStatistics:
    """Count one step of each environment; an episode that a fault breaks off is forgotten."""
    running_return = statistics.running_return + reward
    running_length = statistics.running_length + 1
    finished = done & ~fault
    counted = EpisodeStatistics(
        running_return,
        running_length,
        jnp.where(finished, running_return, statistics.last_return),
        jnp.where(finished, running_length, statistics.last_length),
        statistics.has_finished | finished,
    )
    return break_off(counted, done | fault)


def break_off(statistics: EpisodeStatistics, which: Bool[Array, "N"]) -> EpisodeStatistics:
    """Forget what some environments have gathered in the running episode."""
    return statistics._replace(
        running_return=jnp.where(which, 0.0, statistics.running_return),
        running_length=jnp.where(which, 0.0, statistics.running_length),
    )


def latest_episodes(statistics: EpisodeStatistics) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return mean return and mean length of each environment's latest finished episode; NaN before any has finished."""
    finished = jnp.sum(statistics.has_finished)
    scale = jnp.where(finished > 0, 1.0 / jnp.maximum(finished, 1), jnp.nan)
    mean_return = jnp.sum(jnp.where(statistics.has_finished, statistics.last_return, 0.0)) * scale
    return mean_return, jnp.sum(jnp.where(statistics.has_finished, statistics.last_length, 0.0)) * scale


def solver_metrics(info: TrustRegionInfo) -> Metrics:
    """Report how the policy step went."""
    names = (
        *("kl", "max_kl", "surrogate_improvement", "expected_improvement", "accepted", "outcome", "step_fraction"),
        *("cg_iterations", "cg_residual", "entropy"),
    )
    return {f"training/{name}": getattr(info, name).astype(jnp.float32) for name in names}


def outcome_metrics(outcomes: Int[Array, "6"]) -> Metrics:
    """Report how often policy steps have ended in each way."""
    return {f"training/num_{outcome.name.lower()}": outcomes[outcome].astype(jnp.float32) for outcome in StepOutcome}
