"""Time from `trpo-jax train` to the first finished update: cold, and again with the compilation cache that it left.

    python benchmarks/startup.py [--environment ant] [--rounds 3] [--json FILE]

Each start is a process of its own; each round has a new, empty cache folder. The split of a cold start comes from a third
process, which calls `train` itself and listens to what JAX tells of its own tracing and compiling.
"""

import contextlib
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


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure cold and warm starts."""

    environment: str = "ant"
    """Brax environment."""
    rounds: int = 3
    """Pairs of a cold and a warm start."""
    split: bool = False
    """Only take one cold start in this process, and print its split as JSON."""
    json: str | None = None
    """Where to write the result."""


def main(arguments: Arguments) -> None:
    if arguments.split:
        print(json.dumps(split_of_a_start(arguments.environment)))
        return
    import report  # imports jax, whose time belongs to the split

    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name in seconds:
                seconds[name].append(seconds_to_first_update(arguments.environment, Path(folder), name))
    row = {
        "environment": arguments.environment,
        "cold, s": statistics.median(seconds["cold"]),
        "warm, s": statistics.median(seconds["warm"]),
        **report.ratio_columns(seconds["warm"], seconds["cold"]),
    } | median_split(arguments)
    report.publish("start to first update", [row], arguments.json)


def median_split(arguments: Arguments) -> dict[str, float]:
    """Return the medians of what cold starts in processes of their own spend their time on."""
    splits = []
    for _ in range(arguments.rounds):
        command = [sys.executable, __file__, "--environment", arguments.environment, "--split"]
        variables = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
        result = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
        splits.append(json.loads(result.stdout.splitlines()[-1]))
    return {f"{name}, s": statistics.median(split[name] for split in splits) for name in splits[0]}


class _FirstUpdate(Exception):
    """Ends the training after its first update."""


def _stop(step: int, metrics: dict[str, float]) -> None:
    raise _FirstUpdate


def split_of_a_start(environment: str) -> dict[str, float]:
    """Start a training; return seconds spent importing, loading the environment, tracing, compiling, and otherwise.

    Programs are compiled side by side, the first while others are traced: "compile" is what was waited for after that.
    """
    start = time.perf_counter()
    import jax

    from trpo_jax.execution.devices import show_cores_as_devices
    from trpo_jax.runs.run import resolve, run_environment
    from trpo_jax.training.run_config import starting_config
    from trpo_jax.training.train import train

    spans: dict[str, list[tuple[float, float]]] = {"trace": [], "compile": []}

    def listen(event: str, duration: float, **_) -> None:
        if event.startswith("/jax/core/compile/"):
            now = time.perf_counter()
            spans["compile" if "backend_compile" in event else "trace"].append((now - duration, now))

    jax.monitoring.register_event_duration_secs_listener(listen)
    imported = time.perf_counter()
    config = starting_config(environment)
    show_cores_as_devices(config.agent.num_envs)
    config = resolve(config)
    simulator = run_environment(config)
    loaded = time.perf_counter()
    with contextlib.suppress(_FirstUpdate):
        train(simulator, config.num_timesteps, config=config.agent, num_eval_envs=0, iteration_fn=_stop)
    total = time.perf_counter() - start
    later = {name: [span for span in each if span[0] >= loaded] for name, each in spans.items()}
    trace = covered(later["trace"])
    parts = {
        "import": imported - start,
        "environment": loaded - imported,
        "trace": trace,
        "compile": covered(later["trace"] + later["compile"]) - trace,
    }
    return parts | {"other": total - sum(parts.values())}


def covered(spans: list[tuple[float, float]]) -> float:
    """Return the length of what spans of time cover together."""
    length, end = 0.0, float("-inf")
    for first, last in sorted(spans):
        length += max(0.0, last - max(first, end))
        end = max(end, last)
    return length


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
