"""Environments that a wrapper of another library vectorizes, time-limits and resets."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from trpo_jax.environments.protocol import EnvironmentState
from trpo_jax.environments.randomization import RandomizationFn
from trpo_jax.environments.vectorized import cost_of
from trpo_jax.environments.wrappers import select
from trpo_jax.spaces import Box
from trpo_jax.tree import upcast

WrapEnvFn = Callable[..., Any]
"""Brax's signature: (environment, episode_length=…, action_repeat=…, randomization_fn=…) -> wrapped environment."""

FINAL_OBSERVATION_NAMES = ("final_observation", "final_obs")
"""Names in a state's info under which a wrapper may store the observation that an episode ended with."""


class WrappedEnvironment:
    """N wrapped environments with Brax's interface, behind the protocol.

    The wrapper's reset takes raw keys `[N, 2]`; its states have `obs`, `reward`, `done`, and an `info` whose
    "truncation" is 1 if `done` came from a time limit, and which may have a "cost". Warns once if the wrapper hides final
    observations.

    Args:
        wrap: num_envs -> wrapped environment, called once for each number in use.
        num_envs: number with which to inspect the wrapper; a wrapper made for a fixed number needs that one.

    Raises:
        TypeError: a wrapper whose states do not say which episodes were truncated.
    """

    resets_itself = True

    def __init__(self, wrap: Callable[[int], Any], *, num_envs: int = 1):
        self._wrap = functools.cache(wrap)
        environment = self._wrap(num_envs)
        self.action_space = Box(environment.action_size)
        state = jax.eval_shape(environment.reset, jax.ShapeDtypeStruct((num_envs, 2), jnp.uint32))
        if "truncation" not in state.info:
            raise TypeError(
                f"environment: got a {type(environment).__name__} whose state.info has no 'truncation', allowed: one that "
                "distinguishes time limits from terminations there, as brax.envs.wrappers.training.EpisodeWrapper does"
            )
        self.has_costs = "cost" in state.info
        self._final_name = _final_observation_name(state)
        self.keeps_final_observation = self._final_name is not None
        if not self.keeps_final_observation:
            warnings.warn(_hidden(environment), stacklevel=3)

    def reset(self, keys: Key[Array, "N"]) -> EnvironmentState:
        """Draw N initial states."""
        return _from_wrapped(self._wrap(keys.shape[0]).reset(jax.random.key_data(keys)))

    def step(self, state: EnvironmentState, action: jax.Array) -> EnvironmentState:
        """Advance all environments by one action each. If an episode ends, the observation is the first of the next episode."""
        # A new tree around the same arrays, since wrappers write into the info that they receive.
        simulator = jax.tree.map(jnp.asarray, state.simulator)
        return _from_wrapped(self._wrap(action.shape[0]).step(simulator, action))

    def final_observation(self, state: EnvironmentState) -> Any:
        """Return the observations after the step and before any reset, if the wrapper keeps them."""
        if self._final_name is None:
            return state.observation
        return select(state.terminated | state.truncated, state.simulator.info[self._final_name], state.observation)


def wrap_environment(
    environment: Any,
    wrap_env_fn: WrapEnvFn,
    *,
    episode_length: int,
    action_repeat: int,
    randomization_fn: RandomizationFn | None,
    seed: int,
    num_envs: int,
) -> WrappedEnvironment:
    """Wrap a simulator's environment object as `brax.training.agents.ppo.train` does.

    A wrapper receives its randomization_fn with the keys of all N environments bound, and never draws again. So it is
    created, and draws, once for each N in use (training, evaluation), outside of any program that is being traced.
    """
    bound = functools.partial(_wrap_for, environment, wrap_env_fn, episode_length, action_repeat, randomization_fn, seed)
    wrapped = WrappedEnvironment(bound, num_envs=num_envs)
    if action_repeat > 1 and wrapped.has_costs:
        raise TypeError(
            f"wrap_env_fn: got one for an environment with costs and action_repeat {action_repeat}, allowed: action_repeat 1, "
            "because wrappers sum the rewards of repeated actions but not their costs; the built-in time limit sums both"
        )
    return wrapped


def _wrap_for(environment, wrap_env_fn, episode_length, action_repeat, randomization_fn, seed, num_envs: int) -> Any:
    with jax.ensure_compile_time_eval():
        if randomization_fn is not None:
            keys = jax.random.key_data(jax.random.split(jax.random.fold_in(jax.random.key(seed), num_envs), num_envs))
            randomization_fn = functools.partial(randomization_fn, rng=keys)
        return wrap_env_fn(
            environment, episode_length=episode_length, action_repeat=action_repeat, randomization_fn=randomization_fn
        )


def _from_wrapped(state: Any) -> EnvironmentState:
    done, limited = state.done > 0, state.info["truncation"] > 0
    return EnvironmentState(state, state.obs, upcast(state.reward), done & ~limited, done & limited, cost_of(state.info))


def _final_observation_name(state: Any) -> str | None:
    """Return the name under which a state's info holds something shaped like its observation, or None."""
    for name in FINAL_OBSERVATION_NAMES:
        if name in state.info and _shapes(state.info[name]) == _shapes(state.obs):
            return name
    return None


def _shapes(tree: Any) -> Any:
    return jax.tree.structure(tree), [leaf.shape for leaf in jax.tree.leaves(tree)]


def _hidden(environment: Any) -> str:
    return (
        f"{type(environment).__name__} hides the final observations of episodes, so steps cut off by a time limit "
        "cannot be bootstrapped and get weight zero. Leave out wrap_env_fn (the built-in resets keep final observations), "
        f"or store them in state.info[{FINAL_OBSERVATION_NAMES[0]!r}] before the reset, beginning with the first state"
    )
