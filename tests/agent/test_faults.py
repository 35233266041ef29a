"""A simulator that loses environments: they are restarted, their samples count for nothing, and training goes on."""

import dataclasses
import warnings
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probes import Counter, Target
from trainings import SMALL, one_device_train
from trpo_jax import TRPOConfig, TrustRegionConfig, inference_params, make_trpo
from trpo_jax.agent.evaluate import make_evaluator
from trpo_jax.agent.metrics import init_episode_statistics, record_step
from trpo_jax.environments.wrappers import EpisodeLimit, FreshAutoReset, is_faulty

KINDS = ("reward", "observation", "simulator")


class Health(NamedTuple):
    keys: jax.Array
    temperature: jax.Array
    """Invisible from outside."""


class Flaky(Target):
    """Target, but each step breaks one of reward, observation and hidden state with probability `rate`."""

    def __init__(self, rate, kinds=KINDS, value=jnp.nan):
        self.rate, self.kinds, self.value = rate, kinds, value

    def reset(self, keys):
        state = super().reset(keys)
        return state._replace(simulator=Health(keys, jnp.zeros(keys.shape)))

    def step(self, state, action):
        inner = super().step(state._replace(simulator=state.simulator.keys), action)
        # By the action too: environments that are restarted in one rollout go through the same keys again.
        chance = jax.lax.bitcast_convert_type(action[:, 0], jnp.uint32)
        draw = jax.vmap(lambda key, data: jax.random.uniform(jax.random.fold_in(key, data), (3,)))(inner.simulator.keys, chance)
        broken = {kind: (draw[:, i] < self.rate) & (kind in self.kinds) for i, kind in enumerate(KINDS)}
        spoil = lambda kind, x: jnp.where(broken[kind].reshape((-1,) + (1,) * (x.ndim - 1)), self.value, x)  # noqa: E731
        return inner._replace(
            simulator=Health(inner.simulator.keys, spoil("simulator", state.simulator.temperature)),
            reward=spoil("reward", inner.reward),
            observation=spoil("observation", inner.observation),
        )


def all_finite(tree):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_a_number_is_found_wherever_it_stands(kind):
    environment = Flaky(0.5, (kind,))
    state = environment.step(environment.reset(jax.random.split(jax.random.key(0), 200)), jnp.zeros((200, 2)))
    broken = {"reward": state.reward, "observation": state.observation[:, 0], "simulator": state.simulator.temperature}[kind]
    np.testing.assert_array_equal(is_faulty(state), np.isnan(broken))
    assert 50 < is_faulty(state).sum() < 150


def test_an_infinite_hidden_state_is_the_simulators_own_affair():
    environment = Flaky(0.5, ("simulator",), jnp.inf)
    state = environment.step(environment.reset(jax.random.split(jax.random.key(0), 200)), jnp.zeros((200, 2)))
    assert jnp.isinf(state.simulator.temperature).any()
    assert not is_faulty(state).any()


def test_a_lost_environment_is_restarted():
    environment = FreshAutoReset(EpisodeLimit(Flaky(0.5, ("reward", "observation")), 100))
    state = environment.reset(jax.random.split(jax.random.key(0), 50))
    fresh = environment.reset(jax.random.split(jax.random.key(1), 50))
    state, final, lost = environment.step(state, jnp.zeros((50, 2)), fresh)
    np.testing.assert_array_equal(lost, is_faulty(final))
    assert 10 < lost.sum() < 50
    assert not is_faulty(state).any()
    np.testing.assert_array_equal((state.observation == fresh.observation).all(1), lost)


def test_a_nan_that_no_one_has_seen_costs_the_environment_its_rollout():
    trpo = make_trpo(Flaky(0.05, ("simulator",)), dataclasses.replace(SMALL, episode_length=1000))
    state = trpo.init(jax.random.key(0))
    starts = trpo.draw(jax.random.key(1))
    rollout, transition, metrics = jax.jit(trpo.collect)(state.learner, state.rollout, starts, jax.random.key(2))
    lost = np.asarray(transition.fault[0])
    assert 0 < lost.sum() < lost.size
    np.testing.assert_array_equal(transition.fault, np.broadcast_to(lost, transition.fault.shape))
    assert metrics["training/num_faults"] == transition.fault.sum()
    assert not is_faulty(rollout.environments).any()
    at_start = (rollout.environments.observation == starts.observation[-1]).all(1)
    np.testing.assert_array_equal(at_start, lost)
    np.testing.assert_array_equal(rollout.episodes.running_length == 0, lost)


@pytest.mark.parametrize(
    ("kinds", "value", "expected"),
    [
        (("reward", "observation"), jnp.nan, 1 - 0.97**2),
        (("simulator",), jnp.nan, 1 - 0.97**8),
        pytest.param(KINDS, jnp.inf, 1 - 0.97**2, marks=pytest.mark.slow),
    ],
)
def test_training_goes_on_counts_faults_and_learns(kinds, value, expected):
    config = dataclasses.replace(
        SMALL, num_envs=32, unroll_length=8, episode_length=1000, discounting=0.0, trust_region=TrustRegionConfig(max_kl=0.05)
    )
    trpo = make_trpo(Flaky(0.03, kinds, value), config)
    state, faults = trpo.init(jax.random.key(0)), []
    for _ in range(60):
        state, metrics = trpo.update(state)
        faults.append(float(metrics["training/num_faults"]))
        assert all_finite(metrics)
    np.testing.assert_allclose(np.mean(faults), 32 * 8 * expected, rtol=0.15)
    assert all_finite((state.learner, state.critic))
    assert metrics["training/num_accepted"] > 50
    target = jnp.asarray([[0.5, -0.5], [-0.7, 0.2], [0.0, 0.6]])
    action, _ = trpo.make_policy(inference_params(state), deterministic=True)(target, None)
    np.testing.assert_allclose(action, target, atol=0.25)


