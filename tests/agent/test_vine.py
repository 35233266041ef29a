"""Branches estimate Q without bias, with less variance than paths, and the update learns from them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probes import Bandit, Target, WithCosts, _flags
from trainings import SMALL
from trpo_jax import Box, Categorical, ConfigError, DiagonalGaussian, Discrete, make_agent
from trpo_jax.agent.vine import Branches, VineConfig, branch_advantages, branch_values, grow, vine_batch
from trpo_jax.algorithms.registry import default_config
from trpo_jax.environments.protocol import EnvironmentState
from trpo_jax.environments.wrappers import EpisodeLimit, FreshAutoReset
from trpo_jax.objective.self_normalized import SelfNormalized
from trpo_jax.objective.surrogate import Batch, surrogate_objective

DECAY, NOISE, GAMMA, STD = 0.9, 3.0, 0.8, 0.5


class Drift:
    """x' = 0.9·x + action + noise; pays x'. The noise is the simulator's own."""

    action_space = Box(1, -100.0, 100.0)

    def reset(self, keys):
        n = keys.shape[0]
        return EnvironmentState(keys, jax.vmap(lambda key: jax.random.normal(key, (1,)))(keys), jnp.zeros(n), *_flags(n))

    def step(self, state, action):
        keys = jax.vmap(lambda key: jax.random.split(key)[0])(state.simulator)
        noise = jax.vmap(lambda key: jax.random.normal(key, (1,)))(state.simulator)
        x = DECAY * state.observation + action + NOISE * noise
        return EnvironmentState(keys, x, x[:, 0], *_flags(x.shape[0]))


class DriftOfThree(Drift):
    """The actions are -1, 0 and 1."""

    action_space = Discrete(3)

    def step(self, state, action):
        return super().step(state, action[:, None] - 1.0)


def act(observation):
    return DiagonalGaussian(jnp.zeros_like(observation), jnp.full_like(observation, np.log(STD)))


def exact_value(x, action, length):
    """The discounted rewards of `length` steps: the first by this action, the others by a policy of mean zero."""
    factor = sum(GAMMA**step * DECAY**step for step in range(length))
    return factor * (DECAY * x + action)


def nothing(observation):
    return jnp.zeros(observation.shape[:-1])


def grown(vine, num_states, key=0, environment=None, **options):
    """Branches of many states, as the one state of each environment in a rollout: `[1, N, ...]`."""
    environment = FreshAutoReset(EpisodeLimit(environment or Drift(), 1000))
    reset_key, key = jax.random.split(jax.random.key(key))
    state = environment.reset(jax.random.split(reset_key, num_states))
    branches = grow(environment, options.pop("act", act), state, key, vine, **options)
    return jax.tree.map(lambda leaf: leaf[None], branches)


values = functools.partial(branch_values, nothing, reward_scaling=1.0, discounting=GAMMA)


def test_the_values_of_branches_are_unbiased():
    branches = grown(VineConfig(num_branches=4, branch_length=6), 20_000)
    error = values(branches) - exact_value(branches.observation, branches.action[..., 0], 6)
    standard_error = float(jnp.std(jnp.mean(error, axis=-1))) / np.sqrt(20_000)
    assert abs(float(jnp.mean(error))) < 4 * standard_error
    slope = jnp.mean(error * branches.action[..., 0]) / STD**2  # nor does the error depend on the action
    assert abs(float(slope)) < 4 * float(jnp.std(error)) / STD / np.sqrt(20_000)


def gradient_variance(advantage, action, steps):
    """The variance of the policy gradient per simulated step: from N independent groups of samples, `[N, K]`."""
    per_group = jnp.mean(advantage * action / STD**2, axis=-1)
    return float(jnp.var(per_group)) * steps, float(jnp.mean(per_group))


