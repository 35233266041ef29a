"""The same training on eight devices and on one: run time of the same total work.

    python benchmarks/devices.py [--environments ant] [--devices 8] [--rounds 5] [--json FILE]

Where there are fewer devices, the processor is made to look like so many: that shows what dividing the work costs, on cores
that it cannot be divided among. Programs alternate in one process.
"""

import dataclasses
import statistics

import jax
import tyro

import report
from throughput import Training
from trpo_jax import TRPOConfig, make_trpo
from trpo_jax.training.run_config import read_run_config, shipped_config


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure run time on several devices over run time on one."""

    environments: tuple[str, ...] = ("hopper", "ant")
    """Brax environments, with the settings that ship for them."""
    devices: int = 8
    """Devices to spread environments over."""
    rounds: int = 5
    """Timed rounds of both."""
    iterations: int = 5
    """Iterations a round."""
    json: str | None = None
    """Where to write the result."""


def main(arguments: Arguments) -> None:
    jax.config.update("jax_num_cpu_devices", arguments.devices)
    rows = [measure(name, arguments) for name in arguments.environments]
    report.publish(f"{arguments.devices} devices against one", rows, arguments.json)


def measure(name: str, arguments: Arguments) -> dict:
    path = shipped_config(name)
    trpo = make_trpo(name, read_run_config(path).trpo if path else TRPOConfig())
    runs = {count: Training(trpo, arguments.iterations, jax.devices()[:count]) for count in (1, arguments.devices)}
    seconds = report.alternate({str(count): run for count, run in runs.items()}, rounds=arguments.rounds)
    ratio = report.ratio(seconds[str(arguments.devices)], seconds["1"])
    return {
        "environment": name,
        "one device, ms an iteration": statistics.median(seconds["1"]) / arguments.iterations * 1e3,
        "ratio": ratio["median"],
        "ratio min": ratio["min"],
        "ratio max": ratio["max"],
    }


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
