"""Runs packed into one program against the same runs one after another, each in a process of its own.

    python benchmarks/packing.py [--environment inverted_pendulum] [--runs 16] [--rounds 1] [--json FILE]

Both start from an empty compilation cache; of the separate processes all but the first find their programs there. The whole
time counts, from the start of a process to its end: imports, compilation, training, evaluation, files.
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro

import report


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure what packing saves."""

    environment: str = "inverted_pendulum"
    """Brax environment, with the settings that ship for it, if any."""
    runs: int = 16
    """Seeds, one a run."""
    num_timesteps: int = 262_144
    """Environment steps of each run."""
    rounds: int = 1
    """Rounds, each of both."""
    json: str | None = None
    """Where to write the result."""


def main(arguments: Arguments) -> None:
    seconds: dict[str, list[float]] = {"packed": [], "separate": []}
    for _ in range(arguments.rounds):
        seconds["packed"].append(packed(arguments))
        seconds["separate"].append(separate(arguments))
        print({name: round(values[-1], 1) for name, values in seconds.items()}, flush=True)
    ratio = report.ratio(seconds["packed"], seconds["separate"])
    row = {
        "environment": arguments.environment,
        "runs": arguments.runs,
        "steps of each": arguments.num_timesteps,
        "packed, s": min(seconds["packed"]),
        "separate, s": min(seconds["separate"]),
        "ratio": ratio["median"],
        "ratio min": ratio["min"],
        "ratio max": ratio["max"],
    }
    report.publish("runs packed into one program, against a process each", [row], arguments.json)


def packed(arguments: Arguments) -> float:
    """Return how long a sweep of all runs takes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sweep.toml"
        file.write_text(
            f'environments = ["{arguments.environment}"]\nseeds = {arguments.runs}\nnum_timesteps = {arguments.num_timesteps}\n'
        )
        return run(folder, "sweep", str(file), "--sweep-dir", f"{folder}/sweep")


def separate(arguments: Arguments) -> float:
    """Return how long the same runs take one after another."""
    with tempfile.TemporaryDirectory() as folder:
        options = [arguments.environment, "--num-timesteps", str(arguments.num_timesteps)]
        seeds = range(arguments.runs)
        return sum(run(folder, "train", *options, "--seed", str(seed), "--run-dir", f"{folder}/{seed}") for seed in seeds)


def run(cache: str, *command: str) -> float:
    """Run a command of `trpo-jax` with a compilation cache of its own; return the seconds it took."""
    environment = os.environ | {"XDG_CACHE_HOME": cache}
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "trpo_jax", *command], env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
