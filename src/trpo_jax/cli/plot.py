"""`trpo-jax plot`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from trpo_jax.cli.arguments import parse
from trpo_jax.errors import ConfigError

DESCRIPTION = (
    "Draw the learning curves of runs into one picture: return in training and evaluation, mean KL and its bound, the "
    "fraction of updates that were accepted, the critic's explained variance, and speed, all over environment steps. Seeds of "
    "one setting are drawn as their mean with a band; each environment has its own panels. Also works on runs that are still "
    "training, except those of a sweep."
)


@dataclasses.dataclass(frozen=True)
class PlotArguments:
    """Arguments of `trpo-jax plot`."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN …]")]
    """Folders that `trpo-jax train` or `trpo-jax sweep` wrote, or SWEEP/NAME for runs of a sweep (NAME: ant or ant-seed0)."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Picture to write, overwritten if it exists; ends in .png, .pdf or .svg. By default plot.png, in the given folder or,
    for several folders, in the working directory."""


def plot_command(arguments: list[str]) -> int:
    """Plot as the arguments say; return the exit code."""
    parsed = parse(PlotArguments, arguments, command="plot", description=DESCRIPTION)
    if not parsed.runs:
        raise ConfigError("RUN", "", "one or more folders that a training wrote")

    from trpo_jax.runs.plot import plot_runs
    from trpo_jax.sweep.finding import find_runs

    paths = list(dict.fromkeys(run.path for each in parsed.runs for run in find_runs(each)))
    only = Path(parsed.runs[0]) if len(parsed.runs) == 1 else Path()
    out = parsed.out or (only if only.is_dir() else Path()) / "plot.png"
    print(f"wrote {plot_runs(paths, out)}")
    return 0
