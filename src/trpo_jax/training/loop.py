"""The loop around iterations: what is reported, evaluated and saved, and when."""

import time
import warnings
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import numpy as np

from trpo_jax.agent.agent import Agent
from trpo_jax.agent.evaluate import Episodes, summarize
from trpo_jax.agent.inference import Params, Policy
from trpo_jax.agent.metrics import without_unknown
from trpo_jax.agent.policy_update import Metrics
from trpo_jax.agent.state import TrainState, inference_params
from trpo_jax.execution.host_arrays import to_host
from trpo_jax.execution.processes import any_process
from trpo_jax.execution.runner import Runner
from trpo_jax.training.interrupts import deferred_interrupts
from trpo_jax.training.store import Progress, Store

ProgressFn = Callable[[int, dict[str, float]], None]
"""(environment steps so far, metrics) -> None."""

TIMED_EVERY = 10
"""Every so many iterations the stages are timed, which costs their overlap."""

WINDOW = 20
"""Iterations over which speed is measured."""

FAULTS_TO_WARN_OF = 0.1
"""Share of an iteration's samples."""


class Callbacks(NamedTuple):
    """Whom to tell, in the first process only."""

    iteration_fn: ProgressFn | None = None
    """After each iteration, with training metrics."""
    progress_fn: ProgressFn | None = None
    """After each evaluation, with all metrics."""
    policy_params_fn: Callable[[int, Callable[..., Policy], Params], None] | None = None
    """After each evaluation, with the policy."""


class Milestones(NamedTuple):
    """After which iterations something happens; 0 is before the first."""

    num_iterations: int
    evaluations: Collection[int]
    resets: Collection[int] = ()
    checkpoint_interval: int = 0
    """0 saves only before evaluations and at the end."""

    def saves_after(self, iteration: int) -> bool:
        """Tell whether a checkpoint is due."""
        due = self.checkpoint_interval and iteration % self.checkpoint_interval == 0
        return bool(due) or iteration in self.evaluations or iteration == self.num_iterations


class Pace:
    """Mean seconds per iteration, over recent iterations not delayed by a checkpoint, evaluation or compilation."""

    def __init__(self) -> None:
        self._undisturbed: deque[float] = deque(maxlen=WINDOW)
        self._disturbed = 0

    def disturb(self) -> None:
        """Leave the next two iterations out: one waits for something else, and the other has gone on meanwhile."""
        self._disturbed = 2

    def of(self, elapsed: float) -> float:
        """Return the pace after an iteration that has taken so many seconds; those, where there is no other yet."""
        if self._disturbed:
            self._disturbed -= 1
        else:
            self._undisturbed.append(elapsed)
        return sum(self._undisturbed) / len(self._undisturbed) if self._undisturbed else elapsed


