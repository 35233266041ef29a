"""Return after the same number of environment steps against the number of environments: one rule of ours beside Brax's PPO.

    python benchmarks/scale_study.py [--folder runs/scale_study] [--json FILE] [--figure FILE.svg]

Ours is configs/sweeps/scale_study.toml, the settings for an accelerator with N environments x 16 steps. PPO has the one setting
that was searched for few environments, with a rollout of all N an update where its batch would be smaller; and where N is 1024
or more also what Brax publishes for the environment (or else for ant), in batches proportionate to N. The better one is drawn.
What the folder holds already is not trained again.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import report
from brax_ppo import ONE_SETTING, PUBLISHED, Settings, with_environments
from ppo_runs import PPORun, train_all
from suite import train_ours
from time_to_return import OURS, PPO
from trpo_jax.sweep.plan import Run, plan_file
from trpo_jax.sweep.report.figures import panels
from trpo_jax.sweep.report.scores import ScoredRun
from trpo_jax.training.plot import COLOURS, finish_axis

SWEEP = Path(__file__).parents[1] / "configs" / "sweeps" / "scale_study.toml"
SEARCHED, AS_PUBLISHED = "searched", "published"
PUBLISHED_FROM = 1024
"""Environments from which on PPO is trained with its published settings as well: these have 2048 and 4096."""

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compare returns at several numbers of environments."""

    sweep: str = str(SWEEP)
    """Sweep file of ours, whose grid is num_envs."""
    ppo_seeds: tuple[int, ...] = (0,)
    """Seeds of each of PPO's settings."""
    ppo_evals: int = 3
    """Evaluations of each of PPO's trainings, between which the return is interpolated."""
    folder: str = "runs/scale_study"
    """For the sweep, and for what PPO's trainings leave."""
    json: str | None = None
    """Where to write the result."""
    figure: str | None = None
    """Where to draw it, as SVG or PNG."""


def main(arguments: Arguments) -> None:
    plan = plan_file(arguments.sweep)
    steps = plan[0].config.num_timesteps
    folder = Path(arguments.folder)
    ours = train_ours(arguments.sweep, folder / "trpo_jax")
    theirs = train_all(ppo_runs(plan, arguments), folder / "ppo")
    rows = [*rows_of(ours, OURS, steps), *rows_of(theirs, PPO, steps)]
    report.publish(f"return after {steps:,} steps", sorted(rows, key=in_order), arguments.json)
    if arguments.figure:
        draw(rows).savefig(arguments.figure)


def ppo_runs(plan: Sequence[Run], arguments: Arguments) -> list[PPORun]:
    """Return PPO's trainings beside ours, seeds of a setting one after another."""
    sizes = dict.fromkeys((run.config.environment, run.config.trpo.num_envs) for run in plan)
    steps, episodes = plan[0].config.num_timesteps, plan[0].config.num_eval_envs
    return [
        PPORun(name, setting, {"num_envs": num_envs}, settings, seed, steps, arguments.ppo_evals, episodes)
        for name, num_envs in sizes
        for setting, settings in ppo_settings(name, num_envs).items()
        for seed in arguments.ppo_seeds
    ]


def ppo_settings(environment: str, num_envs: int) -> dict[str, Settings]:
    """Return PPO's settings for a number of environments, by what they are called."""
    least = ONE_SETTING["batch_size"] * ONE_SETTING["num_minibatches"]
    batch_size = max(least, num_envs) // ONE_SETTING["num_minibatches"]
    settings = {SEARCHED: {**ONE_SETTING, "num_envs": num_envs, "batch_size": batch_size}}
    if num_envs >= PUBLISHED_FROM:
        settings[AS_PUBLISHED] = with_environments(PUBLISHED.get(environment, PUBLISHED["ant"]), num_envs)
    return settings


def rows_of(runs: Sequence[ScoredRun], algorithm: str, steps: int) -> list[Row]:
    """Return a row for each environment, number of environments and setting."""
    groups: dict[tuple[str, int, str], list[ScoredRun]] = {}
    for run in runs:
        groups.setdefault((run.environment, run.swept["num_envs"], run.setting), []).append(run)
    return [row(name, num_envs, algorithm, setting, group, steps) for (name, num_envs, setting), group in groups.items()]


def row(name: str, num_envs: int, algorithm: str, setting: str, runs: Sequence[ScoredRun], steps: int) -> Row:
    """Return what some seeds returned after so many steps."""
    returns = [float(np.interp(steps, *zip(*run.curve, strict=True))) for run in runs]
    return {
        "environment": name,
        "num_envs": num_envs,
        "algorithm": algorithm,
        "setting": setting,
        "return": float(np.mean(returns)),
        "each seed": returns,
    }


def in_order(row: Row) -> tuple[Any, ...]:
    return row["environment"], row["num_envs"], row["algorithm"], -row["return"]


def draw(rows: Sequence[Row]) -> Any:
    """Draw the return over the number of environments, in every environment: of each algorithm the better setting."""
    names = list(dict.fromkeys(row["environment"] for row in rows))
    figure, axes = panels(names)
    for axis, name in zip(axes, names, strict=True):
        for algorithm, colour in zip((OURS, PPO), COLOURS, strict=False):
            best: dict[int, Row] = {}
            for each in sorted(rows, key=lambda row: row["return"]):
                if (each["environment"], each["algorithm"]) == (name, algorithm):
                    best[each["num_envs"]] = each
            sizes = sorted(best)
            axis.plot(sizes, [best[size]["return"] for size in sizes], lw=1.8, color=colour, label=algorithm)
            points = [(size, value) for size in sizes for value in best[size]["each seed"]]
            axis.plot(*zip(*points, strict=True), "o", ms=4, alpha=0.6, color=colour)
        axis.set_xscale("log", base=4)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        finish_axis(axis, name, "environments (x 16 steps: the batch)")
        axis.set_ylabel("return", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
