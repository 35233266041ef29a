"""Where metrics go besides metrics.jsonl: TensorBoard and Weights & Biases."""

import functools
import importlib
import math
import uuid
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from trpo_jax.errors import ConfigError, MissingPackageError

STEP_METRIC = "environment_steps"
"""The name under which Weights & Biases gets the step; its charts have it as their x axis."""
FLUSH_SECONDS = 10
"""A crash loses at most so much of what TensorBoard would have shown."""


@runtime_checkable  # for callers that check types as they run
class Logger(Protocol):
    """Takes the metrics of a run as they come."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Take metrics by name at an environment step; NaN and infinities are left out."""
        ...

    def close(self) -> None:
        """Write what is pending; nothing is logged after it."""
        ...


class TensorBoardLogger:
    """Writes an event file into a folder, for `tensorboard --logdir FOLDER`.

    If the folder already holds a run, a new file is added: TensorBoard shows it as a continuation, and for repeated steps the
    new values replace the old.
    """

    def __init__(self, folder: Path | str):
        """Take a folder, which is made when there is something to write.

        Raises:
            MissingPackageError: tensorboardX is not installed.
        """
        # The suffix, since files are named by the second and a second one of that name would replace the first.
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
        """Write what is pending."""
        if self._writer is not None:
            self._writer.close()


class WandbLogger:
    """Logs to Weights & Biases; with WANDB_MODE=offline into FOLDER/wandb alone, to be uploaded by `wandb sync`.

    The run's id is kept in FOLDER/wandb/id.txt: a folder that was used before goes on under the same id. Metrics stand
    over `STEP_METRIC` and not over the counter of Weights & Biases, which would drop what a resumed run repeats.
    """

    def __init__(self, folder: Path | str, *, project: str, name: str | None = None, config: dict[str, Any] | None = None):
        """Start a run, or go on with the folder's.

        Args:
            folder: the run's folder, made if it is missing.
            project: as Weights & Biases calls a group of runs.
            name: shown for the run; None takes the folder's name.
            config: settings by name, nested as in config.toml.

        Raises:
            MissingPackageError: wandb is not installed.
            ConfigError: it does not start (no login, no network).
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
                settings=wandb.Settings(console="off"),  # it would upload every movement of the progress bar
            )
        except wandb.errors.Error as error:
            words = " ".join(str(error).split())
            raise ConfigError(
                "wandb_project", project, f"one after `wandb login`, or with WANDB_MODE=offline ({words})"
            ) from None
        self._run.define_metric("*", step_metric=STEP_METRIC)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Hand metrics over; they are sent in the background."""
        self._run.log(finite(metrics) | {STEP_METRIC: step})

    def close(self) -> None:
        """Send what is pending and end the run."""
        self._run.finish()


def finite(metrics: dict[str, Any]) -> dict[str, Any]:
    """Leave out NaN and infinities, of which charts make holes or nothing; lists, which hold a number a run, stay."""
    return {name: value for name, value in metrics.items() if isinstance(value, list) or math.isfinite(value)}


def _run_id(path: Path) -> str:
    """Return the id that a file holds; draw one and write it where there is none."""
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
