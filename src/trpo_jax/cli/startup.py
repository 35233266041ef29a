"""What the command line sets up once: the compilation cache, and silence where messages help no one."""

import logging
import os
from pathlib import Path


def configure_process() -> None:
    """Switch on JAX's persistent compilation cache and quiet the libraries underneath."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's remarks on cached CPU code; read when jax is imported
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_dir()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    logging.getLogger("absl").setLevel(logging.ERROR)


def cache_dir() -> Path:
    """Return where compiled programs are kept: $XDG_CACHE_HOME/trpo-jax/xla, by default in ~/.cache.

    JAX's own JAX_COMPILATION_CACHE_DIR goes before it.
    """
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "trpo-jax" / "xla"