def test_branches_have_less_variance_than_paths_of_as_many_steps_and_common_random_numbers_less_still():
    """Where noise is large. Paths are given the exact baseline, and all their samples count as independent."""
    vine, num_states, length = VineConfig(num_branches=4, branch_length=6), 20_000, 6
    steps = vine.num_branches * length
    branches = grown(vine, num_states)
    advantage = branch_advantages(branches, values(branches), every_action=False)
    common, gradient = gradient_variance(advantage[0], branches.action[0, ..., 0], steps)
    # One branch of each of four copies of a state that differ in the simulator's key only.
    environment = FreshAutoReset(EpisodeLimit(Drift(), 1000))
    state = environment.reset(jax.random.split(jax.random.key(0), num_states))
    copies = []
    for k in range(4):
        keys = jax.random.split(jax.random.key(10 + k), num_states)
        copy = state._replace(simulator=state.simulator._replace(simulator=keys))
        copies.append(grow(environment, act, copy, jax.random.key(20 + k), VineConfig(num_branches=2, branch_length=length)))
    value, action = (
        jnp.stack(each, axis=-1)
        for each in ([values(copy)[:, 0] for copy in copies], [copy.action[:, 0, 0] for copy in copies])
    )
    own, same = gradient_variance(branch_advantages(branches, value, every_action=False), action, steps)
    to_go = value[:, :1] - exact_value(state.observation, 0.0, length)
    path, again = gradient_variance(to_go, action[:, :1], 1)
    exact = exact_value(0.0, 1.0, length)
    print(f"variance of the gradient per step: common {common:.0f}, own {own:.0f}, path {path:.0f}")
    np.testing.assert_allclose([gradient, same, again], exact, rtol=0.15)
    assert common < 0.5 * path
    assert common < 0.2 * own


def test_every_discrete_action_is_tried_once_and_the_mean_is_the_policys_own():
    logits = jnp.log(jnp.asarray([0.5, 0.3, 0.2]))

    def of_three(observation):
        return Categorical(jnp.broadcast_to(logits, (*observation.shape[:-1], 3)))

    vine = VineConfig(num_branches=3, branch_length=4)
    branches = grown(vine, 500, environment=DriftOfThree(), act=of_three)
    np.testing.assert_array_equal(branches.action, np.broadcast_to(np.arange(3), (1, 500, 3)))
    np.testing.assert_allclose(jnp.exp(branches.log_prob), np.broadcast_to([0.5, 0.3, 0.2], (1, 500, 3)), rtol=1e-5)
    advantage = branch_advantages(branches, values(branches), every_action=True)
    np.testing.assert_allclose(jnp.sum(jnp.exp(branches.log_prob) * advantage, axis=-1), 0.0, atol=1e-4)
    # With the same random numbers, only the first action differs, by one from action to action.
    factor = exact_value(0.0, 1.0, 4)
    np.testing.assert_allclose(advantage[..., 1:] - advantage[..., :-1], np.full((1, 500, 2), factor), rtol=1e-3)


class Mortal(Drift):
    """Ends after three steps, and pays 1 in each."""

    def step(self, state, action):
        new = super().step(state, action)
        return new._replace(reward=jnp.ones_like(new.reward), terminated=new.observation[:, 0] > 1e9)


def test_a_branch_ends_with_its_episode_and_the_critic_stands_for_what_a_limit_cuts_off():
    environment = FreshAutoReset(EpisodeLimit(Mortal(), 3))
    state = environment.reset(jax.random.split(jax.random.key(0), 4))
    branches = grow(environment, act, state, jax.random.key(1), VineConfig(num_branches=2, branch_length=8))
    np.testing.assert_array_equal(branches.length, np.full((4, 2), 3.0))
    np.testing.assert_array_equal(branches.reward, np.broadcast_to([1.0] * 3 + [0.0] * 5, (4, 2, 8)))
    estimate = branch_values(
        lambda observation: jnp.full(observation.shape[:-1], 10.0), branches, reward_scaling=2.0, discounting=0.5
    )
    np.testing.assert_allclose(estimate, np.full((4, 2), 2.0 * (1 + 0.5 + 0.25) + 0.125 * 10.0), rtol=1e-6)
    ended = branches._replace(terminated=jnp.ones((4, 2), bool))
    estimate = branch_values(
        lambda observation: jnp.full(observation.shape[:-1], jnp.nan), ended, reward_scaling=1.0, discounting=0.5
    )
    np.testing.assert_allclose(estimate, np.full((4, 2), 1.75), rtol=1e-6)


def test_the_self_normalized_surrogate_is_the_papers():
    key = jax.random.split(jax.random.key(0), 4)
    mean, action, value = (jax.random.normal(each, (5, 3)) for each in key[:3])
    old = act(jnp.zeros((5, 3, 1)))
    new = DiagonalGaussian(0.3 * mean[..., None], old.log_std)
    log_q = old.log_prob(action[..., None])
    ratio = np.exp(new.log_prob(action[..., None]) - log_q)
    expected = np.mean(np.sum(ratio * value, axis=1) / np.sum(ratio, axis=1))
    flat = jax.tree.map(lambda leaf: leaf.reshape(15, *leaf.shape[2:]), (new, log_q))
    batch = Batch(None, action.reshape(15, 1), log_q.reshape(15), value.reshape(15))
    np.testing.assert_allclose(surrogate_objective(SelfNormalized(*flat, 3), batch), expected, rtol=1e-5)


