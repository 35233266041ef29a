"""What every benchmark needs: alternating timings, a table, and JSON that says where it was measured."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import rich.console
import rich.table

from trpo_jax.files import write_whole
from trpo_jax.versions import version_of

UNKNOWN = "unknown"


def alternate(competitors: Mapping[str, Callable[[], Any]], *, rounds: int) -> dict[str, list[float]]:
    """Time functions in turn, A B A B …, each once a round; return seconds by name.

    Before each timed call comes one that is not timed: the first compiles, and all let the caches fill and the threads of
    the competitor before come to rest (those of another library spin on for milliseconds).
    """
    seconds: dict[str, list[float]] = {name: [] for name in competitors}
    for _ in range(rounds):
        for name, run in competitors.items():
            jax.block_until_ready(run())
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Return median, minimum and maximum of the ratios round by round."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def ratio_columns(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Return the entries of a table's row that say `ratio`."""
    found = ratio(numerator, denominator)
    return {"ratio": found["median"], "ratio min": found["min"], "ratio max": found["max"]}


def publish(title: str, rows: Sequence[Mapping[str, Any]], path: str | None) -> None:
    """Print rows as a table and, given a path, write them as JSON."""
    show(title, rows)
    if path:
        save(path, rows)


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table; nothing where there are none. What a row lacks stays empty."""
    if not rows:
        return
    table = rich.table.Table(title=title)
    columns = {name: [row.get(name, "") for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    for name, values in columns.items():
        table.add_column(name, justify="left" if all(isinstance(value, str) for value in values) else "right")
    for values in zip(*columns.values(), strict=True):
        table.add_row(*(f"{value:,.4g}" if isinstance(value, float) else str(value) for value in values))
    rich.console.Console(width=110).print(table)


def save(path: Path | str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSON with device, versions and commit, in one move: an earlier file stays whole until then."""
    record = {"where": describe_machine(), "rows": list(rows)}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(record, indent=2) + "\n")


def describe_machine() -> dict[str, Any]:
    """Return device, processor count, versions, and the commit of the checkout ("-dirty" where files differ from it).

    What cannot be found out, since git or a package's metadata is missing, is "unknown".
    """
    return {
        "device": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
        "num_processors": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in ("jax", "jaxlib", "flax", "optax", "brax", "mujoco", "trpo-jax")},
        "commit": describe_commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def describe_commit() -> str:
    line = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(line, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    except OSError:  # no git
        return UNKNOWN
    return found.stdout.strip() or UNKNOWN
