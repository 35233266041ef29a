"""The order of an iteration's stages, whatever runs them: one program, or one for each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Int, Key

from trpo_jax.training.state import TrainState


class Stages(NamedTuple):
    """What an iteration does: draw keys and initial states, collect experience, improve the policy, fit the critic."""

    next_keys: Callable[..., Any]
    draw: Callable[..., Any]
    collect: Callable[..., Any]
    improve: Callable[..., Any]
    fit: Callable[..., Any]


def run_stages(
    stages: Stages, state: TrainState, watch: Callable[[str, Any], Any] = lambda name, result: result
) -> tuple[TrainState, dict[str, Any]]:
    """Run one iteration, or describe it, where stages take and return descriptions of arrays; return state and metrics.

    `watch(name, result) -> result` sees each stage's result before the next stage starts.
    """
    keys, iteration = stages.next_keys(state.key, state.iteration)
    hyperparameters = state.hyperparameters
    starts = stages.draw(keys.starts)
    rollout, transition, metrics = watch("rollout", stages.collect(state.learner, state.rollout, starts, keys.rollout))
    improved = stages.improve(state.learner, state.critic, transition, hyperparameters, keys.curvature)
    learner, regression, policy_metrics = watch("policy", improved)
    fitted = stages.fit(state.critic, regression, hyperparameters, keys.critic)
    critic, critic_metrics = watch("critic", fitted)
    new = TrainState(learner, critic, rollout, hyperparameters, keys.next, iteration)
    return new, metrics | policy_metrics | critic_metrics


class Keys(NamedTuple):
    """One for each purpose."""

    starts: Key[Array, ""]
    rollout: Key[Array, ""]
    curvature: Key[Array, ""]
    critic: Key[Array, ""]
    next: Key[Array, ""]


def next_keys(key: Key[Array, ""], iteration: Int[Array, ""]) -> tuple[Keys, Int[Array, ""]]:
    """Return the keys of an iteration, and the count with it."""
    return Keys(*jax.random.split(key, 5)), iteration + 1
