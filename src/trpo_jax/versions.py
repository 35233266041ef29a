"""Versions of installed packages."""

from importlib.metadata import PackageNotFoundError, version


def version_of(package: str) -> str:
    """Return the version of an installed package, "unknown" where it has no metadata, as on a path without its wheel."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
