import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probes import Counter
from trpo_jax.environments.wrappers import EpisodeLimit, FreshAutoReset

N = 4


def keys(seed, *shape):
    return jax.random.split(jax.random.key(seed), shape or N)


def play(environment, state, starts, num_steps):
    """Step with zero actions; return the states acted on and the final states, step by step."""
    action = jnp.zeros((N, environment.action_space.size))
    step = jax.jit(environment.step)
    seen, finals = [], []
    for _ in range(num_steps):
        seen.append(state.current)
        state, final = step(state, action, starts)
        finals.append(final)
    return state, seen, finals


def test_the_episode_limit_truncates_and_does_not_terminate():
    environment = EpisodeLimit(Counter(), episode_length=3)
    state = environment.reset(keys(0))
    for expected in (False, False, True):
        state = environment.step(state, jnp.zeros((N, 2)))
        assert not state.terminated.any()
        np.testing.assert_array_equal(state.truncated, expected)


def test_a_termination_at_the_limit_is_a_termination():
    environment = EpisodeLimit(Counter(lifetime=3), episode_length=3)
    state = environment.reset(keys(0))
    for _ in range(3):
        state = environment.step(state, jnp.zeros((N, 2)))
    assert state.terminated.all()
    assert not state.truncated.any()


def test_a_repeated_action_adds_up_rewards_and_stands_still_after_a_termination():
    environment = EpisodeLimit(Counter(lifetime=5), episode_length=100, action_repeat=3)
    state = environment.reset(keys(0))
    state = environment.step(state, jnp.zeros((N, 2)))
    np.testing.assert_array_equal(state.reward, 1 + 2 + 3)
    assert not state.terminated.any()
    state = environment.step(state, jnp.zeros((N, 2)))
    np.testing.assert_array_equal(state.reward, 4 + 5)  # the sixth step does not happen
    np.testing.assert_array_equal(state.observation[:, 1], 5)
    assert state.terminated.all()


def test_the_limit_counts_simulator_steps():
    environment = EpisodeLimit(Counter(), episode_length=6, action_repeat=3)
    state = environment.reset(keys(0))
    state = environment.step(state, jnp.zeros((N, 2)))
    assert not state.truncated.any()
    assert environment.step(state, jnp.zeros((N, 2))).truncated.all()


@pytest.mark.parametrize("limit", [("lifetime", 3), ("episode_length", 3)])
def test_the_final_observation_is_the_one_before_the_reset(limit):
    lifetime, length = (3, 100) if limit[0] == "lifetime" else (100, 3)
    environment = FreshAutoReset(EpisodeLimit(Counter(lifetime), length))
    state = environment.reset(keys(0))
    first = np.asarray(state.current.observation[:, 0])
    starts = environment.draw_starts(keys(1, 2, N))
    state, _, finals = play(environment, state, starts, 3)
    np.testing.assert_array_equal(finals[-1].observation[:, 1], 3)
    np.testing.assert_array_equal(finals[-1].observation[:, 0], first)
    np.testing.assert_array_equal(state.current.observation[:, 1], 0)
    assert not (state.current.terminated | state.current.truncated).any()


def test_every_episode_starts_from_a_state_of_its_own():
    environment = FreshAutoReset(EpisodeLimit(Counter(lifetime=2), 100))
    state = environment.reset(keys(0))
    starts = environment.draw_starts(keys(1, 3, N))
    _, seen, _ = play(environment, state, starts, 8)
    firsts = np.asarray([s.observation[:, 0] for s in seen[::2]])
    assert len(np.unique(firsts)) == 4 * N


def test_an_environment_goes_through_its_own_column_of_the_pool():
    environment = FreshAutoReset(EpisodeLimit(Counter(lifetime=1), 100))
    starts = environment.draw_starts(keys(1, 3, N))
    state, seen, _ = play(environment, environment.reset(keys(0)), starts, 5)
    expected = np.asarray(starts.observation[:, :, 0])
    for step, entry in ((1, 0), (2, 1), (3, 2), (4, 0)):
        np.testing.assert_array_equal(seen[step].observation[:, 0], expected[entry])
    np.testing.assert_array_equal(state.num_resets, 5)


def test_environments_that_go_on_are_not_touched_by_the_reset_of_others():
    class OneEnds(Counter):
        def step(self, state, action):
            return super().step(state, action)._replace(terminated=jnp.arange(N) == 1)

    environment = FreshAutoReset(OneEnds())
    state = environment.reset(keys(0))
    before = np.asarray(state.current.observation[:, 0])
    starts = environment.draw_starts(keys(1, 1, N))
    state, _ = environment.step(state, jnp.zeros((N, 2)), starts)
    after = np.asarray(state.current.observation)
    np.testing.assert_array_equal(after[:, 0] == before, [True, False, True, True])
    np.testing.assert_array_equal(after[:, 1], [1, 0, 1, 1])


def test_the_state_has_the_same_avals_after_reset_and_step():
    """Simulators that reset in other dtypes or weak types than they step in would otherwise be compiled twice."""

    class Sloppy(Counter):
        def reset(self, keys):
            return super().reset(keys)._replace(reward=jax.lax.full(keys.shape, 0, jnp.float16))

    environment = FreshAutoReset(EpisodeLimit(Sloppy(), 3))
    state = environment.reset(keys(0))
    starts = environment.draw_starts(keys(1, 1, N))
    after = jax.eval_shape(environment.step, state, jnp.zeros((N, 2)), starts)[0]
    assert [(a.shape, a.dtype, a.weak_type) for a in jax.tree.leaves(after)] == [
        (b.shape, b.dtype, b.weak_type) for b in jax.tree.leaves(jax.eval_shape(lambda: state))
    ]
