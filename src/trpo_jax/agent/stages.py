"""The order of an iteration's stages, whether they are one program or one program each."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int, Key

from trpo_jax.agent.config import AgentConfig
from trpo_jax.agent.critic import CriticState, Regression
from trpo_jax.agent.metrics import OF_LOOP
from trpo_jax.agent.policy_update import Metrics
from trpo_jax.agent.rollout import RolloutState, Transition
from trpo_jax.agent.schedule import progress_of
from trpo_jax.agent.state import Learner, TrainState
from trpo_jax.environments.protocol import EnvironmentState


class Keys(NamedTuple):
    """One key for each purpose."""

    starts: Key[Array, ""]
    rollout: Key[Array, ""]
    policy: Key[Array, ""]
    critic: Key[Array, ""]
    next: Key[Array, ""]


class Stages(NamedTuple):
    """The stages of an iteration: draw its keys and initial states, collect experience, improve the policy, fit the critic."""

    advance: Callable[[Key[Array, ""], Int[Array, ""], Int[Array, ""]], tuple[Keys, Int[Array, ""], Float[Array, ""]]]
    draw: Callable[[Key[Array, ""]], EnvironmentState]
    collect: Callable[[Learner, RolloutState, EnvironmentState, Key[Array, ""]], tuple[RolloutState, Transition, Metrics]]
    improve: Callable[
        [Learner, CriticState, Transition, AgentConfig, Key[Array, ""], Float[Array, ""]],
        tuple[Learner, Regression, Metrics],
    ]
    fit: Callable[[CriticState, Regression, AgentConfig, Key[Array, ""], Float[Array, ""]], tuple[CriticState, Metrics]]


def run_stages(
    stages: Stages, state: TrainState, watch: Callable[[str, Any], Any] = lambda name, result: result
) -> tuple[TrainState, dict[str, Any]]:
    """Run one iteration; return state and metrics. Also works on `jax.ShapeDtypeStruct`s.

    `watch(name, result) -> result` sees each stage's result before the next stage starts.
    """
    keys, iteration, progress = stages.advance(state.key, state.iteration, state.num_iterations)
    hyperparameters = state.hyperparameters
    starts = stages.draw(keys.starts)
    rollout, transition, metrics = watch("rollout", stages.collect(state.learner, state.rollout, starts, keys.rollout))
    improved = stages.improve(state.learner, state.critic, transition, hyperparameters, keys.policy, progress)
    learner, regression, policy_metrics = watch("policy", improved)
    fitted = stages.fit(state.critic, regression, hyperparameters, keys.critic, progress)
    critic, critic_metrics = watch("critic", fitted)
    new = TrainState(learner, critic, rollout, hyperparameters, keys.next, iteration, state.num_iterations)
    return new, _joined(metrics, policy_metrics, critic_metrics)


def _joined(of_rollout: dict[str, Any], of_policy: dict[str, Any], of_critic: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics of all stages; raise ValueError, during tracing, if an algorithm took the name of another metric."""
    taken = of_policy.keys() & (of_rollout.keys() | of_critic.keys() | {f"training/{name}" for name in OF_LOOP})
    if taken:
        names = ", ".join(sorted(name.removeprefix("training/") for name in taken))
        raise ValueError(f"metrics of the policy update: got {names}, allowed: other names; training reports metrics so named")
    return of_rollout | of_policy | of_critic


def timed_stages(stages: Stages, state: TrainState) -> tuple[TrainState, dict[str, Any], dict[str, float]]:
    """Run one iteration, but wait for each stage; also return each stage's share of the time, as metrics."""
    stopwatch = _Stopwatch()
    stopwatch("keys", state)
    new, metrics = run_stages(stages, state, stopwatch)
    return new, metrics, stopwatch.shares()


def advance(
    key: Key[Array, ""], iteration: Int[Array, ""], num_iterations: Int[Array, ""]
) -> tuple[Keys, Int[Array, ""], Float[Array, ""]]:
    """Return an iteration's keys, the number of iterations including it, and the share of the training that precedes it."""
    return Keys(*jax.random.split(key, 5)), iteration + 1, progress_of(iteration, num_iterations)


class _Stopwatch:
    """Waits for each result and records the time since the previous one."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._last = 0.0

    def __call__(self, name: str, result: Any) -> Any:
        jax.block_until_ready(result)
        now = time.perf_counter()
        self._seconds[name], self._last = now - self._last, now
        return result

    def shares(self) -> dict[str, float]:
        seconds = {name: self._seconds[name] for name in ("rollout", "policy", "critic")}
        return {f"training/time_share_{name}": value / sum(seconds.values()) for name, value in seconds.items()}
