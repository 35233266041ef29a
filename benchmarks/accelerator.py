"""What an accelerator makes of the benchmarks: one command, offline, under ten minutes.

    python benchmarks/accelerator.py [--minutes 9] [--json FILE]

Parts, each shown as a table and written to the file as soon as it is done:

- precision: conjugate gradients with and without TF32, as in precision.py.
- throughput: environment steps a second of the simulator alone with random actions, of training, and of Brax's PPO with its
  published settings (not in turns with the others); on one device and, where there are several, on all.
- shares: what part of an iteration rollout, policy step and critic fit take.
- time to return: as in time_to_return.py, one seed, PPO with its published settings; the file has the curves.

A part begins only if as much time is left as the longest of its kind so far took. What is left out or fails is written
down too, and the rest goes on.
"""

import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import tyro

import precision
import report
from brax_ppo import PUBLISHED, Settings, ppo_speed
from throughput import Simulator, Training
from time_to_return import OURS, PPO, Course, take
from trpo_jax import TRPOConfig, make_trpo
from trpo_jax.environments.brax import load_environment
from trpo_jax.training.pipeline import Pipeline
from trpo_jax.training.run_config import read_run_config, shipped_config

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure on an accelerator."""

    minutes: float = 9.0
    """After so long no part begins."""
    environments: tuple[str, ...] = ("ant", "humanoid")
    """Brax environments; the first is also the one of the time to return."""
    backends: tuple[str, ...] = ("spring", "mjx")
    """Brax's physics; the first is also the one of the time to return and the shares."""
    devices: tuple[int, ...] = ()
    """Counts of local devices to measure the throughput on; none: one, and all."""
    num_envs: int = 4096
    """Environments side by side, of all competitors."""
    unroll_length: int = 16
    """Steps each environment takes in an iteration of ours."""
    rounds: int = 4
    """Timed rounds."""
    iterations: int = 2
    """Iterations of ours a round."""
    target: float = 4500.0
    """Mean return that ends the run to a return."""
    num_timesteps: int = 50_000_000
    """Environment steps that end it too."""
    num_evals: int = 39
    """Evaluations in it, of 64 episodes each."""
    samples: int = 65_536
    """Batch size for the conjugate gradients."""
    hidden_size: int = 256
    """Units of each of the two hidden layers of their policy."""
    json: str | None = None
    """Where to write the result."""


class Recorder:
    """Runs parts until the time is up, and keeps what they measured."""

    def __init__(self, arguments: Arguments):
        self.path, self.rows = arguments.json, []
        self.deadline = time.perf_counter() + 60 * arguments.minutes
        self.longest: dict[str, float] = {}

    def part(self, kind: str, title: str, measure: Callable[..., list[Row]], *arguments: Any) -> None:
        """Run a part, show its rows, and write down everything so far."""
        start = time.perf_counter()
        if self.deadline - start < self.longest.get(kind, 0.0):
            rows = [{"left out": "no time"}]
        else:
            try:
                rows = measure(*arguments)
            except Exception as error:  # an accelerator is lent for minutes: what else can be measured shall be
                rows = [{"failed": f"{type(error).__name__}: {error}"[:500]}]
        took = time.perf_counter() - start
        self.longest[kind] = max(self.longest.get(kind, 0.0), took)
        report.show(title, [{name: value for name, value in row.items() if name != "curve"} for row in rows])
        self.rows += [{"part": kind, "title": title, "part took": took} | row for row in rows]
        if self.path:
            report.save(self.path, self.rows)


