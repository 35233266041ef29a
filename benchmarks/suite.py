"""One set of hyperparameters on several environments, several seeds, beside Brax's PPO at the same steps and at the same time.

    python benchmarks/suite.py [--folder runs/suite] [--json FILE] [--figure FILE.svg]

Ours is configs/sweeps/one_setting.toml, chosen by configs/sweeps/one_setting_search{,_2,_3}.toml; PPO's is
`brax_ppo.ONE_SETTING`, the best of what ppo_search.py tried. Returns are those of deterministic evaluations at the end.
"Same time": first both are timed alone, on all cores, compilation and evaluations left out; then PPO is trained anew for as
many steps as it does by the time that ours ends, over which its learning rate falls. Intervals are those of the bootstrap over
seeds, 95 %. What the folder holds already, speeds too, is not measured again; delete it to measure anew.
"""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import report
from brax_ppo import ONE_SETTING, Settings, Stopwatch, steady_stretch
from ppo_runs import PPORun, known, train_all
from time_to_return import OURS, PPO, take
from trpo_jax import AgentConfig
from trpo_jax.environments.brax import resolve_backend
from trpo_jax.errors import ConfigError
from trpo_jax.execution.devices import num_cores_to_use, show_cpu_devices
from trpo_jax.sweep.plan import Run, plan_file
from trpo_jax.sweep.report.figures import curves
from trpo_jax.sweep.report.scores import ScoredRun, gather, read_scores
from trpo_jax.sweep.report.statistics import estimate, mean, probability_of_improvement
from trpo_jax.sweep.report.tables import show
from trpo_jax.training.fields import fields_of

SAME_STEPS, SAME_TIME = f"{PPO}, same steps", f"{PPO}, same time"
SWEEP = Path(__file__).parents[1] / "configs" / "sweeps" / "one_setting.toml"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compare one setting of ours with one of PPO's."""

    sweep: str = str(SWEEP)
    """Sweep file of ours, with one setting."""
    timed_stretches: int = 2
    """Stretches between evaluations that each algorithm's speed is the median of, after two in which it compiles."""
    folder: str = "runs/suite"
    """For the sweep, for what PPO's trainings leave, and for compiled programs."""
    json: str | None = None
    """Where to write the result."""
    figure: str | None = None
    """Where to write the learning curves, as SVG or PNG."""


def main(arguments: Arguments, ppo_settings: Settings = ONE_SETTING) -> None:
    plan = plan_file(arguments.sweep)
    check_comparable(plan)
    first: dict[str, Run] = {}
    for run in plan:
        first.setdefault(run.config.environment, run)
    folder = Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    speeds = {name: known_speeds(folder, run, ppo_settings, arguments.timed_stretches) for name, run in first.items()}
    ours = train_ours(arguments.sweep, folder / "trpo_jax")
    alike = [ppo_run(run, ppo_settings) for run in plan]
    shorter = [ppo_run(run, ppo_settings, speeds[run.config.environment]) for run in plan]
    theirs = train_all([*alike, *shorter], folder / "ppo")
    rows = [
        compare([run for run in (*ours, *theirs) if run.environment == name], run.config.num_timesteps, speeds[name])
        for name, run in first.items()
    ]
    report.publish("one setting on every environment", [*rows, overall([*ours, *theirs])], arguments.json)
    if arguments.figure:
        curves(gather([*ours, *(run for run in theirs if run.setting == SAME_STEPS)])).savefig(arguments.figure)


def check_comparable(plan: Sequence[Run]) -> None:
    """Raise ConfigError for a sweep of several settings, or on other physics than PPO's runs have."""
    environments = {run.config.environment for run in plan}
    settings = {(run.config.environment, repr(run.config.agent)) for run in plan}
    if len(settings) > len(environments):
        raise ConfigError("sweep", f"{len(settings)} settings of {len(environments)} environments", "one of each")
    if len({(run.config.environment, run.config.num_timesteps) for run in plan}) > len(environments):
        raise ConfigError("num_timesteps", "several", "one an environment")
    for run in plan:
        fields = fields_of(run.config)
        for name, value in as_ppo_trains(run).items():
            if fields[name] != value:
                raise ConfigError(name, fields[name], f"{value}, with which PPO trains and is evaluated")


def as_ppo_trains(run: Run) -> dict[str, Any]:
    """Return what PPO's runs in an environment have in common with ours."""
    same = {"episode_length": ONE_SETTING["episode_length"], "action_repeat": 1, "deterministic_eval": True, "suite": "brax"}
    return same | {"backend": resolve_backend(run.config.environment)}


