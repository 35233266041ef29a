"""What a part of accelerator.py is: units, each of which becomes one row of the result.

Neither this module nor `table` may import jax: the process that starts the parts must leave the device to them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

EVALUATION = 30.0
"""Seconds that a training leaves for the evaluation of the policies it kept."""

START = 6.0
"""Predicted seconds of a process before its first unit: Python, imports, the device."""

EVALUATION_AT_ONCE = 40.0
"""Seconds that trainings at the same time leave for the evaluation of the policies they kept."""

START_AT_ONCE = 60.0
"""Predicted seconds of processes at the same time until all programs are compiled."""


class LeftOut(Exception):
    """Says why a unit cannot be measured here, where that is no failure."""


@dataclasses.dataclass(frozen=True)
class Context:
    """What a unit's function is told besides its arguments."""

    stop_at: float
    """`time.monotonic()` at which a training ends, to evaluate what it kept."""
    imports: float
    """Seconds from the start of the process until all was imported and the device had started."""
    small: bool
    """Whether sizes are tiny, so that competitors' settings must be too."""
    path: Path
    """Of the result, for files beside it."""
    at_once: bool = False
    """Whether other units share the device meanwhile, so that seconds say nothing."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """What is measured at once."""

    name: str
    measure: str
    """module.function, called as function(context, **arguments) -> row; imported by the part's process only."""
    seconds: float
    """Predicted, without the evaluation."""
    evaluation: float = 0.0
    """Predicted seconds of the evaluation, for a unit that trains."""
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    predicted: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Figures of the row, as they were expected."""
    needs: str = ""
    """A module without which the unit is left out."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Units that share a process, or run at the same time."""

    name: str
    shows: str
    units: tuple[Unit, ...]
    at_once: bool = False
    """Whether all units run at the same time, each in a process of its own: for what trainings return, not how fast they are.

    Most of a short training is compilation, which then takes a processor each. A unit's seconds are the device's alone."""

    def seconds(self, units: Sequence[Unit]) -> float:
        """Return the predicted seconds of some of the units."""
        if self.at_once:
            return START_AT_ONCE + sum(unit.seconds for unit in units) + EVALUATION_AT_ONCE
        return START + needed(units)


def needed(units: Sequence[Unit]) -> float:
    """Return the predicted seconds of units one after another, with `EVALUATION` kept at the end where they train."""
    trainings = [unit for unit in units if unit.evaluation]
    kept = EVALUATION - trainings[-1].evaluation if trainings else 0.0
    return sum(unit.seconds + unit.evaluation for unit in units) + kept


SMALL: dict[str, Any] = {
    "num_envs": 16,
    "unroll_length": 16,
    "num_timesteps": 1024,
    "num_evals": 3,
    "episodes": 2,
    "iterations": 1,
    "rounds": 1,
}
"""Arguments of units where everything is tiny."""


def arguments_of(unit: Unit, *, small: bool, environment: str | None) -> dict[str, Any]:
    """Return a unit's arguments, with tiny sizes or another environment where that is asked for."""
    arguments = dict(unit.arguments)
    if small:
        arguments |= {name: value for name, value in SMALL.items() if name in arguments}
    if environment is not None and "environment" in arguments and "suite" not in arguments:  # Brax's
        arguments["environment"] = environment
    return arguments
