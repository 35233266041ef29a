"""Time from `trpo-jax train` to the first finished update: cold, and again with the compilation cache that it left.

    python benchmarks/startup.py [--environment ant] [--rounds 3] [--json FILE]

Each start is a process of its own; each round has a new, empty cache folder.
"""

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro

import report


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure cold and warm starts."""

    environment: str = "ant"
    """Brax environment."""
    rounds: int = 3
    """Pairs of a cold and a warm start."""
    json: str | None = None
    """Where to write the result."""


def main(arguments: Arguments) -> None:
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name in seconds:
                seconds[name].append(seconds_to_first_update(arguments.environment, Path(folder), name))
    ratio = report.ratio(seconds["warm"], seconds["cold"])
    row = {
        "environment": arguments.environment,
        "cold, s": statistics.median(seconds["cold"]),
        "warm, s": statistics.median(seconds["warm"]),
        "ratio": ratio["median"],
        "ratio min": ratio["min"],
        "ratio max": ratio["max"],
    }
    report.publish("start to first update", [row], arguments.json)


def seconds_to_first_update(environment: str, folder: Path, name: str) -> float:
    """Start a training with a cache in `folder` and stop it once its first line of metrics is there."""
    run_dir = folder / name
    variables = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    variables["XDG_CACHE_HOME"] = str(folder / "cache")
    command = [sys.executable, "-m", "trpo_jax", "train", environment, "--run-dir", str(run_dir)]
    start = time.perf_counter()
    process = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL)
    metrics = run_dir / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        if process.poll() is not None:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode} before its first update")
        time.sleep(0.02)
    elapsed = time.perf_counter() - start
    process.kill()
    process.wait()
    return elapsed


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
