"""What surrounds the import of simulators and the loading of models. Imports MuJoCo, so only adapters import this."""

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
    """Keep back what simulators say while they are imported: missing optional parts, deprecations of dependencies."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        yield


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Load models onto this process's devices, and keep back what is said; MuJoCo would also write a MUJOCO_LOG.TXT."""
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
    """Have `jax.devices()` show this process's devices only.

    MJX puts what it loads on the first one of all processes, where no other process can read it.
    """
    if jax.process_count() == 1:
        yield
        return
    with mock.patch.object(jax, "devices", lambda backend=None: jax.local_devices(backend=backend)):
        yield
