"""Learning curves of runs, drawn with matplotlib."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from trpo_jax.errors import ConfigError, FileError, MissingPackageError
from trpo_jax.runs.run_folder import open_run_folder, read_metrics
from trpo_jax.training.fields import fields_of, setting_in_words, short_names
from trpo_jax.training.run_config import BESIDE_TRAINING

FORMATS = (".png", ".pdf", ".svg")
# Okabe and Ito's palette: its colours are distinct for people with any common form of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", ":", "-.")
GREY = "#666666"
STEPS = "environment steps"
POINTS: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 7, "markeredgecolor": "white"}
SMOOTHED_PART = 1 / 40
"""Window of the moving averages, as a fraction of a run."""


class Curve(NamedTuple):
    """One metric of one run."""

    step: Float[np.ndarray, "K"]
    """Environment steps, increasing."""
    value: Float[np.ndarray, "K"]


class RunCurves(NamedTuple):
    """The data of one run that is drawn."""

    name: str
    """Name of its folder."""
    parent: str
    """Path of the folder that contains it."""
    fields: Mapping[str, Any]
    """Its configuration, by dotted names."""
    curves: dict[str, Curve]


class Group(NamedTuple):
    """The seeds of one setting, drawn as one line in each panel of an environment."""

    label: str
    runs: tuple[RunCurves, ...]

    def curves(self, metric: str) -> list[Curve]:
        """Return the curves of a metric, from the runs that have it."""
        return [run.curves[metric] for run in self.runs if metric in run.curves]


class Panel(NamedTuple):
    """How one metric is drawn."""

    metric: str
    title: str
    bottom: float | None = None
    """Lower end of the axis; None derives it from the values."""
    top: float | None = None
    lowest: float = -math.inf
    """Values below this are cut off, so that outliers do not flatten the rest."""
    smoothed_points: int = 1
    """Minimum number of iterations in the moving average."""
    shows_raw: bool = True
    """Whether to draw the raw values too, faintly, behind their moving average."""


SPEED = "training/sps"
RETURN = Panel("training/episode_reward", "Return")
KL = Panel("training/kl", "Mean KL (nats)", bottom=0.0)
SMALL_PANELS = (
    KL,
    # Each value is 0 or 1, so only the average is readable.
    Panel("training/accepted", "Accepted updates (fraction)", 0.0, 1.05, smoothed_points=10, shows_raw=False),
    Panel("training/explained_variance", "Explained variance of the critic", top=1.05, lowest=-1.0),
    Panel(SPEED, "Environment steps per second", bottom=0.0),
)
EVALUATION = "eval/episode_reward"
KL_BOUND = "training/kl_bound"
NOT_OF_THE_SETTING = ("environment", "seed", *BESIDE_TRAINING)
"""Fields in which runs of one setting may differ."""


def plot_runs(paths: Sequence[Path | str], out: Path | str) -> Path:
    """Draw the learning curves of run folders into one picture and return its path.

    Args:
        paths: folders that trainings wrote, finished or not.
        out: file to write or overwrite; its ending (.png, .pdf, .svg) selects the format.

    Raises:
        ConfigError: a folder holds no run, or no metrics. MissingPackageError: no matplotlib. FileError: `out`
            cannot be written.
    """
    path = Path(out)
    if path.suffix.lower() not in FORMATS:
        raise ConfigError("out", str(path), f"a file name that ends in {' or '.join(FORMATS)}")
    figure = draw([read_run(folder, name) for folder, name in zip(paths, run_names(paths), strict=True)])
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise FileError.unwritable(path, error) from None
    return path


def run_names(paths: Sequence[Path | str]) -> list[str]:
    """Name each run after its folder, or by its whole path if two folders have the same name."""
    names = [Path(path).absolute().name for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def read_run(path: Path | str, name: str) -> RunCurves:
    """Read the data of a run that is drawn. Raises ConfigError if there is no run, or it has no metrics."""
    folder, run_config = open_run_folder(path)
    return RunCurves(name, str(folder.path.parent), fields_of(run_config), read_curves(folder.metrics))


def group_runs(runs: Sequence[RunCurves]) -> dict[str, list[Group]]:
    """Group the seeds of each setting, by environment, in the order of their first appearance.

    A setting is named by the fields in which runs of one environment differ. If two runs of a setting have the same seed,
    they are distinguished by their parent folders, or else by their own names.
    """
    by_environment: dict[str, list[RunCurves]] = {}
    for run in runs:
        by_environment.setdefault(run.fields["environment"], []).append(run)
    differing = [name for some in by_environment.values() for name in _differing(some)]
    words = short_names(differing)
    groups: dict[str, list[Group]] = {}
    for environment, some in by_environment.items():
        by_label: dict[str, list[RunCurves]] = {}
        for run in some:
            own = [name for name in dict.fromkeys(differing) if name in run.fields]  # without fields of other algorithms
            label = setting_in_words({words[name]: run.fields[name] for name in own})
            by_label.setdefault(label, []).append(run)
        groups[environment] = [group for label, seeds in by_label.items() for group in _split(label, seeds)]
    return groups


def _differing(runs: Sequence[RunCurves]) -> list[str]:
    """Return the fields in which the runs that have them differ, except `NOT_OF_THE_SETTING`."""
    names = dict.fromkeys(name for run in runs for name in run.fields if name not in NOT_OF_THE_SETTING)
    values = {name: [run.fields[name] for run in runs if name in run.fields] for name in names}
    return [name for name in names if any(value != values[name][0] for value in values[name])]


def _split(label: str, runs: Sequence[RunCurves], *, by_parent: bool = True) -> Iterator[Group]:
    """Split the runs of one setting into groups in which no seed appears twice."""
    seeds = [run.fields["seed"] for run in runs]
    if len(set(seeds)) == len(seeds):
        yield Group(label, tuple(runs))
    elif by_parent:
        for parent in dict.fromkeys(run.parent for run in runs):
            name = ", ".join(filter(None, [label, parent]))
            yield from _split(name, [run for run in runs if run.parent == parent], by_parent=False)
    else:
        yield from (Group(run.name, (run,)) for run in runs)


def read_curves(path: Path) -> dict[str, Curve]:
    """Read metrics.jsonl into one curve per metric.

    If a metric has two values at one step, the later one counts.

    Raises:
        ConfigError: there is no such file, or no record in it.
    """
    values: dict[str, dict[float, float]] = {}
    for record in read_metrics(path):
        step = record.pop("step")
        for name, value in record.items():
            values.setdefault(name, {})[step] = value
    if not values:
        raise ConfigError("metrics", str(path), "a file with at least one complete line; has the run finished an iteration?")
    rising = {name: sorted(by_step.items()) for name, by_step in values.items()}
    return {name: Curve(*np.asarray(points, float).T) for name, points in rising.items()}


def moving_average(value: Float[np.ndarray, "K"], window: int) -> Float[np.ndarray, "K"]:
    """Average over the `window` points around each point; near the ends, over those that exist."""
    half = min(window, len(value)) // 2
    kernel = np.ones(2 * half + 1)
    # Cut from "full", since "same" returns the kernel's length if the kernel is longer than the values.
    total, count = (np.convolve(x, kernel)[half : half + len(value)] for x in (value, np.ones(len(value))))
    return total / count


def average(curves: Sequence[Curve]) -> tuple[Curve, Curve, Curve]:
    """Return mean, lowest and highest of several curves at every step of any of them.

    A curve is interpolated between its steps, and ignored before its first and after its last step.
    """
    step = np.unique(np.concatenate([curve.step for curve in curves]))
    values = np.stack([np.interp(step, *curve, left=np.nan, right=np.nan) for curve in curves])
    return tuple(Curve(step, of(values, axis=0)) for of in (np.nanmean, np.nanmin, np.nanmax))  # type: ignore[return-value]


def draw(runs: Sequence[RunCurves]) -> Any:
    """Return a matplotlib Figure of the return (training, evaluation), KL and its bound, accepted updates, critic and speed.

    Each environment has its own panels. Several seeds of a setting are drawn as their mean, with a band from the lowest to
    the highest.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    environments = group_runs(runs)
    labels = list(dict.fromkeys(group.label for groups in environments.values() for group in groups))
    styles = {label: _style(number) for number, label in enumerate(labels)}
    if len(environments) == 1:
        figure, shape = new_figure(13.0, 6.2), (2, 4)
    else:
        figure, shape = new_figure(19.0, 3.4 * len(environments)), (1, 6)
    rows = figure.add_gridspec(len(environments), 1)
    for row, (environment, groups) in zip(rows, environments.items(), strict=True):
        grid = row.subgridspec(*shape)
        large = figure.add_subplot(grid[:, :2])
        places = [(i, j) for i in range(shape[0]) for j in range(2, shape[1])]
        axes = [large, *(figure.add_subplot(grid[place], sharex=large) for place in places)]
        panels = (RETURN._replace(title=f"{environment}: return"), *SMALL_PANELS)
        for axis, panel in zip(axes, panels, strict=True):
            for group in groups:
                _draw_group(axis, panel, group, styles[group.label])
        _draw_evaluations(large, groups, styles)
        _draw_bounds(axes[1], groups, styles)
        for axis, panel in zip(axes, panels, strict=True):
            _finish_panel(axis, panel)  # last: setting limits turns autoscaling off
    if len(labels) > 1:
        handles = [large.plot([], [], label=plain(label), lw=2, **styles[label])[0] for label in labels]
        inches_each = 0.75 + 0.09 * max(map(len, labels))  # line, gap and letters
        columns = max(1, int(figure.get_figwidth() / inches_each))
        figure.legend(handles=handles, loc="outside upper left", ncols=min(columns, 4), frameon=False, fontsize=11)
    return figure


