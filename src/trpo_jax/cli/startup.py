"""Setup of the command line's process: streams, the compilation cache, quiet libraries, and Ctrl-C."""

import contextlib
import io
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn


def prepare_streams() -> None:
    """Make stdout and stderr accept every character, and replace them if they were closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open to the end
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def complain(line: str, command: str = "") -> None:
    """Print a line to stderr, after the command's name. If stderr fails, print nothing more."""
    try:
        print(f"trpo-jax {command}".rstrip() + f": {line}", file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open to the end


def configure_process() -> None:
    """Switch on JAX's persistent compilation cache and quiet the libraries underneath."""
    os.environ.setdefault(
        "TF_CPP_MIN_LOG_LEVEL", "2"
    )  # hides XLA's remarks on cached CPU code; must be set before jax is imported
    from trpo_jax.execution.compilation_cache import enable_compilation_cache

    enable_compilation_cache()
    warnings.showwarning = _one_line
    logging.getLogger("absl").setLevel(logging.ERROR)


def end_at_once(code: int) -> NoReturn:
    """End the process without waiting for threads that compile; remove programs that they may have half written."""
    from trpo_jax.execution.compilation_cache import drop_newest_programs

    drop_newest_programs()
    os._exit(code)


@contextlib.contextmanager
def ended_by_ctrl_c(last_words: Callable[[], str], has_begun: Callable[[], bool]) -> Iterator[None]:
    """End the process at once at Ctrl-C, with some last words, until the work has begun.

    An exception could get lost: Python drops exceptions that are raised in a destructor or in a callback of its garbage
    collector, and JAX has such a callback.

    Args:
        last_words: returns the line to print.
        has_begun: returns whether the work has begun; Ctrl-C then raises KeyboardInterrupt instead.
    """

    def end(number: int, frame: Any) -> None:
        if has_begun():
            raise KeyboardInterrupt
        show_cursor = "\x1b[?25h" if sys.stdout.isatty() else ""  # a progress bar hides it
        with contextlib.suppress(OSError, ValueError):
            # Not by print, which Ctrl-C may have interrupted.
            os.write(_silence(sys.stdout.fileno()), f"{show_cursor}{last_words()}\n".encode())
        end_at_once(128 + number)

    with _at_ctrl_c(end):
        yield


def _silence(stream: int) -> int:
    """Lose all that threads still write to a file descriptor; return another one to the same file."""
    same_file = os.dup(stream)
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    return same_file


def raised_by_ctrl_c() -> contextlib.AbstractContextManager[None]:
    """Make Ctrl-C raise KeyboardInterrupt, so that the caller can clean up."""
    return _at_ctrl_c(signal.default_int_handler)


@contextlib.contextmanager
def _at_ctrl_c(handler: Callable[[int, Any], Any]) -> Iterator[None]:
    previous = signal.getsignal(signal.SIGINT)
    if previous is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _one_line(message, category, filename, lineno, file=None, line=None) -> None:
    """Show a warning like an error, without its line of code, which is not the user's."""
    complain(f"warning: {message}")
