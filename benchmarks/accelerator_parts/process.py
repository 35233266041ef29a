"""The process of a part: measures some of its units one after another, and adds a row to the result for each.

python -m accelerator_parts.process TASK    # a `Task` as JSON; accelerator.py calls this
"""

import contextlib
import ctypes
import dataclasses
import importlib
import importlib.util
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from accelerator_parts import result
from accelerator_parts.unit import EVALUATION, EVALUATION_AT_ONCE, Context, LeftOut, Part, Unit, arguments_of, needed

MORE_TIME = 75
"""Exit status of a process that leaves units for another one, since too little time is left to it."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What a part's process is to do."""

    module: str
    """With the table of parts."""
    part: str
    units: list[str]
    path: str
    """Of the result."""
    command: int
    """Number of the command that this is a part of."""
    parent: int
    """Its process."""
    began: float
    """`time.monotonic()`, which all processes of a machine share, when this process was started."""
    deadline: float
    """When it will be killed."""
    small: bool
    environment: str | None


def main(task: Task) -> int:
    die_with(task.parent)
    part = next(part for part in importlib.import_module(task.module).PARTS if part.name == task.part)
    units = [unit for unit in part.units if unit.name in task.units]
    for unit in units:
        with contextlib.suppress(Exception):  # `measure` meets it again, and writes it down
            if is_there(unit.needs):
                importlib.import_module(unit.measure.rpartition(".")[0])
    machine = describe(task)  # which starts the device
    imports = time.monotonic() - task.began
    for number, unit in enumerate(units):
        rest = needed(units[number + 1 :])
        if number and time.monotonic() + needed([unit]) > task.deadline:
            return MORE_TIME
        evaluation = EVALUATION_AT_ONCE if part.at_once else EVALUATION
        context = Context(task.deadline - evaluation - rest, imports, task.small, Path(task.path), part.at_once)
        began = time.monotonic()
        row = measure(unit, context, arguments_of(unit, small=task.small, environment=task.environment))
        row = machine | row | {"took": time.monotonic() - began}
        add(task, part, unit, row)
    return 0


def die_with(parent: int) -> None:
    """Have Linux kill this process when its parent ends. Elsewhere it goes on, and its rows count all the same."""
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit("the command that started this process has ended")


def is_there(module: str) -> bool:
    """Tell whether a module that a unit needs is installed; "" is."""
    try:
        return not module or importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of what the module is a part of
        return False


def describe(task: Task) -> dict[str, Any]:
    """Say in the result where it was measured; return what each row says of it, since a later command may run elsewhere."""
    if "jax" not in sys.modules:
        return {}
    import report

    where = report.describe_machine()
    result.describe(Path(task.path), where)
    return {name: where[name] for name in ("device", "commit", "date")}


def measure(unit: Unit, context: Context, arguments: dict[str, Any]) -> result.Row:
    """Return what a unit measures, or why it does not."""
    if not is_there(unit.needs):
        return {result.LEFT_OUT: f"not installed: {unit.needs}"}
    module, _, function = unit.measure.rpartition(".")
    try:
        return getattr(importlib.import_module(module), function)(context, **arguments)
    except LeftOut as reason:
        return {result.LEFT_OUT: str(reason)}
    except Exception as error:  # what else can be measured shall be
        traceback.print_exc()
        message = " ".join(str(error).split())
        return {result.FAILED: f"{type(error).__name__}: {message}"[:500]}


def add(task: Task, part: Part, unit: Unit, row: result.Row) -> None:
    named = {"part": part.name, "unit": unit.name, "command": task.command}
    predicted = {**unit.predicted, "took": unit.seconds + unit.evaluation}
    row = named | {name: rounded(value) for name, value in row.items()} | {"predicted": predicted}
    result.add(Path(task.path), row)
    print({name: value for name, value in row.items() if name not in ("curve", "predicted", "longest kernels")}, flush=True)


def rounded(value: Any) -> Any:
    """Round numbers to six digits, in lists and dicts, too."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main(Task(**json.loads(sys.argv[1]))))
