"""`trpo-jax train`."""

import dataclasses
import itertools
import shlex
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import tyro

from trpo_jax.algorithms.registry import ALGORITHMS, DEFAULT
from trpo_jax.cli.arguments import parse
from trpo_jax.cli.console import make_console
from trpo_jax.cli.startup import ended_by_ctrl_c, raised_by_ctrl_c
from trpo_jax.errors import CheckpointError, ConfigError, MissingPackageError
from trpo_jax.files import write_whole
from trpo_jax.runs.loggers import Logger, TensorBoardLogger, WandbLogger
from trpo_jax.runs.run_folder import MetricsLog, RunFolder, create_run_folder, open_run_folder
from trpo_jax.training.run_config import (
    BESIDE_TRAINING,
    RunConfig,
    file_fields,
    starting_config,
    with_algorithm,
    write_run_config,
)

DESCRIPTION = (
    "Train a policy with Trust Region Policy Optimization, or with the algorithm that --algorithm names. The first argument "
    "names an environment or a TOML file; fields that it does not set keep the defaults shown here, and options override both. "
    "An accelerator has shipped settings of its own, with thousands of environments; --no-accelerator uses those for a CPU. "
    "Writes RUN-DIR/{config.toml, metrics.jsonl, checkpoints/}. "
    "`trpo-jax train --resume RUN` resumes an earlier run as if it had not been interrupted."
)

CHANGEABLE = ("num_timesteps", *BESIDE_TRAINING)
"""Fields that may change when a run is resumed."""


@dataclasses.dataclass(frozen=True)
class TrainArguments:
    """Arguments of `trpo-jax train`."""

    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV|CONFIG.toml")]
    """An environment (ant, hopper, …; with the settings that ship for it, if any) or a TOML file."""
    run: Annotated[RunConfig, tyro.conf.arg(name="")]
    run_dir: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for the run, new or empty; by default runs/ENV-DATE-TIME."""
    resume: Annotated[str | None, tyro.conf.arg(metavar="RUN")] = None
    """Folder of an earlier run to resume, instead of ENV; only its length, evaluations and checkpoints may be changed."""
    algorithm: Literal[*ALGORITHMS] = DEFAULT
    """Learning algorithm. To see its options, add --help: trpo-jax train ant --algorithm ppo --help."""
    accelerator: bool = False
    """Use the settings shipped for an accelerator, or those for a CPU; by default JAX's default device decides."""
    tensorboard: bool = False
    """Also write metrics for TensorBoard, into RUN-DIR/tensorboard (an extra to install)."""
    wandb_project: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Also log to this project of Weights & Biases (an extra to install)."""
    max_devices_per_host: int | None = None
    """Use no more devices of each process than this."""
    distributed: bool = False
    """Train as one of several processes; a cluster's environment variables say which one, or these options do:"""
    coordinator_address: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """Where the first process listens."""
    num_processes: int | None = None
    """How many processes there are."""
    process_index: int | None = None
    """Index of this process, from 0; only process 0 writes and prints."""


def train_command(arguments: list[str]) -> int:
    """Train as the arguments say; return the exit code."""
    accelerator = _accelerator_option(arguments)
    parsed = parse_arguments(arguments, accelerator=bool(accelerator))
    _join_others(parsed)

    from trpo_jax.algorithms.registry import make_agent
    from trpo_jax.execution.devices import all_devices, is_accelerated, show_cores_as_devices
    from trpo_jax.execution.placement import OneTraining
    from trpo_jax.runs.run import resolve, run_environment

    if not parsed.distributed:  # distributed processes have one core each
        show_cores_as_devices(parsed.run.agent.num_envs, parsed.max_devices_per_host)
    if accelerator is None and parsed.resume is None and is_accelerated():
        parsed = parse_arguments(arguments, accelerator=True)
    run_config = resolve(parsed.run)
    environment = run_environment(run_config)
    # Called for their checks alone: each raises ConfigError for settings that do not fit together, before a folder is made.
    make_agent(environment, run_config.agent)
    OneTraining(run_config.agent.num_envs, all_devices(parsed.max_devices_per_host))
    return _train(parsed, run_config, environment)


def parse_arguments(arguments: list[str], *, accelerator: bool = False) -> TrainArguments:
    """Return the parsed arguments and their configuration; with `accelerator`, the configuration for an accelerator."""
    resume = _value_of("--resume", arguments)
    target = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if resume is not None:
        if target is not None:
            raise ConfigError("ENV|CONFIG.toml", target, "no value with --resume")
        started = open_run_folder(resume)[1]
        default = TrainArguments("", started, resume=resume, algorithm=started.algorithm)
        parsed = parse(
            TrainArguments, [default.run.environment, *arguments], command="train", description=DESCRIPTION, default=default
        )
        _refuse_changes(parsed, default.run)
        return parsed
    if not target and not {"-h", "--help"} & set(arguments):
        raise ConfigError(
            "ENV|CONFIG.toml", arguments[0] if arguments else "", "an environment or a TOML file as first argument"
        )
    suite, algorithm = _value_of("--suite", arguments) or "brax", _value_of("--algorithm", arguments)
    config = starting_config(target, suite, algorithm) if target else with_algorithm(RunConfig(), algorithm or DEFAULT)
    accelerated = starting_config(target, suite, algorithm, accelerator=True) if target and accelerator else config
    if _accelerator_option(arguments) and target and accelerated == config:
        raise ConfigError(
            "accelerator", True, f"a configuration file whose table [accelerator] changes something; {target} has none"
        )
    default = TrainArguments(target or "ant", accelerated, accelerator=accelerated != config, algorithm=config.algorithm)
    return parse(TrainArguments, arguments, command="train", description=DESCRIPTION, default=default)


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    """Return an option's value. It is needed before parsing, because it decides the defaults of the other options."""
    found = None
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        name, equals, value = argument.partition("=")
        if name == option:  # the last one counts
            found = value if equals else following
    return found


