"""Contexts for importing simulators and loading models. This imports MuJoCo, so only adapters import it."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from unittest import mock

import jax

with warnings.catch_warnings(action="ignore"):
    import mujoco


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
    """Suppress the messages of simulators on import: missing optional parts, deprecations of dependencies."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        yield


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Load models onto this process's devices and suppress their messages, also those that MuJoCo logs to MUJOCO_LOG.TXT."""
    previous = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Brax System")
            with _own_devices():
                yield
    finally:
        mujoco.set_mju_user_warning(previous)


@contextlib.contextmanager
def _own_devices() -> Iterator[None]:
    """Make `jax.devices()` return only this process's devices.

    MJX puts the models it loads on the first device of all processes, which the other processes cannot read.
    """
    if jax.process_count() == 1:
        yield
        return
    with mock.patch.object(jax, "devices", lambda backend=None: jax.local_devices(backend=backend)):
        yield
