"""Handle Ctrl-C and SIGTERM at a moment when the training state is consistent."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Remembers a signal until `check` is called; a second one interrupts at once.

    While `guarded` is False, the first one also interrupts at once. It is still remembered, because Python may drop the
    exception if the signal arrives in a destructor or a garbage collection callback.

    Args:
        previous: handlers by signal number, called while `guarded` is False.
    """

    def __init__(self, previous: Mapping[int, Any]) -> None:
        self.guarded = False
        self._previous = previous
        self._signal: int | None = None

    @property
    def pending(self) -> bool:
        """Whether a signal waits for `check`."""
        return self._signal is not None

    def _handle(self, number, frame) -> None:
        is_second, self._signal = self.pending, number
        if not self.guarded and callable(self._previous[number]):
            self._previous[number](number, frame)
        elif is_second or not self.guarded:
            _interrupt(number)

    def check(self) -> None:
        """Raise KeyboardInterrupt, or SystemExit(143) for SIGTERM, if a signal is pending."""
        if self._signal is not None:
            number, self._signal = self._signal, None
            _interrupt(number)


def _interrupt(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[Interrupts]:
    """Handle SIGINT and SIGTERM while the context is open, except a signal that is ignored (nohup).

    Outside the main thread this does nothing, because Python delivers no signals there.
    """
    previous: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}
    interrupts = Interrupts(previous)
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    taken = [number for number, handler in previous.items() if handler != signal.SIG_IGN]
    for number in taken:
        signal.signal(number, interrupts._handle)
    try:
        yield interrupts
    finally:
        for number in taken:
            signal.signal(number, previous[number])
