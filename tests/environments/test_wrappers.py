import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probes import Counter
from trpo_jax.environments.wrappers import ActionRepeat, EpisodeLimit, FreshAutoReset

N = 4


def keys(seed):
    return jax.random.split(jax.random.key(seed), N)


def play(environment, state, starts):
    """Step with zero actions, restarting from one entry of `starts` after another; return what was seen step by step."""
    action = jnp.zeros((N, environment.action_space.size))
    step = jax.jit(environment.step)
    seen, finals = [], []
    for seed in starts:
        seen.append(state)
        state, final, _ = step(state, action, environment.reset(keys(seed)))
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
    environment = EpisodeLimit(ActionRepeat(Counter(lifetime=5), 3), episode_length=100)
    state = environment.reset(keys(0))
    state = environment.step(state, jnp.zeros((N, 2)))
    np.testing.assert_array_equal(state.reward, 1 + 2 + 3)
    assert not state.terminated.any()
    state = environment.step(state, jnp.zeros((N, 2)))
    np.testing.assert_array_equal(state.reward, 4 + 5)  # the sixth step does not happen
    np.testing.assert_array_equal(state.observation[:, 1], 5)
    assert state.terminated.all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("action_repeat", [1, 8])
def test_rewards_add_up_in_float32_whatever_they_come_in(dtype, action_repeat):
    class Coarse(Counter):
        def reset(self, keys):
            state = super().reset(keys)
            return state._replace(reward=state.reward.astype(dtype))

        def step(self, state, action):
            return super().step(state, action)._replace(reward=jnp.full(N, 10_000.0, dtype))

    environment = EpisodeLimit(ActionRepeat(Coarse(), action_repeat), episode_length=100)
    state = environment.step(environment.reset(keys(0)), jnp.zeros((N, 2)))
    np.testing.assert_allclose(state.reward, action_repeat * float(jnp.asarray(10_000.0, dtype)), rtol=1e-6)


def test_the_limit_counts_simulator_steps():
    environment = EpisodeLimit(ActionRepeat(Counter(), 3), episode_length=6)
    state = environment.reset(keys(0))
    state = environment.step(state, jnp.zeros((N, 2)))
    assert not state.truncated.any()
    assert environment.step(state, jnp.zeros((N, 2))).truncated.all()


