"""The figures of a report, drawn with matplotlib."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trpo_jax.runs.plot import COLOURS, GREY, STEPS, finish_axis, new_figure, plain
from trpo_jax.sweep.report.scores import SweepScores
from trpo_jax.sweep.report.statistics import NUM_RESAMPLES, ends, estimate, interquartile_mean, performance_profile
from trpo_jax.sweep.report.tables import improvement_table, scores_by_value
from trpo_jax.training.fields import format_value, short_names

COLUMNS = 3
"""Largest number of panels in a row."""
NARROWEST = 7.5
"""Smallest width of a figure, in inches; leaves room for a legend."""


def make_figures(scores: SweepScores) -> dict[str, tuple[str, Any]]:
    """Return the figures of a sweep by name, each with a sentence that says what it shows.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    about = "Return over environment steps: interquartile mean and 95 % band over seeds. (A single seed has no band.)"
    figures = {"curves": (about, curves(scores))}
    if len(scores.settings) > 1 or len(scores.environments) > 1:
        about = "Performance profiles: fraction of runs with a normalized return above a threshold, 95 % bands over seeds."
        figures["profiles"] = (about, profiles(scores))
    if len(scores.settings) > 1 and improvement_table(scores).rows:
        about = f"Probability that a run of the best setting ({scores.ranking()[0]}) scores higher, 95 % intervals over seeds."
        figures["improvement"] = (about, improvements(scores))
    swept = [
        field for field in dict.fromkeys(f for run in scores.runs for f in run.swept) if len(scores_by_value(scores, field)) > 1
    ]
    if swept:
        about = "Sensitivity: normalized return against each swept value, interquartile mean and 95 % interval over all else."
        figures["sensitivity"] = (about, sensitivity(scores, swept))
    return figures


def shown_settings(scores: SweepScores) -> list[str]:
    """Return the settings that get a colour: the best ones, as many as there are colours."""
    best = scores.ranking()[: len(COLOURS)]
    return [setting for setting in scores.settings if setting in best]


def curves(scores: SweepScores) -> Any:
    """Draw the learning curves of every environment."""
    figure, axes = panels(scores.environments)
    shown = shown_settings(scores)
    for axis, environment in zip(axes, scores.environments, strict=True):
        for setting in sorted(scores.settings, key=lambda setting: setting in shown):
            runs = [run for run in scores.runs if (run.environment, run.setting) == (environment, setting)]
            if runs:
                _draw_curve(axis, [run.curve for run in runs], COLOURS[shown.index(setting)] if setting in shown else None)
        finish_axis(axis, environment, STEPS)
        axis.set_ylabel("return", fontsize=9, color=GREY)
    _legend(figure, axes[0], shown, len(scores.settings))
    return figure


def _draw_curve(axis: Any, runs: Sequence[Sequence[tuple[int, float]]], colour: str | None) -> None:
    """Draw the runs of one setting, over the steps that all of them have."""
    curves = [dict(run) for run in runs]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    if not steps:
        return
    values = np.array([[curve[step] for curve in curves] for step in steps])
    if colour is None:
        axis.plot(steps, interquartile_mean([values]), lw=0.8, color=GREY, alpha=0.4)
        return
    axis.plot(steps, interquartile_mean([values]), lw=1.8, color=colour, marker="" if len(steps) > 1 else "o")
    if len(runs) > 1:
        drawn = np.random.default_rng(0).integers(len(runs), size=(NUM_RESAMPLES // 4, len(runs)))
        resampled = interquartile_mean([np.moveaxis(values[:, drawn], 1, 0)])
        axis.fill_between(steps, *np.quantile(resampled, ends(), axis=0), color=colour, alpha=0.18, lw=0)


def profiles(scores: SweepScores) -> Any:
    """Draw the performance profiles of settings, all environments together."""
    figure, (axis,) = panels(("",))
    shown = shown_settings(scores)
    every = np.concatenate(list(scores.select(scores.runs, normalized=True).values()))
    thresholds = np.linspace(min(0.0, every.min()), every.max() * 1.02, 101)
    for setting in shown:
        middle, low, high = performance_profile(scores.of_setting(setting, normalized=True), thresholds)
        colour = COLOURS[shown.index(setting)]
        axis.plot(thresholds, middle, lw=1.8, color=colour)
        axis.fill_between(thresholds, low, high, color=colour, alpha=0.15, lw=0)
    axis.set_ylim(0, 1.02)
    finish_axis(axis, "Fraction of runs above the threshold", "normalized return")
    _legend(figure, axis, shown, len(scores.settings))
    return figure


def improvements(scores: SweepScores) -> Any:
    """Draw the probabilities of improvement."""
    rows = improvement_table(scores).rows
    figure, (axis,) = panels(("",), height=1.2 + 0.32 * len(rows))
    for place, row in enumerate(reversed(rows)):
        chance = row["P(best is better)"]
        axis.plot([chance.low, chance.high], [place, place], lw=5, alpha=0.35, color=COLOURS[0], solid_capstyle="butt")
        axis.plot(chance.value, place, "o", color=COLOURS[0])
    axis.axvline(0.5, color=GREY, lw=1, ls="--")
    axis.set_yticks(range(len(rows)), [plain(row["setting"]) for row in reversed(rows)])
    axis.set_xlim(-0.02, 1.02)
    finish_axis(axis, "P(best is better)", "probability", grid="x")
    return figure


def sensitivity(scores: SweepScores, fields: Sequence[str]) -> Any:
    """Draw the normalized return against each field that was swept."""
    figure, axes = panels(fields)
    words = short_names(fields)
    for axis, field in zip(axes, fields, strict=True):
        points = [(value, estimate(each)) for value, each in scores_by_value(scores, field)]
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value, _ in points)
        places = [value for value, _ in points] if numbers else list(range(len(points)))
        middle, low, high = (np.array([getattr(each, end) for _, each in points]) for end in ("value", "low", "high"))
        bars = np.nan_to_num(np.maximum((middle - low, high - middle), 0))  # none for a single run
        axis.errorbar(places, middle, bars, fmt="o-", color=COLOURS[0], capsize=3, lw=1.5)
        if numbers and min(places) > 0 and max(places) / min(places) > 5:
            axis.set_xscale("log")
            axis.minorticks_off()
        if len(points) <= 8:
            axis.set_xticks(places, [plain(format_value(value)) for value, _ in points])
        finish_axis(axis, words[field], field)
        axis.set_ylabel("normalized return", fontsize=9, color=GREY)
    return figure


def panels(names: Sequence[str], *, width: float = 4.6, height: float = 3.4) -> tuple[Any, list[Any]]:
    """Return a figure with a panel for each name."""
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(max(width * columns, NARROWEST), height * rows)
    return figure, [figure.add_subplot(rows, columns, number + 1) for number in range(len(names))]


def _legend(figure: Any, axis: Any, shown: Sequence[str], num_settings: int) -> None:
    if num_settings == 1:
        return
    handles = [axis.plot([], [], lw=2, color=COLOURS[i], label=plain(setting))[0] for i, setting in enumerate(shown)]
    if num_settings > len(shown):
        handles += axis.plot([], [], lw=0.8, color=GREY, alpha=0.6, label=f"{num_settings - len(shown)} others")
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
