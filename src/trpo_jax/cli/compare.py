"""`trpo-jax compare`."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Annotated, Any

import tyro

from trpo_jax.cli.arguments import parse
from trpo_jax.cli.console import say
from trpo_jax.cli.sweep import ProgramOptions, train_planned
from trpo_jax.environments.suites import Suite
from trpo_jax.errors import MissingPackageError

DESCRIPTION = (
    "Train with several algorithms, each with its shipped settings for a CPU, and report their returns with 95 % intervals. "
    "This is a sweep: run the same command again to resume after an interruption, or with more --seeds to add runs."
)


@dataclasses.dataclass(frozen=True)
class CompareArguments:
    """Arguments of `trpo-jax compare`."""

    environments: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="ENV [ENV …]")]
    """Environments, or TOML files."""
    algorithms: Annotated[str, tyro.conf.arg(metavar="NAME,NAME")] = "trpo,ppo"
    """Names of algorithms, separated by commas; docs/algorithms.md lists them."""
    seeds: int = 5
    """Number of seeds."""
    num_timesteps: int | None = None
    """Environment steps to train for; by default the number in each environment's settings."""
    suite: Suite = "brax"
    """Suite of the environments that are given by name."""
    sweep_dir: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for runs and report: a new one, or one to resume; by default sweeps/compare-ENV-…-ALGORITHM-…"""
    programs: Annotated[ProgramOptions, tyro.conf.arg(name="")] = ProgramOptions()  # noqa: RUF009 - frozen


def compare_command(arguments: list[str]) -> int:
    """Compare as the arguments say; return the exit code."""
    parsed = parse(CompareArguments, arguments, command="compare", description=DESCRIPTION)
    parsed.programs.check()

    from trpo_jax.sweep.plan import make_plan
    from trpo_jax.sweep.report.page import write_report
    from trpo_jax.sweep.report.scores import read_scores
    from trpo_jax.sweep.report.tables import returns_table
    from trpo_jax.sweep.spec import sweep_from_mapping

    if importlib.util.find_spec("matplotlib") is None and not parsed.programs.dry_run:
        raise MissingPackageError.of("a report", "matplotlib", "plot")
    names = [name.strip() for name in parsed.algorithms.split(",")]
    mapping: dict[str, Any] = {"environments": list(parsed.environments), "seeds": parsed.seeds, "grid": {"algorithm": names}}
    if parsed.suite != "brax":  # the default would override what a TOML file says
        mapping["config"] = {"suite": parsed.suite}
    if parsed.num_timesteps is not None:
        mapping["num_timesteps"] = parsed.num_timesteps
    sweep = sweep_from_mapping(mapping)
    stem = "-".join(["compare", *(Path(name).stem for name in parsed.environments), *names])
    folder = parsed.sweep_dir or Path("sweeps") / stem
    code = train_planned(lambda: make_plan(sweep), folder, parsed.programs)
    if code == 0 and not parsed.programs.dry_run:
        page = write_report(folder)
        say(returns_table(read_scores(folder)).markdown())
        say(f"wrote {page}")
    return code
