"""The file of results: rows that several processes add, one whole row at a time."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

Row = dict[str, Any]

LEFT_OUT, FAILED = "left out", "failed"
"""Keys of a row that says why a unit was not measured."""


def read(path: Path) -> dict[str, Any]:
    """Return what a file holds, {"where": …, "rows": […]}; where it is missing, no rows.

    Raises:
        SystemExit: a file of another kind.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {"where": dict(record["where"]), "rows": list(record["rows"])}
    except FileNotFoundError:
        return {"where": {}, "rows": []}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SystemExit(f"{path} holds no result of a benchmark ({type(error).__name__}); name another file") from None


@contextlib.contextmanager
def changed(path: Path) -> Iterator[dict[str, Any]]:
    """Give what a file holds, to be changed, and write it back in one move. Other processes wait.

    A process that is killed in between leaves the file as it was, and the lock free.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        record = read(path)
        yield record
        # Not by the package's `write_whole`: importing it imports jax, which the process that starts the parts must not.
        new = path.with_name(path.name + ".new")
        with new.open("w", encoding="utf-8") as file:
            file.write(json.dumps(record, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)


def begin(path: Path, *, resume: bool, started: str) -> int:
    """Note in a file that a command begins, and return its number, from 1 on; without `resume` the file is emptied."""
    with changed(path) as record:
        if not resume:
            record["rows"], record["where"] = [], {}
        commands = record["where"].setdefault("commands", [])
        commands.append(started)
        return len(commands)


def describe(path: Path, where: dict[str, Any]) -> None:
    """Say in a file where its rows come from, unless it does already."""
    with changed(path) as record:
        record["where"] = where | record["where"]


def add(path: Path, row: Row) -> None:
    """Add the row of a unit, in place of an earlier one that says why the unit was not measured.

    What was measured stays. So does a failure where the unit was merely left out afterwards, by a command that it then names.
    """
    with changed(path) as record:
        earlier = find(record["rows"], row["part"], row["unit"])
        if earlier is not None and is_measured(earlier):
            return
        if earlier is not None and FAILED in earlier and LEFT_OUT in row:
            earlier["command"] = row["command"]
            return
        record["rows"] = [each for each in record["rows"] if each is not earlier] + [row]


def find(rows: list[Row], part: str, unit: str) -> Row | None:
    """Return the row of a unit, if there is one."""
    return next((row for row in rows if (row["part"], row["unit"]) == (part, unit)), None)


def is_measured(row: Row) -> bool:
    return LEFT_OUT not in row and FAILED not in row
