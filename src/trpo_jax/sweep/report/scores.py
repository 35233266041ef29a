"""What a sweep's finished runs have scored, arranged by environment and setting."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trpo_jax.config import ConfigError
from trpo_jax.sweep.folder import RETURN, TRAINING_RETURN, SweepFolder
from trpo_jax.sweep.report.statistics import Scores, interquartile_mean


class ScoredRun(NamedTuple):
    """A finished run."""

    name: str
    environment: str
    setting: str
    """Its swept fields and their values, in words."""
    swept: dict[str, Any]
    seed: int
    score: float
    """Return of the last evaluation, or of training where nothing was evaluated."""
    curve: tuple[tuple[int, float], ...]
    """(environment steps, return), from evaluations if there are two of them, else from training."""


class SweepScores(NamedTuple):
    """All finished runs of a sweep."""

    runs: tuple[ScoredRun, ...]
    num_planned: int
    environments: tuple[str, ...]
    """In the order of the sweep file; so are the settings."""
    settings: tuple[str, ...]

    def of_setting(self, setting: str, *, normalized: bool = False) -> Scores:
        """Return the scores of a setting by environment; environments where it has none are left out."""
        return self.select([run for run in self.runs if run.setting == setting], normalized=normalized)

    def select(self, runs: Sequence[ScoredRun], *, normalized: bool = False) -> Scores:
        """Return the scores of some runs by environment."""
        scores = {}
        for environment in self.environments:
            values = np.array([run.score for run in runs if run.environment == environment], float)
            if len(values):
                low, high = self.range_of(environment) if normalized else (0.0, 1.0)
                scores[environment] = (values - low) / (high - low)
        return scores

    def range_of(self, environment: str) -> tuple[float, float]:
        """Return what stands for 0 and 1 on the normalized scale of an environment.

        0 is the lowest return of any run's curve, which is that of an untrained policy or worse, 1 the interquartile mean
        of the best setting. Where nothing lies between them, 1 is one unit higher.
        """
        runs = [run for run in self.runs if run.environment == environment]
        low = min([value for run in runs for _, value in run.curve] + [run.score for run in runs])
        by_setting = [[run.score for run in runs if run.setting == setting] for setting in self.settings]
        high = max(float(interquartile_mean(np.array(values))) for values in by_setting if values)
        return low, high if high > low else low + 1.0


def read_scores(path: Path | str) -> SweepScores:
    """Read a sweep's folder, finished or not.

    Raises:
        ConfigError: no sweep lies there, or none of its runs is finished, or none has ended an episode.
    """
    folder = SweepFolder(path)
    planned = folder.planned()
    words = short_names([name for run in planned.values() for name in run["swept"]])
    runs = []
    for name, run in planned.items():
        finished = folder.finished(name)
        score = None if finished is None else finished.result["return"]
        if finished is not None and score is not None:
            setting = [f"{words[field]} {format_value(value)}" for field, value in run["swept"].items()]
            of_environment = {each["source"] for each in planned.values() if each["environment"] == run["environment"]}
            if len(of_environment) > 1:
                setting = [Path(run["source"]).stem, *setting]
            curve = _curve(finished.records)
            identity = name, run["environment"], ", ".join(setting) or "as configured"
            runs.append(ScoredRun(*identity, run["swept"], run["seed"], score, curve))
    if not runs:
        raise ConfigError("sweep_dir", str(path), "a sweep of which at least one run is finished and has ended an episode")
    environments, settings = (tuple(dict.fromkeys(getattr(run, of) for run in runs)) for of in ("environment", "setting"))
    return SweepScores(tuple(runs), len(planned), environments, settings)


def short_names(fields: Sequence[str]) -> dict[str, str]:
    """Name fields by their last part, or whole where two share it."""
    last = {field: field.rpartition(".")[2] for field in dict.fromkeys(fields)}
    return {field: name if list(last.values()).count(name) == 1 else field for field, name in last.items()}


def format_value(value: Any) -> str:
    """Write a swept value."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _curve(records: Sequence[dict[str, Any]]) -> tuple[tuple[int, float], ...]:
    for name in (RETURN, TRAINING_RETURN):
        points = tuple((record["step"], record[name]) for record in records if name in record)
        if len(points) > 1:
            return points
    return points
