"""What a person sees while a training runs: a progress bar on a terminal, plain lines elsewhere."""

import contextlib
import os
import shlex
import sys
from pathlib import Path
from types import TracebackType

import jax
import rich.console
import rich.progress

from trpo_jax.algorithms.registry import DEFAULT
from trpo_jax.cli.startup import complain
from trpo_jax.training.progress import ProgressLines, compilations_told, describe, describe_evaluation, format_seconds
from trpo_jax.training.run_config import RunConfig


def say(line: str) -> None:
    """Print a line. If stdout fails, warn once and print nothing more."""
    try:
        print(line, flush=True)
    except OSError as error:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if not isinstance(error, BrokenPipeError):  # no one reads, so there is no one to warn
            complain(f"warning: stdout: {error.strerror}; continuing without it")


class PlainConsole(ProgressLines):
    """Progress as lines of text."""

    def __init__(self, run_config: RunConfig):
        super().__init__(run_config.num_timesteps)
        self.run_config = run_config
        self._resumed = False
        self._telling = contextlib.ExitStack()

    def start(self, run_dir: Path, *, resumed: bool = False, accelerator: bool = False) -> None:
        """Print what is about to run; `accelerator` says whether the settings are those for an accelerator."""
        self._resumed = resumed
        agent = self.run_config.agent
        batch = f"{agent.num_envs} environments × {agent.unroll_length} steps"
        run = self.run_config
        by = "" if run.algorithm == DEFAULT else f" by {run.algorithm}"
        self.say(f"{run.environment} ({run.backend}){by}, {run.num_timesteps:,} steps, {batch} an iteration")
        if accelerator:
            self.say("with the settings for an accelerator (--no-accelerator uses those for a CPU)")
        self.say(f"{'resuming in' if resumed else 'run folder'} {run_dir}")
        kept = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
        cache = f"compiled programs are kept in {kept}" if kept else "compiled programs are not kept"
        self.say(f"compiling; the first start takes longest, {cache} …")

    def last_words(self, run_dir: Path, options: str = "") -> str:
        """Return a line that says what Ctrl-C or SIGTERM left behind, and which command resumes the training."""
        steps = [int(path.name) for path in (run_dir / "checkpoints").glob("*") if path.name.isdigit()]
        saved = f"saved after {max(steps):,} steps" if steps else "nothing was trained yet"
        return f"interrupted; {saved}; resume with: trpo-jax train --resume {shlex.quote(str(run_dir))}{options}"

    def finish(self, run_dir: Path, metrics: dict[str, float]) -> None:
        """Print how the training ended."""
        took = format_seconds(self.elapsed)
        result = f"return {describe_evaluation(metrics)}, " if "eval/episode_reward" in metrics else ""
        if self._resumed and not self.has_begun:
            again = "; this was only evaluated again" if "eval/episode_reward" in metrics else ""
            self.say(f"all {self.run_config.num_timesteps:,} steps had been trained before{again}")
        self.say(f"done: {result}in {took}")
        self.say(f"evaluate it with: trpo-jax evaluate {shlex.quote(str(run_dir))}")

    def say(self, line: str) -> None:
        """Print a line."""
        say(line)

    def __enter__(self) -> "PlainConsole":
        self._telling.enter_context(compilations_told(self.say))
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._telling.close()


class TerminalConsole(PlainConsole):
    """Progress as a bar that stays in place."""

    def __init__(self, run_config: RunConfig):
        super().__init__(run_config)
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=None),
            rich.progress.TaskProgressColumn(),
            rich.progress.TextColumn("{task.fields[metrics]}"),
            rich.progress.TimeRemainingColumn(elapsed_when_finished=True),
            console=rich.console.Console(highlight=False),
            expand=True,
        )
        self._task = self._progress.add_task(run_config.environment, total=self.total, metrics="compiling …")

    def show(self, step: int, metrics: dict[str, float]) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=min(step, self.total), metrics=describe(metrics))

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(line, soft_wrap=True, markup=False)

    def __enter__(self) -> "PlainConsole":
        self._telling.callback(self._progress.stop)
        self._progress.start()
        return super().__enter__()


def make_console(run_config: RunConfig) -> PlainConsole:
    """Return a progress bar if stdout is a terminal, else plain lines."""
    return TerminalConsole(run_config) if sys.stdout.isatty() else PlainConsole(run_config)
