"""Brax environments. The only module that imports Brax's simulator."""

import contextlib
import io
import warnings
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from trpo_jax.config import ConfigError, unknown_name
from trpo_jax.environments.protocol import Box, EnvironmentState

# "Failed to import warp" and the deprecation of a dependency of Brax help no one here.
with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
    import brax.envs
    import brax.fluid
    import mujoco

BACKENDS = ("spring", "positional", "generalized", "mjx")


class _NumpyWithOldClip:
    """jax.numpy whose clip still takes a_min and a_max, as Brax 0.14.2's fluid forces (swimmer) call it."""

    def __getattr__(self, name):
        return getattr(jnp, name)

    @staticmethod
    def clip(x, a_min=None, a_max=None):
        return jnp.clip(x, a_min, a_max)


brax.fluid.jp = _NumpyWithOldClip()


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
    environment = _load(name, backend)
    if environment is None:
        offered = [other for other in BACKENDS if _load(name, other) is not None]
        raise ConfigError("backend", backend, f"one that {name} offers: {', '.join(offered)}")
    return BraxEnvironment(environment)


def _load(name: str, backend: str) -> brax.envs.Env | None:
    """Return a Brax environment, or None where it does not offer a backend."""
    with _quiet():
        try:
            return brax.envs.get_environment(name, backend=backend)
        except ValueError:
            return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what Brax and MuJoCo say about their own deprecations; MuJoCo would also write a MUJOCO_LOG.TXT."""
    previous = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Brax System")
            yield
    finally:
        mujoco.set_mju_user_warning(previous)