class Loop:
    """One training."""

    def __init__(
        self,
        agent: Agent,
        runner: Runner,
        milestones: Milestones,
        callbacks: Callbacks,
        *,
        store: Store | None = None,
        evaluator: Callable[[Params, Any], Episodes] | None = None,
        eval_key: Any = None,
    ):
        self.agent, self.runner, self.milestones, self.callbacks = agent, runner, milestones, callbacks
        self.store, self.evaluator, self.eval_key = store, evaluator, eval_key
        self.metrics: dict[str, float] = {}
        """The latest of each kind."""
        self._shares: dict[str, float] = {}
        self._unreported: Metrics | None = None
        self._unsaved: TrainState | None = None
        self._is_first = jax.process_index() == 0
        self._has_warned = False
        self._pace = Pace()

    def run(self, state: TrainState, progress: Progress) -> TrainState:
        """Train from a state on, to the last iteration."""
        state = _with_num_iterations(state, self.milestones.num_iterations, progress.iteration)
        self._progress, self._last_report = progress, time.perf_counter()
        self._pace.disturb()  # the first iteration compiles
        with deferred_interrupts() as interrupts:
            if self.store is not None and not self.store.goes_on:
                self._unsaved = self.runner.snapshot(state)
                self._save()
            if progress.iteration in self.milestones.evaluations:
                self._evaluate(state)
            for iteration in range(progress.iteration + 1, self.milestones.num_iterations + 1):
                is_timed = (iteration - progress.iteration) % TIMED_EVERY == 2  # the first compiles
                state = self._start(state, iteration, is_timed)
                interrupts.guarded = True
                stopping = any_process(interrupts.pending)
                if self.store is not None and (stopping or self.milestones.saves_after(iteration)):
                    self._unsaved = self.runner.snapshot(state)
                if iteration in self.milestones.evaluations and not stopping:
                    self._report_and_save()
                    self._evaluate(state)
                    stopping = any_process(interrupts.pending)
                if stopping:
                    self._finish()
                    interrupts.check()
                    raise KeyboardInterrupt  # another process was told to stop
            self._finish()
            interrupts.check()
        return state

    def _start(self, state: TrainState, iteration: int, is_timed: bool) -> TrainState:
        """Start an iteration; report the one before, and save its state if that is due, while it runs.

        One that is timed runs by itself, after that.
        """
        if iteration - 1 in self.milestones.resets:
            state = self.runner.reset(state)
        if is_timed:
            self._report_and_save()
            state, metrics, self._shares = self.runner.timed_update(state)
            self._pace.disturb()
        else:
            state, metrics = self.runner.update(state)
            self._report_and_save()
        self._unreported = metrics
        return state

    def _report_and_save(self) -> None:
        self._report()
        self._save()

    def _report(self) -> None:
        """Wait for the iteration that has not been told of yet, if there is one, and tell of it."""
        if self._unreported is None:
            return
        num_samples = self.agent.config.batch_size
        sample_means = self.agent.policy_update.sample_means
        known = without_unknown(jax.device_get(self._unreported), num_samples, sample_means)
        metrics = {name: value.tolist() for name, value in known.items()}
        self._unreported = None
        self._warn_of_faults(float(np.max(known["training/num_faults"])) / num_samples)
        now = time.perf_counter()
        elapsed, self._last_report = now - self._last_report, now
        iteration, walltime = self._progress.iteration + 1, self._progress.walltime + elapsed
        self._progress = self._progress._replace(iteration=iteration, walltime=walltime)
        sps = self.agent.steps_per_iteration / self._pace.of(elapsed)
        metrics |= {"training/sps": sps, "training/walltime": walltime} | self._shares
        self.metrics |= metrics
        if self.callbacks.iteration_fn and self._is_first:
            self.callbacks.iteration_fn(self._steps, metrics)

    def _warn_of_faults(self, share: float) -> None:
        """Say once, in the first process, that the simulator loses a large share of an iteration's samples."""
        if share < FAULTS_TO_WARN_OF or self._has_warned or not self._is_first:
            return
        self._has_warned = True
        warnings.warn(
            f"{share:.0%} of the samples of iteration {self._progress.iteration + 1} are lost: observations, rewards or the "
            "simulator's state were not finite. They weigh nothing; training/num_faults counts them",
            stacklevel=2,
        )

    @property
    def _steps(self) -> int:
        return self._progress.iteration * self.agent.steps_per_iteration

    def _evaluate(self, state: TrainState) -> None:
        """Play episodes, in the first process only: the others wait for it in the next iteration."""
        params = local_params(state)
        if not self._is_first:
            return
        if self.evaluator:
            start = time.perf_counter()
            episodes = jax.block_until_ready(self.evaluator(params, _first_local(self.eval_key)))
            elapsed = time.perf_counter() - start
            walltime = self._progress.eval_walltime + elapsed
            self._progress = self._progress._replace(eval_walltime=walltime)
            played = float(episodes.episode_length.sum(-1).mean()) * self.agent.config.action_repeat
            self.metrics |= summarize(episodes, self.agent.config.action_repeat)
            self.metrics |= {"eval/epoch_eval_time": elapsed, "eval/sps": played / elapsed, "eval/walltime": walltime}
        if self.callbacks.policy_params_fn:
            self.callbacks.policy_params_fn(self._steps, self.agent.make_policy, params)
        if self.callbacks.progress_fn:
            self.callbacks.progress_fn(self._steps, dict(self.metrics))
        self._last_report = time.perf_counter()
        self._pace.disturb()

    def _save(self) -> None:
        """Start to write a checkpoint of the iteration reported last, if one is due."""
        if self.store is not None and self._unsaved is not None:
            self.store.save(self._steps, self._unsaved, self._progress)
            self._pace.disturb()
        self._unsaved = None

    def _finish(self) -> None:
        """Report and save all that was started, and wait until it is written."""
        self._report_and_save()
        if self.store is not None:
            self.store.wait()


def _with_num_iterations(state: TrainState, num_iterations: int, iteration: int) -> TrainState:
    """Set the number of iterations; warn if a training with a schedule that is resumed has another one."""
    old, schedule = to_host((state.num_iterations, state.hyperparameters.schedule))
    falls = any((share < 1).any() for share in jax.tree.leaves(schedule))
    if falls and iteration < num_iterations and ((old > 0) & (old != num_iterations)).any():
        warnings.warn(
            f"schedule: this training of {old.max()} iterations is to end after {num_iterations}; what falls over a training "
            f"continues from what it is in one of {num_iterations}",
            stacklevel=2,
        )
    new = np.full(state.num_iterations.shape, num_iterations, np.int32)
    return state._replace(num_iterations=jax.device_put(new, state.num_iterations.sharding))


def local_params(state: TrainState) -> Params:
    """Return what acts and predicts as arrays of this process's first device, whatever devices the training uses."""
    return _first_local(to_host(inference_params(state)))


def _first_local(tree: Any) -> Any:
    return jax.device_put(tree, jax.local_devices()[0])
