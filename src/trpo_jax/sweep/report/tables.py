"""The tables of a report: rows of plain values, as Markdown and CSV."""

import csv
import io
import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from trpo_jax.sweep.report.scores import SweepScores
from trpo_jax.sweep.report.statistics import Estimate, Scores, Statistic, estimate, interquartile_mean, mean, median
from trpo_jax.sweep.report.statistics import probability_of_improvement as improvement
from trpo_jax.training.fields import format_value, short_names

STATISTICS: dict[str, Statistic] = {
    "IQM": interquartile_mean,
    "mean": mean,
    "median": median,
}


class Table(NamedTuple):
    """Rows under a title, with a sentence that says what they are."""

    name: str
    """Name of its file, without the suffix."""
    title: str
    about: str
    rows: tuple[dict[str, Any], ...]

    def markdown(self) -> str:
        """Return the table as Markdown: rounded numbers, an `Estimate` with its interval."""
        names = list(self.rows[0])
        lines = [names, ["---"] * len(names), *([show(row[name]) for name in names] for row in self.rows)]
        cells = [[cell.replace("|", r"\|") for cell in line] for line in lines]
        return "".join(f"| {' | '.join(line)} |\n" for line in cells)

    def csv(self) -> str:
        """Return the table as CSV: unrounded numbers, an `Estimate` in three columns."""
        rows = [dict(_columns(row)) for row in self.rows]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def make_tables(scores: SweepScores) -> list[Table]:
    """Return the tables of a sweep. Those that compare settings are included only if there are several."""
    tables = [returns_table(scores), costs_table(scores)]
    if len(scores.environments) > 1:
        tables.append(overall_table(scores))
    if len(scores.settings) > 1:
        tables += [improvement_table(scores), *sensitivity_tables(scores)]
    return [table for table in tables if table.rows]


def returns_table(scores: SweepScores) -> Table:
    """Return each setting's returns in each environment."""
    rows = []
    for environment in scores.environments:
        for setting in scores.settings:
            of_setting = scores.of_setting(setting)
            if environment in of_setting:
                here = {environment: of_setting[environment]}
                estimates = {name: estimate(here, statistic) for name, statistic in STATISTICS.items()}
                rows.append({"environment": environment, "setting": setting, "runs": len(here[environment])} | estimates)
    about = (
        "Return of each run's last evaluation or, without evaluations, of training's latest episodes: statistics over seeds, "
        "with 95 % intervals of the bootstrap if there are several seeds."
    )
    return Table("returns", "Returns", about, tuple(rows))


def costs_table(scores: SweepScores) -> Table:
    """Return each setting's costs in each environment that has costs."""
    rows: list[dict[str, Any]] = []
    for environment, setting in itertools.product(scores.environments, scores.settings):
        costs = [run.costs for run in scores.runs if (run.environment, run.setting) == (environment, setting)]
        for name in sorted({name for each in costs for name in each}):
            of_runs = [each[name] for each in costs if name in each]
            last = np.array([each.last_fifth for each in of_runs])
            identity = {"environment": environment, "setting": setting, "cost": name, "runs": len(last)}
            estimates = {"last fifth": estimate({environment: last}, mean), "highest": float(last.max())}
            rows.append(identity | estimates | {"share above limit": float(np.mean([each.share_above for each in of_runs]))})
    about = (
        "Cost of training's episodes, whose actions are sampled, in the last fifth of its iterations: mean over seeds with its "
        "95 % interval, and the highest of the seeds. Share of iterations whose expected cost was above the limit, averaged "
        "over seeds; empty for algorithms without a limit."
    )
    return Table("costs", "Costs", about, tuple(rows))


def overall_table(scores: SweepScores) -> Table:
    """Return each setting's normalized scores over all environments."""
    rows = []
    for setting in scores.settings:
        normalized = scores.of_setting(setting, normalized=True)
        estimates = {name: estimate(normalized, statistic) for name, statistic in STATISTICS.items()}
        runs = sum(map(len, normalized.values()))
        rows.append({"setting": setting, "environments": len(normalized), "runs": runs} | estimates)
    about = (
        "Normalized returns over all environments: 0 is the lowest return seen in an environment, 1 the interquartile mean "
        "of the best setting there. IQM is taken over all runs, mean and median over the environments' means. The "
        "bootstrap resamples within each environment."
    )
    return Table("overall", "All environments", about, tuple(rows))


def improvement_table(scores: SweepScores) -> Table:
    """Return the probability that a run of the best setting scores higher than one of each other setting."""
    best = scores.ranking()[0]
    rows = []
    for setting in scores.settings:
        ours, theirs = scores.of_setting(best), scores.of_setting(setting)
        common = ours.keys() & theirs.keys()
        if setting != best and common:
            chance = improvement(*({name: each[name] for name in sorted(common)} for each in (ours, theirs)))
            rows.append({"setting": setting, "environments": len(common), "P(best is better)": chance})
    about = (
        f"Probability that a run of the best setting ({best}) scores higher than one of another, averaged over environments; "
        "0.5 means no difference."
    )
    return Table("improvement", "Probability of improvement", about, tuple(rows))


def sensitivity_tables(scores: SweepScores) -> list[Table]:
    """Return a table for each swept field: the scores at each of its values, over all values of the others."""
    words = short_names([field for run in scores.runs for field in run.swept])
    tables = []
    for field, word in words.items():
        rows = [
            {word: value, "runs": sum(map(len, each.values())), "IQM": estimate(each), "mean": estimate(each, mean)}
            for value, each in scores_by_value(scores, field)
        ]
        if len(rows) > 1:
            about = (
                f"Normalized returns at each value of {field}, over all values of other fields, environments and seeds. The "
                "bootstrap resamples only seeds."
            )
            tables.append(Table(f"sensitivity-{word}", f"Sensitivity to {word}", about, tuple(rows)))
    return tables


def scores_by_value(scores: SweepScores, field: str) -> list[tuple[Any, Scores]]:
    """Return the normalized scores of the runs at each value of a field; numbers are sorted.

    A stratum is an environment as the sweep file gives it, with values of all other fields: only seeds differ within it.
    """
    by_value: dict[Any, dict[str, list[float]]] = {}
    for run in scores.runs:
        if field in run.swept:
            value = run.swept[field]
            others = {name: other for name, other in run.swept.items() if name != field}
            strata = by_value.setdefault(tuple(value) if isinstance(value, list) else value, {})
            strata.setdefault(f"{run.environment} {run.source} {others}", []).append(scores.score(run, normalized=True))
    values = list(by_value)
    if all(isinstance(value, int | float) for value in values):
        values.sort()
    return [(value, {name: np.array(each) for name, each in by_value[value].items()}) for value in values]


def show(value: Any) -> str:
    """Format a value of a table for reading."""
    if isinstance(value, Estimate):
        interval = "" if math.isnan(value.low) else f" ({number(value.low)} to {number(value.high)})"
        return number(value.value) + interval
    if isinstance(value, float) and not value.is_integer():
        return "" if math.isnan(value) else f"{value:.6g}"  # randomly drawn values have no more digits
    return format_value(value)


def number(value: float) -> str:
    """Format a number with enough digits to tell runs apart."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def _columns(row: dict[str, Any]) -> Any:
    for name, value in row.items():
        if isinstance(value, Estimate):
            yield from {name: value.value, f"{name} low": value.low, f"{name} high": value.high}.items()
        else:
            yield name, value
