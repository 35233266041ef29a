"""Learning curves of runs, by matplotlib."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from trpo_jax.config import ConfigError, MissingPackageError
from trpo_jax.training.run_folder import open_run_folder, read_metrics

FORMATS = (".png", ".pdf", ".svg")
# Okabe and Ito's palette, which people with any common form of colour blindness tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", ":", "-.")
GREY = "#666666"
STEPS = "environment steps"
POINTS: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 7, "markeredgecolor": "white"}
SMOOTHED_PART = 1 / 40
"""Moving averages run over this part of a run."""


class Curve(NamedTuple):
    """One metric of one run."""

    step: Float[np.ndarray, "K"]
    """Environment steps, rising."""
    value: Float[np.ndarray, "K"]


class RunCurves(NamedTuple):
    """What is drawn of one run."""

    name: str
    curves: dict[str, Curve]
    max_kl: float
    """The bound on the mean KL, in nats."""


class Panel(NamedTuple):
    """How one metric is drawn."""

    metric: str
    title: str
    bottom: float | None = None
    """Lower end of the axis; None leaves it to the values."""
    top: float | None = None
    lowest: float = -math.inf
    """Values below are cut off, where single ones would press all others together."""
    smoothed_points: int = 1
    """The moving average runs over at least so many iterations."""
    shows_raw: bool = True
    """Draw the values themselves too, faintly, behind their moving average."""


SPEED = "training/sps"
RETURN = Panel("training/episode_reward", "Return")
KL = Panel("training/kl", "Mean KL (nats)", bottom=0.0)
SMALL_PANELS = (
    KL,
    # Single outcomes are 0 or 1: only their average can be read.
    Panel("training/accepted", "Accepted updates (fraction)", 0.0, 1.05, smoothed_points=10, shows_raw=False),
    Panel("training/explained_variance", "Explained variance of the critic", top=1.05, lowest=-1.0),
    Panel(SPEED, "Environment steps per second", bottom=0.0),
)
EVALUATION = "eval/episode_reward"


def plot_runs(paths: Sequence[Path | str], out: Path | str | None = None) -> Path:
    """Draw the learning curves of run folders into one picture and return where it lies.

    Args:
        paths: folders that trainings wrote, finished or not.
        out: file to write, overwritten; its ending (.png, .pdf, .svg) says in which format. None stands for plot.png
            in the folder of a single run, in the working directory for several.

    Raises:
        ConfigError: matplotlib is missing, a folder is none of a run, it holds no metrics, or `out` cannot be written.
    """
    path = Path(out) if out is not None else (Path(paths[0]) if len(paths) == 1 else Path()) / "plot.png"
    if path.suffix.lower() not in FORMATS:
        raise ConfigError("out", str(path), f"a file name that ends in {', '.join(FORMATS)}")
    figure = draw([read_run(folder, name) for folder, name in zip(paths, run_names(paths), strict=True)])
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise ConfigError("out", str(path), f"a file that can be written ({error.strerror})") from None
    return path


def run_names(paths: Sequence[Path | str]) -> list[str]:
    """Name each run after its folder, or by its whole path where two folders have one name."""
    names = [Path(path).absolute().name for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def read_run(path: Path | str, name: str) -> RunCurves:
    """Read what is drawn of a run; raises ConfigError where there is no run, or none of its metrics."""
    folder, run_config = open_run_folder(path)
    return RunCurves(name, read_curves(folder.metrics), run_config.trpo.trust_region.max_kl)


def read_curves(path: Path) -> dict[str, Curve]:
    """Read metrics.jsonl into a curve a metric.

    Of two values of a metric at one step the later one counts.

    Raises:
        ConfigError: there is no such file, or no record in it.
    """
    values: dict[str, dict[float, float]] = {}
    for record in read_metrics(path):
        step = record.pop("step")
        for name, value in record.items():
            values.setdefault(name, {})[step] = value
    if not values:
        raise ConfigError("metrics", str(path), "a file with at least one whole line; has the run finished an iteration?")
    rising = {name: sorted(by_step.items()) for name, by_step in values.items()}
    return {name: Curve(*np.asarray(points, float).T) for name, points in rising.items()}


def moving_average(value: Float[np.ndarray, "K"], window: int) -> Float[np.ndarray, "K"]:
    """Average over `window` points around each; towards the ends over those that are there."""
    half = min(window, len(value)) // 2
    kernel = np.ones(2 * half + 1)
    # "full" and cut, since "same" returns the kernel's length where that is the longer one.
    total, count = (np.convolve(x, kernel)[half : half + len(value)] for x in (value, np.ones(len(value))))
    return total / count


def draw(runs: Sequence[RunCurves]) -> Any:
    """Return a matplotlib Figure: return (training and evaluation), KL and its bound, accepted updates, critic, speed.

    Raises:
        ConfigError: matplotlib is missing.
    """
    figure = new_figure(13.0, 6.2)
    grid = figure.add_gridspec(2, 4)
    large = figure.add_subplot(grid[:, :2])
    axes = [large, *(figure.add_subplot(grid[row, 2 + column], sharex=large) for row in (0, 1) for column in (0, 1))]
    for axis, panel in zip(axes, (RETURN, *SMALL_PANELS), strict=True):
        for number, run in enumerate(runs):
            _draw_curve(axis, panel, run, _style(number))
    _draw_evaluations(large, runs)
    _draw_bounds(axes[1], runs)
    for axis, panel in zip(axes, (RETURN, *SMALL_PANELS), strict=True):
        _finish_panel(axis, panel)  # last, since an axis whose limits are set no longer follows what is drawn
    handles = [large.plot([], [], label=run.name, lw=2, **_style(number))[0] for number, run in enumerate(runs)]
    figure.legend(handles=handles, loc="outside upper left", ncols=4, frameon=False, fontsize=11)
    return figure


def new_figure(width: float, height: float) -> Any:
    """Return an empty matplotlib Figure, its size in inches. Raises ConfigError if matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPackageError.of("a plot", "matplotlib", "plot") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def finish_axis(axis: Any, title: str, xlabel: str, *, grid: Literal["x", "y"] = "y") -> None:
    """Give a panel its title and the look that all have; environment steps are counted in k and M."""
    from matplotlib.ticker import EngFormatter

    axis.set_title(title, loc="left", fontsize=11)
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
    """Return colour and line style of a run by its place; styles change once the colours are used up."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINE_STYLES[number // len(COLOURS) % len(LINE_STYLES)],
    }


def _draw_curve(axis: Any, panel: Panel, run: RunCurves, style: dict[str, str]) -> None:
    curve = run.curves.get(panel.metric)
    if curve is None:  # such as the return before any episode has ended
        return
    window = max(panel.smoothed_points, round(len(curve.step) * SMOOTHED_PART))
    if panel.shows_raw and window > 1:
        axis.plot(curve.step, curve.value, lw=0.8, alpha=0.25, **style)
    axis.plot(curve.step, moving_average(curve.value, window), lw=1.8, **style)


def _finish_panel(axis: Any, panel: Panel) -> None:
    from matplotlib.ticker import EngFormatter

    low, high = axis.get_ylim()
    low = max(low, panel.lowest) if panel.bottom is None else panel.bottom
    axis.set_ylim(low, high if panel.top is None else panel.top)
    if panel.metric == SPEED:
        axis.yaxis.set_major_formatter(EngFormatter(sep=""))
    finish_axis(axis, panel.title, STEPS)


def _draw_bounds(axis: Any, runs: Sequence[RunCurves]) -> None:
    """Draw max_kl as a line: grey if all runs have the same, else one in each run's colour."""
    bounds = {run.max_kl for run in runs}
    for number, run in enumerate(runs):
        color = GREY if len(bounds) == 1 else _style(number)["color"]
        axis.axhline(run.max_kl, lw=1.2, ls=(0, (4, 3)), color=color)
    for bound in bounds:
        place, above = (1, bound), (0, 3)
        transform = axis.get_yaxis_transform()  # x in parts of the axis, y in nats
        axis.annotate(f"max_kl {bound:g}", place, above, transform, "offset points", ha="right", fontsize=9, color=GREY)
    axis.margins(y=0.12)  # room for the words above the highest line


def _draw_evaluations(axis: Any, runs: Sequence[RunCurves]) -> None:
    """Draw evaluations as points, and say what is line and what is point."""
    for number, run in enumerate(runs):
        if EVALUATION in run.curves:
            step, value = run.curves[EVALUATION]
            # Not clipped, for an evaluation before training stands on the axis itself.
            axis.plot(step, value, **POINTS, color=_style(number)["color"], clip_on=False, zorder=3)
    line = axis.plot([], [], lw=1.8, color=GREY, label="training")
    points = axis.plot([], [], **POINTS, color=GREY, label="evaluation")
    axis.legend(handles=[*line, *points], loc="lower right", frameon=False, fontsize=9, labelcolor=GREY)
