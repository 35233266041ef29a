"""Environments with costs, by name: Brax's robots with a speed limit, and the point among hazards."""

from trpo_jax.config import unknown_name
from trpo_jax.environments import brax
from trpo_jax.environments.point_hazards import PointHazards
from trpo_jax.environments.protocol import Environment
from trpo_jax.environments.randomization import RandomizationFn, refuse_randomization
from trpo_jax.environments.speed_limit import SpeedLimit
from trpo_jax.errors import ConfigError

SPEED_LIMITS = {
    "ant": 3.5,
    "halfcheetah": 2.7,
    "hopper": 0.9,
    "humanoid": 0.15,
    "swimmer": 0.11,
    "walker2d": 0.43,
}
"""Limits in metres per second: half of the mean speed, over its episodes, of what TRPO learns without a limit with the settings
that ship for the robot and five million steps (one seed, acting with the mode): benchmarks/speed_limits.py. Humanoid's
is after one million."""

SUFFIX = "_velocity"
HAZARDS = "point_hazards"


def environment_names() -> list[str]:
    """Return the names of the environments with costs."""
    return sorted([HAZARDS, *(name + SUFFIX for name in SPEED_LIMITS)])


def resolve_backend(name: str, backend: str = "auto") -> str:
    """Return the backend to load an environment with: for a robot, see `brax.resolve_backend`; for the point, "jax".

    Raises:
        ConfigError: an unknown name (with the nearest known ones), or a backend that does not exist or is not offered.
    """
    robot = _robot(name)
    if robot is not None:
        return brax.resolve_backend(robot, backend)
    if backend not in ("auto", "jax"):
        raise ConfigError("backend", backend, f"auto or jax, for {name}")
    return "jax"


def load_environment(name: str, backend: str = "auto", randomization_fn: RandomizationFn | None = None) -> Environment:
    """Return an environment with costs by name.

    Args:
        name: such as "ant_velocity" or "point_hazards".
        backend: for a robot, one of Brax's.
        randomization_fn: for a robot, see `RandomizationFn`; None randomizes nothing.

    Raises:
        ConfigError: as `resolve_backend`.
        TypeError: a randomization_fn that cannot be used.
    """
    backend, robot = resolve_backend(name, backend), _robot(name)
    if robot is not None:
        environment = brax.load_environment(robot, backend).environment
        return brax.adapt(SpeedLimit(environment, SPEED_LIMITS[robot]), randomization_fn)
    refuse_randomization(name, randomization_fn)
    return PointHazards()


def _robot(name: str) -> str | None:
    """Return the name of Brax's environment behind a task with a speed limit; None for the other task."""
    if name not in environment_names():
        raise ConfigError("environment", name, unknown_name("environment with costs", name, environment_names()))
    return None if name == HAZARDS else name.removesuffix(SUFFIX)