def test_a_batch_of_a_vine_holds_the_actions_of_a_state_side_by_side_and_none_of_a_faulty_one():
    branches = grown(VineConfig(num_branches=3, branch_length=2), 4)
    branches = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf + 1 if leaf.dtype != bool else leaf]), branches)
    branches = branches._replace(fault=branches.fault.at[1, 2].set(True))
    advantage = jnp.arange(24.0).reshape(2, 4, 3)
    policy_fn, batch = vine_batch(lambda params, observation: act(observation), None, branches, advantage)
    assert batch.advantage.shape == (6, 4)
    np.testing.assert_array_equal(batch.advantage[:3, 1], advantage[0, 1])
    np.testing.assert_array_equal(batch.advantage[3:, 2], advantage[1, 2])
    np.testing.assert_array_equal(batch.action[3:, 2], branches.action[1, 2])
    np.testing.assert_array_equal(batch.weight, np.ones((6, 4)) - np.eye(4)[2] * (np.arange(6) >= 3)[:, None])
    assert isinstance(policy_fn((), batch.observation), SelfNormalized)


def small(name, **fields):
    vine = VineConfig(num_states=2, num_branches=3, branch_length=2)
    config = dataclasses.replace(default_config(name), critic=SMALL.critic, policy=SMALL.policy, sampler="vine", vine=vine)
    return dataclasses.replace(config, num_envs=32, unroll_length=8, episode_length=5, **fields)


@pytest.mark.parametrize("name", ["trpo", "natural_gradient"])
@pytest.mark.parametrize(("environment", "most"), [(Target, 0.0), (Bandit, 1.0)])
def test_it_learns_from_branches(name, environment, most):
    agent = make_agent(environment(), small(name, discounting=0.5))
    assert agent.steps_per_iteration == 32 * 8 + 32 * 2 * 3 * 2

    def iterate(state, _):
        return agent.update.__wrapped__(state)

    _, metrics = jax.jit(lambda state: jax.lax.scan(iterate, state, None, length=60))(agent.init(jax.random.key(0)))
    regret = most - np.asarray(metrics["training/episode_reward"]) / 5
    assert regret[-5:].mean() < 0.5 * regret[:5].mean()
    assert all(np.isfinite(values).all() for values in metrics.values())


class Faulty(Target):
    """Loses a quarter of the environments in every step."""

    def step(self, state, action):
        new = super().step(state, action)
        lost = jax.vmap(lambda key: jax.random.bernoulli(key, 0.25))(new.simulator)
        return new._replace(observation=jnp.where(lost[:, None], jnp.nan, new.observation))


def test_nan_in_a_branch_costs_its_state():
    agent = make_agent(Faulty(), small("trpo"))
    state, metrics = agent.update(agent.init(jax.random.key(0)))
    assert metrics["training/kl"] > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.learner, state.critic, metrics)))


@pytest.mark.parametrize(
    ("config", "environment", "message"),
    [
        (small("ppo"), Target(), "sampler: got 'vine', allowed: path, for this algorithm; docs/training.md"),
        (small("cpo"), WithCosts(Target()), "sampler: got 'vine', allowed: path, for this algorithm"),
        (
            dataclasses.replace(small("trpo"), unroll_length=7),
            Target(),
            "num_states: got 2, allowed: a divisor of unroll_length",
        ),
    ],
)
def test_what_a_vine_cannot_do_is_refused(config, environment, message):
    with pytest.raises(ConfigError, match=message):
        make_agent(environment, config)


def test_microbatches_are_refused():
    config = small("trpo")
    config = dataclasses.replace(config, trust_region=dataclasses.replace(config.trust_region, num_microbatches=2))
    with pytest.raises(ConfigError, match="num_microbatches: got 2, allowed: 1 with the sampler vine"):
        make_agent(Target(), config)


def test_branches_of_a_whole_rollout_have_its_axes():
    agent = make_agent(Target(), small("trpo"))
    state = agent.init(jax.random.key(0))
    _, transition, _ = agent.collect(state.learner, state.rollout, agent.draw(jax.random.key(1)), jax.random.key(2))
    assert isinstance(transition.branches, Branches)
    assert transition.reward.shape == (8, 32)
    assert transition.branches.reward.shape == (2, 32, 3, 2)
    # Branches start where the path passes.
    np.testing.assert_array_equal(transition.branches.observation[1], transition.observation[4])
