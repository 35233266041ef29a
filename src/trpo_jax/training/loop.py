"""The loop over iterations, which reports, evaluates and saves."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from trpo_jax.agent.agent import Agent
from trpo_jax.agent.evaluate import Episodes
from trpo_jax.agent.inference import Params
from trpo_jax.agent.state import TrainState
from trpo_jax.execution.host_arrays import to_host
from trpo_jax.execution.processes import any_process
from trpo_jax.execution.program import side_by_side
from trpo_jax.execution.runner import Runner
from trpo_jax.training.interrupts import deferred_interrupts
from trpo_jax.training.milestones import Milestones
from trpo_jax.training.reporting import Callbacks, Reporter
from trpo_jax.training.store import Progress, Store

TIMED_EVERY = 10
"""Every tenth iteration, the stages are timed one by one and do not overlap."""


class _Started(NamedTuple):
    """An iteration that was started but not yet reported or saved."""

    metrics: dict[str, Any]
    time_shares: dict[str, float]
    to_save: TrainState | None


def train_to_end(
    agent: Agent,
    runner: Runner,
    milestones: Milestones,
    callbacks: Callbacks,
    *,
    earlier: tuple[TrainState, Progress] | None,
    begin_fn: Callable[[], TrainState],
    evaluate_fn: Callable[[Params], Episodes] | None = None,
    store: Store | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """Compile all programs in parallel, start or resume the training, and return the last state and the latest metrics.

    Args:
        agent: the agent to train.
        runner: runs its iterations.
        milestones: when to evaluate, save and stop.
        callbacks: functions that receive the metrics.
        earlier: state and progress to resume from; None for a new training.
        begin_fn: draws the state of a new training.
        evaluate_fn: params -> episodes; None plays none.
        store: saves checkpoints; None saves none.

    Raises as `run_loop`.
    """
    progress = Progress() if earlier is None else earlier[1]
    if progress.iteration < milestones.num_iterations:
        with side_by_side() as compilers:
            runner.compile(compilers, to_init=earlier is None)
    state = begin_fn() if earlier is None else earlier[0]
    reporter = Reporter(agent, progress, callbacks, evaluate_fn)
    return run_loop(runner, state, milestones, reporter, store), reporter.metrics


def run_loop(
    runner: Runner, state: TrainState, milestones: Milestones, reporter: Reporter, store: Store | None = None
) -> TrainState:
    """Train from a state to the last iteration. While an iteration runs, the previous one is reported and saved.

    Args:
        runner: runs the iterations.
        state: the state after the iterations in `reporter.progress`.
        milestones: when to evaluate, save and stop.
        reporter: reports every iteration, and evaluates.
        store: saves checkpoints; None saves none.

    Returns:
        The last state.

    Raises:
        KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM in any process, after the running iteration is reported and saved; at
            once if no iteration has been started yet.
        CheckpointError: a checkpoint cannot be written.
    """
    done = reporter.progress.iteration
    state = _with_num_iterations(state, milestones.num_iterations, done)
    with deferred_interrupts() as interrupts:
        if store is not None and not store.goes_on:
            store.save(reporter.steps, runner.snapshot(state), reporter.progress)
        if done in milestones.evaluations:
            reporter.evaluation(state)
        started: _Started | None = None
        time_shares: dict[str, float] = {}
        stopping = False
        for iteration in range(done + 1, milestones.num_iterations + 1):
            if iteration - 1 in milestones.resets:
                state = runner.reset(state)
            if (iteration - done) % TIMED_EVERY == 2:  # not the first one, which compiles
                _finish(started, reporter, store)
                state, metrics, time_shares = runner.timed_update(state)
                reporter.disturb()
            else:
                state, metrics = runner.update(state)
                _finish(started, reporter, store)
            started = None  # before the next snapshot is taken
            interrupts.guarded = True
            stopping = any_process(interrupts.pending)
            saves = store is not None and (stopping or milestones.saves_after(iteration))
            started = _Started(metrics, time_shares, runner.snapshot(state) if saves else None)
            if iteration in milestones.evaluations and not stopping:
                _finish(started, reporter, store)
                started = None
                reporter.evaluation(state)
                stopping = any_process(interrupts.pending)
            if stopping:
                break
        _finish(started, reporter, store)
        if store is not None:
            store.wait()
        interrupts.check()
        if stopping:
            raise KeyboardInterrupt  # another process was told to stop
    return state


def _finish(started: _Started | None, reporter: Reporter, store: Store | None) -> None:
    """Wait for an iteration and report it; start writing its checkpoint if one is due."""
    if started is None:
        return
    reporter.iteration(started.metrics, started.time_shares)
    if store is not None and started.to_save is not None:
        store.save(reporter.steps, started.to_save, reporter.progress)
        reporter.disturb()


def _with_num_iterations(state: TrainState, num_iterations: int, iteration: int) -> TrainState:
    """Set the number of iterations. Warn if a resumed training with a schedule had another number before."""
    old, schedule = to_host((state.num_iterations, state.hyperparameters.schedule))
    falls = any((share < 1).any() for share in jax.tree.leaves(schedule))
    if falls and iteration < num_iterations and ((old > 0) & (old != num_iterations)).any():
        warnings.warn(
            f"schedule: this training of {old.max()} iterations now ends after {num_iterations}; scheduled values continue as "
            f"in a training of {num_iterations}",
            stacklevel=2,
        )
    new = np.full(state.num_iterations.shape, num_iterations, np.int32)
    return state._replace(num_iterations=jax.device_put(new, state.num_iterations.sharding))
