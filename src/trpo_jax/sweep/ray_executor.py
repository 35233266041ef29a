"""Running the programs of a sweep as Ray tasks, on this machine or on a cluster."""

import contextlib
import logging
import os
import socket
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from trpo_jax.errors import ConfigError, MissingPackageError
from trpo_jax.sweep.executor import Job, Listener, Outcome, choose_devices, train_job
from trpo_jax.sweep.programs import share_of_host
from trpo_jax.sweep.train_together import last_record

RETRIES = 5
"""How often a task is restarted after its worker has died."""
CONNECT_SECONDS = 5.0
SECONDS_BETWEEN_LOOKS = 1.0
"""Seconds between two readings of the progress that workers write."""


class RayExecutor:
    """Does each job as a Ray task, as many at once as the cluster has room for.

    A task whose worker dies is restarted. It resumes from its checkpoints if the new worker sees the sweep's folder, else it
    starts from the beginning. Results come back to this process, and only this process writes them.
    """

    memory_limit = 4 * 2**30
    """A guess, since the workers' memory is not known here; replaced if they run on this machine's processors."""

    def __init__(
        self,
        *,
        address: str | None,
        device: str,
        cpus_per_program: float = 1.0,
        gpus_per_program: float = 0.0,
        tpus_per_program: int = 0,
        cache_dir: str | None = None,
    ):
        """Connect to a cluster; best called before JAX is used, because Ray forks.

        Args:
            address: HOST:PORT, ray://HOST:PORT or auto, for a running cluster; None starts one on this machine.
            device: kind of device that programs train on, as in `choose_devices`.
            cpus_per_program: processors that a task asks for; JAX shows it that many as devices.
            gpus_per_program: GPUs that a task asks for.
            tpus_per_program: TPU chips that a task asks for. Without GPUs and TPUs, "auto" trains on processors.
            cache_dir: where workers keep compiled programs.

        Raises:
            MissingPackageError: Ray is not installed.
            ConfigError: there is no cluster at the address, or no node of it has what one task asks for.
        """
        self._ray = _connect(address)
        try:
            self._check_room({"CPU": cpus_per_program, "GPU": gpus_per_program, "TPU": tpus_per_program})
        except ConfigError:
            self._ray.shutdown()
            raise
        if device == "auto":  # a worker may see GPUs that it has not asked for, and would share them with all others
            device = "gpu" if gpus_per_program else "tpu" if tpus_per_program else "cpu"
        variables = {"JAX_PLATFORMS": "cpu"} if device == "cpu" else {}
        if cache_dir:
            variables["JAX_COMPILATION_CACHE_DIR"] = cache_dir
        task = self._ray.remote(
            num_cpus=cpus_per_program,
            num_gpus=gpus_per_program,
            resources={"TPU": tpus_per_program} if tpus_per_program else None,
            max_retries=RETRIES,
            max_calls=1,
            runtime_env={"env_vars": variables},
        )
        self._train: Any = task(_train_remotely)
        self._arguments = device, max(1, int(cpus_per_program))
        self.num_devices = max(1, int(tpus_per_program or gpus_per_program or cpus_per_program))
        if address is None and device == "cpu":
            num_at_once = max(1, int(self._ray.cluster_resources()["CPU"] / cpus_per_program))
            self.memory_limit = share_of_host(num_at_once * self.num_devices)

    def __call__(self, jobs: Sequence[Job], *, deliver: Callable[[Job, Outcome], None], listener: Listener) -> None:
        """Do all jobs. Their progress is reported if this process can read the metrics that workers write."""
        running: dict[Any, Job] = {}
        told: dict[Any, int] = {}
        try:
            for job in jobs:
                running[self._train.remote(job._replace(folder=job.folder.absolute()), *self._arguments)] = job
                listener.start(job)
            while running:
                finished, _ = self._ray.wait(list(running), num_returns=1, timeout=SECONDS_BETWEEN_LOOKS)
                for task in finished:
                    outcome = self._outcome(task)
                    deliver(running.pop(task), outcome)
                for task, job in running.items():
                    progress = last_record(job.folder)
                    if progress and progress[0] != told.get(task):
                        told[task] = progress[0]
                        listener.iteration(job, *progress)
        finally:
            for task in running:
                self._ray.cancel(task, force=True)

    def __enter__(self) -> "RayExecutor":
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the cluster if it was started here, else disconnect from it."""
        self._ray.shutdown()

    def _outcome(self, task: Any) -> Outcome:
        """Return a task's outcome. A full disk fails this task alone, since other workers may use other disks.

        Raises:
            ConfigError: the job's configuration cannot be used; other jobs would meet this too.
        """
        try:
            outcome = self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            return RuntimeError(f"the task's worker died or could not be started ({' '.join(str(error).split())[:200]})")
        if isinstance(outcome, ConfigError):
            raise outcome
        return outcome

    def _check_room(self, wanted: dict[str, float]) -> None:
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
            return
        asked = [name for name, amount in wanted.items() if amount]
        has = " or ".join(dict.fromkeys(", ".join(f"{node.get(name, 0):g} {name}" for name in asked) for node in nodes))
        name = next((name for name in reversed(asked) if wanted[name] > max(node.get(name, 0) for node in nodes)), asked[0])
        raise ConfigError(f"{name.lower()}s_per_program", wanted[name], f"what a node of the Ray cluster has: {has}")


def _connect(address: str | None) -> ModuleType:
    try:
        import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise MissingPackageError.of("--executor ray", "ray", "ray") from None
    if address not in (None, "auto", "local"):
        _check_reachable(str(address))
    if address is None:  # else a program that is too large for the memory would be retried forever
        os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=None if address else False,
        )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        words = " ".join(str(error).split())
        raise ConfigError("ray_address", address, f"the address of a running Ray cluster ({words})") from None
    return ray


def _check_reachable(address: str) -> None:
    """Raise ConfigError within seconds if nothing listens there; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    allowed = "HOST:PORT or ray://HOST:PORT of a running Ray cluster, or auto"
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError("ray_address", address, f"{allowed} ({error})") from None


def _train_remotely(job: Job, device: str, num_cores: int) -> Outcome:
    """Do a job in a Ray worker. Errors are returned: Ray 2.60 may abort the process that waits for a task which raises."""
    try:
        with _folder_seen_here(job.folder) as folder:
            return train_job(job._replace(folder=folder), choose_devices(device, num_cores))
    except Exception as error:
        error.add_note(traceback.format_exc())  # Ray does not send the traceback itself
        return error


@contextlib.contextmanager
def _folder_seen_here(folder: Path) -> Iterator[Path]:
    """Yield the job's own folder, or a temporary one if this machine cannot write to the sweep's folder."""
    if folder.parent.is_dir() and os.access(folder.parent, os.W_OK):
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="trpo_jax-sweep-") as here:
            yield Path(here)
