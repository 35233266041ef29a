import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probes import Counter
from trpo_jax.agent.evaluate import Episodes, confidence_interval, make_evaluator, summarize
from trpo_jax.environments.wrappers import EpisodeLimit


def idle(params, deterministic):
    return lambda observation, key: (jnp.zeros((observation.shape[0], 2)), {})


class Mortal(Counter):
    """Lives 2, 4, 6, … steps, by its place in the batch."""

    def step(self, state, action):
        new = super().step(state, action)
        lifetime = 2 * (1 + jnp.arange(action.shape[0]))
        return new._replace(terminated=new.observation[:, 1] == lifetime)


def test_an_episode_counts_up_to_its_first_end():
    evaluate = make_evaluator(EpisodeLimit(Mortal(), 5), idle, num_episodes=4, deterministic=True)
    episodes = evaluate(None, jax.random.key(0))
    np.testing.assert_array_equal(episodes.episode_length, [2, 4, 5, 5])
    np.testing.assert_array_equal(episodes.episode_return, [3, 10, 15, 15])


def test_the_summary_uses_brax_metric_names():
    metrics = summarize(Episodes(jnp.asarray([1.0, 3.0]), jnp.asarray([10, 20])))
    assert metrics == {
        "eval/episode_reward": 2.0,
        "eval/episode_reward_std": 1.0,
        "eval/avg_episode_length": 15.0,
        "eval/std_episode_length": 5.0,
    }


def test_the_interval_covers_the_true_mean_95_times_in_100():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        low, high = confidence_interval(Episodes(jnp.asarray(rng.normal(5, 2, 10)), jnp.zeros(10, int)))
        covered += low <= 5 <= high
    assert 920 < covered < 975


def test_no_episodes_are_refused():
    with pytest.raises(ValueError, match="num_episodes: got 0, allowed: an integer >= 1"):
        make_evaluator(Counter(), idle, num_episodes=0, deterministic=True)


def test_the_interval_of_equal_returns_is_a_point():
    assert confidence_interval(Episodes(jnp.full(5, 1000.0), jnp.zeros(5, int))) == (1000.0, 1000.0)


def test_lengths_are_counted_in_simulator_steps():
    assert summarize(Episodes(jnp.zeros(2), jnp.asarray([10, 20])), 3)["eval/avg_episode_length"] == 45
