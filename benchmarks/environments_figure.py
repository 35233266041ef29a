"""Draw the learning curves that `accelerator.py` measured in several environments: ours beside Brax's PPO.

    python benchmarks/environments_figure.py RESULT.json [RESULT.json …] --figure FIGURE.svg [--num-envs 4096]

Where one program trained several rules, only the first is drawn.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from trpo_jax.sweep.report.figures import curves
from trpo_jax.sweep.report.scores import ScoredRun, gather

OURS, PPO = "trpo_jax", "Brax PPO"

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Draw learning curves."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """JSON of `accelerator.py`."""
    figure: Path
    """Where to write it: .svg, .png or .pdf."""
    num_envs: int = 4096
    """Of our trainings those with so many environments are drawn."""
    steps: int = 12_000_000
    """Longer trainings are drawn up to here."""


def main(arguments: Arguments) -> None:
    runs = runs_of(arguments.results, num_envs=arguments.num_envs, steps=arguments.steps)
    curves(gather(runs)).savefig(arguments.figure, dpi=150)


def runs_of(results: Sequence[Path], *, num_envs: int, steps: int) -> list[ScoredRun]:
    """Return a run for every seed of every environment in which both algorithms were measured."""
    rows = [row for path in results for row in json.loads(path.read_text(encoding="utf-8"))["rows"] if "curve" in row]
    ours = [row for row in rows if "rules" in row and row["settings"]["num_envs"] == num_envs]
    theirs = [row for row in rows if "PPO" in row["algorithm"]]
    both = {row["environment"] for row in ours} & {row["environment"] for row in theirs}
    named = [*((OURS, row) for row in ours), *((PPO, row) for row in theirs)]
    chosen = sorted((pair for pair in named if pair[1]["environment"] in both), key=lambda pair: pair[1]["environment"])
    return [run for name, row in chosen for run in runs_in(name, row, steps)]


def runs_in(name: str, row: Row, steps: int) -> Iterator[ScoredRun]:
    """Return a row's curves: of each seed under the first rule, or of its only seed."""
    for number, seed in enumerate(row.get("seeds", [row.get("seed")])):
        curve = tuple((taken, value_of(rest, number)) for taken, *rest in row["curve"] if taken <= steps)
        yield ScoredRun(f"{name} {seed}", row["environment"], name, {}, seed, curve[-1][1], curve)


def value_of(rest: Sequence[Any], number: int) -> float:
    """Return a return: seconds come before it where they were measured, and several are in a list."""
    last = rest[-1]
    return float(last[number] if isinstance(last, list) else last)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
