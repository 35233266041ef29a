"""Who trains the programs of a sweep, and what a job and its outcome are."""

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
    """For what is unfinished."""


class Done(NamedTuple):
    """What a job has brought."""

    trained: tuple[Trained, ...]
    where: dict[str, Any]
    """Device, versions and commit that it ran with."""


Outcome = Done | Exception
"""Of a job; an exception if it failed."""


@runtime_checkable  # for callers that check types as they run
class Listener(Protocol):
    """Told how a sweep goes on."""

    def begin(self, num_finished: int, num_runs: int) -> None:
        """Hear how many of the runs are finished already."""
        ...

    def start(self, job: Job) -> None:
        """Hear that a job is begun."""
        ...

    def iteration(self, job: Job, step: int, metrics: dict[str, Any]) -> None:
        """Hear how far the runs of a job have come; the metrics of each stand in lists."""
        ...

    def finished(self, job: Job, num_finished: int) -> None:
        """Hear that a job is done, and how many runs of the sweep are finished now."""
        ...

    def failed(self, job: Job, error: Exception) -> None:
        """Hear that a job has failed."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Works through jobs, wherever it does."""

    num_devices: int
    """That each program's runs are spread over."""
    memory_limit: int
    """Bytes that a program may take on each of them, where nothing else is said."""

    def __call__(self, jobs: Sequence[Job], *, deliver: Callable[[Job, Outcome], None], listener: Listener) -> None:
        """Do all jobs; hand over each when it is done or has failed.

        Raises:
            ConfigError, CheckpointError, OSError: what the other jobs would meet too, such as a full disk.
        """
        ...


def choose_devices(kind: str = "auto", num_cores: int | None = None) -> list[jax.Device]:
    """Return this process's devices of a kind; a processor's cores, all or so many, count as devices.

    Raises:
        ConfigError: there are none.
    """
    if kind == "cpu":
        jax.config.update("jax_platforms", "cpu")  # else JAX would take hold of a GPU's memory all the same
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
    """Return what a job brings, or how it failed. What the other jobs would meet too, such as a full disk, is raised."""
    try:
        return work()
    except (ConfigError, CheckpointError, OSError):
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:  # frames hold on to arrays, and so to memory that the next job needs
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        return error


def train_job(job: Job, devices: Sequence[jax.Device], *, progress_fn: ProgressFn | None = None) -> Done:
    """Do a job in this process, on some of its devices: no more than it has runs."""
    devices = devices[: len(job.runs)]
    where = provenance(devices)
    begin_together(job.folder, [run.name for run in job.runs])
    taken = f"another worker still trains in {job.folder}, after {PATIENCE:.0f} seconds"
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
    """Return the commit of this package's checkout, with "-dirty" where files differ from it; "" where it is installed."""
    package = Path(__file__).resolve().parents[1]
    git = functools.partial(subprocess.run, capture_output=True, text=True, cwd=package, check=False)
    try:
        top = git(["git", "rev-parse", "--show-toplevel"]).stdout.strip()
        is_ours = bool(top) and package == Path(top).resolve() / "src" / package.name
        return git(["git", "describe", "--always", "--dirty"]).stdout.strip() if is_ours else ""
    except OSError:
        return ""
