import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from environments.falling import Falling, brax, random_gravity
from trpo_jax import ConfigError, train
from trpo_jax.environments.checked import checked_reset
from trpo_jax.environments.protocol import SelfResettingEnvironment
from trpo_jax.environments.registry import as_environment, wrapped_environment

training = brax.envs.training
N = 3
LENGTH = 4
HIDES = "ignore:.* hides the final observations:UserWarning"


def keys(seed, n=N):
    return jax.random.split(jax.random.key(seed), n)


class KeepsFinal(training.AutoResetWrapper):
    """Puts the final observation where the package looks for it, as a user's own wrapper may."""

    def reset(self, rng):
        state = super().reset(rng)
        state.info["final_observation"] = jnp.zeros_like(state.obs)
        return state

    def step(self, state, action):
        # Its own reset hides the observation, so take it from the wrapped environment's step.
        state.info["steps"] = jnp.where(state.done > 0, 0.0, state.info["steps"])
        final = self.env.step(state.replace(done=jnp.zeros_like(state.done)), action)
        ended = final.done[:, None] > 0
        first = final.info["first_pipeline_state"], final.info["first_obs"]
        pipeline_state, obs = (jnp.where(ended, a, b) for a, b in zip(first, (final.pipeline_state, final.obs), strict=True))
        final.info["final_observation"] = jnp.where(ended, final.obs, 0.0)
        return final.replace(pipeline_state=pipeline_state, obs=obs)


def keep_final(env, episode_length, action_repeat, randomization_fn=None):
    assert randomization_fn is None
    return KeepsFinal(training.EpisodeWrapper(training.VmapWrapper(env), episode_length, action_repeat))


def play(environment, num_steps, action=0.0):
    state = jax.jit(environment.reset)(keys(0))
    step, states = jax.jit(environment.step), [state]
    for _ in range(num_steps):
        state = step(state, jnp.full((N, 1), action))
        states.append(state)
    return states


@pytest.fixture
def hidden():
    with pytest.warns(UserWarning, match="AutoResetWrapper hides the final observations"):
        return wrapped_environment(Falling(gravity=0.01), training.wrap, episode_length=LENGTH)


def test_brax_own_wrapper_truncates_and_resets_itself(hidden):
    states = play(hidden, LENGTH + 1)
    for state in states[:LENGTH]:
        assert not (state.terminated | state.truncated).any()
    assert states[LENGTH].truncated.all()
    assert not states[LENGTH].terminated.any()
    np.testing.assert_array_equal(states[LENGTH].observation, states[0].observation)
    assert not (states[-1].terminated | states[-1].truncated).any()


def test_a_termination_is_no_truncation():
    with pytest.warns(UserWarning, match="hides"):
        environment = wrapped_environment(Falling(gravity=100.0), training.wrap, episode_length=2)
    second = play(environment, 2)[2]  # the floor is reached in the very step of the limit
    assert second.terminated.all()
    assert not second.truncated.any()


def test_what_a_wrapper_hides_is_said_once_and_can_be_asked(hidden):
    assert isinstance(hidden, SelfResettingEnvironment)
    assert hidden.resets_itself
    assert not hidden.keeps_final_observation
    with warnings.catch_warnings(action="error"):
        last = play(hidden, LENGTH)[-1]
    np.testing.assert_array_equal(hidden.final_observation(last), last.observation)


def test_a_final_observation_that_is_kept_is_found_without_a_warning():
    environment = wrapped_environment(Falling(gravity=0.01), keep_final, episode_length=LENGTH)
    assert environment.keeps_final_observation
    states = play(environment, LENGTH)
    bare = as_environment(Falling(gravity=0.01))
    expected = bare.reset(keys(0))
    for state in states[1:]:
        expected = bare.step(expected, jnp.zeros((N, 1)))
        np.testing.assert_allclose(environment.final_observation(state), expected.observation, rtol=1e-6)
    np.testing.assert_array_equal(states[-1].observation, states[0].observation)


