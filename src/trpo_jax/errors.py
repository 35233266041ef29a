"""Everything that the package raises of its own."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """Report a configuration value that cannot be used: the field, what came, what is allowed."""

    def __init__(self, field: str, got: Any, allowed: str):
        super().__init__(f"{field}: got {got!r}, allowed: {allowed}")
        self.field, self.got, self.allowed = field, got, allowed

    def __reduce__(self) -> tuple[Any, ...]:
        return ConfigError, (self.field, self.got, self.allowed)

    def within(self, prefix: str) -> "ConfigError":
        """Return the same error with the field named from one level further out."""
        return ConfigError(f"{prefix}.{self.field}", self.got, self.allowed)


class MissingPackageError(ImportError):
    """Report that something needs a package that is not installed, and which extra brings it."""

    @classmethod
    def of(cls, what: str, package: str, extra: str) -> "MissingPackageError":
        """Return the error in words."""
        return cls(f'{what} needs {package}, which is not installed: pip install "trpo-jax[{extra}]"')


class FileError(OSError):
    """Report, in one sentence, a file or folder that cannot be written now, or that another process is using."""

    @classmethod
    def unwritable(cls, path: Path | str, error: OSError) -> "FileError":
        """Return the error in words."""
        return cls(f"{path} cannot be written: {error.strerror or error}")


class CheckpointError(Exception):
    """Report a checkpoint that is missing, damaged, cannot be written, or was made for something else."""


@contextlib.contextmanager
def errors_in(path: Path | str) -> Iterator[None]:
    """Have a ConfigError name the file that it is about."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.field}", error.got, error.allowed) from None
