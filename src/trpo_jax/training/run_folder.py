"""The folder a run leaves behind: config.toml, metrics.jsonl, checkpoints/."""

import json
import math
import time
from pathlib import Path
from types import TracebackType

from trpo_jax.config import ConfigError
from trpo_jax.training.run_config import RunConfig, read_run_config, write_run_config


class RunFolder:
    """Where the parts of a run lie."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.config = self.path / "config.toml"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"


def default_run_dir(environment: str) -> Path:
    """Return runs/ENV-DATE-TIME, with a number behind it where that is taken."""
    stem = f"{environment}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, count = Path("runs") / stem, 1
    while path.exists():
        count += 1
        path = Path("runs") / f"{stem}-{count}"
    return path


def create_run_folder(path: Path | str, run_config: RunConfig) -> RunFolder:
    """Make a run's folder and write its configuration.

    Raises:
        ConfigError: the folder exists and is not empty, or cannot be written; nothing was overwritten.
    """
    folder = RunFolder(path)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        if any(folder.path.iterdir()):
            raise ConfigError("run_dir", str(path), "a folder that is new or empty; nothing was changed")
        write_run_config(folder.config, run_config)
    except OSError as error:
        raise ConfigError("run_dir", str(path), f"a folder that can be written ({error.strerror})") from None
    return folder


def open_run_folder(path: Path | str) -> tuple[RunFolder, RunConfig]:
    """Return the folder of an earlier run and its configuration.

    Raises:
        ConfigError: no run lies there, or its configuration cannot be read.
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
    """Appends to metrics.jsonl: one object a line, "step" and metrics by name; NaN and infinities are left out."""

    def __init__(self, path: Path):
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._file.write(json.dumps({"step": step} | finite) + "\n")

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._file.close()
