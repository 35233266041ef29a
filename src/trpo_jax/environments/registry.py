"""From what a user names or holds to an environment behind the protocol."""

import sys
from typing import Any

from trpo_jax.environments.protocol import Environment


def as_environment(environment: Any, *, backend: str = "spring") -> Environment:
    """Return an environment behind the protocol.

    Args:
        environment: the name of a Brax environment ("hopper"), a Brax `Env` that is neither vectorized nor
            time-limited, or an object that satisfies `Environment` already.
        backend: Brax's physics, for an environment given by name.

    Raises:
        ConfigError: an unknown name or backend.
        TypeError: an object of another kind.
    """
    if isinstance(environment, str):
        from trpo_jax.environments.brax import load_environment

        return load_environment(environment, backend)
    if "brax.envs" in sys.modules and isinstance(environment, sys.modules["brax.envs"].Env):
        from trpo_jax.environments.brax import BraxEnvironment

        if isinstance(environment, sys.modules["brax.envs"].Wrapper):
            kind = type(environment).__name__
            raise TypeError(
                f"environment: got a Brax environment inside a {kind}, "
                "allowed: a bare one, as brax.envs.get_environment returns it; time limit and resets are added here"
            )
        return BraxEnvironment(environment)
    if isinstance(environment, Environment):
        return environment
    kind = type(environment).__name__
    raise TypeError(f"environment: got a {kind}, allowed: a name, a Brax Env, or an object with action_space, reset and step")
