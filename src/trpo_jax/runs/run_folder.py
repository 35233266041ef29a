"""The folder a run leaves behind: config.toml, metrics.jsonl, checkpoints/."""

import contextlib
import itertools
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import filelock

from trpo_jax.errors import ConfigError, FileError
from trpo_jax.files import write_whole
from trpo_jax.runs.loggers import finite
from trpo_jax.training.run_config import RunConfig, read_run_config, write_run_config

LOCK = ".lock"
"""Name of the file that a training locks in its folder."""


class RunFolder:
    """Paths of the parts of a run."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.config = self.path / "config.toml"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other trainings out of the folder; a crash leaves no lock behind. Raises FileError if one runs in it."""
        with locked(self.path, FileError(f"another training is running in {self.path}; wait for it, or use another folder")):
            yield

    def discard(self) -> None:
        """Remove the folder if the run has not begun. The caller must hold its lock."""
        if not self.metrics.exists() or not self.metrics.stat().st_size:
            shutil.rmtree(self.path)


@contextlib.contextmanager
def locked(folder: Path, taken: Exception, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a folder's lock, which is released when the process ends at the latest.

    Raises `taken` if another process still holds it after `patience` seconds.
    """
    lock = filelock.FileLock(folder / LOCK, timeout=patience)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise taken from None
    try:
        yield
    finally:
        lock.release()


def create_run_folder(path: Path | str | None, run_config: RunConfig) -> RunFolder:
    """Make a run's folder and write its configuration.

    Args:
        path: a new or empty folder; None makes runs/ENV-DATE-TIME, with a number appended if that exists.
        run_config: the run's configuration.

    Raises:
        ConfigError: the folder exists and is not empty; nothing was overwritten.
        FileError: it cannot be written, or another training is starting in it.
    """
    try:
        folder = RunFolder(_make_default_folder(run_config.environment) if path is None else path)
        folder.path.mkdir(parents=True, exist_ok=True)
        _check_empty(folder)
        with folder.locked():
            _check_empty(folder)  # again, since another process may have chosen the same folder
            write_run_config(folder.config, run_config)
    except FileError:
        raise
    except OSError as error:
        raise FileError.unwritable(path or "runs", error) from None
    return folder


def _check_empty(folder: RunFolder) -> None:
    if any(path.name != LOCK for path in folder.path.iterdir()):
        raise ConfigError("run_dir", str(folder.path), "a folder that is new or empty; nothing was changed")


def _make_default_folder(environment: str) -> Path:
    """Make a new folder that no other process uses."""
    stem = f"{environment}-{time.strftime('%Y%m%d-%H%M%S')}"
    for count in itertools.count(1):
        path = Path("runs") / (stem if count == 1 else f"{stem}-{count}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
    raise AssertionError


def open_run_folder(path: Path | str) -> tuple[RunFolder, RunConfig]:
    """Return the folder of an earlier run and its configuration.

    Raises:
        ConfigError: there is no run, or its configuration cannot be read.
    """
    folder = RunFolder(path)
    try:
        exists = folder.config.is_file()
    except OSError:
        exists = False
    if not exists:
        raise ConfigError("run", str(path), "a folder that a training wrote, with a config.toml")
    return folder, read_run_config(folder.config)


class MetricsLog:
    """Appends to metrics.jsonl one object per line: "step" and metrics by name. NaN and infinities are left out.

    A run that resumes from a checkpoint repeats later steps, so the first line it writes replaces all earlier lines from
    that step on. A line that a crash left incomplete is dropped.
    """

    def __init__(self, path: Path):
        self._path = path
        lines = [line for line, _ in _whole_lines(path)] if path.exists() else []
        self._earlier: list[str] | None = lines
        self._file = _rewrite(path, lines)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Append a line."""
        record = {"step": step} | finite(metrics)
        if self._earlier is not None:
            earlier, self._earlier = self._earlier, None
            kept = [line for line in earlier if _place(json.loads(line)) < _place(record)]
            if len(kept) < len(earlier):
                self._file.close()
                self._file = _rewrite(self._path, kept)
        self._file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _place(record: dict[str, Any]) -> tuple[int, bool]:
    """Return the sort key of a line: an evaluation comes after the iteration of the same step."""
    return record["step"], any(name.startswith("eval/") for name in record)


def _whole_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the complete lines of metrics.jsonl, each with its record."""
    lines = path.read_bytes().splitlines()
    return [(line.decode(), record) for line in lines if (record := metrics_record(line)) is not None]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl: "step" and metrics by name.

    Incomplete lines are left out: the last one may be cut off by a crash, or be half written at this moment.

    Raises:
        ConfigError: there is no such file.
    """
    try:
        return [record for _, record in _whole_lines(path)]
    except OSError as error:
        raise ConfigError("metrics", str(path), f"a file that a training wrote ({error.strerror})") from None


def metrics_record(line: str | bytes) -> dict[str, Any] | None:
    """Parse a line of metrics.jsonl; return None for an incomplete one."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "step" in record else None


def _rewrite(path: Path, lines: list[str]) -> TextIO:
    """Replace a file's content atomically by these lines, and open it to append."""
    if path.exists():
        write_whole(path, "".join(f"{line}\n" for line in lines))
    return path.open("a", encoding="utf-8", buffering=1)
