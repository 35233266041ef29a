"""Starts `trpo-jax`. It is outside the package, whose import takes seconds in which Ctrl-C would print a traceback."""

import os
import signal


def main() -> None:
    """Run the command line and exit. Until a command handles Ctrl-C itself, Ctrl-C ends the process at once."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as in a shell's background job
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from trpo_jax.cli.main import main

    main()


if __name__ == "__main__":
    main()
