"""`trpo-jax train`."""

import dataclasses
from typing import Annotated

import tyro

from trpo_jax.cli.arguments import parse
from trpo_jax.cli.console import make_console
from trpo_jax.config import ConfigError
from trpo_jax.training.run_config import RunConfig, read_run_config, shipped_config

DESCRIPTION = (
    "Train a policy by Trust Region Policy Optimization. The first argument names a Brax environment or a TOML file; "
    "what it leaves open keeps the defaults shown here, and options go over both. "
    "Writes RUN-DIR/{config.toml, metrics.jsonl, checkpoints/}."
)


@dataclasses.dataclass(frozen=True)
class TrainArguments:
    """What `trpo-jax train` takes."""

    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV|CONFIG.toml")]
    """A Brax environment (ant, hopper, …; with the settings that ship for it, if any) or a TOML file."""
    run: Annotated[RunConfig, tyro.conf.arg(name="")]
    run_dir: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for the run, new or empty; by default runs/ENV-DATE-TIME."""


def train_command(arguments: list[str]) -> int:
    """Train as the arguments say; return the exit code."""
    target = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if target is None and not {"-h", "--help"} & set(arguments):
        raise ConfigError(
            "ENV|CONFIG.toml", arguments[0] if arguments else "", "an environment or a TOML file as first argument"
        )
    default = TrainArguments(target or "ant", starting_config(target))
    parsed = parse(TrainArguments, arguments, command="train", description=DESCRIPTION, default=default)
    return _train(parsed)


def starting_config(target: str | None) -> RunConfig:
    """Return the configuration that a target stands for, before options."""
    if target is None:
        return RunConfig()
    if target.endswith(".toml"):
        return read_run_config(target)
    path = shipped_config(target)
    return dataclasses.replace(read_run_config(path) if path else RunConfig(), environment=target)


def _train(arguments: TrainArguments) -> int:
    from trpo_jax.training.run import run_environment, run_training
    from trpo_jax.training.run_folder import create_run_folder, default_run_dir
    from trpo_jax.training.trpo import make_trpo

    run_config = arguments.run
    environment = run_environment(run_config)
    make_trpo(environment, run_config.trpo)  # raises for what does not fit together, before a folder is made
    folder = create_run_folder(arguments.run_dir or default_run_dir(run_config.environment), run_config)
    console = make_console(run_config)
    console.start(folder.path)
    try:
        with console:
            metrics = run_training(
                run_config,
                folder,
                environment,
                progress_fn=console.evaluation,
                iteration_fn=console.iteration,
            )
    except KeyboardInterrupt:
        console.interrupted(folder.path)
        raise
    console.finish(folder.path, metrics)
    return 0