def new_figure(width: float, height: float) -> Any:
    """Return an empty matplotlib Figure of a size in inches. Raises MissingPackageError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPackageError.of("a plot", "matplotlib", "plot") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(text: str) -> str:
    """Escape a text for matplotlib: a dollar sign then starts no formula, and a leading underscore hides no label."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def finish_axis(axis: Any, title: str, xlabel: str, *, grid: Literal["x", "y"] = "y") -> None:
    """Set a panel's title and the common style. Environment steps are shown in k and M."""
    from matplotlib.ticker import EngFormatter

    axis.set_title(plain(title), loc="left", fontsize=11)
    axis.set_xlabel(xlabel, fontsize=9, color=GREY)
    if xlabel == STEPS:
        axis.set_xlim(left=0)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.locator_params(axis="x", nbins=6)
    axis.tick_params(labelsize=9, color=GREY, labelcolor=GREY)
    axis.grid(axis=grid, lw=0.5, alpha=0.4)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(GREY)


def _style(number: int) -> dict[str, Any]:
    """Return the colour and line style with this number. The line style changes once all colours are used."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINE_STYLES[number // len(COLOURS) % len(LINE_STYLES)],
    }


def _draw_group(axis: Any, panel: Panel, group: Group, style: dict[str, Any]) -> None:
    curves = group.curves(panel.metric)
    if not curves:  # such as the return before any episode has ended
        return
    windows = [max(panel.smoothed_points, round(len(curve.step) * SMOOTHED_PART)) for curve in curves]
    smooth = [Curve(curve.step, moving_average(curve.value, window)) for curve, window in zip(curves, windows, strict=True)]
    if len(curves) == 1 and panel.shows_raw and windows[0] > 1:
        axis.plot(*curves[0], lw=0.8, alpha=0.25, **style)
    mean, lowest, highest = average(smooth)
    axis.plot(*mean, lw=1.8, **style)
    if len(curves) > 1:
        axis.fill_between(mean.step, lowest.value, highest.value, color=style["color"], alpha=0.18, lw=0)


def _finish_panel(axis: Any, panel: Panel) -> None:
    from matplotlib.ticker import EngFormatter

    low, high = axis.get_ylim()
    low = max(low, panel.lowest) if panel.bottom is None else panel.bottom
    axis.set_ylim(low, high if panel.top is None else panel.top)
    if panel.metric == SPEED:
        axis.yaxis.set_major_formatter(EngFormatter(sep=""))
    finish_axis(axis, panel.title, STEPS)


def _draw_bounds(axis: Any, groups: Sequence[Group], styles: Mapping[str, dict[str, Any]]) -> None:
    """Draw the KL bounds and label their first values; the lines are grey if all settings share one, else in their colours."""
    bounds = {group.label: average(group.curves(KL_BOUND))[0] for group in groups if group.curves(KL_BOUND)}
    are_alike = len({(bound.value[0], bound.value[-1]) for bound in bounds.values()}) == 1
    for label, bound in bounds.items():
        axis.plot(*bound, lw=1.2, ls=(0, (4, 3)), color=GREY if are_alike else styles[label]["color"])
    for text, place in {f"max_kl {bound.value[0]:g}": (bound.step[0], bound.value[0]) for bound in bounds.values()}.items():
        axis.annotate(text, place, (0, 3), "data", "offset points", fontsize=9, color=GREY)
    axis.margins(y=0.12)  # room for the label above the highest line


def _draw_evaluations(axis: Any, groups: Sequence[Group], styles: Mapping[str, dict[str, Any]]) -> None:
    """Draw evaluations as points, and add a legend for line, point and band."""
    from matplotlib.patches import Patch

    for group in groups:
        if curves := group.curves(EVALUATION):
            mean, lowest, highest = average(curves)
            color = styles[group.label]["color"]
            axis.vlines(mean.step, lowest.value, highest.value, color=color, lw=1.2)
            # Not clipped, since an evaluation before training lies on the axis itself.
            axis.plot(*mean, **POINTS, color=color, clip_on=False, zorder=3)
    handles = [
        *axis.plot([], [], lw=1.8, color=GREY, label="training"),
        *axis.plot([], [], **POINTS, color=GREY, label="evaluation"),
    ]
    if any(len(group.runs) > 1 for group in groups):
        handles.append(Patch(color=GREY, alpha=0.3, lw=0, label="lowest to highest seed"))
    axis.legend(handles=handles, loc="best", frameon=False, fontsize=9, labelcolor=GREY)
