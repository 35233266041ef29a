"""`trpo-jax sweep`."""

import contextlib
import dataclasses
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import rich.console
import rich.table
import tyro

from trpo_jax.cli.arguments import parse
from trpo_jax.cli.console import format_seconds, say
from trpo_jax.cli.startup import cache_dir
from trpo_jax.config import ConfigError

DESCRIPTION = (
    "Train the runs that a sweep file describes: environments × settings × seeds. Runs that differ in seeds and in the float "
    "fields that docs/sweeps.md lists are trained together, in one compiled program. The same command again goes on after "
    "any interruption. Writes SWEEP-DIR/{plan.json, runs/, results.csv}; `trpo-jax report SWEEP-DIR` makes tables and plots "
    "of it."
)

WIDTH = 120
"""Characters a line, where stdout is no terminal."""


@dataclasses.dataclass(frozen=True)
class SweepArguments:
    """What `trpo-jax sweep` takes."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SWEEP.toml")]
    """The sweep file; docs/sweeps.md says what may stand in it."""
    sweep_dir: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the sweep: a new one, or one to go on with; by default sweeps/NAME, NAME being the file's."""
    dry_run: bool = False
    """Print the plan, and train nothing: programs, runs in each, and the memory that they are estimated to take."""
    executor: Literal["local", "ray"] = "local"
    """Where programs run: in this process one after another, or as tasks of Ray (an extra to install)."""
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """What to train on; auto takes the best that JAX sees."""
    memory_limit: Annotated[float | None, tyro.conf.arg(metavar="GIB")] = None
    """Memory that a program may take on each device, in GiB; by default half of what is free there, and 4 with Ray."""
    runs_per_program: int | None = None
    """Runs that a program may hold, whatever their memory."""
    ray_address: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """A Ray cluster that runs, also ray://HOST:PORT or auto; by default one is started on this machine."""
    cpus_per_program: float = 1.0
    """Processors that each program asks Ray for."""
    gpus_per_program: float | None = None
    """GPUs that each program asks Ray for; by default 1 with --device gpu, else 0."""