class Scripted(Counter):
    """Counter with a reward of 1, whose third step is lost."""

    def step(self, state, action):
        new = super().step(state, action)
        return new._replace(reward=jnp.where(new.observation[:, 1] == 3, jnp.nan, 1.0))


def test_a_lost_step_weighs_nothing_and_the_one_before_is_bootstrapped():
    config = TRPOConfig(num_envs=4, unroll_length=4, episode_length=100, normalize_observations=False, discounting=0.5)
    config = dataclasses.replace(config, critic=SMALL.critic, policy=SMALL.policy)
    trpo = make_trpo(Scripted(), config)
    state = trpo.init(jax.random.key(0))
    starts = trpo.draw(jax.random.key(5))
    _, transition, metrics = jax.jit(trpo.collect)(state.learner, state.rollout, starts, jax.random.key(1))
    np.testing.assert_array_equal(transition.fault.astype(int), np.repeat([[0], [0], [1], [0]], 4, 1))
    assert metrics["training/num_faults"] == 4
    args = (state.hyperparameters, jax.random.key(2), jnp.float32(0))
    improve = jax.jit(trpo.improve)
    learner, regression, _ = improve(state.learner, state.critic, transition, *args)
    np.testing.assert_array_equal(regression.weight, np.repeat([[1.0], [1.0], [0.0], [1.0]], 4, 1))
    value = lambda observation: trpo.networks.critic.apply(state.critic.critic.params, observation)  # noqa: E731
    np.testing.assert_allclose(regression.target[1], 1 + 0.5 * value(transition.next_observation[1]), rtol=1e-5)
    np.testing.assert_allclose(regression.target[3], 1 + 0.5 * value(transition.next_observation[3]), rtol=1e-5)
    garbage = jax.tree.map(lambda leaf: leaf.at[2].set(7.0) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, transition)
    again, _, _ = improve(state.learner, state.critic, garbage, *args)
    chex.assert_trees_all_equal(again.policy, learner.policy)


def test_statistics_of_episodes_leave_out_those_that_a_fault_broke_off():
    statistics = init_episode_statistics(jnp.zeros(3), jnp.zeros(3))
    flags = jnp.asarray([False, True, True]), jnp.asarray([False, False, True])
    for done, fault in ((flags[1] & False,) * 2, flags):
        statistics = record_step(statistics, jnp.asarray([1.0, 2.0, 3.0]), done, fault, done)
    np.testing.assert_array_equal(statistics.has_finished, [False, True, False])
    np.testing.assert_array_equal(statistics.last_return, [0.0, 4.0, 0.0])
    np.testing.assert_array_equal(statistics.running_return, [2.0, 0.0, 0.0])


def test_if_everything_is_lost_the_policy_stays_and_the_outcome_says_so():
    trpo = make_trpo(Flaky(1.0), SMALL)
    state = trpo.init(jax.random.key(0))
    before = jax.device_get((state.learner.policy, state.learner.normalizer))
    state, metrics = trpo.update(state)
    assert metrics["training/accepted"] == 0
    assert metrics["training/num_faults"] == 16
    chex.assert_trees_all_equal((state.learner.policy, state.learner.normalizer), before)
    assert all_finite(state.critic)


def test_rewards_beyond_floats_leave_policy_and_critic_as_they_were():
    class Rich(Target):
        def step(self, state, action):
            return super().step(state, action)._replace(reward=jnp.full(action.shape[0], 3e38))

    trpo = make_trpo(Rich(), SMALL)
    state = trpo.init(jax.random.key(0))
    before = jax.device_get((state.learner.policy, state.critic))
    state, metrics = trpo.update(state)
    assert metrics["training/accepted"] == 0
    chex.assert_trees_all_equal((state.learner.policy, state.critic), before)


def test_an_episode_of_an_evaluation_ends_where_it_is_lost():
    def idle(params, deterministic):
        return lambda observation, key: (jnp.zeros((observation.shape[0], 2)), {})

    evaluate = make_evaluator(EpisodeLimit(Scripted(), 10), idle, num_episodes=3, deterministic=True)
    episodes = evaluate(None, jax.random.key(0))
    np.testing.assert_array_equal(episodes.episode_return, [2.0, 2.0, 2.0])
    np.testing.assert_array_equal(episodes.episode_length, [2, 2, 2])


@pytest.mark.filterwarnings("ignore:.*of the samples of iteration")
def test_a_whole_training_survives():
    _, params, metrics = one_device_train(Flaky(0.05), 10 * 16, config=SMALL, num_eval_envs=4)
    assert all_finite(params)
    assert np.isfinite(metrics["eval/episode_reward"])


@pytest.mark.parametrize(("rate", "warns"), [(1.0, True), (0.3, True), (0.01, False)])
def test_a_simulator_that_loses_much_is_warned_of_once(rate, warns):
    seen = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        environment = Flaky(rate, ("observation",))
        config = dataclasses.replace(SMALL, num_envs=8, unroll_length=16)
        one_device_train(
            environment, 5 * 128, config=config, num_eval_envs=0, iteration_fn=lambda _, metrics: seen.append(metrics)
        )
    messages = [str(each.message) for each in caught if "of the samples of iteration 1 are lost" in str(each.message)]
    assert len(messages) == warns
    assert len(seen) == 5
    nothing = [name for name in ("entropy", "explained_variance", "kl") if np.isnan(seen[-1][f"training/{name}"])]
    assert len(nothing) == (3 if rate == 1.0 else 0)
