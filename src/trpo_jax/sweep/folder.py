"""The folder of a sweep: its plan, a folder per finished run, a table of results, and unfinished programs."""

import contextlib
import csv
import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trpo_jax.errors import ConfigError, FileError
from trpo_jax.files import NEW, write_whole
from trpo_jax.runs.run_folder import LOCK, RunFolder, locked
from trpo_jax.sweep.plan import Run
from trpo_jax.sweep.train_together import Records, Trained
from trpo_jax.training.checkpoint import has_checkpoints, save_params
from trpo_jax.training.fields import fields_of
from trpo_jax.training.run_config import write_run_config

PATIENCE = 120.0
"""Seconds to wait until the workers of a killed sweep release its runs."""

RESULT = "result.json"
"""File in a finished run's folder: its row of the table, and a digest of that row and its metrics."""


class Finished(NamedTuple):
    """Metrics and result of a finished run."""

    body: str
    result: dict[str, Any]
    """Its row of the table: plain values by column name."""

    @property
    def records(self) -> Records:
        """Its metrics."""
        return [json.loads(line) for line in self.body.splitlines()]


class UnfinishedProgram(NamedTuple):
    """Runs that were trained together and are not finished."""

    path: Path
    names: tuple[str, ...]
    """Names of its runs; empty if they cannot be read."""
    goes_on: bool
    """Whether it has a checkpoint to resume from."""


class SweepFolder:
    """Paths of a sweep's files.

    plan.json     the runs: name, environment, swept values, whole configuration
    runs/NAME/    a finished run: its configuration, metrics, last parameters and result
    results.csv   a row per finished run
    unfinished/   checkpoints and metrics of runs that are being trained
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.plan = self.path / "plan.json"
        self.runs = self.path / "runs"
        self.results = self.path / "results.csv"
        self.unfinished = self.path / "unfinished"

    def begin(self, runs: Sequence[Run]) -> None:
        """Write the plan, which must contain all finished runs of the folder.

        Raises:
            ConfigError: the folder is not a sweep's, or holds finished runs that are not in `runs`, or runs of an earlier
                version of this package.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        new = {run.name: _described(run) for run in runs}
        if self.plan.is_file():
            missing = [name for name in self.planned() if name not in new and self.finished(name) is not None]
            if missing:
                allowed = f"a sweep that has the finished runs of this folder, such as {missing[0]}, or a new folder"
                raise ConfigError("sweep_dir", str(self.path), allowed)
        self._check_ours()
        write_whole(self.plan, json.dumps(list(new.values()), indent=1) + "\n")
        self.runs.mkdir(exist_ok=True)
        self.unfinished.mkdir(exist_ok=True)

    def _check_ours(self) -> None:
        if not self.plan.is_file() and any(path.name not in (LOCK, f"plan.json{NEW}") for path in self.path.iterdir()):
            raise ConfigError("sweep_dir", str(self.path), "a sweep's folder, or a new or empty one; nothing was changed")

    def planned(self) -> dict[str, dict[str, Any]]:
        """Return the plan's description of each run, by name.

        Raises:
            ConfigError: the plan cannot be read, or the folder holds runs of an earlier version of this package.
        """
        if any(self.runs.glob("*.jsonl")):
            allowed = "a new folder; an earlier version of trpo_jax wrote these runs, and kept no policies"
            raise ConfigError("sweep_dir", str(self.path), allowed)
        try:
            return {run["run"]: run for run in json.loads(self.plan.read_text(encoding="utf-8"))}
        except (OSError, ValueError, TypeError, KeyError):
            raise ConfigError("sweep_dir", str(self.path), "a folder that a sweep has written, with a plan.json") from None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other sweeps out of the folder; a crash leaves no lock behind.

        Raises:
            ConfigError: the folder is neither empty nor a sweep's. FileError: another sweep is running in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._check_ours()
        with locked(self.path, FileError(f"another sweep is running in {self.path}; let it end, or take another folder")):
            yield

    def run(self, name: str) -> RunFolder:
        """Return the folder of a finished run, which need not exist yet."""
        return RunFolder(self.runs / name)

    def finished(self, name: str) -> Finished | None:
        """Return a run's metrics and result, or None if its files are missing, incomplete or changed."""
        run = self.run(name)
        try:
            body = run.metrics.read_text(encoding="utf-8")
            end = json.loads((run.path / RESULT).read_text(encoding="utf-8"))
            result = end["result"]
            whole = end["digest"] == _digest(body, result) and result["run"] == name and has_checkpoints(run.checkpoints)
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return Finished(body, result) if whole else None

    def finish(self, run: Run, trained: Trained, result: dict[str, Any]) -> None:
        """Write the folder of a run, whole or not at all.

        Raises:
            OSError, CheckpointError: it cannot be written.
        """
        new, folder = RunFolder(self.runs / f"{run.name}{NEW}"), self.run(run.name)
        shutil.rmtree(new.path, ignore_errors=True)
        try:
            new.path.mkdir()
            write_run_config(new.config, run.config)
            body = "".join(f"{json.dumps(record)}\n" for record in trained.records)
            write_whole(new.metrics, body)
            save_params(new.checkpoints, result["steps"], trained.params)
            write_whole(new.path / RESULT, json.dumps({"result": result, "digest": _digest(body, result)}) + "\n")
            shutil.rmtree(folder.path, ignore_errors=True)  # an incomplete earlier one
            new.path.rename(folder.path)
        except BaseException:
            shutil.rmtree(new.path, ignore_errors=True)
            raise

    def write_results(self, rows: Sequence[dict[str, Any]]) -> None:
        """Overwrite the table with these rows."""
        names = dict.fromkeys(name for row in rows for name in row)
        table = io.StringIO()
        writer = csv.DictWriter(table, list(names), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.results, table.getvalue())

    def unfinished_programs(self) -> list[UnfinishedProgram]:
        """Return the programs that were begun and are not finished."""
        found = []
        for path in sorted(self.unfinished.iterdir()):
            try:
                names = tuple(str(name) for name in json.loads((path / "runs.json").read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                names = ()
            found.append(UnfinishedProgram(path, names, has_checkpoints(path / "checkpoints")))
        return found

    def place_of(self, names: Sequence[str]) -> Path:
        """Return the folder in which runs are trained together; the same runs get the same folder."""
        return self.unfinished / hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]

    def drop(self, path: Path) -> None:
        """Remove the folder of an unfinished program that is no longer needed.

        Raises:
            FileError: a worker is training in it.
        """
        if path.is_dir():
            taken = FileError(f"another worker is still training in {path}; let it end, or end it")
            with locked(path, taken, patience=PATIENCE):
                shutil.rmtree(path, ignore_errors=True)


def _described(run: Run) -> dict[str, Any]:
    return {
        "run": run.name,
        "environment": run.config.environment,
        "source": run.source,
        "seed": run.config.seed,
        "swept": run.swept,
        "config": fields_of(run.config),
    }


def begin_together(folder: Path, names: Sequence[str]) -> None:
    """Make the folder in which runs are trained together, and write their names into it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "runs.json", json.dumps(list(names)) + "\n")


def _digest(body: str, result: dict[str, Any]) -> str:
    return hashlib.sha256(f"{body}\n{json.dumps(result)}".encode()).hexdigest()
