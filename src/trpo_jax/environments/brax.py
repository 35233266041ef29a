"""Brax environments. The only module that imports Brax's simulator."""

import contextlib
import io
import warnings

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from trpo_jax.config import ConfigError, unknown_name
from trpo_jax.environments.protocol import Box, EnvironmentState

with contextlib.redirect_stdout(io.StringIO()):  # "Failed to import warp", which nobody needs here
    import brax.envs

BACKENDS = ("spring", "positional", "generalized", "mjx")


class BraxEnvironment:
    """N copies of a Brax environment, by vmap. Its `done` is a termination; Brax's own wrappers are not used."""

    def __init__(self, environment: brax.envs.Env):
        self.environment = environment
        self.action_space = Box(environment.action_size)

    def reset(self, keys: Key[Array, "N"]) -> EnvironmentState:
        return _from_brax(jax.vmap(self.environment.reset)(jax.random.key_data(keys)))

    def step(self, state: EnvironmentState, action: jax.Array) -> EnvironmentState:
        return _from_brax(jax.vmap(self.environment.step)(state.simulator, action))


def _from_brax(state: brax.envs.State) -> EnvironmentState:
    terminated = state.done > 0
    return EnvironmentState(state, state.obs, state.reward.astype(jnp.float32), terminated, jnp.zeros_like(terminated))


def environment_names() -> list[str]:
    """Return the names of Brax's registered environments."""
    return sorted(brax.envs._envs)


def load_environment(name: str, backend: str = "spring") -> BraxEnvironment:
    """Return a registered Brax environment by name.

    Args:
        name: such as "ant" or "hopper".
        backend: "spring", "positional", "generalized" or "mjx".

    Raises:
        ConfigError: an unknown name (with the nearest known ones) or backend.
    """
    if name not in environment_names():
        raise ConfigError("environment", name, unknown_name("Brax environment", name, environment_names()))
    if backend not in BACKENDS:
        raise ConfigError("backend", backend, "one of " + ", ".join(BACKENDS))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Brax System")
        return BraxEnvironment(brax.envs.get_environment(name, backend=backend))
