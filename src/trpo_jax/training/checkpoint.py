"""Saving and loading a training, by orbax; nothing that is loaded can run code."""

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
    """A training at one moment. Arrays lie on the host."""

    step: int
    """Environment steps trained."""
    params: Params
    """What acts and predicts; by itself, so that it can be read without the rest."""
    state: Any
    """All that one iteration hands to the next, a pytree of numpy arrays; None where nothing is to go on."""
    record: dict[str, Any]
    """What JSON can hold: the configuration, and what the loop has counted."""


class Checkpoints:
    """Writes checkpoints to `directory/STEP`, in the background, each whole or not at all; the newest `keep` stay."""

    def __init__(self, directory: Path | str, *, keep: int | None = None):
        self.directory = Path(directory)
        self._last: int | None = None
        with self._clear_errors():
            self.directory.mkdir(parents=True, exist_ok=True)
            self._manager = _manager(directory, keep=keep, background=True)

    def save(self, checkpoint: Checkpoint) -> None:
        """Start to write a checkpoint, once the one before is written; one of the same step is replaced.

        Raises:
            CheckpointError: this one or the one before cannot be written (a full disk); earlier ones stay as they are.
        """
        step = checkpoint.step
        trees = {"params": checkpoint.params, "state": checkpoint.state}
        packed = {name: Packed.of(tree) for name, tree in trees.items() if tree is not None}
        record = checkpoint.record | {
            "layout": {name: each.layout for name, each in packed.items()},
            "digest": {name: _digest(each.arrays) for name, each in packed.items()},
        }
        # Few arrays in one item: what orbax does costs by the item and by the array, more than by the byte.
        items = ocp.args.Composite(
            arrays=ocp.args.PyTreeSave({name: each.arrays for name, each in packed.items()}),
            record=ocp.args.JsonSave(record),
        )
        with self._clear_errors():
            self._manager.wait_until_finished()
            if step in self._manager.all_steps():
                self._manager.delete(step)
            self._manager.save(step, args=items, force=True)  # orbax would else pass over a step before the newest
        self._last = step

    def wait(self) -> None:
        """Wait until all is written. Raises CheckpointError as `save`."""
        with self._clear_errors():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            kept = "" if self._last is None else "; earlier checkpoints are as they were"
            raise CheckpointError(f"{self.directory}: a checkpoint cannot be written ({_words(error)}){kept}") from None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None:
            self.wait()
        with contextlib.suppress(Exception):  # what went wrong has been said
            self._manager.close()


def save_params(directory: Path | str, step: int, params: Params) -> None:
    """Write parameters by themselves, as `load_params` reads them. Raises CheckpointError if they cannot be written."""
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(Checkpoint(step, params, None, {}))


def has_checkpoints(directory: Path | str) -> bool:
    """Tell whether a directory holds checkpoints."""
    return bool(_steps(directory))


def load_params(directory: Path | str, template: Params) -> tuple[int, Params]:
    """Return the parameters of the newest readable checkpoint of a directory as (step, params).

    Args:
        directory: where `Checkpoints` wrote.
        template: `Params` of arrays or `jax.ShapeDtypeStruct`; the structure, shapes and dtypes expected.

    Raises:
        CheckpointError: there is none, none can be read, or the newest does not fit the template.
    """
    checkpoint = load_checkpoint(directory, template)
    return checkpoint.step, checkpoint.params


def load_checkpoint(directory: Path | str, params: Params, state: Any = None, *, step: int | None = None) -> Checkpoint:
    """Return the newest readable checkpoint of a directory; warn of newer ones that cannot be read.

    Args:
        directory: where `Checkpoints` wrote.
        params: `Params` of arrays or `jax.ShapeDtypeStruct`: what is expected.
        state: the same for the state; None leaves it unread.
        step: only the checkpoint of this step will do.

    Raises:
        CheckpointError: there is none, none can be read, or the newest does not fit what is expected.
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
    # Raised here, so as not to keep alive the half-finished reads that orbax's tracebacks hold.
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
    """Return a checkpoint, or None and the reason why it cannot be had."""
    try:
        record = manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
        wanted = {"params": params} if state is None else {"params": params, "state": state}
        packed = {name: Packed.of(tree) for name, tree in wanted.items()}
        if not isinstance(record.get("layout"), dict):
            return None, "another version of trpo_jax has written it"
        for name, each in packed.items():
            if misfit := each.misfit(record["layout"][name], name):
                return None, misfit
        like = {name: jax.tree.map(_host_array, each.arrays) for name, each in packed.items()}
        arrays = manager.restore(step, args=ocp.args.Composite(arrays=ocp.args.PyTreeRestore(like, partial_restore=True)))[
            "arrays"
        ]
        for name in wanted:
            if _digest(arrays[name]) != record["digest"][name]:
                return None, f"the contents of its {name} are not those that were written"
        restored = {name: each.unpack(arrays[name], wanted[name]) for name, each in packed.items()}
        return Checkpoint(step, restored["params"], restored.get("state"), record), ""
    except Exception as error:
        return None, _words(error)


def _digest(tree: Any) -> str:
    """Return the SHA-256 of every leaf's place, type and bytes: storage alone does not notice a flipped bit."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _host_array(like: Any) -> np.ndarray:
    """Return what tells orbax to read an array of this kind into the host's memory."""
    return np.empty(like.shape, like.dtype)


def _words(error: Exception) -> str:
    """Put an error of orbax's into one line; of what the disk said only that."""
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
    """Return orbax's manager, of this process alone: others may read too, but have no part in writing."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process-{me}")
    options = ocp.CheckpointManagerOptions(
        create=False,
        max_to_keep=keep,
        enable_async_checkpointing=background,
        multiprocessing_options=alone if jax.process_count() > 1 else ocp.options.MultiprocessingOptions(),
    )
    return ocp.CheckpointManager(Path(directory).absolute(), options=options)
