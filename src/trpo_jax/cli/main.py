"""`trpo-jax`: find the command, run it, turn errors into one line and an exit code."""

import errno
import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trpo_jax.cli.startup import complain, configure_process, end_at_once, prepare_streams

USAGE = """usage: trpo-jax COMMAND …

Trust Region Policy Optimization in JAX.

commands:
  train ENV|CONFIG.toml   train a policy; writes a run folder (--resume RUN continues one)
  evaluate RUN            play episodes with the policy of a run folder
  plot RUN [RUN …]        draw learning curves of run folders
  render RUN              show an episode with the policy of a run folder
  sweep SWEEP.toml        train environments × settings × seeds, many runs in one program
  report DIR              make tables and plots of a sweep's folder
  compare ENV [ENV …]     train with several algorithms and report their returns

`trpo-jax COMMAND --help` explains every option of a command.
"""

COMMANDS = ("train", "evaluate", "plot", "render", "sweep", "report", "compare")
"""Each command is the function `NAME_command` of the module NAME."""

USAGE_ERROR = 2
INTERRUPTED = 130
TERMINATED = 143


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Codes: 0 success; 1 a program of a sweep failed; 2 bad input, no device, too little memory, a full disk; 130 after Ctrl-C;
    143 after SIGTERM.
    """
    prepare_streams()
    unprintable = None
    try:
        code: Any = run(list(sys.argv[1:] if arguments is None else arguments))
    except SystemExit as stop:
        code = stop.code
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EPIPE):
            raise
        code, unprintable = 1, error
    unprintable = unprintable or _unprintable()
    if unprintable is not None:
        sys.stdout = None  # else Python tries once more and prints a message of its own
        if not isinstance(unprintable, BrokenPipeError):  # no one reads, so there is no one to tell
            complain(f"error: {unprintable.strerror}")
            code = USAGE_ERROR
    if code in (INTERRUPTED, TERMINATED) and not _has_others():
        sys.stderr.flush()
        end_at_once(code)
    sys.exit(code)


def _unprintable() -> OSError | None:
    """Return the error if the printed lines cannot be written, else None."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    return None


def _has_others() -> bool:
    """Tell whether this is one of several processes, which disconnect from each other when Python ends."""
    import jax

    return jax.distributed.is_initialized()


def run(arguments: list[str]) -> int:
    """Run the command line and return the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else USAGE_ERROR
    if arguments[0] == "--version":
        from trpo_jax import __version__

        print(__version__)
        return 0
    command, rest = arguments[0], arguments[1:]
    try:
        configure_process()
        return _command(command)(rest)
    except KeyboardInterrupt:
        return INTERRUPTED
    except _bad_input() as error:
        complain(f"error: {error}", command)
        return USAGE_ERROR
    except (RuntimeError, AssertionError) as error:
        trouble = _device_trouble(error)
        if trouble is None:
            raise
        complain(f"error: {trouble}", command)
        return USAGE_ERROR
    except OSError as error:  # a full disk, a folder that went away
        if isinstance(error, BrokenPipeError) or error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        complain(f"error: {where}{error.strerror}", command)
        return USAGE_ERROR


def _command(name: str) -> Callable[[list[str]], int]:
    """Return a command by name; its module is imported only now."""
    from trpo_jax.config import unknown_name
    from trpo_jax.errors import ConfigError

    if name not in COMMANDS:
        raise ConfigError("command", name, unknown_name("command", name, list(COMMANDS)))
    return getattr(importlib.import_module(f"trpo_jax.cli.{name}"), f"{name}_command")


def _device_trouble(error: Exception) -> str | None:
    """Explain JAX's error about devices in one sentence; return None for any other error."""
    import jax

    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
        return (
            "the device is out of memory; fewer environments (--num-envs), shorter unrolls (--unroll-length) or, "
            "with TRPO, more microbatches (--trust-region.num-microbatches) need less"
        )
    frames = traceback.extract_tb(error.__traceback__)
    if frames and Path(frames[-1].filename).name == "xla_bridge.py":
        platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
        reason = str(error).partition("\n")[0] or "its driver or its libraries are missing"
        return (
            f"JAX_PLATFORMS: got {platforms!r}, allowed: platforms that JAX can start here ({reason}); "
            'a GPU needs NVIDIA\'s driver and pip install "trpo-jax[cuda13]"'
        )
    return None


def _bad_input() -> tuple[type[Exception], ...]:
    from trpo_jax.cli.arguments import ArgumentError
    from trpo_jax.errors import CheckpointError, ConfigError, FileError, MissingPackageError, SimulatorError

    return ConfigError, MissingPackageError, ArgumentError, CheckpointError, FileError, SimulatorError
