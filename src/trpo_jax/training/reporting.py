"""Report a training's progress, and the metrics of its iterations and evaluations."""

import time
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from trpo_jax.agent.agent import Agent
from trpo_jax.agent.evaluate import Episodes, summarize
from trpo_jax.agent.inference import Params, Policy
from trpo_jax.agent.metrics import without_unknown
from trpo_jax.agent.state import TrainState, inference_params
from trpo_jax.execution.host_arrays import to_host
from trpo_jax.training.store import Progress

ProgressFn = Callable[[int, dict[str, float]], None]
"""(environment steps so far, metrics) -> None."""

WINDOW = 20
"""Iterations over which speed is measured."""

FAULTS_TO_WARN_OF = 0.1
"""Share of an iteration's samples that must be faulty before a warning is given."""


class Callbacks(NamedTuple):
    """Functions that are called in the first process only."""

    iteration_fn: ProgressFn | None = None
    """Called after each iteration, with training metrics."""
    progress_fn: ProgressFn | None = None
    """Called after each evaluation, with all metrics."""
    policy_params_fn: Callable[[int, Callable[..., Policy], Params], None] | None = None
    """Called after each evaluation, with the policy."""


class Pace:
    """Mean seconds per iteration, over recent iterations not delayed by a checkpoint, evaluation or compilation."""

    def __init__(self) -> None:
        self._undisturbed: deque[float] = deque(maxlen=WINDOW)
        self._disturbed = 0

    def disturb(self) -> None:
        """Leave out the next two iterations: one waits for the other work, and the other already ran during that wait."""
        self._disturbed = 2

    def of(self, elapsed: float) -> float:
        """Count an iteration of `elapsed` seconds and return the pace: `elapsed` itself before any undisturbed iteration."""
        if self._disturbed:
            self._disturbed -= 1
        else:
            self._undisturbed.append(elapsed)
        return sum(self._undisturbed) / len(self._undisturbed) if self._undisturbed else elapsed


class Reporter:
    """Counts the progress of a training, measures its speed, and calls the callbacks.

    Args:
        agent: the agent that is trained.
        progress: the progress so far.
        callbacks: functions that receive the metrics.
        evaluate_fn: params -> episodes; None plays none.
    """

    def __init__(
        self,
        agent: Agent,
        progress: Progress,
        callbacks: Callbacks,
        evaluate_fn: Callable[[Params], Episodes] | None = None,
    ):
        self.progress = progress
        self.metrics: dict[str, Any] = {}
        """Latest value of each metric."""
        self._agent, self._callbacks, self._evaluate_fn = agent, callbacks, evaluate_fn
        self._is_first = jax.process_index() == 0
        self._has_warned = False
        self._pace = Pace()
        self._pace.disturb()  # the first iteration compiles
        self._last_report = time.perf_counter()

    @property
    def steps(self) -> int:
        """Environment steps done."""
        return self.progress.iteration * self._agent.steps_per_iteration

    def disturb(self) -> None:
        """Report that other work takes time that must not count as an iteration's."""
        self._pace.disturb()

    def iteration(self, metrics: dict[str, Any], time_shares: dict[str, float]) -> None:
        """Wait for the metrics of the next iteration, and report it."""
        num_samples = self._agent.config.batch_size
        known = without_unknown(jax.device_get(metrics), num_samples, self._agent.policy_update.sample_means)
        self._warn_of_faults(float(np.max(known["training/num_faults"])) / num_samples)
        now = time.perf_counter()
        elapsed, self._last_report = now - self._last_report, now
        iteration, walltime = self.progress.iteration + 1, self.progress.walltime + elapsed
        self.progress = self.progress._replace(iteration=iteration, walltime=walltime)
        speed = {"training/sps": self._agent.steps_per_iteration / self._pace.of(elapsed), "training/walltime": walltime}
        told = {name: value.tolist() for name, value in known.items()} | speed | time_shares
        self.metrics |= told
        if self._callbacks.iteration_fn and self._is_first:
            self._callbacks.iteration_fn(self.steps, told)

    def evaluation(self, state: TrainState) -> None:
        """Play episodes and report them, in the first process only: the others wait for it in the next iteration."""
        params = local_params(state)
        if not self._is_first:
            return
        if self._evaluate_fn:
            self.metrics |= self._evaluated(params, self._evaluate_fn)
        if self._callbacks.policy_params_fn:
            self._callbacks.policy_params_fn(self.steps, self._agent.make_policy, params)
        if self._callbacks.progress_fn:
            self._callbacks.progress_fn(self.steps, dict(self.metrics))
        self._last_report = time.perf_counter()
        self.disturb()

    def _evaluated(self, params: Params, evaluate_fn: Callable[[Params], Episodes]) -> dict[str, Any]:
        """Play episodes and return their metrics."""
        start = time.perf_counter()
        episodes = jax.block_until_ready(evaluate_fn(params))
        elapsed = time.perf_counter() - start
        walltime = self.progress.eval_walltime + elapsed
        self.progress = self.progress._replace(eval_walltime=walltime)
        action_repeat = self._agent.config.action_repeat
        played = float(episodes.episode_length.sum(-1).mean()) * action_repeat
        speed = {"eval/epoch_eval_time": elapsed, "eval/sps": played / elapsed, "eval/walltime": walltime}
        return summarize(episodes, action_repeat) | speed

    def _warn_of_faults(self, share: float) -> None:
        """Warn once, in the first process, if the simulator loses a large share of an iteration's samples."""
        if share < FAULTS_TO_WARN_OF or self._has_warned or not self._is_first:
            return
        self._has_warned = True
        warnings.warn(
            f"{share:.0%} of the samples of iteration {self.progress.iteration + 1} are lost: observations, rewards, costs "
            "or the simulator's state were not finite. They get weight zero; training/num_faults counts them",
            stacklevel=2,
        )


def local_params(state: TrainState) -> Any:
    """Return the inference parameters as arrays on this process's first device, whichever devices the training uses."""
    return jax.device_put(to_host(inference_params(state)), jax.local_devices()[0])
