"""`trpo-jax plot`."""

import dataclasses
from typing import Annotated

import tyro

from trpo_jax.cli.arguments import parse
from trpo_jax.config import ConfigError

DESCRIPTION = (
    "Draw the learning curves of one or more runs into one picture: return in training and evaluation, mean KL and its "
    "bound, the fraction of updates that were accepted, the critic's explained variance, and speed, all over environment "
    "steps. Works on runs that are still going on, too."
)


@dataclasses.dataclass(frozen=True)
class PlotArguments:
    """What `trpo-jax plot` takes."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN …]")]
    """Folders that `trpo-jax train` wrote."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Picture to write, overwritten if it exists; ends in .png, .pdf or .svg. By default plot.png, in the folder of a
    single run, in the working directory for several."""


def plot_command(arguments: list[str]) -> int:
    """Plot as the arguments say; return the exit code."""
    parsed = parse(PlotArguments, arguments, command="plot", description=DESCRIPTION)
    if not parsed.runs:
        raise ConfigError("RUN", "", "one or more folders that a training wrote")

    from trpo_jax.training.plot import plot_runs

    print(f"wrote {plot_runs(parsed.runs, parsed.out)}")
    return 0
