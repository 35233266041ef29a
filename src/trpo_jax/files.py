"""Atomic writing of text files."""

import os
from pathlib import Path

NEW = ".new"
"""Suffix of a file's name while it is being written."""


def write_whole(path: Path | str, text: str) -> None:
    """Write a text file atomically: it holds either the old text or the new. If OSError is raised, the old file stays."""
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
