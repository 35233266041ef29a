"""Saving and loading what was trained, by orbax; nothing that is loaded can run code."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from trpo_jax.training.inference import Params


class CheckpointError(Exception):
    """Report a checkpoint that is missing, damaged, or made for other networks."""


def save_params(directory: Path | str, step: int, params: Params) -> None:
    """Write `directory/step` atomically; a checkpoint of the same step is replaced, later ones stay."""
    with _manager(directory, create=True) as manager:
        if step in manager.all_steps():
            manager.delete(step)
        manager.save(step, args=ocp.args.StandardSave(params))
        manager.wait_until_finished()


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
            params = manager.restore(step, args=ocp.args.StandardRestore(jax.tree.map(_abstract, template)))
        except Exception as error:
            words = " ".join(str(error).split()).split(". See full")[0]
            failure = f"{type(error).__name__}: {words[:200]}"
    if failure:  # raised here, so as not to keep alive the half-finished reads that orbax's traceback holds
        raise CheckpointError(f"{Path(directory) / str(step)}: cannot be read ({failure})")
    return step, params


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _manager(directory: Path | str, *, create: bool) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(create=create, max_to_keep=None, enable_async_checkpointing=False)
    return ocp.CheckpointManager(Path(directory).absolute(), options=options)
