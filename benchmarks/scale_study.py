"""Return after the same number of environment steps against the number of environments: one rule of ours beside Brax's PPO.

    python benchmarks/scale_study.py [--folder runs/scale_study] [--json FILE] [--figure FILE.svg]

Ours is configs/sweeps/scale_study.toml, the settings for an accelerator with N environments x 16 steps. PPO is trained at
the smallest and the largest N, with the setting found for 64 environments; where N exceeds its batch of 256 unrolls, the
batch grows to N unrolls, in more minibatches. (What Brax publishes is for 10M steps and more, and would make three updates
here; accelerator.py compares with that.) PPO is read where it ends: after as many steps as ours or, where Brax rounds them
up, some more. What the folder holds already is not trained again.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import report
from brax_ppo import ONE_SETTING, Settings
from ppo_runs import PPORun, train_all
from suite import train_ours
from time_to_return import OURS, PPO
from trpo_jax.runs.plot import COLOURS, finish_axis
from trpo_jax.sweep.plan import Run, plan_file
from trpo_jax.sweep.report.figures import panels
from trpo_jax.sweep.report.scores import ScoredRun

SWEEP = Path(__file__).parents[1] / "configs" / "sweeps" / "scale_study.toml"

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compare returns at several numbers of environments."""

    sweep: str = str(SWEEP)
    """Sweep file of ours, whose grid is num_envs."""
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
    theirs = train_all(ppo_runs(plan), folder / "ppo")
    rows = [*rows_of(ours, OURS), *rows_of(theirs, PPO)]
    report.publish(f"return after {steps:,} steps", sorted(rows, key=in_order), arguments.json)
    if arguments.figure:
        draw(rows).savefig(arguments.figure)


def ppo_runs(plan: Sequence[Run]) -> list[PPORun]:
    """Return PPO's trainings beside ours at the smallest and the largest number of environments, with the same seeds."""
    sizes = [run.config.agent.num_envs for run in plan]
    runs = []
    for config in (run.config for run in plan):
        num_envs = config.agent.num_envs
        if num_envs not in (min(sizes), max(sizes)):
            continue
        rest = config.seed, config.num_timesteps, config.num_evals, config.num_eval_envs
        runs.append(PPORun(config.environment, PPO, {"num_envs": num_envs}, ppo_settings(num_envs), *rest))
    return runs


def ppo_settings(num_envs: int) -> Settings:
    """Return PPO's settings for a number of environments."""
    num_minibatches = max(ONE_SETTING["num_minibatches"], num_envs // ONE_SETTING["batch_size"])
    return {**ONE_SETTING, "num_envs": num_envs, "num_minibatches": num_minibatches}


def rows_of(runs: Sequence[ScoredRun], algorithm: str) -> list[Row]:
    """Return a row for each environment and number of environments."""
    groups: dict[tuple[str, int], list[ScoredRun]] = {}
    for run in runs:
        groups.setdefault((run.environment, run.swept["num_envs"]), []).append(run)
    return [
        {
            "environment": environment,
            "num_envs": num_envs,
            "algorithm": algorithm,
            "steps": group[0].curve[-1][0],
            "return": float(np.mean([run.score for run in group])),
            "each seed": [run.score for run in group],
        }
        for (environment, num_envs), group in groups.items()
    ]


def in_order(row: Row) -> tuple[Any, ...]:
    return row["environment"], row["num_envs"], row["algorithm"]


def draw(rows: Sequence[Row]) -> Any:
    """Draw the return over the number of environments, in every environment; dashed where sizes were left out."""
    names = list(dict.fromkeys(row["environment"] for row in rows))
    figure, axes = panels(names)
    for axis, name in zip(axes, names, strict=True):
        here = [row for row in rows if row["environment"] == name]
        sizes = sorted({row["num_envs"] for row in here})
        for algorithm, colour in zip((OURS, PPO), COLOURS, strict=False):
            line = sorted((row for row in here if row["algorithm"] == algorithm), key=lambda row: row["num_envs"])
            points = [(row["num_envs"], value) for row in line for value in row["each seed"]]
            style = {"lw": 1.8, "ls": "-" if len(line) == len(sizes) else "--", "color": colour, "label": algorithm}
            axis.plot([row["num_envs"] for row in line], [row["return"] for row in line], **style)
            axis.plot(*zip(*points, strict=True), "o", ms=4, alpha=0.6, color=colour)
        axis.set_xscale("log", base=4)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        finish_axis(axis, name, "parallel environments")
        axis.set_ylabel("return", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
