"""The same training on eight devices and on one: run time of the same total work.

    python benchmarks/devices.py [--environments ant] [--devices 8] [--rounds 5] [--json FILE]

Where there are fewer devices, the processor is made to look like so many: that shows what dividing the work costs, on cores
that it cannot be divided among. Each count has a process of its own, since one that shows many devices runs also a single
one of them more slowly; the processes take turns, and the one whose turn it is not waits.
"""

import contextlib
import dataclasses
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import tyro

import report
from throughput import Training
from trpo_jax import make_trpo
from trpo_jax.execution.devices import show_cpu_devices
from trpo_jax.training.run_config import starting_config


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure run time on several devices over run time on one."""

    environments: tuple[str, ...] = ("ant", "hopper")
    """Brax environments, with the settings that ship for them."""
    devices: int = 8
    """Devices to spread environments over."""
    rounds: int = 5
    """Timed rounds of both."""
    iterations: int = 5
    """Iterations a round."""
    json: str | None = None
    """Where to write the result."""
    serve: bool = False
    """Be one of the processes: train the first environment on all devices, a round for every line of standard input."""


def main(arguments: Arguments) -> None:
    show_cpu_devices(arguments.devices)
    if arguments.serve:
        serve(arguments)
        return
    rows = [measure(name, arguments) for name in arguments.environments]
    report.publish(f"{arguments.devices} devices against one", rows, arguments.json)


def measure(name: str, arguments: Arguments) -> dict:
    with worker(name, 1, arguments) as one, worker(name, arguments.devices, arguments) as several:
        rounds = [(one(), several()) for _ in range(arguments.rounds + 1)][1:]  # the first warms up
    alone, spread = zip(*rounds, strict=True)
    return {
        "environment": name,
        "one device, ms an iteration": statistics.median(alone) / arguments.iterations * 1e3,
        **report.ratio_columns(spread, alone),
    }


@contextlib.contextmanager
def worker(name: str, devices: int, arguments: Arguments) -> Iterator:
    """Start a process that trains on so many devices; give a function that lets it train a round and returns its seconds."""
    options = {"environments": name, "devices": devices, "iterations": arguments.iterations}
    command = [sys.executable, str(Path(__file__)), "--serve"]
    command += [str(word) for option, value in options.items() for word in (f"--{option}", value)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout

        def run() -> float:
            print(file=process.stdin, flush=True)
            return float(process.stdout.readline())

        yield run
        process.stdin.close()


def serve(arguments: Arguments) -> None:
    name = arguments.environments[0]
    trpo = make_trpo(name, starting_config(name).agent)
    training = Training(trpo, arguments.iterations, jax.devices()[: arguments.devices])
    for _ in sys.stdin:
        start = time.perf_counter()
        jax.block_until_ready(training())
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
