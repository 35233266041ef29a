"""Where a training keeps its checkpoints, and how it goes on from them."""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from trpo_jax.config import ConfigError
from trpo_jax.training.checkpoint import Checkpoint, Checkpoints, has_checkpoints, load_checkpoint, read_record
from trpo_jax.training.pipeline import Pipeline, host_like, to_host
from trpo_jax.training.state import TrainState, inference_params


class Progress(NamedTuple):
    """What the loop has counted; goes into checkpoints."""

    iteration: int = 0
    walltime: float = 0.0
    """Seconds spent in iterations."""
    eval_walltime: float = 0.0
    """Seconds spent in evaluations."""


class Store:
    """Saves a training and loads it again. All processes call it together; the first one writes.

    Args:
        directory: for checkpoints.
        resume: go on from the newest one that can be read, if there is any.
        keep: so many of the newest stay.
        origin: what the training was started with, a nested mapping of plain values; one that goes on must be started
            with the same.

    Raises:
        ConfigError: the directory holds checkpoints, and `resume` is False.
        CheckpointError: the directory cannot be written.
    """

    def __init__(self, directory: Path | str, *, resume: bool, keep: int, origin: dict[str, Any]):
        self.directory, self._origin = directory, origin
        found = _as_first_process(has_checkpoints(directory))
        if found and not resume:
            allowed = "a folder that holds no checkpoints yet, unless resume is true"
            raise ConfigError("save_checkpoint_path", str(directory), allowed)
        self.goes_on = found
        self._writer = Checkpoints(directory, keep=keep) if jax.process_index() == 0 else None

    def load(self, pipeline: Pipeline) -> tuple[TrainState, Progress]:
        """Return the newest state that can be read; warn of newer ones that cannot.

        Raises:
            ConfigError: the training was started with something else; the first field that differs is named.
            CheckpointError: none can be read.
        """
        record = read_record(self.directory)
        check_same({name: record[name] for name in self._origin}, self._origin, f"the training in {self.directory}")
        like = host_like(pipeline.state_like())
        loaded = load_checkpoint(self.directory, inference_params(like), like)
        for failure in loaded.unreadable:
            warnings.warn(f"{failure}; going on from {loaded.checkpoint.step}", stacklevel=3)
        return pipeline.place(loaded.checkpoint.state), Progress(**loaded.checkpoint.record["progress"])

    def save(self, step: int, state: TrainState, progress: Progress) -> None:
        """Start to write a checkpoint. Raises CheckpointError if it, or the one before, cannot be written."""
        host_state = to_host(state)
        if self._writer is not None:
            record = self._origin | {"progress": progress._asdict()}
            self._writer.save(Checkpoint(step, inference_params(host_state), host_state, record))

    def wait(self) -> None:
        """Wait until all is written. Raises CheckpointError if it cannot be."""
        if self._writer is not None:
            self._writer.wait()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.__exit__(kind, error, traceback)


def check_same(started: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    """Raise ConfigError for the first field in which two nested mappings differ.

    Args:
        started: what the training began with.
        wanted: what it is to go on with.
        what: names the training in the error.
    """
    was, now = dict(_flat(started)), dict(_flat(wanted))
    for field in sorted(was.keys() | now.keys()):
        if was.get(field) != now.get(field):
            raise ConfigError(field.removeprefix("config."), now.get(field), f"{was.get(field)!r}, with which {what} began")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _as_first_process(flag: bool) -> bool:
    """Return the first process's flag in all."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(flag)))
