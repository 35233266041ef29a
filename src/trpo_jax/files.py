"""Writing files whole, and saying what stands in the way."""

import os
from pathlib import Path

NEW = ".new"
"""What a file's name ends with while it is written."""


def write_whole(path: Path | str, text: str) -> None:
    """Put a text in a file's place in one move, so that the file is never torn. Raises OSError; the file then stays."""
    path = Path(path)
    new = path.with_name(path.name + NEW)
    try:
        with new.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