def _accelerator_option(arguments: Sequence[str]) -> bool | None:
    """Return whether the arguments ask for an accelerator's settings; None if they do not say."""
    said = {"--accelerator": True, "--no-accelerator": False}
    return next((said[argument] for argument in reversed(arguments) if argument in said), None)


def _refuse_changes(parsed: TrainArguments, started: RunConfig) -> None:
    from trpo_jax.training.store import check_same

    if parsed.run_dir is not None:
        raise ConfigError("run_dir", parsed.run_dir, "no value with --resume, which names the folder already")
    if parsed.algorithm != started.algorithm:
        raise ConfigError("algorithm", parsed.algorithm, f"{started.algorithm}, with which the run began")
    if parsed.accelerator:
        raise ConfigError("accelerator", True, "no value with --resume, which keeps the run's settings")
    was, wanted = (file_fields(dataclasses.replace(run, **_unchanged(started))) for run in (started, parsed.run))
    check_same(was, wanted, "the run")


def _unchanged(started: RunConfig) -> dict[str, Any]:
    return {name: getattr(started, name) for name in CHANGEABLE}


def _join_others(arguments: TrainArguments) -> None:
    """Become one of several processes. Must be called before JAX looks for devices."""
    given: dict[str, Any] = {
        "coordinator_address": arguments.coordinator_address,
        "num_processes": arguments.num_processes,
        "process_id": arguments.process_index,
    }
    if not arguments.distributed:
        for name, value in given.items():
            if value is not None:
                raise ConfigError(name.replace("process_id", "process_index"), value, "no value without --distributed")
        return
    import jax

    try:
        jax.distributed.initialize(**given)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        allowed = f"only if a cluster's environment variables or all three options say which process this is ({reason})"
        raise ConfigError("distributed", True, allowed) from None


def _train(arguments: TrainArguments, run_config: RunConfig, environment: Any) -> int:
    import jax

    from trpo_jax.runs.run import run_training

    resumed = arguments.resume is not None
    if jax.process_index() > 0:
        folder = RunFolder(arguments.resume or arguments.run_dir or "")
        with raised_by_ctrl_c():
            run_training(
                run_config, folder, environment, (), resume=resumed, max_devices_per_host=arguments.max_devices_per_host
            )
        return 0
    folder = RunFolder(arguments.resume) if arguments.resume else create_run_folder(arguments.run_dir, run_config)
    console = make_console(run_config)

    def last_words() -> str:
        return console.last_words(folder.path, _options_to_repeat(arguments))

    def begun() -> bool:
        return console.has_begun

    try:
        # With other processes, Ctrl-C must raise, so that this process can tell them that it ends.
        with folder.locked(), raised_by_ctrl_c() if arguments.distributed else ended_by_ctrl_c(last_words, begun):
            metrics = _train_in(folder, arguments, run_config, environment, console)
    except (KeyboardInterrupt, SystemExit):
        console.say(last_words())
        raise
    console.finish(folder.path, metrics)
    return 0


def _train_in(folder: RunFolder, arguments: TrainArguments, run_config: RunConfig, environment: Any, console: Any) -> Any:
    """Train in a locked folder; return the last metrics. A new run that cannot begin leaves no folder."""
    from trpo_jax.runs.run import run_training

    resumed = arguments.resume is not None
    before = folder.config.read_text(encoding="utf-8")
    try:
        loggers = _loggers(arguments, run_config, folder)
        if resumed:
            write_run_config(folder.config, run_config)
        console.start(folder.path, resumed=resumed, accelerator=arguments.accelerator)
        with console:
            return run_training(
                run_config,
                folder,
                environment,
                loggers,
                resume=resumed,
                max_devices_per_host=arguments.max_devices_per_host,
                progress_fn=console.evaluation,
                iteration_fn=console.iteration,
            )
    except (ConfigError, MissingPackageError, CheckpointError, RuntimeError):  # RuntimeError is JAX's: no device, no memory
        if resumed and not console.has_begun:
            write_whole(folder.config, before)
        elif not resumed:
            folder.discard()
        raise


def _loggers(arguments: TrainArguments, run_config: RunConfig, folder: RunFolder) -> list[Logger]:
    """Make the requested loggers. Open metrics.jsonl last, since the others may fail, but put it first in the list."""
    others: list[Logger] = []
    if arguments.tensorboard:
        others.append(TensorBoardLogger(folder.path / "tensorboard"))
    if arguments.wandb_project:
        others.append(WandbLogger(folder.path, project=arguments.wandb_project, config=file_fields(run_config)))
    return [MetricsLog(folder.metrics), *others]


def _options_to_repeat(arguments: TrainArguments) -> str:
    """Return the options that must be given again to resume, since config.toml does not hold them."""
    options = " --distributed" if arguments.distributed else ""
    for name in ("coordinator_address", "num_processes", "process_index"):
        value = getattr(arguments, name)
        options += "" if value is None else f" --{name.replace('_', '-')} {shlex.quote(str(value))}"
    options += " --tensorboard" if arguments.tensorboard else ""
    options += f" --wandb-project {shlex.quote(arguments.wandb_project)}" if arguments.wandb_project else ""
    devices = arguments.max_devices_per_host
    return options + (f" --max-devices-per-host {devices}" if devices else "")
