"""Ctrl-C at a moment when the training state is whole."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Interrupts:
    """Remembers a Ctrl-C until `check` is called; a second one, or one while not `guarded`, interrupts at once."""

    def __init__(self) -> None:
        self.guarded = False
        self.pending = False

    def _handle(self, signum, frame) -> None:
        if self.pending or not self.guarded:
            raise KeyboardInterrupt
        self.pending = True

    def check(self) -> None:
        """Raise KeyboardInterrupt if one is pending."""
        if self.pending:
            self.pending = False
            raise KeyboardInterrupt


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[Interrupts]:
    """Take over SIGINT for the duration; outside the main thread, where Python delivers no signals, do nothing."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    previous = signal.signal(signal.SIGINT, interrupts._handle)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, previous)
