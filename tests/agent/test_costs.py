"""Costs on their way from the environment to the update: summed, estimated, limited."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trpo_jax
from probes import Target, Toll, WithCosts, _flags
from trainings import SMALL
from trpo_jax import Box, ConfigError, CPOConfig, make_agent
from trpo_jax.agent.estimates import estimate_advantages, estimate_costs
from trpo_jax.agent.evaluate import make_evaluator, summarize
from trpo_jax.agent.metrics import expected_length, forget, init_episode_statistics, record_step, without_unknown
from trpo_jax.agent.rollout import Transition
from trpo_jax.algorithms.cpo import aimed_excess, moved_margin
from trpo_jax.algorithms.registry import ALGORITHMS, default_config
from trpo_jax.environments.protocol import EnvironmentState
from trpo_jax.environments.wrappers import ActionRepeat, EpisodeLimit

LIMITING = ("cpo", "trpo_lagrangian")


class Clock:
    """Costs 1 and its time in each step, and ends after a number of steps that each environment has of its own."""

    action_space = Box(1)

    def reset(self, keys):
        n = keys.shape[0]
        lifetime = 2.0 + jnp.arange(n)
        return EnvironmentState(
            lifetime, jnp.stack([lifetime, jnp.zeros(n)], axis=-1), jnp.zeros(n), *_flags(n), jnp.zeros((n, 2))
        )

    def step(self, state, action):
        time = state.observation[:, 1] + 1
        observation = jnp.stack([state.simulator, time], axis=-1)
        cost = jnp.stack([jnp.ones_like(time), time], axis=-1)
        return EnvironmentState(state.simulator, observation, time, *_flags(time.shape, time >= state.simulator), cost)


def small(name, **fields):
    return dataclasses.replace(default_config(name), critic=SMALL.critic, policy=SMALL.policy, **fields)


@pytest.mark.parametrize("name", ["trpo", "cpo"])
def test_costs_of_episodes_are_sums_whatever_the_algorithm(name):
    agent = make_agent(Clock(), small(name, num_envs=4, unroll_length=30, episode_length=100))
    _, metrics = agent.update(agent.init(jax.random.key(0)))
    lengths = 2.0 + np.arange(4)
    np.testing.assert_allclose(metrics["training/episode_length"], lengths.mean())
    np.testing.assert_allclose(metrics["training/episode_cost_0"], lengths.mean())
    np.testing.assert_allclose(metrics["training/episode_cost_1"], (lengths * (lengths + 1) / 2).mean())


def test_the_expected_length_hardly_depends_on_where_in_their_episodes_the_environments_are():
    """All end theirs in the same step, every 50 steps; a rollout is 2 steps."""
    n, length, unroll = 3, 50, 2
    statistics = init_episode_statistics(jnp.zeros(n), jnp.zeros(n), jnp.zeros((n, 1)), most_actions=100)
    expected = []
    for rollout in range(400):
        statistics = forget(statistics, unroll)
        for step in range(rollout * unroll, (rollout + 1) * unroll):
            done = jnp.full(n, (step + 1) % length == 0)
            statistics = record_step(statistics, jnp.zeros(n), done, jnp.zeros(n, bool), jnp.zeros(n, bool), jnp.zeros((n, 1)))
        expected.append(float(expected_length(statistics)))
    settled = np.array(expected[200:])
    assert settled.min() > 0.75 * length
    assert settled.max() < 1.35 * length
    assert abs(settled.mean() - length) < 0.05 * length


def test_an_evaluation_sums_costs_of_whole_episodes():
    agent = make_agent(Clock(), small("trpo", num_envs=4, unroll_length=4, episode_length=4))
    evaluate = make_evaluator(agent.environment, agent.make_policy, num_episodes=4, deterministic=True)
    state = agent.init(jax.random.key(0))
    metrics = summarize(evaluate(trpo_jax.inference_params(state), jax.random.key(1)))
    lengths = np.minimum(2.0 + np.arange(4), 4)
    np.testing.assert_allclose(metrics["eval/episode_cost_0"], lengths.mean())
    np.testing.assert_allclose(metrics["eval/episode_cost_1"], (lengths * (lengths + 1) / 2).mean())
    np.testing.assert_allclose(metrics["eval/episode_cost_0_std"], lengths.std(), rtol=1e-6)


def test_costs_of_repeated_actions_are_summed():
    environment = EpisodeLimit(ActionRepeat(Clock(), 3), 100)
    state = environment.reset(jax.random.split(jax.random.key(0), 2))
    state = environment.step(state, jnp.zeros((2, 1)))
    np.testing.assert_allclose(state.cost, [[2, 1 + 2], [3, 1 + 2 + 3]])  # the first has ended after two


class Chance(Target):
    """Costs 1 in each step, and ends with probability 0.05."""

    ends, fails = 0.05, 0.0

    def reset(self, keys):
        return super().reset(keys)._replace(cost=jnp.zeros((keys.shape[0], 1)))

    def step(self, state, action):
        new = super().step(state, action)
        # Not by the simulator's key alone, since episodes may share a start.
        chance = (jax.vmap(jax.random.uniform)(new.simulator) + jnp.abs(1000.0 * action[:, 0])) % 1.0
        observation = jnp.where((chance > 1.0 - self.fails)[:, None], jnp.nan, new.observation)
        return new._replace(observation=observation, terminated=chance < self.ends, cost=jnp.ones((chance.size, 1)))


class Failing(Chance):
    """Ends at its time limit only; the simulator fails in a fifth of the steps."""

    ends, fails = 0.0, 0.2


def expected_costs(environment, iterations, **fields):
    agent = make_agent(environment, small("cpo", num_envs=64, unroll_length=20, **fields))
    state, costs = agent.init(jax.random.key(0)), []
    for _ in range(iterations):
        state, metrics = agent.update(state)
        costs.append(float(metrics["training/expected_cost"]))
    return costs


def test_the_expected_cost_of_an_episode_is_unbiased_and_soon_known():
    """However long the time limit is, and though the longest episodes are those that have not finished."""
    costs = expected_costs(Chance(), 30, episode_length=10_000)
    assert max(costs) < 200
    assert max(costs[5:]) < 40
    np.testing.assert_allclose(np.mean(costs[-15:]), 20.0, rtol=0.1)


class OfLimit(Chance):
    ends = 0.0


def test_faults_do_not_make_a_policy_look_cheaper_and_a_limit_is_known_at_once():
    np.testing.assert_allclose(expected_costs(Failing(), 5, episode_length=100), 100.0, rtol=1e-5)
    np.testing.assert_allclose(expected_costs(OfLimit(), 8, episode_length=100), 100.0, rtol=0.25)


class Resetting(OfLimit):
    """Restarts by itself, after 200 steps."""

    resets_itself, keeps_final_observation = True, True

    def final_observation(self, state):
        return state.observation


def test_an_environment_that_resets_itself_is_taken_to_reach_the_limit():
    np.testing.assert_allclose(expected_costs(Resetting(), 3, episode_length=200), 200.0, rtol=1e-5)


def test_costs_of_episodes_are_unknown_before_the_first_has_ended_and_of_samples_if_all_are_lost():
    lost = {"training/num_episodes": 0.0, "training/num_faults": 8.0}
    metrics = lost | {f"training/{name}": 0.0 for name in ("episode_cost_0", "episode_cost_1", "expected_cost_1", "cost_limit")}
    known = without_unknown(metrics, 8, ALGORITHMS["cpo"].policy_update.sample_means)
    assert [name for name, value in known.items() if np.isnan(value)] == [
        *("training/episode_cost_0", "training/episode_cost_1", "training/expected_cost_1")
    ]


@pytest.mark.parametrize(
    ("name", "limit", "moves"),
    [("trpo_lagrangian", 1.0, ("error", "integral", "multiplier")), ("cpo", 40.0, ("margin",))],
)
def test_a_cost_above_its_limit_moves_what_keeps_it_and_without_samples_that_stays_as_it_is(name, limit, moves):
    agent = make_agent(OfLimit(), small(name, num_envs=4, unroll_length=8, episode_length=50, cost_limit=limit))
    state = agent.init(jax.random.key(0))
    for _ in range(3):
        state, _ = agent.update(state)
    _, transition, _ = agent.collect(state.learner, state.rollout, agent.draw(jax.random.key(1)), jax.random.key(2))
    lost = jax.tree.map(jnp.zeros_like, transition)._replace(fault=jnp.ones_like(transition.fault))
    learner, _, _ = agent.improve(state.learner, state.critic, lost, state.hyperparameters, jax.random.key(3), jnp.float32(0))
    before, after = state.learner.update, learner.update
    for move in moves:
        assert getattr(before, move) > 0
        np.testing.assert_array_equal(getattr(after, move), getattr(before, move))
    if name == "cpo":
        assert 0 < before.trust_region.weight < 1
        for now, earlier in zip(jax.tree.leaves(after.trust_region[1:]), jax.tree.leaves(before.trust_region[1:]), strict=True):
            np.testing.assert_array_equal(now, earlier)


@pytest.mark.parametrize(
    ("margin", "excess", "active", "after"),
    [
        (1.0, 10.0, True, 1.0 + 0.03 * 11.25),  # the aim is 1.25 below the limit
        (1.0, 1000.0, True, 1.0 + 0.03 * 25.0),
        (1.0, -11.25, False, 0.7),
        (24.9, 10.0, True, 25.0),
        (0.1, -11.25, True, -0.2),
        (0.1, -11.25, False, 0.0),
        (-1.0, -11.25, False, -1.0),
        (-1.0, 8.75, False, -0.7),
        (-12.4, -21.25, True, -12.5),
    ],
)
def test_the_margin_follows_the_distance_to_the_limit(margin, excess, active, after):
    config = dataclasses.replace(default_config("cpo"), cost_limit=25.0, margin_gain=0.03)
    moved = moved_margin(
        *(jnp.asarray([each, other]) for each, other in ((margin, 5.0), (excess, -1.25), (active, True))), config
    )
    np.testing.assert_allclose(moved, [after, 5.0], rtol=1e-6)


def test_a_negative_margin_is_for_costs_below_their_limits_only():
    aimed = aimed_excess(jnp.asarray([-10.0, -10.0, -1.0, 3.0, 3.0]), jnp.asarray([-4.0, 4.0, 4.0, 4.0, -4.0]))
    np.testing.assert_allclose(aimed, [-14.0, -6.0, 3.0, 7.0, 3.0])


def test_cost_advantages_are_those_of_the_reward_in_units_of_an_episode():
    """With the cost equal to the reward, a weight of zero, a time limit and a termination in the batch."""
    key = jax.random.split(jax.random.key(0), 4)
    shape, length = (12, 3), 7.0
    cost = jax.random.uniform(key[0], (*shape, 1))
    value, following = jax.random.uniform(key[1], shape), jax.random.uniform(key[2], shape)
    ended = jax.random.bernoulli(key[3], 0.3, (2, *shape))
    observation = jnp.stack([value, following], axis=-1)
    transition = Transition(
        observation[..., :1],
        jnp.zeros((*shape, 1)),
        jnp.zeros(shape),
        cost[..., 0],
        observation[..., 1:],
        *(ended[0], ended[1] & ~ended[0], jnp.zeros(shape, bool)),
        cost,
        jnp.full((1, 3), length),
    )
    config, weight = default_config("cpo"), jnp.ones(shape).at[5, 1].set(0.0)
    estimates = estimate_costs(
        lambda observation: observation, transition, value[..., None], weight=weight, hyperparameters=config
    )
    advantage = estimate_advantages(
        lambda observation: observation[..., 0], transition, cost[..., 0], value, weight=weight, hyperparameters=config
    )
    mean = jnp.average(advantage, weights=weight)
    np.testing.assert_allclose(estimates.advantage[..., 0], length * (advantage - mean), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(estimates.target[..., 0], value + advantage, rtol=1e-6)
    np.testing.assert_allclose(estimates.episode_cost, length * jnp.average(cost[..., 0], weights=weight), rtol=1e-6)


@pytest.mark.parametrize("name", LIMITING)
def test_a_limit_is_kept_and_what_it_allows_is_used(name):
    """The best policy pays √0.2 where it is tolled, and 1 elsewhere: a return of 20 · (1 + 0.447) / 2 = 14.5."""
    config = small(name, num_envs=64, unroll_length=16, discounting=0.5, episode_length=20, cost_limit=2.0)
    agent = make_agent(Toll(), config)

    def iterate(state, _):
        return agent.update.__wrapped__(state)

    _, metrics = jax.jit(lambda state: jax.lax.scan(iterate, state, None, length=100))(agent.init(jax.random.key(0)))
    last = {metric: float(np.mean(values[-40:])) for metric, values in metrics.items()}
    assert 1.9 < last["training/episode_cost"] < 2.1
    assert 13.5 < last["training/episode_reward"] < 15.5
    assert np.max(metrics["training/kl"]) <= config.trust_region.max_kl


def test_a_limit_that_cannot_be_kept_lowers_costs_by_recovery_steps():
    config = small("cpo", num_envs=32, unroll_length=16, discounting=0.5, episode_length=20, cost_limit=0.0)
    agent = make_agent(Toll(), config)
    state, costs, metrics = agent.init(jax.random.key(0)), [], {}
    for _ in range(30):
        state, metrics = agent.update(state)
        costs.append(float(metrics["training/expected_cost"]))
        assert metrics["training/kl"] <= config.trust_region.max_kl
    assert metrics["training/num_recoveries"] > 10
    assert np.mean(costs[-5:]) < 0.6 * np.mean(costs[:5])


class BrokenCost(WithCosts):
    """Loses a cost of the first environment in every step."""

    def step(self, state, action):
        new = super().step(state, action)
        return new._replace(cost=new.cost.at[0].set(jnp.nan))


@pytest.mark.parametrize("name", ["trpo", *LIMITING])
def test_a_cost_that_is_nan_is_a_fault_of_its_sample(name):
    agent = make_agent(BrokenCost(Target()), small(name, num_envs=4, unroll_length=8, episode_length=5))
    state, metrics = agent.update(agent.init(jax.random.key(0)))
    assert metrics["training/num_faults"] == 8
    assert metrics["training/kl"] > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((trpo_jax.inference_params(state), metrics)))


@pytest.mark.parametrize("name", LIMITING)
def test_an_environment_without_costs_is_refused_in_one_sentence(name):
    with pytest.raises(ConfigError, match="environment: got 'Target', allowed: one with costs, because the algorithm limits"):
        make_agent(Target(), small(name, num_envs=4, unroll_length=4))


def test_more_costs_than_cpo_can_limit_are_refused_before_training():
    make_agent(ManyCosts(3), small("cpo", num_envs=4, unroll_length=4))
    with pytest.raises(ConfigError, match=r"environment: got 'ManyCosts', allowed: one with at most 3 costs, which .* has 4"):
        make_agent(ManyCosts(4), small("cpo", num_envs=4, unroll_length=4))


class ManyCosts(Target):
    """A target whose every step has several costs."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def reset(self, keys):
        state = super().reset(keys)
        return state._replace(cost=jnp.zeros((*state.reward.shape, self.number)))


def test_a_negative_limit_is_refused():
    with pytest.raises(ConfigError, match=r"cost_limit: got -1\.0, allowed: a number >= 0"):
        CPOConfig(cost_limit=-1.0)


@pytest.mark.parametrize(
    "cost",
    [jnp.zeros(4), jnp.zeros((4, 0)), jnp.zeros((4, 1), int), (jnp.zeros((4, 1)),)],
    ids=["flat", "none", "int", "tuple"],
)
def test_costs_of_another_shape_or_kind_are_refused(cost):
    class Wrong(Target):
        def reset(self, keys):
            return super().reset(keys)._replace(cost=cost)

    with pytest.raises(TypeError, match=r"environment: got .* for cost from reset of Wrong, allowed: numbers of a floating"):
        make_agent(Wrong(), small("trpo", num_envs=4, unroll_length=4))