def known_speeds(folder: Path, run: Run, ppo_settings: Settings, num_stretches: int) -> dict[str, float]:
    """Return what the folder holds of the speeds of these settings on an environment, or measure them and keep them there."""
    settings = run.config.agent, sorted(ppo_settings.items())
    return known(folder, f"speeds-{run.config.environment}", settings, lambda: measure_speeds(run, ppo_settings, num_stretches))


def measure_speeds(run: Run, ppo_settings: Settings, num_stretches: int) -> dict[str, float]:
    """Return the environment steps a second of both, each alone on all cores; compilation and evaluations left out."""
    config = run.config
    stretch = config.num_timesteps // (config.num_evals - 1)
    num_stretches += 2
    ways: dict[str, tuple[AgentConfig | Settings, int]] = {
        OURS: (config.agent, config.agent.num_envs),
        PPO: (ppo_settings, ppo_settings["num_envs"]),
    }
    speeds = {}
    for name, (how, num_envs) in ways.items():
        stopwatch = Stopwatch()
        num_devices = num_cores_to_use(num_envs, os.cpu_count() or 1)
        options = {"num_evals": num_stretches + 1, "seed": 0, "backend": config.backend, "num_devices": num_devices}
        take(stopwatch, config.environment, stretch * num_stretches, how, **options)
        speeds[name] = stretch / steady_stretch(stopwatch.stretches)
    print(config.environment, {name: f"{speed:,.0f} steps/s" for name, speed in speeds.items()}, flush=True)
    return speeds


def train_ours(sweep: str, folder: Path) -> list[ScoredRun]:
    """Run a sweep, and return its runs under our name."""
    return [run._replace(setting=OURS) for run in run_sweep(sweep, folder)]


def run_sweep(sweep: str, folder: Path) -> tuple[ScoredRun, ...]:
    """Run a sweep in a process of its own, and return its runs."""
    subprocess.run([sys.executable, "-m", "trpo_jax", "sweep", sweep, "--sweep-dir", str(folder)], check=True)
    return read_scores(folder).runs


def ppo_run(run: Run, settings: Settings, speeds: dict[str, float] | None = None) -> PPORun:
    """Return the counterpart of a run of ours: with as many steps or, given speeds, with what PPO does in as much time."""
    config = run.config
    name, steps, num_evals = SAME_STEPS, config.num_timesteps, config.num_evals
    if speeds is not None:
        update = settings["batch_size"] * settings["num_minibatches"] * settings["unroll_length"]
        name, num_evals = SAME_TIME, 2
        steps = update * max(1, round(config.num_timesteps * speeds[PPO] / speeds[OURS] / update))
    return PPORun(config.environment, name, {}, settings, config.seed, steps, num_evals, config.num_eval_envs)


def compare(runs: Sequence[ScoredRun], steps: int, speeds: dict[str, float]) -> dict[str, Any]:
    """Return a row of the table, of an environment's runs."""
    environment = runs[0].environment
    returns = {name: np.array([run.score for run in runs if run.setting == name]) for name in (OURS, SAME_STEPS, SAME_TIME)}
    better = {
        f"P({OURS} > {name})": show(probability_of_improvement({environment: returns[OURS]}, {environment: values}))
        for name, values in returns.items()
        if name != OURS
    }
    (steps_in_same_time,) = {run.curve[-1][0] for run in runs if run.setting == SAME_TIME}
    return {
        "environment": environment,
        "steps": steps,
        f"steps, {SAME_TIME}": steps_in_same_time,
        "seeds": len(returns[OURS]),
        **{name: show(estimate({environment: values}, mean)) for name, values in returns.items()},
        **better,
        **{f"{name}, steps/s": round(speed) for name, speed in speeds.items()},
        **{f"{name}, each seed": ", ".join(f"{value:.4g}" for value in values) for name, values in returns.items()},
    }


def overall(runs: Sequence[ScoredRun]) -> dict[str, Any]:
    """Return the table's last row: the mean over environments, on the scale of a sweep's report."""
    scores = gather(runs)
    means = {name: show(estimate(scores.of_setting(name, normalized=True), mean)) for name in (OURS, SAME_STEPS, SAME_TIME)}
    return {"environment": "all, normalized", **means}


if __name__ == "__main__":
    parsed = tyro.cli(Arguments, description=__doc__)
    show_cpu_devices(os.cpu_count() or 1)
    main(parsed)
