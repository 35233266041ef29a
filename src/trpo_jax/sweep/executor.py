"""Jobs of a sweep, their outcomes, and the executor that does them in this process."""

import functools
import platform
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from trpo_jax.errors import CheckpointError, ConfigError
from trpo_jax.execution.devices import show_cores_as_devices
from trpo_jax.runs.run_folder import locked
from trpo_jax.sweep.folder import PATIENCE, begin_together
from trpo_jax.sweep.plan import Run
from trpo_jax.sweep.programs import free_bytes
from trpo_jax.sweep.train_together import Trained, train_together
from trpo_jax.training.reporting import ProgressFn
from trpo_jax.versions import version_of

VERSIONS = ("trpo-jax", "jax", "jaxlib", "flax", "brax", "mujoco")


class Job(NamedTuple):
    """Runs to train in one program."""

    runs: tuple[Run, ...]
    folder: Path
    """Folder for checkpoints and metrics while the runs are trained."""


class Done(NamedTuple):
    """Result of a job that succeeded."""

    trained: tuple[Trained, ...]
    where: dict[str, Any]
    """Device, versions and commit that it ran with; see `provenance`."""


Outcome = Done | Exception
"""Outcome of a job: its result, or an exception if it failed."""


@runtime_checkable  # for callers that check types at run time
class Listener(Protocol):
    """Receives the progress of a sweep."""

    def begin(self, num_finished: int, num_runs: int) -> None:
        """Report how many of the runs are already finished."""
        ...

    def start(self, job: Job) -> None:
        """Report that a job starts."""
        ...

    def iteration(self, job: Job, step: int, metrics: dict[str, Any]) -> None:
        """Report an iteration of a job's runs; per-run metrics are lists."""
        ...

    def finished(self, job: Job, num_finished: int) -> None:
        """Report that a job is done, and how many runs of the sweep are now finished."""
        ...

    def failed(self, job: Job, error: Exception) -> None:
        """Report that a job has failed."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Does jobs, in this process or elsewhere."""

    num_devices: int
    """Number of devices that each program's runs are spread over."""
    memory_limit: int
    """Default for the bytes that a program may take on each device."""

    def __call__(self, jobs: Sequence[Job], *, deliver: Callable[[Job, Outcome], None], listener: Listener) -> None:
        """Do all jobs; pass each outcome to `deliver` as soon as it is known.

        Raises:
            ConfigError, CheckpointError, OSError: an error that the other jobs would meet too, such as a full disk.
        """
        ...


def choose_devices(kind: str = "auto", num_cores: int | None = None) -> list[jax.Device]:
    """Return this process's devices of a kind. Processor cores count as devices: all, or at most `num_cores`.

    Raises:
        ConfigError: there is no such device.
    """
    if kind == "cpu":
        jax.config.update("jax_platforms", "cpu")  # else JAX would still reserve a GPU's memory
    if kind in ("auto", "cpu"):
        show_cores_as_devices(max_devices=num_cores)
    if kind == "auto":
        return jax.local_devices()
    try:
        return jax.local_devices(backend=kind)
    except RuntimeError:
        raise ConfigError("device", kind, f"one that JAX sees here: {jax.local_devices()[0].platform}") from None


class LocalExecutor:
    """Does jobs in this process, one after another."""

    def __init__(self, devices: Sequence[jax.Device]):
        self._devices = devices
        self.num_devices, self.memory_limit = len(devices), free_bytes(devices)

    def __call__(self, jobs: Sequence[Job], *, deliver: Callable[[Job, Outcome], None], listener: Listener) -> None:
        """Do all jobs."""
        for job in jobs:
            listener.start(job)
            progress_fn = functools.partial(listener.iteration, job)
            deliver(job, outcome_of(functools.partial(train_job, job, self._devices, progress_fn=progress_fn)))


def outcome_of(work: Callable[[], Done]) -> Outcome:
    """Return a job's result or exception. Errors that other jobs would meet too, such as a full disk, are raised."""
    try:
        return work()
    except (ConfigError, CheckpointError, OSError):
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:  # frames keep arrays alive, whose memory the next job needs
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        return error


def train_job(job: Job, devices: Sequence[jax.Device], *, progress_fn: ProgressFn | None = None) -> Done:
    """Do a job in this process, on at most as many of the devices as it has runs."""
    devices = devices[: len(job.runs)]
    where = provenance(devices)
    begin_together(job.folder, [run.name for run in job.runs])
    taken = f"another worker is still training in {job.folder} after {PATIENCE:.0f} seconds"
    with locked(job.folder, RuntimeError(taken), patience=PATIENCE):
        return Done(train_together(job.runs, job.folder, devices=devices, progress_fn=progress_fn), where)


def provenance(devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Return what a result depends on besides its configuration."""
    return {
        "device": devices[0].device_kind,
        "num_devices": len(devices),
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        **{f"version.{name}": version_of(name) for name in VERSIONS},
        "begun": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _git_commit() -> str:
    """Return the commit of this package's checkout, with "-dirty" if files differ from it; "" if it is installed."""
    package = Path(__file__).resolve().parents[1]
    git = functools.partial(subprocess.run, capture_output=True, text=True, cwd=package, check=False)
    try:
        top = git(["git", "rev-parse", "--show-toplevel"]).stdout.strip()
        is_ours = bool(top) and package == Path(top).resolve() / "src" / package.name
        return git(["git", "describe", "--always", "--dirty"]).stdout.strip() if is_ours else ""
    except OSError:
        return ""
