"""Draw the returns that `accelerator.py` measured: over seconds and over environment steps, ours and Brax's PPO.

    python benchmarks/return_figure.py RESULT.json FIGURE.svg [--environment ant]

Seconds run from the call of `train` on, all compilation included. The dotted lines leave it out.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import tyro

from trpo_jax.runs.plot import COLOURS, STEPS, finish_axis, new_figure

Row = dict[str, Any]

OTHER_SETTINGS = "ant_more_envs"
"""The benchmark's part whose trainings have other settings than those that ship."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Draw returns."""

    result: Annotated[Path, tyro.conf.Positional]
    """JSON of `accelerator.py`."""
    figure: Annotated[Path, tyro.conf.Positional]
    """Where to write it: .svg, .png or .pdf."""
    environment: str = "ant"
    """Which environment's trainings to draw; one seed of each algorithm."""
    seed: int = 0
    """Which seed."""


def main(arguments: Arguments) -> None:
    rows = rows_of(arguments.result, arguments.environment, arguments.seed)
    figure = draw(rows, f"{arguments.environment.capitalize()} (Brax, spring), {device_of(arguments.result)}")
    figure.savefig(arguments.figure, dpi=150)


def rows_of(result: Path, environment: str, seed: int) -> list[Row]:
    """Return the trainings of an environment with one seed."""
    rows = json.loads(result.read_text(encoding="utf-8"))["rows"]
    timed = [row for row in rows if "seconds" in row and row.get("part") != OTHER_SETTINGS]
    wanted = [row for row in timed if (row["environment"], row["seed"]) == (environment, seed)]
    found = {row["algorithm"]: row for row in wanted}
    if not found:
        raise SystemExit(f"{result}: got no training of {environment} with seed {seed}")
    return list(found.values())


def device_of(result: Path) -> str:
    return json.loads(result.read_text(encoding="utf-8"))["where"]["device"].partition(",")[0]


def draw(rows: list[Row], title: str) -> Any:
    """Return a figure of two panels that share their vertical axis."""
    figure = new_figure(8.6, 3.5)
    seconds, steps = figure.subplots(1, 2, sharey=True)
    for row, color in zip(rows, COLOURS, strict=False):
        taken, clock, warm, returns = zip(*row["curve"], strict=True)
        line = {"color": color, "label": row["algorithm"]}
        seconds.plot(clock, returns, lw=2, **line)
        seconds.plot(warm, returns, lw=1.4, ls=":", color=color)
        steps.plot(taken, returns, lw=2, **line)
        steps.annotate(
            f"{returns[-1]:,.0f}", (taken[-1], returns[-1]), (-2, 7), textcoords="offset points", ha="right", color=color
        )
    finish_axis(seconds, f"Return, {title}", "seconds, compilation included (dotted: without)")
    finish_axis(steps, "", STEPS)
    seconds.set_xlim(left=0)
    seconds.set_ylim(0, 1.1 * max(row["best"] for row in rows))
    steps.legend(loc="lower right", frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
