"""`trpo-jax sweep`."""

import contextlib
import dataclasses
import math
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import rich.console
import rich.table
import tyro

from trpo_jax.algorithms.registry import DEFAULT
from trpo_jax.cli.arguments import parse
from trpo_jax.cli.console import say
from trpo_jax.cli.startup import complain, ended_by_ctrl_c, raised_by_ctrl_c
from trpo_jax.errors import ConfigError
from trpo_jax.training.progress import compilations_told, format_seconds

DESCRIPTION = (
    "Train the runs that a sweep file describes: environments × settings × seeds. Runs that differ only in seeds and in the "
    "float fields listed in docs/sweeps.md are trained together, in one compiled program. Run the same command again to "
    "resume after an interruption. Writes SWEEP-DIR/{plan.json, runs/, results.csv}; `trpo-jax report SWEEP-DIR` makes tables "
    "and plots from it."
)

FAILED = 1
"""Exit code if some of the programs failed."""
WIDTH = 120
"""Characters per line if stdout is not a terminal."""


@dataclasses.dataclass(frozen=True)
class ProgramOptions:
    """What to do with the programs of a sweep: where they run, and how many runs each of them holds."""

    dry_run: bool = False
    """Train nothing; print the plan: programs, runs in each, and their estimated memory."""
    executor: Literal["local", "ray"] = "local"
    """Where programs run: in this process one after another, or as tasks of Ray (an extra to install)."""
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """Kind of device to train on; auto is the best that JAX sees; with Ray, the kind that programs ask for, or processors."""
    memory_limit: Annotated[float | None, tyro.conf.arg(metavar="GIB")] = None
    """Memory that a program may take on each device, in GiB; by default half of the device's free memory, or, with Ray, 4 if
    workers use GPUs or TPUs or --ray-address is given."""
    runs_per_program: int | None = None
    """Largest number of runs in a program; memory_limit may allow fewer."""
    ray_address: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """Address of a running Ray cluster, also ray://HOST:PORT or auto; by default a cluster is started on this machine."""
    cpus_per_program: float = 1.0
    """Processors that each program asks Ray for."""
    gpus_per_program: float | None = None
    """GPUs that each program asks Ray for; by default 1 with --device gpu, else 0."""
    tpus_per_program: int | None = None
    """TPU chips that each program asks Ray for; by default 1 with --device tpu, else 0."""

    def check(self) -> None:
        """Raise ConfigError for a number out of range, or a Ray option without Ray."""
        for name in ("memory_limit", "runs_per_program", "cpus_per_program"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(name, value, "a number > 0")
        gpus = self.gpus_per_program
        if gpus is not None and not (0 <= gpus <= 1 or (gpus > 1 and gpus.is_integer())):
            raise ConfigError("gpus_per_program", gpus, "a number from 0 to 1, or a whole number")
        if self.tpus_per_program is not None and self.tpus_per_program < 0:
            raise ConfigError("tpus_per_program", self.tpus_per_program, "a whole number >= 0")
        for name in ("ray_address", "cpus_per_program", "gpus_per_program", "tpus_per_program"):
            if self.executor == "local" and getattr(self, name) != getattr(ProgramOptions, name):
                raise ConfigError(name, getattr(self, name), "no value without --executor ray")


@dataclasses.dataclass(frozen=True)
class SweepArguments:
    """Arguments of `trpo-jax sweep`."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SWEEP.toml")]
    """The sweep file; docs/sweeps.md describes what it may contain."""
    sweep_dir: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the sweep: a new one, or one to resume; by default sweeps/NAME for NAME.toml."""
    programs: Annotated[ProgramOptions, tyro.conf.arg(name="")] = ProgramOptions()


def sweep_command(arguments: list[str]) -> int:
    """Sweep as the arguments say; return the exit code."""
    parsed = parse(SweepArguments, arguments, command="sweep", description=DESCRIPTION)
    parsed.programs.check()

    from trpo_jax.sweep.plan import plan_file

    folder = parsed.sweep_dir or Path("sweeps") / Path(parsed.file).stem
    return train_planned(lambda: plan_file(parsed.file), folder, parsed.programs)


def train_planned(plan: Callable[[], Sequence[Any]], folder: str | Path, options: ProgramOptions) -> int:
    """Train the runs of a plan in a sweep's folder, or show the plan; return the exit code."""
    from trpo_jax.sweep.programs import PART_OF_MEMORY, plan_programs

    with _executor(options) as executor:  # first, because planning uses JAX, which then fixes its devices
        runs = plan()
        limit = executor.memory_limit if options.memory_limit is None else round(options.memory_limit * 2**30)
        # Free memory fluctuates, so an unfinished program may take all that is free when it resumes.
        resume_limit = int(limit / PART_OF_MEMORY) if options.memory_limit is None else None
        planned = plan_programs(
            runs,
            memory_limit=limit,
            num_devices=executor.num_devices,
            most=options.runs_per_program,
            resume_limit=resume_limit,
        )
        if not options.dry_run:
            return _sweep(folder, runs, planned, executor)
        show_plan(planned, executor.num_devices)
    return 0


@contextlib.contextmanager
def _executor(options: ProgramOptions) -> Iterator[Any]:
    """Yield the executor of the programs: this process, on all devices of the requested kind, or Ray."""
    if options.executor == "local":
        from trpo_jax.sweep.executor import LocalExecutor, choose_devices

        yield LocalExecutor(choose_devices(options.device))
        return
    import jax

    from trpo_jax.sweep.ray_executor import RayExecutor

    gpus, tpus = options.gpus_per_program, options.tpus_per_program
    with RayExecutor(
        address=options.ray_address,
        device=options.device,
        cpus_per_program=options.cpus_per_program,
        gpus_per_program=float(options.device == "gpu") if gpus is None else gpus,
        tpus_per_program=int(options.device == "tpu") if tpus is None else tpus,
        cache_dir=jax.config.jax_compilation_cache_dir,  # type: ignore[attr-defined]
    ) as executor:
        yield executor


def _sweep(path: str | Path, runs: Sequence[Any], planned: Sequence[Any], executor: Any) -> int:
    from trpo_jax.sweep.executor import LocalExecutor
    from trpo_jax.sweep.folder import SweepFolder
    from trpo_jax.sweep.running import run_sweep

    folder = SweepFolder(path)
    with folder.locked():
        folder.begin(runs)
        console = SweepConsole(folder.path, num_programs=len(planned))
        ended = ended_by_ctrl_c(console.last_words, lambda: console.has_begun)
        try:
            ending = (
                ended if isinstance(executor, LocalExecutor) else raised_by_ctrl_c()
            )  # the exception lets the executor stop Ray's workers
            with ending, compilations_told(say):
                run_sweep(folder, planned, executor=executor, listener=console)
        except (KeyboardInterrupt, SystemExit):
            say(console.last_words())
            raise
        except ExceptionGroup as error:  # the console has printed every error of the group in full
            complain(f"error: {error.message}", "sweep")
            return FAILED
    console.finish(folder.results)
    return 0


def show_plan(planned: Sequence[Any], num_devices: int) -> None:
    """Print the cells and programs of a sweep; with more memory, all runs of a cell could share one program."""
    table = rich.table.Table()
    for name in ("program", "cell", "environment", "steps a run", "runs", "values", "devices", "MiB a device"):
        table.add_column(name, justify="left" if name in ("environment", "values") else "right")
    for number, program in enumerate(planned, 1):
        config = program.runs[0].config
        memory = math.ceil(len(program.runs) / num_devices) * program.bytes_each / 2**20
        devices = str(min(num_devices, len(program.runs)))
        environment = f"{config.environment} ({config.backend})"
        row = str(number), str(program.cell), environment, f"{config.num_timesteps:,}", str(len(program.runs))
        table.add_row(*row, _values(program.runs), devices, f"{memory:,.3g}" if memory < 1000 else f"{memory:,.0f}")
    console = rich.console.Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    console.print(table)
    runs = [run for program in planned for run in program.runs]
    steps = sum(run.config.num_timesteps for run in runs)
    counts = f"{_count('cell', planned[-1].cell)} and {_count('program', len(planned))}"
    console.print(f"{_count('run', len(runs))} in {counts}, {steps:,} environment steps in all", markup=False)


def _count(name: str, count: int) -> str:
    return f"{count} {name}{'s' * (count > 1)}"


def _what(job: Any) -> str:
    """Name what a job trains: its environment, and its algorithm if that is not the default."""
    config = job.runs[0].config
    return config.environment if config.algorithm == DEFAULT else f"{config.environment} by {config.algorithm}"


def _values(runs: Sequence[Any]) -> str:
    """Name the swept fields: how many values a program's runs have of each, or the value that they share."""
    words = []
    for name in runs[0].swept:
        values = list(dict.fromkeys(str(run.swept[name]) for run in runs))
        words.append(f"{name} = {values[0]}" if len(values) == 1 else f"{len(values)} values of {name}")
    seeds = len({run.config.seed for run in runs})
    return ", ".join([*words, _count("seed", seeds)])


class SweepConsole:
    """Progress as lines of text."""

    LINES_A_PROGRAM = 10

    def __init__(self, path: Path, *, num_programs: int):
        self._path, self._num_programs = path, num_programs
        self._started = time.perf_counter()
        self._num_finished = self._num_runs = 0
        self._printed: dict[Path, int] = {}
        self.has_begun = False
        """Whether an iteration of the newest program was reported."""

    def begin(self, num_finished: int, num_runs: int) -> None:
        """Print how many runs there are."""
        self._num_finished, self._num_runs = num_finished, num_runs
        already = f", {num_finished} of them finished already" if num_finished else ""
        say(f"{_count('run', num_runs)} in {_count('program', self._num_programs)}{already}")
        say(f"sweep folder {self._path}")

    def start(self, job: Any) -> None:
        """Print which runs are trained next."""
        self.has_begun = False
        say(f"{_what(job)}: {_count('run', len(job.runs))} of {job.runs[0].config.num_timesteps:,} steps; compiling …")

    def iteration(self, job: Any, step: int, metrics: dict[str, Any]) -> None:
        """Report an iteration of all runs of a job."""
        self.has_begun = True
        total = max(job.runs[0].config.num_timesteps, 1)
        part = step * self.LINES_A_PROGRAM // total
        if part > self._printed.get(job.folder, 0) or step >= total:
            self._printed[job.folder] = part
            returns = [value for value in metrics["training/episode_reward"] if math.isfinite(value)]
            best = f"return {min(returns):.0f} to {max(returns):.0f}" if returns else "no episode has ended yet"
            speed = metrics["training/sps"] * len(job.runs)
            say(f"{_what(job)}: step {step:,} of each, {best}, {speed:,.0f} steps/s")

    def finished(self, job: Any, num_finished: int) -> None:
        """Print that a job's runs are finished."""
        self._num_finished = num_finished
        say(f"{_what(job)}: {len(job.runs)} finished, {num_finished} of {self._num_runs} in all")

    def failed(self, job: Any, error: Exception) -> None:
        """Print that a job has failed, and its error."""
        traceback.print_exception(error)
        failed = f"{_count('run', len(job.runs))} failed: {_values(job.runs)}; the others continue"
        say(f"{_what(job)}: {failed}")

    def last_words(self) -> str:
        """Return a line that says what Ctrl-C or SIGTERM left behind."""
        return f"interrupted; {self._num_finished} of {self._num_runs} runs finished; run the same command to resume"

    def finish(self, results: Path) -> None:
        """Print how the sweep ended."""
        say(f"done in {format_seconds(time.perf_counter() - self._started)}: {results}")
        say(f"make a report with: trpo-jax report {shlex.quote(str(self._path))}")
