"""Runs packed into one program against the same runs one after another, each in a process of its own.

    python benchmarks/packing.py [--environment inverted_pendulum] [--runs 16] [--rounds 2] [--json FILE]

Both start from an empty compilation cache; of the separate processes all but the first find their programs there. The whole
time counts, from the start of a process to its end: imports, compilation, training, evaluation, files.
"""

import csv
import dataclasses
import json
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
    """Measure what packing saves."""

    environment: str = "inverted_pendulum"
    """Brax environment, trained with the library's defaults."""
    runs: int = 16
    """Seeds, one a run."""
    num_timesteps: int = 262_144
    """Environment steps of each run."""
    rounds: int = 2
    """Rounds, each of both."""
    json: str | None = None
    """Where to write the result."""


def main(arguments: Arguments) -> None:
    seconds: dict[str, list[float]] = {"packed": [], "separate": []}
    returns: dict[str, list[float]] = {}
    ways = {"packed": packed, "separate": separate}
    for number in range(arguments.rounds):
        for name in list(ways)[:: (-1) ** number]:  # now the one, now the other goes first
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                returns[name] = ways[name](Path(folder), arguments)
                seconds[name].append(time.perf_counter() - start)
        print({name: round(values[-1], 1) for name, values in seconds.items()}, flush=True)
    row = {
        "environment": arguments.environment,
        "runs": arguments.runs,
        "steps of each": arguments.num_timesteps,
        "packed, s": statistics.median(seconds["packed"]),
        "separate, s": statistics.median(seconds["separate"]),
        **report.ratio_columns(seconds["packed"], seconds["separate"]),
        "packed return": statistics.mean(returns["packed"]),
        "separate return": statistics.mean(returns["separate"]),
    }
    report.publish("runs packed into one program, against a process each", [row], arguments.json)


def packed(folder: Path, arguments: Arguments) -> list[float]:
    """Train all runs in a sweep; return their returns."""
    settings = defaults(folder, arguments)
    text = f'environments = ["{settings}"]\nseeds = {arguments.runs}\nnum_timesteps = {arguments.num_timesteps}\n'
    (folder / "sweep.toml").write_text(text)
    run(folder, "sweep", str(folder / "sweep.toml"), "--sweep-dir", str(folder / "sweep"))
    with (folder / "sweep" / "results.csv").open(newline="") as file:
        return [float(row["return"]) for row in csv.DictReader(file)]


def separate(folder: Path, arguments: Arguments) -> list[float]:
    """Train the same runs one after another; return their returns."""
    options = [str(defaults(folder, arguments)), "--num-timesteps", str(arguments.num_timesteps)]
    returns = []
    for seed in range(arguments.runs):
        run(folder, "train", *options, "--seed", str(seed), "--run-dir", str(folder / str(seed)))
        last = (folder / str(seed) / "metrics.jsonl").read_text().splitlines()[-1]
        returns.append(json.loads(last)["eval/episode_reward"])
    return returns


def defaults(folder: Path, arguments: Arguments) -> Path:
    """Write a configuration file that says nothing but the environment."""
    file = folder / "defaults.toml"
    file.write_text(f'environment = "{arguments.environment}"\n')
    return file


def run(folder: Path, *command: str) -> None:
    """Run a command of `trpo-jax` with a compilation cache in the folder."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    subprocess.run([sys.executable, "-m", "trpo_jax", *command], env=environment, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