@pytest.mark.filterwarnings(HIDES)
def test_actions_repeat_and_an_adapted_environment_is_taken():
    for given in (Falling(), as_environment(Falling())):
        environment = wrapped_environment(given, training.wrap, episode_length=LENGTH, action_repeat=2)
        assert play(environment, 2)[-1].truncated.all()
    with pytest.raises(ConfigError, match="environment: got 'hoper'"):
        train("hoper", 16, wrap_env_fn=training.wrap)


@pytest.mark.filterwarnings(HIDES)
def test_an_environment_that_is_wrapped_already_is_the_same():
    wrapped = training.wrap(Falling(), episode_length=LENGTH)
    already = wrapped_environment(wrapped, None, episode_length=LENGTH)
    by_us = wrapped_environment(Falling(), training.wrap, episode_length=LENGTH)
    for a, b in zip(play(already, LENGTH + 1), play(by_us, LENGTH + 1), strict=True):
        np.testing.assert_array_equal(a.observation, b.observation)
        np.testing.assert_array_equal(a.truncated, b.truncated)


@pytest.mark.filterwarnings(HIDES)
def test_an_environment_wrapped_for_a_fixed_number_needs_that_number():
    def randomize(sys):
        return random_gravity(sys, jax.random.split(jax.random.PRNGKey(0), N))

    wrapped = training.wrap(Falling(), episode_length=LENGTH, randomization_fn=randomize)
    assert len(play(wrapped_environment(wrapped, None, episode_length=LENGTH, num_envs=N), 1)) == 2


@pytest.mark.filterwarnings(HIDES)
def test_randomization_reaches_the_wrapper_with_keys_for_as_many_environments():
    environment = wrapped_environment(Falling(), training.wrap, episode_length=9, randomization_fn=random_gravity)
    for n in (N, 5):  # training and evaluation; wrapped while a program is being traced
        state = jax.jit(environment.reset)(keys(0, n))
        after = jax.jit(environment.step)(state, jnp.zeros((n, 1)))
        speeds = np.asarray(after.observation[:, 1])
        assert len(np.unique(speeds)) == n
        again = jax.jit(environment.step)(after, jnp.zeros((n, 1)))
        np.testing.assert_allclose(again.observation[:, 1], 2 * speeds, rtol=1e-6)  # the same gravity in the next step


@pytest.mark.filterwarnings(HIDES)
def test_avals_stay_the_same_and_a_state_may_be_used_again():
    environment = wrapped_environment(Falling(), training.wrap, episode_length=LENGTH)
    state = environment.reset(keys(0))
    before = jax.tree.map(np.asarray, state)
    once, twice = (environment.step(state, jnp.zeros((N, 1))) for _ in range(2))
    for a, b in ((once, twice), (before, state)):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    avals = [[(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)] for tree in (state, once)]
    assert avals[0] == avals[1]


def test_a_wrapper_that_does_not_tell_truncations_is_refused():
    with pytest.raises(TypeError, match=r"environment: got a VmapWrapper whose state\.info has no 'truncation', allowed:"):
        wrapped_environment(training.VmapWrapper(Falling()), None, episode_length=LENGTH)


@pytest.mark.filterwarnings(HIDES)
def test_a_state_without_an_axis_of_environments_is_refused():
    class Shared(training.AutoResetWrapper):
        def reset(self, rng):
            state = super().reset(rng)
            state.info["buffer"] = jnp.zeros(7)
            return state

    environment = wrapped_environment(
        Shared(training.EpisodeWrapper(training.VmapWrapper(Falling()), LENGTH, 1)), None, episode_length=LENGTH
    )
    with pytest.raises(
        TypeError, match=r"got shape \(7,\) for .* allowed: one that begins with the number of environments, here 3"
    ):
        checked_reset(environment, keys(0))


@pytest.mark.parametrize("wrap_env_fn", [None, training.wrap])
def test_an_object_of_another_kind_is_refused(wrap_env_fn):
    with pytest.raises(TypeError, match="environment: got a int, allowed:"):
        wrapped_environment(3, wrap_env_fn, episode_length=LENGTH)
