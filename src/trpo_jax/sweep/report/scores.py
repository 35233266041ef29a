"""Scores of a sweep's finished runs, arranged by environment and setting."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from trpo_jax.errors import ConfigError
from trpo_jax.sweep.folder import SweepFolder
from trpo_jax.sweep.report.statistics import Scores, interquartile_mean
from trpo_jax.sweep.train_together import RETURN, TRAINING_RETURN
from trpo_jax.training.fields import setting_in_words, short_names


class RunCost(NamedTuple):
    """A cost of a finished run."""

    last_fifth: float
    """Mean cost of training's episodes in the last fifth of its iterations."""
    share_above: float
    """Share of the iterations in which its expected cost was above its limit; NaN if the algorithm limits no costs."""


class ScoredRun(NamedTuple):
    """A finished run."""

    name: str
    environment: str
    setting: str
    """Its swept fields and their values, in words."""
    swept: dict[str, Any]
    seed: int
    score: float
    """Return of the last evaluation, or of training if nothing was evaluated."""
    curve: tuple[tuple[int, float], ...]
    """(environment steps, return), from evaluations if there are at least two, else from training."""
    source: str = ""
    """Its environment as the sweep file gives it."""
    costs: Mapping[str, RunCost] = MappingProxyType({})
    """By name of the metric, "episode_cost", or "episode_cost_0" and so on if there are several."""


class SweepScores(NamedTuple):
    """All finished runs of a sweep that have a return."""

    runs: tuple[ScoredRun, ...]
    num_finished: int
    num_planned: int
    environments: tuple[str, ...]
    """Environments and settings are in the order of the sweep file."""
    settings: tuple[str, ...]
    ranges: dict[str, tuple[float, float]]
    """The returns that count as 0 and 1 on each environment's normalized scale; see `range_of`."""

    def of_setting(self, setting: str, *, normalized: bool = False) -> Scores:
        """Return the scores of a setting by environment; environments where it has none are left out."""
        return self.select([run for run in self.runs if run.setting == setting], normalized=normalized)

    def select(self, runs: Sequence[ScoredRun], *, normalized: bool = False) -> Scores:
        """Return the scores of some runs by environment."""
        scores = {}
        for environment in self.environments:
            values = [self.score(run, normalized=normalized) for run in runs if run.environment == environment]
            if values:
                scores[environment] = np.array(values)
        return scores

    def score(self, run: ScoredRun, *, normalized: bool) -> float:
        """Return the score of a run."""
        low, high = self.ranges[run.environment] if normalized else (0.0, 1.0)
        return (run.score - low) / (high - low)

    def ranking(self) -> list[str]:
        """Return the settings, the best first, by the interquartile mean of normalized scores.

        Settings that were trained in more environments come first.
        """
        scores = {setting: self.of_setting(setting, normalized=True) for setting in self.settings}
        quality = {setting: (len(each), float(interquartile_mean(list(each.values())))) for setting, each in scores.items()}
        return sorted(self.settings, key=lambda setting: quality[setting], reverse=True)


def range_of(runs: Sequence[ScoredRun]) -> tuple[float, float]:
    """Return the two returns that count as 0 and 1 on the normalized scale of one environment, given its runs.

    0 is the lowest return of any run's curve, which is that of an untrained policy or worse. 1 is the interquartile mean of
    the best setting; if that is no higher than the lowest return, 1 is one unit above it.
    """
    low = min([value for run in runs for _, value in run.curve] + [run.score for run in runs])
    by_setting: dict[str, list[float]] = {}
    for run in runs:
        by_setting.setdefault(run.setting, []).append(run.score)
    high = max(float(interquartile_mean([np.array(values)])) for values in by_setting.values())
    return low, high if high > low else low + 1.0


def read_scores(path: Path | str) -> SweepScores:
    """Read a sweep's folder, finished or not.

    Raises:
        ConfigError: `path` holds no sweep, or none of its finished runs has ended an episode.
    """
    folder = SweepFolder(path)
    planned = folder.planned()
    found = {name: folder.finished(name) for name in planned}
    labels = _labels(list(planned.values()))
    runs = []
    for name, run in planned.items():
        finished = found[name]
        if finished is not None and (score := finished.result["return"]) is not None:
            identity = name, run["environment"], labels[name], run["swept"], run["seed"]
            runs.append(ScoredRun(*identity, score, _curve(finished.records), run["source"], _costs(finished.records)))
    if not runs:
        raise ConfigError("sweep_dir", str(path), "a sweep with at least one finished run that has ended an episode")
    num_finished = sum(each is not None for each in found.values())
    return gather(runs, num_finished=num_finished, num_planned=len(planned))


def gather(runs: Sequence[ScoredRun], *, num_finished: int | None = None, num_planned: int | None = None) -> SweepScores:
    """Arrange runs by environment and setting, in the order of their first appearance.

    Args:
        runs: at least one.
        num_finished: number of finished runs, including those without a return; None counts `runs`.
        num_planned: number of planned runs; None counts `runs`.
    """
    environments, settings = (tuple(dict.fromkeys(getattr(run, of) for run in runs)) for of in ("environment", "setting"))
    ranges = {name: range_of([run for run in runs if run.environment == name]) for name in environments}
    num_finished = len(runs) if num_finished is None else num_finished
    num_planned = len(runs) if num_planned is None else num_planned
    return SweepScores(tuple(runs), num_finished, num_planned, environments, settings, ranges)


def _labels(planned: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Put the setting of each run into words: swept values, and its source if its environment has several."""
    words = short_names([field for run in planned for field in run["swept"]])
    sources: dict[str, set[str]] = {}
    for run in planned:
        sources.setdefault(run["environment"], set()).add(run["source"])
    labels = {}
    for run in planned:
        setting = setting_in_words({words[field]: value for field, value in run["swept"].items()})
        source = run["source"] if len(sources[run["environment"]]) > 1 else ""
        labels[run["run"]] = ", ".join(filter(None, [source, setting])) or "as configured"
    return labels


def _costs(records: Sequence[dict[str, Any]]) -> dict[str, RunCost]:
    names = {name.removeprefix("training/") for each in records for name in each if name.startswith("training/episode_cost")}
    costs = {}
    for name in sorted(names):
        iterations = [each for each in records if f"training/{name}" in each]
        last = [each[f"training/{name}"] for each in iterations[-math.ceil(len(iterations) / 5) :]]
        expected, limit = f"training/expected_cost{name.removeprefix('episode_cost')}", "training/cost_limit"
        above = [each[expected] > each[limit] for each in iterations if {expected, limit} <= each.keys()]
        costs[name] = RunCost(float(np.mean(last)), float(np.mean(above)) if above else math.nan)
    return costs


def _curve(records: Sequence[dict[str, Any]]) -> tuple[tuple[int, float], ...]:
    curves = [[(each["step"], each[name]) for each in records if name in each] for name in (RETURN, TRAINING_RETURN)]
    evaluations, training = map(tuple, curves)
    return evaluations if len(evaluations) > 1 or not training else training
