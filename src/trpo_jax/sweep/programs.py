"""Dividing runs among programs: as many runs of a cell share a program as fit into its devices' memory."""

import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax

from trpo_jax.algorithms.registry import make_agent
from trpo_jax.errors import ConfigError
from trpo_jax.execution.memory import free_bytes_of_host, size_of
from trpo_jax.runs.run import run_environment
from trpo_jax.sweep.plan import Run, cells_of

COPIES_OF_STATE = 3
"""The state before, after and during an iteration."""
COPIES_OF_BATCH = 4
"""The batch as collected, arranged in rows, shuffled for the critic, and its derivatives."""
PART_OF_MEMORY = 0.5
"""Default share of a device's free memory that a program may take."""


class PlannedProgram(NamedTuple):
    """Runs that a sweep trains together."""

    runs: tuple[Run, ...]
    bytes_each: int
    """Estimated memory of each run."""
    cell: int
    """Number of the runs' cell in the sweep, counted from 1."""
    capacity: int
    """Largest number of runs with which an unfinished program of this cell may resume."""


def plan_programs(
    runs: Sequence[Run],
    *,
    memory_limit: int,
    num_devices: int,
    most: int | None = None,
    resume_limit: int | None = None,
) -> list[PlannedProgram]:
    """Divide runs among programs.

    Args:
        runs: see `make_plan`.
        memory_limit: bytes that a program may take on each device.
        resume_limit: bytes that an unfinished program may take on each device; None for `memory_limit`.
        num_devices: devices that a program's runs are spread over.
        most: largest number of runs in a program; None for no limit but memory.

    Raises:
        ConfigError: not a single run fits.
    """
    planned = []
    for number, cell in enumerate(cells_of(runs), 1):
        size = bytes_of_run(cell.runs[0])
        if memory_limit < size:
            needed = f"at least {size / 2**30:.3g} GiB, the estimated memory of one run of {cell.config.environment}"
            raise ConfigError("memory_limit", round(memory_limit / 2**30, 3), needed)
        new, resumed = (
            min(limit // size * num_devices, most or sys.maxsize) for limit in (memory_limit, resume_limit or memory_limit)
        )
        parts = divide(cell.runs, new, num_devices=num_devices)
        planned += [PlannedProgram(part, size, number, resumed) for part in parts]
    return planned


def bytes_of_run(run: Run) -> int:
    """Estimate the bytes that a run adds to a program: its state, its batch, and the networks' activations on it."""
    config = run.config.agent
    agent = make_agent(run_environment(run.config), config)
    state = jax.eval_shape(agent.init, jax.random.key(0))
    starts = jax.eval_shape(agent.draw, jax.random.key(0))
    observation = state.rollout.environments.observation
    samples = config.num_envs * config.unroll_length
    floats = sum(2 * math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(observation))
    floats += getattr(agent.environment.action_space, "size", 1) + 8  # action, reward, value, advantage, …
    units = sum(config.policy.hidden_sizes) + sum(config.critic.hidden_sizes)
    per_sample = 4 * (COPIES_OF_BATCH * floats + 2 * units)
    return COPIES_OF_STATE * size_of(state) + size_of(starts) + samples * per_sample


def free_bytes(devices: Sequence[jax.Device]) -> int:
    """Return the bytes that a program may take on each of the devices: a share of what is free there."""
    statistics = devices[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return int(PART_OF_MEMORY * (statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)))
    return share_of_host(len(devices))


def share_of_host(num_shares: int) -> int:
    """Return the bytes that a program may take on each of `num_shares` devices that share this machine's memory."""
    return int(PART_OF_MEMORY * free_bytes_of_host() / num_shares)


def divide(runs: Sequence[Run], capacity: int, *, num_devices: int) -> list[tuple[Run, ...]]:
    """Divide runs among programs of about the same size.

    Args:
        runs: all of one cell.
        capacity: largest number of runs in a program.
        num_devices: devices that a program's runs are spread over evenly.
    """
    size = math.ceil(len(runs) / math.ceil(len(runs) / capacity))
    if num_devices <= size < len(runs):  # the same number on every device, if that fits
        even = math.ceil(size / num_devices) * num_devices
        size = even if even <= capacity else size
    return [tuple(runs[start : start + size]) for start in range(0, len(runs), size)]
