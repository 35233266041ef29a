"""How much memory there is, and whether a training fits into it."""

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from trpo_jax.agent.config import AgentConfig
from trpo_jax.agent.rollout import num_starts
from trpo_jax.agent.state import TrainState
from trpo_jax.errors import ConfigError

CONTROL_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Linux control groups, version 2 and 1: file of the limit, file of the usage, entry of `memory.stat` that can be freed."""


def check_training(config: AgentConfig, state: TrainState, devices: Sequence[jax.Device]) -> None:
    """Raise ConfigError if a rollout alone (environments, initial states and samples) needs more memory than is free.

    Args:
        config: the training's configuration.
        state: describes the training's state.
        devices: those of all processes; environments are spread over them evenly.
    """
    local = [device for device in devices if device.process_index == jax.process_index()]
    environments = state.rollout.environments
    starts = num_starts(config.unroll_length) * size_of(environments)
    samples = 2 * config.unroll_length * size_of(environments.observation)  # before and after each step
    needed = (size_of(state) + starts + samples) * len(local) / len(devices)
    on_device = available_memory(local[0])
    available = free_bytes_of_host() if on_device is None else on_device * len(local)
    if needed > available:
        needs, has = (f"{size / 1e9:.3g} GB" for size in (needed, available))
        raise ConfigError(
            "num_envs and unroll_length",
            f"{config.num_envs:,} environments × {config.unroll_length:,} steps, which take at least {needs} here",
            f"a batch that fits into {has}; fewer environments or shorter unrolls need less",
        )


def check_program(needed: int, available: int) -> None:
    """Raise ConfigError if a program of an iteration needs more bytes than its device has."""
    if needed > available:
        needs, has = (f"{size / 1e9:.1f} GB" for size in (needed, available))
        raise ConfigError(
            "num_envs and unroll_length",
            f"a batch that needs {needs}",
            f"one that fits into the device's {has}; fewer environments or shorter unrolls need less",
        )


def available_memory(device: jax.Device) -> int | None:
    """Return the bytes that JAX may use on a device of this process; None if it does not report them."""
    tells = device.platform != "cpu" and device in jax.local_devices()
    statistics = device.memory_stats() if tells else None
    return None if statistics is None else statistics.get("bytes_limit")


def free_bytes_of_host(groups: Path = Path("/sys/fs/cgroup"), own_groups: Path = Path("/proc/self/cgroup")) -> int:
    """Return the bytes available to this process: Linux's estimate within control-group limits, else all physical memory."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    for group in _memory_groups(groups, own_groups):
        for limit, current, cached in CONTROL_FILES:
            with contextlib.suppress(OSError, ValueError):
                used, statistics = int((group / current).read_text()), (group / "memory.stat").read_text().split()
                used -= int(statistics[statistics.index(cached) + 1])
                free = min(free, max(0, int((group / limit).read_text()) - used))
    return free


def _memory_groups(groups: Path, own_groups: Path) -> list[Path]:
    """Return the folders of this process's control groups (version 1 or 2), each followed by its parents."""
    try:
        lines = [line.split(":", 2) for line in own_groups.read_text().splitlines()]
    except OSError:
        return []
    tops = {"": groups, "memory": groups / "memory"}
    own = [(tops[name], path.lstrip("/")) for _, names, path in lines for name in names.split(",") if name in tops]
    return [folder for top, path in own for folder in (top / path, *(top / path).parents) if folder.is_relative_to(top)]


def size_of(tree: Any) -> int:
    """Return the bytes of a pytree of arrays or of `jax.ShapeDtypeStruct`s."""
    return sum(math.prod(leaf.shape) * _itemsize(leaf) for leaf in jax.tree.leaves(tree))


def _itemsize(leaf: jax.ShapeDtypeStruct) -> int:
    return 8 if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
