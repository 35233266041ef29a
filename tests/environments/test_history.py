"""Frame stacking, and the last action and reward as observations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probes import Bandit, Counter
from trainings import SMALL
from trpo_jax import ConfigError, TRPOConfig, make_trpo
from trpo_jax.agent.binding import with_time_limit
from trpo_jax.environments.history import LAST_STEP, FrameStack, LastStep, innermost
from trpo_jax.environments.protocol import EnvironmentState
from trpo_jax.spaces import Box, Composite, Discrete, MultiBinary, MultiDiscrete


class Entries:
    """A vector, an image and flags; each step adds 1."""

    action_space = Composite({"b": MultiBinary(2), "c": MultiDiscrete((2, 3)), "d": Discrete(2), "x": Box(1)})

    def reset(self, keys):
        n = keys.shape[0]
        observation = {"v": jnp.zeros((n, 2)), "image": jnp.zeros((n, 2, 2, 1)), "mask": jnp.ones((n, 3), bool)}
        return EnvironmentState((), observation, jnp.zeros(n), jnp.zeros(n, bool), jnp.zeros(n, bool))

    def step(self, state, action):
        old = state.observation
        return state._replace(observation={**old, "v": old["v"] + 1, "image": old["image"] + 1}, reward=state.reward + 0.5)


KEYS = jax.random.split(jax.random.key(0), 2)


def test_frames_are_stacked_with_the_newest_last_and_the_first_repeated():
    environment = FrameStack(Counter(), 3)
    state = environment.reset(KEYS)
    assert state.observation.shape == (2, 6)
    np.testing.assert_array_equal(state.observation[:, 1::2], 0.0)
    for now in range(1, 5):
        state = environment.step(state, jnp.zeros((2, 2)))
        np.testing.assert_array_equal(state.observation[0, 1::2], np.maximum([now - 2, now - 1, now], 0))


def test_images_are_stacked_along_their_channels_and_flags_are_not():
    environment = FrameStack(Entries(), 2)
    state = environment.step(environment.reset(KEYS), None)
    assert state.observation["image"].shape == (2, 2, 2, 2)
    np.testing.assert_array_equal(state.observation["image"][0, 0, 0], [0, 1])
    assert state.observation["mask"].shape == (2, 3)


def test_the_last_action_and_reward_are_observed():
    environment = LastStep(Counter())
    state = environment.reset(KEYS)
    np.testing.assert_array_equal(state.observation[:, 2:], 0.0)
    state = environment.step(state, jnp.asarray([[0.1, 0.2], [0.3, 0.4]]))
    np.testing.assert_allclose(state.observation[:, 2:], [[0.1, 0.2, 1.0], [0.3, 0.4, 1.0]])
    assert state.simulator.past.shape == (2, 2)


def test_actions_of_every_kind_become_numbers_in_an_entry_of_their_own():
    environment = LastStep(Entries())
    action = {
        "b": jnp.asarray([[1, 0]] * 2),
        "c": jnp.asarray([[1, 2]] * 2),
        "d": jnp.asarray([1, 1]),
        "x": jnp.asarray([[0.5]] * 2),
    }
    state = environment.step(environment.reset(KEYS), action)
    np.testing.assert_allclose(state.observation[LAST_STEP][0], [1, 0, 0, 1, 0, 0, 1, 0, 1, 0.5, 0.5])


def test_images_alone_have_no_room_for_the_last_step():
    class Images(Entries):
        def reset(self, keys):
            state = super().reset(keys)
            return state._replace(observation=state.observation["image"])

    with pytest.raises(ConfigError, match="observe_last_step: got True, allowed: False"):
        LastStep(Images()).reset(KEYS)


def test_a_training_stacks_and_observes_what_its_config_says():
    config = TRPOConfig(num_envs=4, unroll_length=8, frame_stack=3, observe_last_step=True)
    agent = make_trpo(Bandit(), config)
    state, metrics = agent.update(agent.init(jax.random.key(0)))
    size = Bandit().reset(KEYS).observation.shape[1]
    assert state.rollout.environments.observation.shape == (4, 3 * size + 3 + 1)
    assert np.isfinite(metrics["training/kl"])
    assert isinstance(innermost(agent.environment.environment), Bandit)


def test_what_is_remembered_is_of_whole_actions_if_they_are_repeated():
    config = dataclasses.replace(SMALL, action_repeat=4, frame_stack=2, observe_last_step=True, episode_length=1000)
    environment = with_time_limit(Counter(), config)
    state = environment.reset(jax.random.split(jax.random.key(0), 2))
    for _ in range(2):
        state = environment.step(state, jnp.full((2, 2), 0.5))
    np.testing.assert_array_equal(state.observation[:, 1], 4)  # after the first action
    np.testing.assert_array_equal(state.observation[:, 3], 8)
    np.testing.assert_array_equal(state.observation[:, 4:], [[0.5, 0.5, 5 + 6 + 7 + 8]] * 2)
    np.testing.assert_array_equal(state.reward, 5 + 6 + 7 + 8)