def sweep_command(arguments: list[str]) -> int:
    """Sweep as the arguments say; return the exit code."""
    parsed = parse(SweepArguments, arguments, command="sweep", description=DESCRIPTION)
    for name in ("memory_limit", "runs_per_program", "cpus_per_program"):
        value = getattr(parsed, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ConfigError(name, value, "a number > 0")
    gpus = parsed.gpus_per_program
    if gpus is not None and not (0 <= gpus <= 1 or (gpus > 1 and gpus.is_integer())):
        raise ConfigError("gpus_per_program", gpus, "a number from 0 to 1, or a whole number")

    from trpo_jax.sweep.plan import make_plan
    from trpo_jax.sweep.programs import plan_programs
    from trpo_jax.sweep.spec import read_sweep

    sweep = read_sweep(parsed.file)
    with _executor(parsed) as executor:
        runs = make_plan(sweep)
        limit = executor.memory_limit if parsed.memory_limit is None else round(parsed.memory_limit * 2**30)
        planned = plan_programs(runs, memory_limit=limit, num_devices=executor.num_devices, most=parsed.runs_per_program)
        if parsed.dry_run:
            show_plan(planned)
        else:
            _sweep(parsed, runs, planned, executor)
    return 0


@contextlib.contextmanager
def _executor(arguments: SweepArguments) -> Iterator[Any]:
    """Give what trains the programs: this process, on all devices of the kind asked for, or Ray."""
    if arguments.executor == "local":
        for name, default in (("ray_address", None), ("cpus_per_program", 1.0), ("gpus_per_program", None)):
            if getattr(arguments, name) != default:
                raise ConfigError(name, getattr(arguments, name), "nothing without --executor ray")
        from trpo_jax.sweep.executor import LocalExecutor, choose_devices

        yield LocalExecutor(choose_devices(arguments.device))
        return
    from trpo_jax.sweep.ray_executor import RayExecutor

    gpus = arguments.gpus_per_program
    with RayExecutor(
        address=arguments.ray_address,
        device=arguments.device,
        cpus_per_program=arguments.cpus_per_program,
        gpus_per_program=(1.0 if arguments.device == "gpu" else 0.0) if gpus is None else gpus,
        cache_dir=os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(cache_dir()),
    ) as executor:
        yield executor


def _sweep(arguments: SweepArguments, runs: Sequence[Any], planned: Sequence[Any], executor: Any) -> None:
    from trpo_jax.sweep.folder import SweepFolder
    from trpo_jax.sweep.running import run_sweep

    folder = SweepFolder(arguments.sweep_dir or Path("sweeps") / Path(arguments.file).stem)
    with folder.locked():
        folder.begin(runs)
        console = SweepConsole(folder, planned)
        try:
            run_sweep(folder, planned, executor, console)
        except (KeyboardInterrupt, SystemExit):
            console.interrupted()
            raise
    console.finish()


def show_plan(planned: Sequence[Any]) -> None:
    """Print the programs of a sweep."""
    table = rich.table.Table()
    for name in ("program", "environment", "steps a run", "runs", "values", "memory, MiB"):
        table.add_column(name, justify="left" if name in ("environment", "values") else "right")
    for number, program in enumerate(planned, 1):
        config = program.runs[0].config
        memory = len(program.runs) * program.bytes_each / 2**20
        environment = f"{config.environment} ({config.backend})"
        row = str(number), environment, f"{config.num_timesteps:,}", str(len(program.runs)), _values(program.runs)
        table.add_row(*row, f"{memory:,.3g}" if memory < 1000 else f"{memory:,.0f}")
    console = rich.console.Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    console.print(table)
    num_runs = sum(len(program.runs) for program in planned)
    steps = sum(run.config.num_timesteps for program in planned for run in program.runs)
    console.print(f"{num_runs} runs in {_programs(len(planned))}, {steps:,} environment steps in all", markup=False)


def _programs(count: int) -> str:
    return f"{count} program{'s' * (count > 1)}"


def _values(runs: Sequence[Any]) -> str:
    """Say in which fields runs of a program differ, and which values of others they share."""
    words = []
    for name in runs[0].swept:
        values = list(dict.fromkeys(str(run.swept[name]) for run in runs))
        words.append(f"{name} = {values[0]}" if len(values) == 1 else f"{len(values)} values of {name}")
    seeds = len({run.config.seed for run in runs})
    return ", ".join([*words, f"{seeds} seed{'s' * (seeds > 1)}"])


class SweepConsole:
    """Progress as lines of text."""

    LINES_A_PROGRAM = 10

    def __init__(self, folder: Any, planned: Sequence[Any]):
        self._folder, self._started, self._printed = folder, time.perf_counter(), 0
        self._names = [run.name for program in planned for run in program.runs]
        finished = self._num_finished()
        already = f", {finished} of them finished already" if finished else ""
        say(f"{len(self._names)} runs in {_programs(len(planned))}{already}")
        say(f"sweep folder {folder.path}")

    def start(self, job: Any) -> None:
        """Say which runs are trained next."""
        config, self._printed = job.runs[0].config, 0
        runs = f"{len(job.runs)} run{'s' * (len(job.runs) > 1)}"
        say(f"{config.environment}: {runs} of {config.num_timesteps:,} steps; compiling …")

    def iteration(self, job: Any, step: int, metrics: dict[str, Any]) -> None:
        """Report an iteration of all runs of a job."""
        total = max(job.runs[0].config.num_timesteps, 1)
        if step * self.LINES_A_PROGRAM // total > self._printed or step >= total:
            self._printed = step * self.LINES_A_PROGRAM // total
            returns = [value for value in metrics["training/episode_reward"] if math.isfinite(value)]
            best = f"return {min(returns):.0f} to {max(returns):.0f}" if returns else "no episode has ended yet"
            speed = metrics["training/sps"] * len(job.runs)
            say(f"{job.runs[0].config.environment}: step {step:,} of each, {best}, {speed:,.0f} steps/s")

    def finished(self, job: Any) -> None:
        """Say that a job's runs are finished."""
        done = self._num_finished()
        say(f"{job.runs[0].config.environment}: {len(job.runs)} finished, {done} of {len(self._names)} in all")

    def interrupted(self) -> None:
        """Say what Ctrl-C or SIGTERM left behind."""
        say(f"interrupted; {self._num_finished()} of {len(self._names)} runs finished; the same command goes on")

    def finish(self) -> None:
        """Say how it ended."""
        say(f"done in {format_seconds(time.perf_counter() - self._started)}: {self._folder.results}")
        say(f"look at it with: trpo-jax report {self._folder.path}")

    def _num_finished(self) -> int:
        return sum(self._folder.finished(name) is not None for name in self._names)
