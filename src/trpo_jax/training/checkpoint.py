"""Save and load a training with orbax. Loading a checkpoint cannot run code."""

import contextlib
import errno
import hashlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from trpo_jax.agent.inference import Params
from trpo_jax.errors import CheckpointError
from trpo_jax.training.packing import Packed


class Checkpoint(NamedTuple):
    """A training at one moment. Arrays are on the host."""

    step: int
    """Environment steps trained."""
    params: Params
    """Parameters of policy and critic, stored separately so that they can be read without the rest."""
    state: Any
    """Everything that one iteration passes to the next, a pytree of numpy arrays; None if no training will resume."""
    record: dict[str, Any]
    """JSON data: the configuration and the counters of the loop."""


class Checkpoints:
    """Writes checkpoints to `directory/STEP` in the background, each completely or not at all. Keeps the newest `keep`."""

    def __init__(self, directory: Path | str, *, keep: int | None = None):
        self.directory = Path(directory)
        self._last: int | None = None
        with self._clear_errors():
            self.directory.mkdir(parents=True, exist_ok=True)
            self._manager = _manager(directory, keep=keep, background=True)

    def save(self, checkpoint: Checkpoint) -> None:
        """Start writing a checkpoint once the previous one is written. A checkpoint of the same step is replaced.

        Raises:
            CheckpointError: this or the previous one cannot be written (a full disk); earlier ones stay unchanged.
        """
        step = checkpoint.step
        trees = {"params": checkpoint.params, "state": checkpoint.state}
        packed = {name: Packed.of(tree) for name, tree in trees.items() if tree is not None}
        record = checkpoint.record | {
            "layout": {name: each.layout for name, each in packed.items()},
            "digest": {name: _digest(each.arrays) for name, each in packed.items()},
        }
        # Few arrays in one item, since orbax's time depends more on the number of items and arrays than on bytes.
        items = ocp.args.Composite(
            arrays=ocp.args.PyTreeSave({name: each.arrays for name, each in packed.items()}),
            record=ocp.args.JsonSave(record),
        )
        with self._clear_errors():
            self._manager.wait_until_finished()
            if step in self._manager.all_steps():
                self._manager.delete(step)
            self._manager.save(step, args=items, force=True)  # orbax would otherwise skip a step before the newest
        self._last = step

    def wait(self) -> None:
        """Wait until everything is written. Raises CheckpointError as `save`."""
        with self._clear_errors():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            kept = "" if self._last is None else "; earlier checkpoints are unchanged"
            raise CheckpointError(f"{self.directory}: a checkpoint cannot be written ({_words(error)}){kept}") from None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None:
            self.wait()
        with contextlib.suppress(Exception):  # the error was already reported
            self._manager.close()


def save_params(directory: Path | str, step: int, params: Params) -> None:
    """Write only parameters, for `load_params` to read. Raises CheckpointError if they cannot be written."""
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(Checkpoint(step, params, None, {}))


def has_checkpoints(directory: Path | str) -> bool:
    """Tell whether a directory holds checkpoints."""
    return bool(_steps(directory))


def load_params(directory: Path | str, template: Params) -> tuple[int, Params]:
    """Return the parameters of the newest readable checkpoint of a directory as (step, params).

    Args:
        directory: where `Checkpoints` wrote.
        template: `Params` of arrays or `jax.ShapeDtypeStruct`; the expected structure, shapes and dtypes.

    Raises:
        CheckpointError: there is none, none can be read, or the newest does not fit the template.
    """
    checkpoint = load_checkpoint(directory, template)
    return checkpoint.step, checkpoint.params


