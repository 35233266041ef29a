"""gymnax environments, an optional dependency. The only module that imports it."""

import math
from typing import Any, NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces
from jaxtyping import Array, Key

from trpo_jax.config import unknown_name
from trpo_jax.environments.protocol import EnvironmentState
from trpo_jax.environments.randomization import RandomizationFn, refuse_randomization
from trpo_jax.errors import ConfigError
from trpo_jax.spaces import ActionSpace, Box, Discrete
from trpo_jax.tree import upcast


class _Simulator(NamedTuple):
    state: Any
    key: Key[Array, "N"]


class GymnaxEnvironment:
    """N copies of a gymnax environment. They end where they terminate; the time limit is left to `EpisodeLimit`.

    Images that it observes stay as they are, integers become one-hot vectors, all others vectors of floats. Actions in a
    bounded box are scaled to [-1, 1].

    Args:
        environment: as `gymnax.make` returns it.
        params: its parameters.
    """

    def __init__(self, environment: Any, params: Any):
        self._environment = environment
        self.time_limit = int(params.max_steps_in_episode)
        """Steps after which gymnax truncates an episode."""
        self._params = params
        self._actions, self._observations = environment.action_space(params), environment.observation_space(params)
        self.action_space = _action_space(self._actions, type(environment).__name__)

    def reset(self, keys: Key[Array, "N"]) -> EnvironmentState:
        """Draw N initial states, one per key."""
        keys, reset_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        observation, state = jax.vmap(lambda key: self._environment.reset_env(key, self._params))(reset_keys)
        nothing, no = jnp.zeros(keys.shape), jnp.zeros(keys.shape, bool)
        return EnvironmentState(_Simulator(state, keys), self._observed(observation), nothing, no, no)

    def step(self, state: EnvironmentState, action: jax.Array) -> EnvironmentState:
        """Advance every environment by one action."""
        keys, step_keys = jnp.moveaxis(jax.vmap(jax.random.split)(state.simulator.key), 1, 0)
        observation, new, reward, _, _ = jax.vmap(
            lambda key, state, action: self._environment.step_env(key, state, self._for_environment(action), self._params)
        )(step_keys, state.simulator.state, action)
        return EnvironmentState(
            _Simulator(new, keys),
            self._observed(observation),
            jnp.asarray(reward, jnp.float32).reshape(keys.shape),
            jnp.asarray(self._terminated(new), bool).reshape(keys.shape),
            jnp.zeros(keys.shape, bool),
        )

    def _terminated(self, state: Any) -> jax.Array:
        """Tell which episodes have ended, but not by gymnax's time limit."""
        return jax.vmap(lambda state: self._environment.is_terminated(state, self._params))(state)

    def _observed(self, observation: Any) -> Any:
        if isinstance(self._observations, spaces.Discrete):
            return jax.nn.one_hot(observation, self._observations.n)
        return jax.tree.map(lambda leaf: leaf if leaf.ndim == 4 else upcast(leaf.reshape(len(leaf), -1)), observation)

    def _for_environment(self, action: jax.Array) -> jax.Array:
        """Turn one action into that of the environment."""
        if not isinstance(self._actions, spaces.Box):
            return action
        action = action.reshape(self._actions.shape)
        if not _is_bounded(self._actions):
            return action
        low, high = jnp.asarray(self._actions.low), jnp.asarray(self._actions.high)
        return low + 0.5 * (high - low) * (action + 1.0)


def environment_names() -> list[str]:
    """Return the names of gymnax's environments."""
    return sorted(gymnax.registered_envs)


def resolve_backend(name: str, backend: str = "auto") -> str:
    """Return "jax".

    Raises:
        ConfigError: an unknown name (with the nearest known ones), or another backend.
    """
    if name not in gymnax.registered_envs:
        raise ConfigError("environment", name, unknown_name("gymnax environment", name, environment_names()))
    if backend not in ("auto", "jax"):
        raise ConfigError("backend", backend, f"auto or jax, for {name}")
    return "jax"


def load_environment(name: str, backend: str = "auto", randomization_fn: RandomizationFn | None = None) -> GymnaxEnvironment:
    """Return a gymnax environment by name.

    Args:
        name: such as "CartPole-v1" or "Breakout-MinAtar".
        backend: "auto" or "jax".
        randomization_fn: must be None.

    Raises:
        ConfigError: as `resolve_backend`, or actions that cannot be used.
        TypeError: a randomization_fn.
    """
    resolve_backend(name, backend)
    refuse_randomization(name, randomization_fn)
    return GymnaxEnvironment(*gymnax.make(name))


def _action_space(space: Any, name: str) -> ActionSpace:
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n))
    if isinstance(space, spaces.Box):
        return Box(math.prod(space.shape), *((-1.0, 1.0) if _is_bounded(space) else (-math.inf, math.inf)))
    raise ConfigError("environment", name, f"one with actions in a Discrete space or a Box; its space is {space}")


def _is_bounded(space: Any) -> bool:
    return bool(np.all(np.isfinite(np.asarray(space.low))) and np.all(np.isfinite(np.asarray(space.high))))
