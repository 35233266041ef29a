"""Draw the learning curves that `accelerator.py` measured in several environments: one setting of ours beside Brax's PPO.

    python benchmarks/environments_figure.py RESULT.json [RESULT.json …] --figure FIGURE.svg [--steps 12_000_000]

Of trainings side by side it draws those under the first rule; of an environment that is in several results, that of the first
for each algorithm.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from trpo_jax.sweep.report.figures import curves
from trpo_jax.sweep.report.scores import ScoredRun, gather

OURS, PPO = "trpo_jax, one setting", "Brax PPO, published settings"

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Draw learning curves."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """JSON of `accelerator.py`."""
    figure: Path
    """Where to write it: .svg, .png or .pdf."""
    steps: int = 12_000_000
    """Longer trainings are drawn up to here."""


def main(arguments: Arguments) -> None:
    curves(gather(runs_of(arguments.results, arguments.steps))).savefig(arguments.figure, dpi=150)


def runs_of(results: Sequence[Path], steps: int) -> list[ScoredRun]:
    """Return a run for every seed of every environment in which both algorithms were measured."""
    rows: dict[tuple[str, str], list[Row]] = {}
    for path in results:
        found: dict[tuple[str, str], list[Row]] = {}
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            if "curve" in row:
                found.setdefault((row["environment"], algorithm(row)), []).append(row)
        rows = found | rows
    ours = {environment for environment, name in rows if name == OURS}
    both = sorted(environment for environment, name in rows if name == PPO and environment in ours)
    return [run for each in both for name in (OURS, PPO) for row in rows[each, name] for run in runs_in(row, steps)]


def algorithm(row: Row) -> str:
    """Tell what a curve is called; ours without rules, which has settings of its own, is not drawn."""
    if "PPO" in row["algorithm"]:
        return PPO
    return OURS if "rules" in row else ""


def runs_in(row: Row, steps: int) -> Iterator[ScoredRun]:
    """Return a row's curves: of each seed under the first rule, or of its only seed."""
    name = algorithm(row)
    for number, seed in enumerate(row.get("seeds", [row.get("seed")])):
        curve = tuple((taken, value_of(rest, number)) for taken, *rest in row["curve"] if taken <= steps)
        yield ScoredRun(f"{name} {seed}", row["environment"], name, {}, seed, curve[-1][1], curve)


def value_of(rest: Sequence[Any], number: int) -> float:
    """Return a return: seconds come before it where they were measured, and several are in a list."""
    last = rest[-1]
    return float(last[number] if isinstance(last, list) else last)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
