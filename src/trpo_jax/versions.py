"""Versions of installed packages."""

from importlib.metadata import PackageNotFoundError, version


def version_of(package: str) -> str:
    """Return a package's version, or "unknown" if it has no metadata (for example a source folder on the path)."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
