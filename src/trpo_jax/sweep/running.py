"""Running a sweep: what is left to do, by an executor, until every run is finished."""

import functools
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from trpo_jax.config import ConfigError
from trpo_jax.sweep.fields import fields_of
from trpo_jax.sweep.folder import SweepFolder, begin_together
from trpo_jax.sweep.memory import bytes_of_run, divide, free_bytes
from trpo_jax.sweep.plan import Run, cells_of
from trpo_jax.sweep.training import RETURN, TRAINING_RETURN, Records, train_together
from trpo_jax.training.devices import show_cores_as_devices
from trpo_jax.training.loop import ProgressFn
from trpo_jax.training.run_folder import locked

PATIENCE = 120.0
"""Seconds to wait for a worker of a sweep that was killed to let go of its runs."""
VERSIONS = ("trpo-jax", "jax", "jaxlib", "flax", "brax", "mujoco")


class Job(NamedTuple):
    """Runs to train in one program."""

    runs: tuple[Run, ...]
    folder: Path
    """For what is unfinished."""


class Done(NamedTuple):
    """What a job has brought."""

    records: tuple[Records, ...]
    where: dict[str, Any]
    """Device, versions and commit that it ran with."""


@runtime_checkable  # for callers that check types as they run
class Progress(Protocol):
    """Told how jobs go on."""

    def start(self, job: Job) -> None: ...

    def iteration(self, job: Job, step: int, metrics: dict[str, Any]) -> None: ...

    def finished(self, job: Job) -> None: ...


@runtime_checkable
class Executor(Protocol):
    """Works through jobs, wherever it does."""

    num_devices: int
    """That each program's runs are spread over."""
    memory_limit: int
    """Bytes that a program may take on each of them, where nothing else is said."""

    def __call__(self, jobs: Sequence[Job], deliver: Callable[[Job, Done], None], progress: Progress) -> None:
        """Do all jobs; hand over each when it is done."""
        ...


def choose_devices(kind: str = "auto", num_cores: int | None = None) -> list[jax.Device]:
    """Return this process's devices of a kind; a processor's cores, all or so many, count as devices.

    Raises:
        ConfigError: there are none.
    """
    if kind in ("auto", "cpu"):
        show_cores_as_devices(max_devices=num_cores)
    if kind == "auto":
        return jax.local_devices()
    try:
        return jax.local_devices(backend=kind)
    except RuntimeError:
        raise ConfigError("device", kind, f"one that JAX sees here: {jax.local_devices()[0].platform}") from None


class Program(NamedTuple):
    """Runs that a sweep trains together."""

    runs: tuple[Run, ...]
    bytes_each: int
    """Memory that each of them is estimated to take."""


def programs(runs: Sequence[Run], *, memory_limit: int, num_devices: int, most: int | None = None) -> list[Program]:
    """Divide runs among programs.

    Args:
        runs: see `make_plan`.
        memory_limit: bytes that a program may take on each device.
        num_devices: that a program's runs are spread over.
        most: runs that a program may hold.

    Raises:
        ConfigError: not a single run fits.
    """
    each = [(cell, bytes_of_run(cell.runs[0])) for cell in cells_of(runs)]
    return [Program(part, size) for cell, size in each for part in divide(cell, size, memory_limit, num_devices, most)]


def run_sweep(folder: SweepFolder, planned: Sequence[Program], executor: Executor, progress: Progress) -> None:
    """Train what is not finished yet. The folder is locked, and knows the plan.

    Args:
        folder: of the sweep.
        planned: see `programs`.
        executor: does the work.
        progress: told how it goes on.

    Raises:
        What training raises; all that was finished before is kept.
    """

    def deliver(job: Job, done: Done) -> None:
        for run, records in zip(job.runs, done.records, strict=True):
            if folder.finished(run.name) is None:
                folder.finish(run.name, records, result(run, records, done.where, len(job.runs)))
        folder.write_results()
        folder.drop(job.folder)

    jobs = jobs_left(folder, planned)
    folder.write_results()
    executor(jobs, deliver, progress)


def jobs_left(folder: SweepFolder, planned: Sequence[Program]) -> list[Job]:
    """Return what is left: first what was begun together and is not finished, then the rest of each program.

    What was begun goes on in the company it began with, unless that is more than a program may now hold.
    """
    known = {run.name: (run, len(program.runs)) for program in planned for run in program.runs}
    left = {name for name in known if folder.finished(name) is None}
    jobs = []
    for path, names in folder.begun():
        if left & set(names) and set(names) <= known.keys() and len(names) <= max(known[name][1] for name in names):
            jobs.append(Job(tuple(known[name][0] for name in names), path))
            left -= set(names)
        else:
            folder.drop(path)
    for program in planned:
        rest = tuple(run for run in program.runs if run.name in left)
        if rest:
            jobs.append(Job(rest, folder.place_of([run.name for run in rest])))
    return jobs


def result(run: Run, records: Records, where: dict[str, Any], together: int) -> dict[str, Any]:
    """Return a run's row of the table."""
    last: dict[str, Any] = {}
    for record in records:
        last |= record
    return {
        "run": run.name,
        "environment": run.config.environment,
        "source": run.source,
        "seed": run.config.seed,
        "return": last.get(RETURN, last.get(TRAINING_RETURN)),
        "return_std": last.get("eval/episode_reward_std"),
        "steps": last.get("step", 0),
        "seconds": round(last.get("training/walltime", 0.0) + last.get("eval/walltime", 0.0), 3),
        "runs_in_program": together,
        **where,
        **{f"config.{name}": value for name, value in fields_of(run.config).items()},
    }


class LocalExecutor:
    """Does jobs in this process, one after another."""

    def __init__(self, devices: Sequence[jax.Device]):
        self._devices = devices
        self.num_devices, self.memory_limit = len(devices), free_bytes(devices)

    def __call__(self, jobs: Sequence[Job], deliver: Callable[[Job, Done], None], progress: Progress) -> None:
        """Do all jobs."""
        for job in jobs:
            progress.start(job)
            deliver(job, train_job(job, self._devices, functools.partial(progress.iteration, job)))
            progress.finished(job)


def train_job(job: Job, devices: Sequence[jax.Device], progress_fn: ProgressFn | None = None) -> Done:
    """Do a job in this process, on some of its devices: no more than it has runs."""
    devices = devices[: len(job.runs)]
    where = provenance(devices)
    begin_together(job.folder, [run.name for run in job.runs])
    taken = ConfigError("sweep_dir", str(job.folder), "a folder in which no other worker is training")
    with locked(job.folder, taken, patience=PATIENCE):
        return Done(train_together(job.runs, job.folder, devices, progress_fn), where)


def provenance(devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Return what a result depends on besides its configuration."""
    return {
        "device": devices[0].device_kind,
        "num_devices": len(devices),
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        **{f"version.{name}": version(name) for name in VERSIONS},
        "begun": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _git_commit() -> str:
    """Return the commit of this package's checkout, with "-dirty" where files differ from it; "" where it is installed."""
    package = Path(__file__).resolve().parents[1]
    git = functools.partial(subprocess.run, capture_output=True, text=True, cwd=package, check=False)
    try:
        top = git(["git", "rev-parse", "--show-toplevel"]).stdout.strip()
        is_ours = bool(top) and package == Path(top).resolve() / "src" / package.name
        return git(["git", "describe", "--always", "--dirty"]).stdout.strip() if is_ours else ""
    except OSError:
        return ""