@pytest.mark.parametrize(("num_envs", "episode_length", "action_repeat"), [(128, 1000, 1), (37, 100, 3), (4, 5, 1), (3, 1, 1)])
def test_out_of_step_the_limits_of_all_environments_come_evenly_one_after_another(num_envs, episode_length, action_repeat):
    environment = EpisodeLimit(ActionRepeat(Counter(), action_repeat), episode_length)
    state, age = environment.out_of_step(environment.reset(jax.random.split(jax.random.key(0), num_envs)))
    num_actions = -(-episode_length // action_repeat)
    action = jnp.zeros((num_envs, 2))
    ends = np.zeros(num_envs, int)
    step = jax.jit(environment.step)
    for count in range(1, num_actions + 1):
        state = step(state, action)
        reached = np.asarray(environment.has_reached_limit(state))
        np.testing.assert_array_equal(reached, state.truncated)
        ends = np.where(reached & (ends == 0), count, ends)
    np.testing.assert_array_equal(ends, num_actions - np.asarray(age))
    assert 1 <= ends.min() <= ends.max() <= num_actions
    for some in (slice(None), slice(num_envs // 2), slice(num_envs // 2, None)):  # also of those on one device
        spread = np.sort(ends[some]) / num_actions
        even = (np.arange(len(spread)) + 0.5) / max(len(spread), 1)
        assert np.abs(spread - even).max(initial=0) <= 2 / max(len(spread), 1) + 1 / num_actions


def test_a_termination_is_not_the_limit():
    environment = EpisodeLimit(Counter(lifetime=3), episode_length=3)
    state = environment.reset(keys(0))
    for _ in range(3):
        state = environment.step(state, jnp.zeros((N, 2)))
    assert not environment.has_reached_limit(state).any()


def test_an_episode_that_restarts_has_all_its_length_before_it():
    environment = FreshAutoReset(EpisodeLimit(Counter(), 3))
    state, age = environment.out_of_step(environment.reset(keys(0)))
    assert len(np.unique(age)) > 1
    lengths = [[] for _ in range(N)]
    for count in range(9):
        state, final, _ = environment.step(state, jnp.zeros((N, 2)), environment.reset(keys(1)))
        for i in np.flatnonzero(final.truncated):
            lengths[i].append(count)
    assert [set(np.diff(each)) for each in lengths] == [{3}] * N


def test_where_the_limit_is_another_wrappers_all_begin_in_step():
    environment = FreshAutoReset(Counter())
    state = environment.reset(keys(0))
    staggered, age = environment.out_of_step(state)
    assert staggered is state
    assert not age.any()
    assert not environment.has_reached_limit(state).any()


@pytest.mark.parametrize("limit", [("lifetime", 3), ("episode_length", 3)])
def test_the_final_observation_is_the_one_before_the_reset(limit):
    lifetime, length = (3, 100) if limit[0] == "lifetime" else (100, 3)
    environment = FreshAutoReset(EpisodeLimit(Counter(lifetime), length))
    state = environment.reset(keys(0))
    first = np.asarray(state.observation[:, 0])
    state, _, finals = play(environment, state, (1, 2, 3))
    np.testing.assert_array_equal(finals[-1].observation[:, 1], 3)
    np.testing.assert_array_equal(finals[-1].observation[:, 0], first)
    np.testing.assert_array_equal(state.observation[:, 1], 0)
    assert not (state.terminated | state.truncated).any()


def test_an_episode_starts_from_the_state_that_was_drawn_for_it():
    environment = FreshAutoReset(EpisodeLimit(Counter(lifetime=2), 100))
    _, seen, _ = play(environment, environment.reset(keys(0)), (1, 2, 3, 4, 5))
    for step, seed in ((0, 0), (1, 0), (2, 2), (3, 2), (4, 4)):
        np.testing.assert_array_equal(seen[step].observation[:, 0], environment.reset(keys(seed)).observation[:, 0])
    assert len(np.unique([state.observation[:, 0] for state in seen])) == 3 * N


def test_environments_that_go_on_are_not_touched_by_the_reset_of_others():
    class OneEnds(Counter):
        def step(self, state, action):
            return super().step(state, action)._replace(terminated=jnp.arange(N) == 1)

    environment = FreshAutoReset(OneEnds())
    state = environment.reset(keys(0))
    before = np.asarray(state.observation[:, 0])
    state, _, _ = environment.step(state, jnp.zeros((N, 2)), environment.reset(keys(1)))
    after = np.asarray(state.observation)
    np.testing.assert_array_equal(after[:, 0] == before, [True, False, True, True])
    np.testing.assert_array_equal(after[:, 1], [1, 0, 1, 1])


def test_the_state_has_the_same_avals_after_reset_and_step():
    """Simulators that reset in other dtypes or weak types than they step in would otherwise be compiled twice."""

    class Sloppy(Counter):
        def reset(self, keys):
            return super().reset(keys)._replace(reward=0.0 * jnp.ones(keys.shape))

        def step(self, state, action):
            return jax.tree.map(lambda x: x.astype("float16") if x.dtype == jnp.float32 else x, super().step(state, action))

    environment = FreshAutoReset(EpisodeLimit(Sloppy(), 3))
    state = environment.reset(keys(0))
    after = jax.eval_shape(environment.step, state, jnp.zeros((N, 2)), state)[0]
    assert [(a.shape, a.dtype, a.weak_type) for a in jax.tree.leaves(after)] == [
        (b.shape, b.dtype, b.weak_type) for b in jax.tree.leaves(jax.eval_shape(lambda: state))
    ]
