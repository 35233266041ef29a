"""Observations that hold more than the present one: stacked frames, and the last action and reward."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from trpo_jax.environments.checked import checked_reset, checked_step
from trpo_jax.environments.protocol import Environment, EnvironmentState
from trpo_jax.environments.wrappers import ActionRepeat
from trpo_jax.errors import ConfigError
from trpo_jax.spaces import ActionSpace, Box, Composite, Discrete, MultiDiscrete, num_numbers, parts_of

LAST_STEP = "last_step"
"""Entry of a dict observation that holds the last action and reward."""


class Remembering(NamedTuple):
    """A simulator with what an observation adds to the environment's own."""

    simulator: Any
    past: Any


class FrameStack:
    """Put the last observations side by side, the newest last. Before the episode's first one, that one is repeated.

    Vectors `[N, O]` become `[N, number·O]`, images `[N, H, W, C]` become `[N, H, W, number·C]`. Flags, such as the mask of
    actions, are not stacked.
    """

    def __init__(self, environment: Environment, number: int):
        self.environment, self.number = environment, number

    @property
    def action_space(self) -> ActionSpace:
        return self.environment.action_space

    def reset(self, keys: jax.Array) -> EnvironmentState:
        state = checked_reset(self.environment, keys)

        def repeated(leaf: Array) -> Array:
            return leaf if leaf.dtype == bool else jnp.concatenate([leaf] * self.number, axis=-1)

        stacked = jax.tree.map(repeated, state.observation)
        return state._replace(simulator=Remembering(state.simulator, state.observation), observation=stacked)

    def step(self, state: EnvironmentState, action: Any) -> EnvironmentState:
        simulator, present = state.simulator
        new = checked_step(self.environment, state._replace(simulator=simulator, observation=present), action)

        def pushed(old: Array, leaf: Array) -> Array:
            return leaf if leaf.dtype == bool else jnp.concatenate([old[..., leaf.shape[-1] :], leaf], axis=-1)

        stacked = jax.tree.map(pushed, state.observation, new.observation)
        return new._replace(simulator=Remembering(new.simulator, new.observation), observation=stacked)


class LastStep:
    """Add the last action and reward to the observation; zeros at the beginning of an episode.

    A vector gets them appended, a dict a new entry `LAST_STEP`. Discrete actions are one-hot.

    Raises:
        ConfigError: observations of another kind.
    """

    def __init__(self, environment: Environment):
        self.environment = environment

    @property
    def action_space(self) -> ActionSpace:
        return self.environment.action_space

    def reset(self, keys: jax.Array) -> EnvironmentState:
        state = checked_reset(self.environment, keys)
        nothing = jnp.zeros((*keys.shape, num_numbers(self.action_space) + 1), state.reward.dtype)
        return self._extended(state, nothing)

    def step(self, state: EnvironmentState, action: Any) -> EnvironmentState:
        simulator, present = state.simulator
        new = checked_step(self.environment, state._replace(simulator=simulator, observation=present), action)
        last = [_as_numbers(self.action_space, action), new.reward[:, None]]
        return self._extended(new, jnp.concatenate(last, axis=-1).astype(new.reward.dtype))

    def _extended(self, state: EnvironmentState, last: Array) -> EnvironmentState:
        own = state.observation
        if isinstance(own, Mapping):
            observation: Any = {**own, LAST_STEP: last}
        elif jnp.ndim(own) == 2:
            observation = jnp.concatenate([own, last], axis=-1)
        else:
            raise ConfigError("observe_last_step", True, "False, for observations that are neither a vector nor a dict")
        return state._replace(simulator=Remembering(state.simulator, own), observation=observation)


def _as_numbers(space: ActionSpace, action: Any) -> Array:
    """Return actions as numbers, `[N, size]`: discrete ones one-hot."""
    if isinstance(space, Composite):
        return jnp.concatenate([_as_numbers(part, action[key]) for key, part in parts_of(space).items()], axis=-1)
    if isinstance(space, Discrete):
        return jax.nn.one_hot(action, space.num_actions)
    if isinstance(space, MultiDiscrete):
        return jnp.concatenate([jax.nn.one_hot(action[:, i], size) for i, size in enumerate(space.sizes)], axis=-1)
    return jnp.asarray(action, jnp.float32) if not isinstance(space, Box) else action


def innermost(environment: Any) -> Any:
    """Return the environment inside the wrappers of this module and `ActionRepeat`."""
    while isinstance(environment, (FrameStack, LastStep, ActionRepeat)):
        environment = environment.environment
    return environment


def innermost_simulator(simulator: Any) -> Any:
    """Return the simulator inside what the wrappers of this module remember."""
    while isinstance(simulator, Remembering):
        simulator = simulator.simulator
    return simulator
