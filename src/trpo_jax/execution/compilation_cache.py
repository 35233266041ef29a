"""Keep compiled programs on disk for later processes."""

import contextlib
import os
import time
from pathlib import Path

import jax


def enable_compilation_cache(directory: str | Path | None = None) -> Path | None:
    """Keep compiled programs, so that the next process starts quickly; best called before anything is compiled.

    This enables JAX's persistent compilation cache for every program that takes half a second or more to compile. JAX's own
    environment variables (JAX_COMPILATION_CACHE_DIR and its siblings) take precedence. The command line calls this function.

    Args:
        directory: created when needed; by default $XDG_CACHE_HOME/trpo-jax/xla, or ~/.cache/trpo-jax/xla if that is not set.

    Returns:
        The folder that holds the programs; None if nothing is kept, because the user has no home directory.
    """
    default = default_cache_dir() if directory is None else Path(directory)
    settings = {
        "jax_compilation_cache_dir": None if default is None else str(default),
        "jax_persistent_cache_min_compile_time_secs": 0.5,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    for name, value in settings.items():
        if not os.environ.get(name.upper()):
            jax.config.update(name, value)
    kept = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    return Path(kept) if kept else None


def default_cache_dir() -> Path | None:
    """Return the folder for compiled programs; None for a user without a home directory, as in some containers."""
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(root) / "trpo-jax" / "xla"


def drop_newest_programs(seconds: float = 5.0) -> None:
    """Remove the cache files of the last seconds before a process exits abruptly, because one may be half written.

    JAX would warn about such a file at every start and never replace it.
    """
    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    oldest = time.time() - seconds
    for path in Path(folder).glob("*-cache") if folder else ():
        with contextlib.suppress(OSError):
            if path.stat().st_mtime >= oldest:
                path.unlink()
