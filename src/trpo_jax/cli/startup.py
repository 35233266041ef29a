"""What the command line sets up once: the compilation cache, and silence where messages help no one."""

import logging
import os
import sys
import warnings
from pathlib import Path


def configure_process() -> None:
    """Switch on JAX's persistent compilation cache and quiet the libraries underneath."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's remarks on cached CPU code; read when jax is imported
    import jax

    settings = {
        "jax_compilation_cache_dir": str(cache_dir()),
        "jax_persistent_cache_min_compile_time_secs": 0.5,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    for name, value in settings.items():
        if not os.environ.get(name.upper()):
            jax.config.update(name, value)
    warnings.showwarning = _one_line
    logging.getLogger("absl").setLevel(logging.ERROR)


def _one_line(message, category, filename, lineno, file=None, line=None) -> None:
    """Show a warning as errors are shown: the line of code that it came from is none of the user's."""
    print(f"trpo-jax: warning: {message}", file=sys.stderr)


def cache_dir() -> Path:
    """Return where compiled programs are kept: $XDG_CACHE_HOME/trpo-jax/xla, by default in ~/.cache.

    JAX's own JAX_COMPILATION_CACHE_DIR goes before it.
    """
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "trpo-jax" / "xla"
