"""Our PPO beside Brax's, with the same settings and the same networks: returns, and environment steps a second.

    python benchmarks/ppo_pair.py [--folder runs/ppo_pair] [--json FILE]

Settings are `brax_ppo.ONE_SETTING`, but with 256 environments, so that both collect the same batches: 20 steps of each. (With
64 environments Brax's PPO steps them four times for a batch.) Networks are those that Brax's PPO makes. Each algorithm keeps
its own loop: Brax's fits policy and critic by one loss and estimates advantages anew in each gradient step, ours fits one after
the other; resets and the bootstrap at time limits differ, too. Returns are those of deterministic evaluations at the end.
Speeds are measured first, both algorithms in turns, each alone on all cores. What the folder holds is not measured again.
"""

import dataclasses
import functools
import math
import os
import statistics
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import report
from brax_ppo import ONE_SETTING, Stopwatch, ppo_networks, steady_stretch
from ppo_runs import PPORun, known, train_all
from time_to_return import Course, take
from trpo_jax import AgentConfig, PPOConfig, ScheduleConfig, make_agent
from trpo_jax.environments.brax import resolve_backend
from trpo_jax.execution.devices import num_cores_to_use, show_cpu_devices
from trpo_jax.sweep.report.statistics import estimate, mean
from trpo_jax.sweep.report.tables import show
from trpo_jax.training.brax_keywords import translate
from trpo_jax.training.options import with_options

OURS, THEIRS = "our PPO", "Brax's PPO"
STEPS = 983_040
NUM_EVALS, EPISODES = 7, 64
ROUNDS, STRETCH, NUM_STRETCHES = 3, 40_960, 6
SIZES = ("policy_hidden_layer_sizes", "value_hidden_layer_sizes")
OTHERWISE_HERE = (*SIZES, "batch_size", "learning_rate_at_end")
SETTINGS = {**ONE_SETTING, "num_envs": 256}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compare two implementations of PPO."""

    environments: tuple[str, ...] = ("inverted_pendulum", "reacher", "hopper", "ant")
    """Brax environments."""
    seeds: tuple[int, ...] = (20, 21, 22, 23, 24)
    """Seeds of the trainings."""
    folder: str = "runs/ppo_pair"
    """For what trainings leave."""
    json: str | None = None
    """Where to write the result."""


def main(arguments: Arguments) -> None:
    folder = Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    decides = our_config(), sorted(SETTINGS.items())
    speeds_of = {
        name: known(
            folder, f"pair-speeds-{name}", (*decides, ROUNDS, STRETCH, NUM_STRETCHES), functools.partial(measure_speeds, name)
        )
        for name in arguments.environments
    }
    rows: list[dict[str, Any]] = []
    for environment, speeds in speeds_of.items():
        ours = [
            known(
                folder,
                f"pair-{environment}-seed{seed}",
                (*decides, STEPS, NUM_EVALS, EPISODES),
                functools.partial(final_return, environment, seed),
            )
            for seed in arguments.seeds
        ]
        runs = [PPORun(environment, THEIRS, {}, SETTINGS, seed, STEPS, NUM_EVALS, EPISODES) for seed in arguments.seeds]
        theirs = [run.score for run in train_all(runs, folder / "ppo")]
        returns = {OURS: np.array(ours), THEIRS: np.array(theirs)}
        rows.append(
            {"environment": environment, "seeds": len(arguments.seeds)}
            | {name: show(estimate({environment: values}, mean)) for name, values in returns.items()}
            | {f"{name}, steps/s": round(statistics.median(values)) for name, values in speeds.items()}
            | {f"steps/s, {name}": value for name, value in report.ratio_columns(speeds[OURS], speeds[THEIRS]).items()}
            | {f"{name}, each seed": ", ".join(f"{value:.4g}" for value in values) for name, values in returns.items()}
        )
        print(rows[-1], flush=True)
    report.publish("PPO, the same settings and networks", rows, arguments.json)


def our_config() -> AgentConfig:
    """Return Brax's settings as ours has them."""
    names = {name: value for name, value in SETTINGS.items() if name not in OTHERWISE_HERE}
    config = PPOConfig(schedule=ScheduleConfig(learning_rate_at_end=SETTINGS["learning_rate_at_end"]))
    return with_options(config, translate(names, "ppo"))


def our_options() -> dict[str, Any]:
    """Return what makes Brax's networks."""
    sizes = {name: SETTINGS[name] for name in SIZES}
    return {"network_factory": functools.partial(ppo_networks.make_ppo_networks, **sizes)}


def final_return(environment: str, seed: int) -> float:
    """Train our PPO on all cores; return the mean return of the last policy."""
    config = our_config()
    course = Course(make_agent(environment, config).environment, target=math.inf, episodes=EPISODES, eval_seed=seed)
    options = {"seed": seed, "num_evals": NUM_EVALS} | common(environment)
    take(course, environment, STEPS, config, **options, **our_options())
    return course.points[-1]["return"]


def measure_speeds(environment: str) -> dict[str, list[float]]:
    """Return the environment steps a second of both, in some trainings in turns; no compilation, no evaluations."""
    speeds: dict[str, list[float]] = {OURS: [], THEIRS: []}
    for _ in range(ROUNDS):
        for name, how, more in ((OURS, our_config(), our_options()), (THEIRS, SETTINGS, {})):
            stopwatch = Stopwatch()
            options = {"seed": 0, "num_evals": NUM_STRETCHES + 1} | common(environment)
            take(stopwatch, environment, STRETCH * NUM_STRETCHES, how, **options, **more)
            speeds[name].append(STRETCH / steady_stretch(stopwatch.stretches))
    return speeds


def common(environment: str) -> dict[str, Any]:
    """Return physics and cores of both."""
    num_devices = num_cores_to_use(SETTINGS["num_envs"], os.cpu_count() or 1)
    return {"backend": resolve_backend(environment), "num_devices": num_devices}


if __name__ == "__main__":
    parsed = tyro.cli(Arguments, description=__doc__)
    show_cpu_devices(os.cpu_count() or 1)
    jax.config.update("jax_compilation_cache_dir", str(Path(parsed.folder) / "cache"))
    main(parsed)
