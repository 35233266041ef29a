"""Which runs share a program: as many of a cell as its devices' memory takes."""

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from trpo_jax.config import ConfigError
from trpo_jax.sweep.plan import Cell, Run, cells_of
from trpo_jax.training.run import run_environment
from trpo_jax.training.trpo import make_trpo

COPIES_OF_STATE = 3
"""Before, after and during an iteration."""
COPIES_OF_BATCH = 4
"""As collected, arranged in rows, shuffled for the critic, and its derivatives."""
PART_OF_MEMORY = 0.5
"""Of what a device has free, what a program may take where nothing else is said."""


class PlannedProgram(NamedTuple):
    """Runs that a sweep trains together."""

    runs: tuple[Run, ...]
    bytes_each: int
    """Memory that each of them is estimated to take."""
    cell: int
    """Which of the sweep's cells they are of, from 1 on."""


def plan_programs(runs: Sequence[Run], *, memory_limit: int, num_devices: int, most: int | None = None) -> list[PlannedProgram]:
    """Divide runs among programs.

    Args:
        runs: see `make_plan`.
        memory_limit: bytes that a program may take on each device.
        num_devices: that a program's runs are spread over.
        most: runs that a program may hold.

    Raises:
        ConfigError: not a single run fits.
    """
    planned = []
    for number, cell in enumerate(cells_of(runs), 1):
        size = bytes_of_run(cell.runs[0])
        parts = divide(cell, size, limit=memory_limit, num_devices=num_devices, most=most)
        planned += [PlannedProgram(part, size, number) for part in parts]
    return planned


def bytes_of_run(run: Run) -> int:
    """Estimate the memory that a run adds to a program: its state, its batch, and what networks leave behind on it."""
    config = run.config.trpo
    trpo = make_trpo(run_environment(run.config), config)
    state = jax.eval_shape(trpo.init, jax.random.key(0))
    starts = jax.eval_shape(trpo.iteration.draw, jax.random.key(0))
    observation = state.rollout.environments.observation
    samples = config.num_envs * config.unroll_length
    floats = sum(2 * math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(observation))
    floats += getattr(trpo.environment.action_space, "size", 1) + 8  # action, reward, value, advantage, …
    units = sum(config.policy.hidden_sizes) + sum(config.critic.hidden_sizes)
    per_sample = 4 * (COPIES_OF_BATCH * floats + 2 * units)
    return COPIES_OF_STATE * _bytes(state) + _bytes(starts) + samples * per_sample


def free_bytes(devices: Sequence[jax.Device]) -> int:
    """Return the memory that a program may take on each of some devices: a part of what is free there."""
    statistics = devices[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return int(PART_OF_MEMORY * (statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)))
    return int(PART_OF_MEMORY * _free_bytes_of_host() / len(devices))


def _free_bytes_of_host() -> int:
    """Return what this process may take: by Linux's account, within its control group's limit; else all there is."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return free


def divide(cell: Cell, bytes_each: int, *, limit: int, num_devices: int, most: int | None = None) -> list[tuple[Run, ...]]:
    """Divide the runs of a cell among programs of about the same size.

    Args:
        cell: what to divide.
        bytes_each: see `bytes_of_run`.
        limit: bytes a program may take on each device.
        num_devices: over which its runs are spread evenly.
        most: runs a program may hold, whatever their memory.

    Raises:
        ConfigError: not a single run fits.
    """
    on_each = limit // bytes_each
    if on_each < 1:
        needed = f"at least {bytes_each / 2**30:.3g}, what one run of {cell.config.environment} is estimated to take"
        raise ConfigError("memory_limit", round(limit / 2**30, 3), needed)
    num_runs = len(cell.runs)
    size = min(on_each * num_devices, most or num_runs)
    size = math.ceil(num_runs / math.ceil(num_runs / size))
    if num_devices <= size < num_runs:  # as many on every device, where that fits
        even = math.ceil(size / num_devices) * num_devices
        size = even if even <= min(on_each * num_devices, most or even) else size
    return [cell.runs[start : start + size] for start in range(0, len(cell.runs), size)]


def _bytes(tree: object) -> int:
    return sum(math.prod(leaf.shape) * _itemsize(leaf) for leaf in jax.tree.leaves(tree))


def _itemsize(leaf: jax.ShapeDtypeStruct) -> int:
    return 8 if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
