"""Loggers besides metrics.jsonl: TensorBoard and Weights & Biases."""

import functools
import importlib
import math
import uuid
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from trpo_jax.errors import ConfigError, MissingPackageError

STEP_METRIC = "environment_steps"
"""Name of the step in Weights & Biases, and the x axis of its charts."""
FLUSH_SECONDS = 10
"""Seconds between writes to TensorBoard's file; a crash loses at most this much."""


@runtime_checkable  # for callers that check types at run time
class Logger(Protocol):
    """Receives the metrics of a run while it trains."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Log metrics by name at an environment step; NaN and infinities are left out."""
        ...

    def close(self) -> None:
        """Write pending metrics; `log` is not called afterwards."""
        ...


class TensorBoardLogger:
    """Writes an event file into a folder, for `tensorboard --logdir FOLDER`.

    If the folder already holds a run, a new file is added: TensorBoard shows it as a continuation, and for repeated steps the
    new values replace the old.
    """

    def __init__(self, folder: Path | str):
        """Set the folder, which is created when the first metrics are written.

        Raises:
            MissingPackageError: tensorboardX is not installed.
        """
        # File names contain the time in seconds; without a suffix a file of the same second would be replaced.
        options = {"flush_secs": FLUSH_SECONDS, "filename_suffix": f".{uuid.uuid4().hex[:8]}"}
        self._open = functools.partial(_import("tensorboardX", "tensorboard").SummaryWriter, str(folder), **options)
        self._writer: Any = None

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write metrics as scalars."""
        if self._writer is None:
            self._writer = self._open(purge_step=step)
        for name, value in finite(metrics).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write pending metrics."""
        if self._writer is not None:
            self._writer.close()


class WandbLogger:
    """Logs to Weights & Biases. With WANDB_MODE=offline it writes only to FOLDER/wandb, for a later `wandb sync`.

    The run's id is kept in FOLDER/wandb/id.txt, so a folder that was used before keeps its id. The x axis is `STEP_METRIC`
    and not the counter of Weights & Biases, which would drop the steps that a resumed run repeats.
    """

    def __init__(self, folder: Path | str, *, project: str, name: str | None = None, config: dict[str, Any] | None = None):
        """Start a run, or resume the folder's.

        Args:
            folder: the run's folder, created if it is missing.
            project: name of the Weights & Biases project.
            name: displayed name of the run; None takes the folder's name.
            config: settings by name, nested as in config.toml.

        Raises:
            MissingPackageError: wandb is not installed.
            ConfigError: Weights & Biases does not start (no login, no network).
        """
        wandb = _import("wandb", "wandb_project")
        folder = Path(folder)
        try:
            self._run = wandb.init(
                id=_run_id(folder / "wandb" / "id.txt"),
                resume="allow",
                dir=str(folder),
                project=project,
                name=folder.absolute().name if name is None else name,
                config=config,
                settings=wandb.Settings(console="off"),  # else it uploads every update of the progress bar
            )
        except wandb.errors.Error as error:
            words = " ".join(str(error).split())
            raise ConfigError(
                "wandb_project", project, f"any, after `wandb login` or with WANDB_MODE=offline ({words})"
            ) from None
        self._run.define_metric("*", step_metric=STEP_METRIC)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Log metrics, which are sent in the background."""
        self._run.log(finite(metrics) | {STEP_METRIC: step})

    def close(self) -> None:
        """Send pending metrics and end the run."""
        self._run.finish()


def finite(metrics: dict[str, Any]) -> dict[str, Any]:
    """Leave out NaN and infinities, which charts cannot show. Lists, which hold one number per run, stay unchanged."""
    return {name: value for name, value in metrics.items() if isinstance(value, list) or math.isfinite(value)}


def _run_id(path: Path) -> str:
    """Return the id in a file; if there is no file, draw an id and write it."""
    if path.is_file():
        return path.read_text(encoding="utf-8").strip()
    path.parent.mkdir(parents=True, exist_ok=True)
    run_id = uuid.uuid4().hex
    path.write_text(run_id + "\n", encoding="utf-8")
    return run_id


def _import(module: str, option: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        extra = module.lower().removesuffix("x")
        raise MissingPackageError.of(f"--{option.replace('_', '-')}", module, extra) from None