def load_checkpoint(directory: Path | str, params: Params, state: Any = None, *, step: int | None = None) -> Checkpoint:
    """Return the newest readable checkpoint of a directory; warn about newer ones that cannot be read.

    Args:
        directory: where `Checkpoints` wrote.
        params: `Params` of arrays or `jax.ShapeDtypeStruct`; the expected structure, shapes and dtypes.
        state: the same for the state; None does not read it.
        step: read only the checkpoint of this step; None tries all.

    Raises:
        CheckpointError: there is none, none can be read, or the newest does not fit `params` or `state`.
    """
    steps = _steps(directory) if step is None else [step]
    if not steps:
        raise CheckpointError(f"{directory}: no checkpoint here")
    failures: list[str] = []
    with _manager(directory) as manager:
        for step in steps:
            checkpoint, failure = _try_to_load(manager, step, params, state)
            if checkpoint is not None:
                for unreadable in failures:
                    warnings.warn(f"{unreadable}; the one of step {step} is used instead", stacklevel=2)
                return checkpoint
            failures.append(f"{Path(directory) / str(step)}: cannot be read ({failure})")
    # Raised outside the loop, since orbax's tracebacks would keep half-finished reads alive.
    raise CheckpointError(failures[0])


def read_record(directory: Path | str) -> dict[str, Any]:
    """Return the record of the newest checkpoint whose record can be read. Raises CheckpointError if there is none."""
    failures = []
    with _manager(directory) as manager:
        for step in _steps(directory):
            try:
                return manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
            except Exception as error:
                failures.append(_words(error))
    raise CheckpointError(f"{directory}: {'no checkpoint here' if not failures else failures[0]}")


def _try_to_load(manager: ocp.CheckpointManager, step: int, params: Params, state: Any) -> tuple[Checkpoint | None, str]:
    """Return a checkpoint, or None and the reason why it cannot be loaded."""
    try:
        record = manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
        wanted = {"params": params} if state is None else {"params": params, "state": state}
        packed = {name: Packed.of(tree) for name, tree in wanted.items()}
        if not isinstance(record.get("layout"), dict):
            return None, "it was written by another version of trpo_jax"
        for name, each in packed.items():
            if misfit := each.misfit(record["layout"][name], name):
                return None, misfit
        like = {name: jax.tree.map(_host_array, each.arrays) for name, each in packed.items()}
        arrays = manager.restore(step, args=ocp.args.Composite(arrays=ocp.args.PyTreeRestore(like, partial_restore=True)))[
            "arrays"
        ]
        for name in wanted:
            if _digest(arrays[name]) != record["digest"][name]:
                return None, f"the checksum of its {name} does not match"
        restored = {name: each.unpack(arrays[name], wanted[name]) for name, each in packed.items()}
        return Checkpoint(step, restored["params"], restored.get("state"), record), ""
    except Exception as error:
        return None, _words(error)


def _digest(tree: Any) -> str:
    """Return one SHA-256 of all leaves' paths, dtypes, shapes and bytes, since storage alone does not detect flipped bits."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _host_array(like: Any) -> np.ndarray:
    """Return a placeholder that makes orbax read an array of this shape and dtype into host memory."""
    return np.empty(like.shape, like.dtype)


def _words(error: Exception) -> str:
    """Describe an orbax error in one line; for a disk error, return only the system's message."""
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
        if os.strerror(code) in str(error):
            return os.strerror(code)
    words = " ".join(str(error).split()).split(". See full")[0]
    return f"{type(error).__name__}: {words[:200]}"


def _steps(directory: Path | str) -> list[int]:
    """Return the steps of finished checkpoints, newest first."""
    if not Path(directory).is_dir():
        return []
    return sorted((int(path.name) for path in Path(directory).iterdir() if path.name.isdigit()), reverse=True)


def _manager(directory: Path | str, *, keep: int | None = None, background: bool = False) -> ocp.CheckpointManager:
    """Return an orbax manager of this process alone. Other processes may read too, but take no part in writing."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process-{me}")
    options = ocp.CheckpointManagerOptions(
        create=False,
        max_to_keep=keep,
        enable_async_checkpointing=background,
        multiprocessing_options=alone if jax.process_count() > 1 else ocp.options.MultiprocessingOptions(),
    )
    return ocp.CheckpointManager(Path(directory).absolute(), options=options)
