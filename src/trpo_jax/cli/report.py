"""`trpo-jax report`."""

import dataclasses
from typing import Annotated

import tyro

from trpo_jax.cli.arguments import parse

DESCRIPTION = (
    "Turn the folder of a sweep into tables and plots: returns with 95 % intervals, learning curves, performance profiles, "
    "probabilities of improvement, sensitivity to each swept field. Also works on a sweep that is not finished."
)


@dataclasses.dataclass(frozen=True)
class ReportArguments:
    """Arguments of `trpo-jax report`."""

    sweep_dir: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Folder that `trpo-jax sweep` wrote."""
    out: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for report.html, report.md, tables (CSV) and plots (PNG and SVG); existing files of these names are overwritten.
    By default DIR/report."""


def report_command(arguments: list[str]) -> int:
    """Report as the arguments say; return the exit code."""
    parsed = parse(ReportArguments, arguments, command="report", description=DESCRIPTION)

    from trpo_jax.sweep.report.page import write_report

    print(f"wrote {write_report(parsed.sweep_dir, parsed.out)}")
    return 0
