"""The package's own exceptions."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """Report an unusable configuration value: the field, the value given, and the values allowed."""

    def __init__(self, field: str, got: Any, allowed: str):
        super().__init__(f"{field}: got {got!r}, allowed: {allowed}")
        self.field, self.got, self.allowed = field, got, allowed

    def __reduce__(self) -> tuple[Any, ...]:
        return ConfigError, (self.field, self.got, self.allowed)

    def within(self, prefix: str) -> "ConfigError":
        """Return the same error with `prefix.` put before the field's name."""
        return ConfigError(f"{prefix}.{self.field}", self.got, self.allowed)


class MissingPackageError(ImportError):
    """Report that a package is not installed, what needs it, and which extra installs it."""

    @classmethod
    def of(cls, what: str, package: str, extra: str) -> "MissingPackageError":
        """Return the error with its message."""
        return cls(f'{what} needs {package}, which is not installed: pip install "trpo-jax[{extra}]"')


class FileError(OSError):
    """Report, in one sentence, a file or folder that cannot be written now, or that another process is using."""

    @classmethod
    def unwritable(cls, path: Path | str, error: OSError) -> "FileError":
        """Return the error with its message."""
        return cls(f"{path} cannot be written: {error.strerror or error}")


class SimulatorError(RuntimeError):
    """Report, in one sentence, an environment on the host that failed."""


class CheckpointError(Exception):
    """Report a checkpoint that is missing, damaged, cannot be written, or was made for something else."""


@contextlib.contextmanager
def errors_in(path: Path | str) -> Iterator[None]:
    """Put the file's path before the field's name in a ConfigError raised inside."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.field}", error.got, error.allowed) from None
