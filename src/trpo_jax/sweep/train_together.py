"""Training runs of one program together, from start to end."""

import contextlib
import functools
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trpo_jax.agent.inference import Params
from trpo_jax.agent.state import TrainState, inference_params
from trpo_jax.algorithms.registry import make_agent
from trpo_jax.errors import CheckpointError, ConfigError
from trpo_jax.execution.host_arrays import to_host
from trpo_jax.execution.placement import ManyTrainings
from trpo_jax.execution.runner import Runner
from trpo_jax.runs.loggers import finite
from trpo_jax.runs.run import run_environment
from trpo_jax.runs.run_folder import MetricsLog, metrics_record
from trpo_jax.sweep.plan import Run
from trpo_jax.training.loop import train_to_end
from trpo_jax.training.milestones import make_milestones
from trpo_jax.training.reporting import Callbacks, ProgressFn
from trpo_jax.training.store import Progress, Store
from trpo_jax.training.train import run_evaluator

RETURN, TRAINING_RETURN = "eval/episode_reward", "training/episode_reward"
"""The metric that a run is judged by, and its substitute in runs without evaluations."""

METRICS = "metrics.jsonl"
"""File in a program's folder that holds the metrics of all its runs during training."""

TAIL = 2**20
"""Bytes at the end of that file that are searched for its last record, about once a second."""

KEEP = 2
"""Number of checkpoints kept of an unfinished program."""

Records = list[dict[str, Any]]
"""Metrics of a run: dicts with "step" and metrics by name, in the order of steps, an evaluation after its iteration."""


class Trained(NamedTuple):
    """Result of a run."""

    records: Records
    params: Params
    """Its last parameters, on the host."""


def train_together(
    runs: Sequence[Run], folder: Path, *, devices: Sequence[jax.Device], progress_fn: ProgressFn | None = None
) -> tuple[Trained, ...]:
    """Train runs that differ in seeds and traced values only, in one program.

    Args:
        runs: R runs of one `Cell`.
        folder: for checkpoints and metrics during training, made if it is missing. If a training of the same runs was
            interrupted in it, that training resumes as if nothing had happened.
        devices: share the runs.
        progress_fn: called as progress_fn(steps, metrics) after each iteration; per-run metrics are lists.

    Returns:
        Metrics and last parameters of each run.

    Raises:
        ConfigError: a configuration that cannot be used. CheckpointError: the folder cannot be written. KeyboardInterrupt
            and SystemExit pass through once all is saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = runs[0].config
    agent = make_agent(run_environment(config), config.agent)
    keys = jnp.stack([jax.random.split(jax.random.key(run.config.seed)) for run in runs])
    hyperparameters = jax.tree.map(lambda *values: np.asarray(values, np.float32), *(run.config.agent for run in runs))
    evaluate = run_evaluator(agent, config) if config.evaluates else None
    runner = Runner(agent, ManyTrainings(len(runs), devices), hyperparameters=hyperparameters, evaluate=evaluate)
    milestones = make_milestones(agent, config.num_timesteps, config.num_evals, checkpoint_interval=config.checkpoint_interval)
    metrics = folder / METRICS
    store, earlier = _open(folder / "checkpoints", {"runs": [run.name for run in runs]}, runner)
    with contextlib.closing(runner), store, _Log(metrics, progress_fn) as log:
        state, _ = train_to_end(
            agent,
            runner,
            milestones,
            Callbacks(log.iteration, log.evaluation),
            earlier=earlier,
            begin_fn=lambda: runner.init(keys[:, 0]),
            evaluate_fn=functools.partial(runner.evaluate, keys=keys[:, 1]) if evaluate else None,
            store=store,
        )
        params = to_host(inference_params(runner.snapshot(state)))
    of_each = [jax.tree.map(lambda leaf, run=run: leaf[run], params) for run in range(len(runs))]
    return tuple(map(Trained, _records_of_each(metrics, len(runs)), of_each))


def last_record(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """Return steps and metrics of the last iteration that a training in a folder has logged; None if there is none."""
    try:
        with (folder / METRICS).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return None
    for record in filter(None, map(metrics_record, reversed(lines))):
        if TRAINING_RETURN in record:
            return record.pop("step"), record
    return None


def _open(folder: Path, origin: dict[str, Any], runner: Runner) -> tuple[Store, tuple[TrainState, Progress] | None]:
    """Return a store and the state to resume from. Move checkpoints that cannot be used, and warn about it."""
    store = Store(folder, resume=True, keep=KEEP, origin=origin)
    if not store.goes_on:
        return store, None
    try:
        return store, store.load(runner)
    except (CheckpointError, ConfigError) as error:
        aside = folder.with_name("checkpoints-unusable")  # removed with the folder once these runs are finished
        warnings.warn(f"{error}; the training starts over, the old checkpoints are in {aside}", stacklevel=2)
        store.close()
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        return Store(folder, resume=True, keep=KEEP, origin=origin), None


class _Log:
    """Writes the loop's metrics to a file and passes them on."""

    def __init__(self, path: Path, progress_fn: ProgressFn | None):
        self._file, self._progress_fn = MetricsLog(path), progress_fn

    def iteration(self, step: int, metrics: dict[str, Any]) -> None:
        self._file.log(step, metrics)
        if self._progress_fn:
            self._progress_fn(step, metrics)

    def evaluation(self, step: int, metrics: dict[str, Any]) -> None:
        evaluation = {name: value for name, value in metrics.items() if name.startswith("eval/")}
        if evaluation:
            self._file.log(step, evaluation)

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _records_of_each(path: Path, num_runs: int) -> tuple[Records, ...]:
    together = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return tuple([_record_of(record, index) for record in together] for index in range(num_runs))


def _record_of(record: dict[str, Any], index: int) -> dict[str, Any]:
    """Return one run's part of a record of all runs."""
    own = {name: value[index] if isinstance(value, list) else value for name, value in record.items()}
    return {"step": own.pop("step")} | finite(own)
