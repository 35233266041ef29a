"""Saving and loading what was trained, by orbax; nothing that is loaded can run code."""

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from trpo_jax.training.inference import Params


class CheckpointError(Exception):
    """Report a checkpoint that is missing, damaged, or made for other networks."""


def save_params(directory: Path | str, step: int, params: Params) -> None:
    """Write `directory/step` atomically; a checkpoint of the same step is replaced, others stay."""
    with _manager(directory, create=True) as manager:
        if step in manager.all_steps():
            manager.delete(step)
        items = ocp.args.Composite(params=ocp.args.StandardSave(params), digest=ocp.args.JsonSave({"sha256": _digest(params)}))
        manager.save(step, args=items, force=True)  # orbax would else pass over a step before the newest
        manager.wait_until_finished()


def has_checkpoints(directory: Path | str) -> bool:
    """Tell whether `save_params` has written to a directory."""
    if not Path(directory).is_dir():
        return False
    with _manager(directory, create=False) as manager:
        return bool(manager.all_steps())


def load_params(directory: Path | str, template: Params) -> tuple[int, Params]:
    """Return the newest checkpoint of a directory as (step, params).

    Args:
        directory: where `save_params` wrote.
        template: `Params` of arrays or `jax.ShapeDtypeStruct`; the structure, shapes and dtypes expected.

    Raises:
        CheckpointError: there is none, it cannot be read, or it does not fit the template.
    """
    if not Path(directory).is_dir():
        raise CheckpointError(f"{directory}: no checkpoint here")
    with _manager(directory, create=False) as manager:
        step = manager.latest_step()
        if step is None:
            raise CheckpointError(f"{directory}: no checkpoint here")
        failure = None
        try:
            target = ocp.args.StandardRestore(jax.tree.map(_abstract, template))
            saved = manager.restore(step, args=ocp.args.Composite(params=target, digest=ocp.args.JsonRestore()))
            params = saved["params"]
            if _digest(params) != saved["digest"]["sha256"]:
                failure = "its contents are not those that were written"
        except Exception as error:
            words = " ".join(str(error).split()).split(". See full")[0]
            failure = f"{type(error).__name__}: {words[:200]}"
    if failure:  # raised here, so as not to keep alive the half-finished reads that orbax's traceback holds
        raise CheckpointError(f"{Path(directory) / str(step)}: cannot be read ({failure})")
    return step, params


def _digest(params: Params) -> str:
    """Return the SHA-256 of every leaf's place, type and bytes: storage alone does not notice a flipped bit."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(params)):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _manager(directory: Path | str, *, create: bool) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(create=create, max_to_keep=None, enable_async_checkpointing=False)
    return ocp.CheckpointManager(Path(directory).absolute(), options=options)
