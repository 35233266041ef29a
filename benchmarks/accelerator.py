"""Everything that is still open about an accelerator, measured by one command that loses nothing.

    python benchmarks/accelerator.py [--parts ant_speed profile] [--json FILE] [--seconds 730]

The parts, their order, their seconds and the figures predicted for them are in `accelerator_parts/table.py`. Each part runs in
a process of its own, or if it asks for returns only, in one for each of its units, all at the same time. It begins only if its
predicted seconds are left; it is ended after one and a half times as long. Each finished unit of a part is added to FILE at
once. The same command again goes on with what FILE lacks, so a command that was killed costs no more than the units it was at:

    python benchmarks/accelerator.py --json FILE --seconds 540    # where a command may take ten minutes
    python benchmarks/accelerator.py --json FILE --seconds 190    # the rest

Parts that failed are written down, too, and come last the next time. The exit status is 1 if there are any, and 0 if all
others were measured or left out for want of time. `--small` tries everything at tiny sizes, on a CPU. All competitors run
with full float32 matrix products.
"""

import dataclasses
import functools
import importlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tyro

from accelerator_parts import process, result
from accelerator_parts.unit import Part, Unit

PATIENCE = 1.5
"""Times its predicted seconds after which a part is ended."""

TABLE = "accelerator_parts.table"

START = ("imports and device", "environment and agent", "trace, compile, start", "time to first step")
SHOWN = (*START, "stopped", result.LEFT_OUT, result.FAILED)
"""Figures that are shown although nothing was predicted for them."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure on an accelerator."""

    parts: tuple[str, ...] = ()
    """Which, in the table's order; none: all."""
    json: str = "accelerator.json"
    """The result, to which every finished unit is added."""
    seconds: float = 730.0
    """After so many the command ends."""
    resume: bool = True
    """Go on with what the result lacks; else it is begun anew."""
    small: bool = False
    """Take tiny sizes, to try everything on a CPU."""
    environment: str | None = None
    """Take this environment in place of all others, to try everything quickly."""


def main(arguments: Arguments, *, started: float | None = None, table: str = TABLE) -> int:
    """Measure, print a table, and return the exit status.

    Args:
        arguments: of the command line.
        started: `time.monotonic()` when the command began; None for now.
        table: module whose `PARTS` are measured.
    """
    deadline = (time.monotonic() if started is None else started) + arguments.seconds
    parts = chosen(importlib.import_module(table).PARTS, arguments.parts)
    path = Path(arguments.json)
    command = result.begin(path, resume=arguments.resume, started=time.strftime("%Y-%m-%d %H:%M:%S"))
    failed_before = {row["part"] for row in result.read(path)["rows"] if result.FAILED in row}
    run = Run(arguments, table, path, command, deadline)
    for part in sorted(parts, key=lambda part: part.name in failed_before):
        run.part(part)
    rows = [row for part in parts for unit in part.units if (row := run.row(part, unit))]
    show(rows)
    return int(any(result.FAILED in row for row in rows))


def chosen(parts: Sequence[Part], names: Sequence[str]) -> list[Part]:
    known = [part.name for part in parts]
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"there is no part {', '.join(unknown)}; there are {', '.join(known)}")
    return [part for part in parts if not names or part.name in names]


@dataclasses.dataclass(frozen=True)
class Run:
    """One command's way through the parts."""

    arguments: Arguments
    table: str
    path: Path
    command: int
    deadline: float

    def part(self, part: Part) -> None:
        """Measure what is missing of a part, in one process after another where one ends early, or each unit in its own."""
        while units := [unit for unit in part.units if not self._is_settled(part, unit)]:
            now, seconds = time.monotonic(), part.seconds(units)
            print(f"{part.name}: {seconds:.0f} s predicted, {self.deadline - now:.0f} s left", flush=True)
            if now + seconds > self.deadline:
                for unit in units:
                    self._add(part, unit, {result.LEFT_OUT: "no time"})
                return
            patience = math.inf if self.arguments.small else PATIENCE  # tiny sizes take other times
            measure = functools.partial(self._measure, part, deadline=min(now + patience * seconds, self.deadline))
            groups = [[unit] for unit in units] if part.at_once else [units]
            with ThreadPoolExecutor(len(groups)) as threads:
                for ended, group in zip(threads.map(measure, groups), groups, strict=True):
                    unfinished = [unit for unit in group if not self._is_settled(part, unit)]
                    if ended and unfinished:
                        self._add(part, unfinished[0], ended)

    def row(self, part: Part, unit: Unit) -> result.Row | None:
        return result.find(result.read(self.path)["rows"], part.name, unit.name)

    def _is_settled(self, part: Part, unit: Unit) -> bool:
        """Tell whether a unit was measured at any time, or this command has said why not."""
        row = self.row(part, unit)
        return row is not None and (result.is_measured(row) or row["command"] == self.command)

    def _add(self, part: Part, unit: Unit, row: result.Row) -> None:
        row = {"part": part.name, "unit": unit.name, "command": self.command} | row
        result.add(self.path, row)
        print(row, flush=True)

    def _measure(self, part: Part, units: Sequence[Unit], *, deadline: float) -> result.Row:
        """Run a process; return what to say of the unit that it ended at, if it did not end well."""
        began = time.monotonic()
        task = process.Task(
            module=self.table,
            part=part.name,
            units=[unit.name for unit in units],
            path=str(self.path),
            command=self.command,
            parent=os.getpid(),
            began=began,
            deadline=deadline,
            small=self.arguments.small,
            environment=self.arguments.environment,
        )
        line = [sys.executable, "-m", process.__name__, json.dumps(dataclasses.asdict(task))]
        child = subprocess.Popen(line, env=self._variables(part))
        try:
            status = child.wait(deadline - began)
        except subprocess.TimeoutExpired:
            seconds = f"{deadline - began:.0f} s"
            if deadline == self.deadline:
                return {result.LEFT_OUT: f"no time: cut off at the end of the command, {seconds} after the part began"}
            return {result.FAILED: f"took too long: the part was ended after {seconds}"}
        finally:
            child.kill()
            child.wait()
        if status == process.MORE_TIME:
            return {}
        return {result.FAILED: f"its process ended with status {status}"}

    def _variables(self, part: Part) -> dict[str, str]:
        """Return a process's environment variables."""
        modules = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, modules)),
            "PYTHONUNBUFFERED": "1",
            "PYTHONUTF8": "1",
            "JAX_DEFAULT_MATMUL_PRECISION": "highest",
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            **({"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if part.at_once else {}),
        }


def show(rows: Sequence[result.Row]) -> None:
    """Print what was predicted beside what was measured, how starts were spent, and what is missing; the file has the rest."""
    import report  # imports jax, which takes seconds that the parts may need

    lines = []
    for row in rows:
        predicted = row.get("predicted", {}) if result.is_measured(row) else {}
        for name in [*predicted, *(name for name in SHOWN if name in row and name not in predicted)]:
            figures = {"predicted": text(predicted.get(name, "")), "measured": text(row.get(name, "?"))}
            lines.append({"part": row["part"], "unit": row["unit"], "figure": name, **figures})
    report.show("predicted and measured", lines)


def text(value: Any) -> str:
    if value is None:
        return "never"
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value))
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


if __name__ == "__main__":
    arguments = tyro.cli(Arguments, description=__doc__)
    sys.exit(main(arguments, started=time.monotonic() - time.process_time()))  # imports count, too
