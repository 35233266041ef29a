"""Save a training's checkpoints, and resume from them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax

from trpo_jax.agent.state import TrainState, inference_params
from trpo_jax.config import flatten
from trpo_jax.errors import CheckpointError, ConfigError
from trpo_jax.execution.host_arrays import host_like, to_host
from trpo_jax.execution.processes import any_process, from_first_process
from trpo_jax.execution.runner import Runner
from trpo_jax.training.checkpoint import Checkpoint, Checkpoints, has_checkpoints, load_checkpoint, read_record

LAYOUT = 2
"""Version of the state in a checkpoint. A training cannot resume from a checkpoint with another number."""


class Progress(NamedTuple):
    """Counters of the loop, stored in checkpoints."""

    iteration: int = 0
    walltime: float = 0.0
    """Seconds spent in iterations."""
    eval_walltime: float = 0.0
    """Seconds spent in evaluations."""


class Store:
    """Saves a training and loads it again. All processes call it together; the first one writes.

    Args:
        directory: folder of the checkpoints.
        resume: resume from the newest readable checkpoint, if there is any.
        keep: number of newest checkpoints to keep.
        origin: settings of the training, a nested mapping of plain values; a resumed training must have the same.

    Raises:
        ConfigError: the directory holds checkpoints, and `resume` is False.
        CheckpointError: the directory cannot be written.
    """

    def __init__(self, directory: Path | str, *, resume: bool, keep: int, origin: dict[str, Any]):
        self.directory, self._origin = directory, origin
        self.goes_on = bool(from_first_process(has_checkpoints(directory)))
        if self.goes_on and not resume:
            allowed = "a folder that holds no checkpoints yet, unless resume is true"
            raise ConfigError("save_checkpoint_path", str(directory), allowed)
        self._writer: Checkpoints | None = None
        self._in_first_process(lambda: self._open(keep))

    def load(self, runner: Runner) -> tuple[TrainState, Progress]:
        """Return in every process the newest state that the first one can read; warn about newer ones that it cannot read.

        Raises:
            ConfigError: the training was started with other settings; the first field that differs is named.
            CheckpointError: no checkpoint can be read, or not by all processes.
        """
        like = host_like(runner.state_like)
        first = jax.process_index() == 0
        checkpoint, error = self._try_to_load(like) if first else (None, None)
        step = from_first_process(-1 if checkpoint is None else checkpoint.step)
        if not first and step >= 0:
            checkpoint, error = self._try_to_load(like, step)
        if any_process(checkpoint is None):
            raise error or CheckpointError(f"{self.directory}: another process cannot read the checkpoint to resume from")
        assert checkpoint
        return runner.place(checkpoint.state), Progress(**checkpoint.record["progress"])

    def save(self, step: int, state: TrainState, progress: Progress) -> None:
        """Start writing a checkpoint. Raises CheckpointError if this or the previous one cannot be written."""
        host_state = to_host(state)
        record = self._origin | {"progress": progress._asdict(), "layout_of_state": LAYOUT}
        checkpoint = Checkpoint(step, inference_params(host_state), host_state, record)
        self._in_first_process(lambda: self._written().save(checkpoint))

    def wait(self) -> None:
        """Wait until everything is written. Raises CheckpointError if that fails."""
        self._in_first_process(lambda: self._written().wait())

    def _open(self, keep: int) -> None:
        self._writer = Checkpoints(self.directory, keep=keep)

    def _written(self) -> Checkpoints:
        assert self._writer, "only the first process writes"
        return self._writer

    def _try_to_load(self, like: TrainState, step: int | None = None) -> tuple[Checkpoint | None, Exception | None]:
        try:
            record = read_record(self.directory)
            if "state" not in record.get("layout", {"state": None}):
                raise CheckpointError(
                    f"{self.directory} holds only the parameters of a finished run, so training cannot resume; start a new "
                    "training from them with restore_checkpoint_path"
                )
            if record.get("layout_of_state") != LAYOUT:
                raise CheckpointError(
                    f"{self.directory} was written by another version of trpo_jax. Resume it with that version, or start a new "
                    "training from its parameters in Python: trpo_jax.train(…, restore_checkpoint_path=…)"
                )
            check_same({name: record.get(name, {}) for name in self._origin}, self._origin, f"the training in {self.directory}")
            return load_checkpoint(self.directory, inference_params(like), like, step=step), None
        except (ConfigError, CheckpointError) as error:
            return None, error

    def _in_first_process(self, work: Callable[[], Any]) -> None:
        """Run `work` in the first process. If it raises a CheckpointError, all processes raise one."""
        error = None
        if jax.process_index() == 0:
            try:
                work()
            except CheckpointError as raised:
                error = raised
        if any_process(error is not None):
            raise error or CheckpointError(f"{self.directory}: the first process cannot write checkpoints")

    def __enter__(self) -> "Store":
        return self

    def close(self) -> None:
        """Finish writing and release the directory."""
        self.__exit__(None, None, None)

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.__exit__(kind, error, traceback)


def check_same(started: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    """Raise ConfigError for the first field in which two nested mappings differ.

    Args:
        started: settings that the training started with.
        wanted: settings to resume it with.
        what: names the training in the error.
    """
    was, now = flatten(started), flatten(wanted)
    for field in sorted(was.keys() | now.keys()):
        if was.get(field) != now.get(field):
            raise ConfigError(
                field.removeprefix("config."), now.get(field), f"{was.get(field)!r}, the value that {what} started with"
            )