def main(arguments: Arguments) -> None:
    recorder = Recorder(arguments)
    sizes = {"samples": arguments.samples, "hidden_size": arguments.hidden_size, "rounds": arguments.rounds}
    recorder.part("precision", "conjugate gradients by precision", functools.partial(precision.measure, **sizes))
    counts = arguments.devices or sorted({1, jax.local_device_count()})
    pairs = [(environment, backend) for backend, environment in itertools.product(arguments.backends, arguments.environments)]
    for number, (environment, backend) in enumerate(pairs):
        for num_devices in counts:
            title = f"steps a second, {environment} ({backend}), devices: {num_devices}"
            recorder.part("throughput", title, measure_throughput, environment, backend, num_devices, arguments)
        if number == 0:  # before the slower simulators
            title = f"shares of an iteration, {environment} ({backend})"
            recorder.part("shares", title, measure_shares, environment, backend, arguments)
            for name in (OURS, PPO):
                title = f"{name}: {environment} ({backend}) to a return of {arguments.target:g}"
                recorder.part("time to return", title, measure_time_to_return, name, environment, backend, arguments)
    if failed := [row["title"] for row in recorder.rows if "failed" in row]:
        raise SystemExit(f"failed: {', '.join(failed)}")


def our_config(environment: str, arguments: Arguments) -> TRPOConfig:
    path = shipped_config(environment)
    config = read_run_config(path).trpo if path else TRPOConfig()
    return dataclasses.replace(config, num_envs=arguments.num_envs, unroll_length=arguments.unroll_length)


def ppo_settings(environment: str, arguments: Arguments) -> Settings:
    """Return the published settings, at the number of environments of all."""
    settings = PUBLISHED.get(environment, PUBLISHED["ant"])
    return {**settings, "num_envs": arguments.num_envs, "batch_size": arguments.num_envs // 2}  # published: half of them


def measure_throughput(environment: str, backend: str, num_devices: int, arguments: Arguments) -> list[Row]:
    config = our_config(environment, arguments)
    trpo = make_trpo(load_environment(environment, backend), config)
    training = Training(trpo, arguments.iterations, jax.local_devices()[:num_devices])
    simulator = Simulator(load_environment(environment, backend), config, arguments.iterations, num_devices)
    seconds = report.alternate({"training": training, "simulator": simulator}, rounds=arguments.rounds)
    steps = trpo.steps_per_iteration * arguments.iterations
    speed = report.ratio(seconds["simulator"], seconds["training"])
    options = {"rounds": arguments.rounds, "backend": backend, "num_devices": num_devices}
    ppo = ppo_speed(environment, ppo_settings(environment, arguments), **options)
    ours = steps / statistics.median(seconds["training"])
    return [
        {
            "environment": environment,
            "backend": backend,
            "devices": num_devices,
            "training": ours,
            "simulator": steps / statistics.median(seconds["simulator"]),
            "training ÷ simulator": speed["median"],
            "min": speed["min"],
            "max": speed["max"],
            "PPO": ppo,
            "training ÷ PPO": ours / ppo,
        }
    ]


def measure_shares(environment: str, backend: str, arguments: Arguments) -> list[Row]:
    """Time the stages of iterations one by one."""
    trpo = make_trpo(load_environment(environment, backend), our_config(environment, arguments))
    pipeline = Pipeline(trpo.iteration, jax.local_devices()[:1])
    state, _ = pipeline.update(pipeline.init(jax.random.key(0)))
    shares = []
    for _ in range(arguments.rounds):
        state, _, share = pipeline.timed_update(state)
        shares.append(share)
    medians = {name.removeprefix("training/time_share_"): statistics.median(s[name] for s in shares) for name in shares[0]}
    update = medians["policy"] + medians["critic"]
    return [{"environment": environment, "backend": backend, **medians, "update": update}]


def measure_time_to_return(name: str, environment: str, backend: str, arguments: Arguments) -> list[Row]:
    config = our_config(environment, arguments)
    simulated = load_environment(environment, backend)
    limited = make_trpo(simulated, config).environment
    quarter = 60 * arguments.minutes / 4  # of the time, for either competitor
    course = Course(limited, target=arguments.target, episodes=64, time_limit=quarter)
    settings = ppo_settings(environment, arguments) if name == PPO else None
    options = {"num_timesteps": arguments.num_timesteps, "num_evals": arguments.num_evals, "seed": 0}
    take(course, environment, backend, config, settings, **options)
    return [{"algorithm": name, **course.summary(), "curve": course.points}]


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", None)  # the time to a return includes what it compiles
    main(tyro.cli(Arguments, description=__doc__))
