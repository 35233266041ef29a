"""gymnax environments behind the protocol."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trpo_jax
from trpo_jax import Box, ConfigError, Discrete, TRPOConfig
from trpo_jax.environments.registry import as_environment, environment_names
from trpo_jax.environments.wrappers import EpisodeLimit

gymnax = pytest.importorskip("gymnax")
SMALL = TRPOConfig(num_envs=3, unroll_length=8, critic=trpo_jax.CriticConfig(num_minibatches=2))
KEYS = jax.random.split(jax.random.key(0), 3)


def load(name, **options):
    return as_environment(name, suite="gymnax", **options)


@pytest.mark.parametrize(
    ("name", "space", "shape"),
    [
        ("CartPole-v1", Discrete(2), (3, 4)),
        ("Pendulum-v1", Box(1), (3, 3)),
        ("Breakout-MinAtar", Discrete(3), (3, 10, 10, 4)),
        ("Catch-bsuite", Discrete(3), (3, 50)),
        ("MemoryChain-bsuite", Discrete(2), (3, 3)),
    ],
)
def test_spaces_are_translated(name, space, shape):
    environment = load(name)
    assert environment.action_space == space
    assert jax.eval_shape(environment.reset, KEYS).observation.shape == shape


def test_an_episode_is_that_of_gymnax():
    """The same key, state and actions, by gymnax's own functions."""
    environment = load("CartPole-v1")
    theirs, params = gymnax.make("CartPole-v1")
    state = environment.reset(KEYS)
    own = jax.tree.map(lambda leaf: leaf[0], state.simulator.state)
    step = jax.jit(environment.step)
    for _ in range(20):
        key = jax.random.split(state.simulator.key[0])[1]
        observation, own, reward, done, *_ = theirs.step_env(key, own, 1, params)
        state = step(state, jnp.ones(3, jnp.int32))
        np.testing.assert_allclose(state.observation[0], observation, rtol=1e-6)
        assert state.reward[0] == reward
        assert state.terminated[0] == done
        if done:
            return
    pytest.fail("no pole has fallen")


def test_an_observation_of_the_time_is_in_units_of_the_limit():
    environment = load("DiscountingChain-bsuite")
    state = jax.jit(environment.step)(environment.reset(KEYS), jnp.zeros(3, jnp.int32))
    np.testing.assert_allclose(state.observation[:, 1], 0.01, rtol=1e-6)
    assert not state.terminated.any()


def test_bounded_actions_are_scaled():
    environment = load("Pendulum-v1")
    theirs, params = gymnax.make("Pendulum-v1")
    state = environment.reset(KEYS)
    key = jax.random.split(state.simulator.key[0])[1]
    own = jax.tree.map(lambda leaf: leaf[0], state.simulator.state)
    observation, *_ = theirs.step_env(key, own, jnp.asarray([1.0]), params)
    new = environment.step(state, jnp.full((3, 1), 0.5))
    np.testing.assert_allclose(new.observation[0], observation, rtol=1e-5)


def test_a_time_limit_truncates_and_does_not_terminate():
    agent = trpo_jax.make_trpo(load("Pendulum-v1"), SMALL)
    environment = agent.environment
    assert isinstance(environment, EpisodeLimit)
    assert environment.episode_length == 200

    def step(state, _):
        state = environment.step(state, jnp.zeros((3, 1)))
        return state, (state.terminated, state.truncated)

    _, (terminated, truncated) = jax.jit(lambda state: jax.lax.scan(step, state, None, length=200))(environment.reset(KEYS))
    assert not terminated.any()
    np.testing.assert_array_equal(truncated.all(axis=1), np.arange(200) == 199)


def test_a_shorter_limit_of_the_config_counts():
    agent = trpo_jax.make_trpo(load("Pendulum-v1"), dataclasses.replace(SMALL, episode_length=50))
    assert agent.environment.episode_length == 50


def test_images_are_trained_with_convolutions():
    agent = trpo_jax.make_trpo(load("Breakout-MinAtar"), SMALL)
    state, metrics = agent.update(agent.init(jax.random.key(0)))
    assert (36, 16) in [leaf.shape for leaf in jax.tree.leaves(state.learner.policy)]
    assert np.isfinite(metrics["training/kl"])
    np.testing.assert_array_equal(state.learner.normalizer.std, 1.0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("CartPol-v1", {}, r"environment: got 'CartPol-v1', allowed: .*CartPole-v1"),
        ("CartPole-v1", {"backend": "spring"}, r"backend: got 'spring', allowed: auto or jax, for CartPole-v1"),
    ],
)
def test_what_does_not_exist_is_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        load(name, **options)


def test_randomization_is_refused():
    with pytest.raises(TypeError, match=r"randomization_fn: got a function, allowed: None for CartPole-v1"):
        load("CartPole-v1", randomization_fn=lambda sys, keys: (sys, sys))


def test_names():
    assert {"CartPole-v1", "Breakout-MinAtar"} <= set(environment_names("gymnax"))
