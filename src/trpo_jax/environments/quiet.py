"""Silence around simulators whose messages help no one here. Imports MuJoCo, so only simulators' adapters import this."""

import contextlib
import io
import warnings
from collections.abc import Iterator

with warnings.catch_warnings(action="ignore"):
    import mujoco


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
    """Keep back what simulators say while they are imported: missing optional parts, deprecations of dependencies."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        yield


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep back what is said while a model is loaded; MuJoCo would also write a MUJOCO_LOG.TXT."""
    previous = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Brax System")
            yield
    finally:
        mujoco.set_mju_user_warning(previous)
