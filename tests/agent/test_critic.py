import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax import CriticConfig, ValueNetwork
from trpo_jax.agent.critic import Regression, cost_values, explained_variance, fit_critic, init_critic, rescaled
from trpo_jax.agent.minibatches import minibatches

CONFIG = CriticConfig(hidden_sizes=(32,), num_epochs=20, num_minibatches=4, learning_rate=0.01)


def test_the_fit_reaches_a_function_of_the_observation():
    observation = jax.random.uniform(jax.random.key(0), (64, 4, 2), minval=-1, maxval=1)
    target = 3.0 + observation[..., 0] - 2 * observation[..., 1]
    regression = Regression(observation, target, jnp.ones((64, 4)))
    network = ValueNetwork((32,))
    state = init_critic(network, jax.random.key(1), observation[0, 0], 1.0)
    error_before = jnp.mean((network.apply(state.critic.params, observation) - target) ** 2)
    fit = jax.jit(lambda state, key: fit_critic(network, state, regression, key, CONFIG))
    for seed in range(10):
        state, metrics = fit(state, jax.random.key(seed))
    assert metrics["value_loss"] < 0.02 < 1.0 < error_before
    np.testing.assert_allclose(network.apply(state.critic.params, observation), target, atol=0.5)


def test_one_pass_of_one_minibatch_is_one_adam_step():
    """The first step of Adam moves every parameter by the learning rate against the sign of its gradient."""
    observation, target = jnp.ones((4, 2, 2)), jnp.full((4, 2), 10.0)
    config = CriticConfig(num_epochs=1, num_minibatches=1, learning_rate=0.125)
    network = ValueNetwork(())
    state = init_critic(network, jax.random.key(1), observation[0, 0], 1.0)
    regression = Regression(observation, target, jnp.ones((4, 2)))
    after, metrics = fit_critic(network, state, regression, jax.random.key(0), config)
    moved = jax.tree.map(lambda a, b: a - b, after.critic.params, state.critic.params)
    jax.tree.map(lambda x: np.testing.assert_allclose(x, 0.125, rtol=1e-4), moved)
    error = network.apply(state.critic.params, observation) - target
    np.testing.assert_allclose(metrics["value_loss"], jnp.mean(error**2), rtol=1e-5)


def test_costs_are_fitted_beside_the_reward_which_does_not_notice():
    observation = jax.random.uniform(jax.random.key(0), (64, 4, 2), minval=-1, maxval=1)
    target, weight, network = 3.0 + observation[..., 0], jnp.ones((64, 4)), ValueNetwork((32,))
    cost_target = jnp.stack([100.0 * observation[..., 1], 2.0 - observation[..., 0]], axis=-1)
    alone, beside = (init_critic(network, jax.random.key(1), observation[0, 0], 1.0, num_costs=count) for count in (0, 2))
    for seed in range(20):
        key = jax.random.key(seed)
        alone, metrics = fit_critic(network, alone, Regression(observation, target, weight), key, CONFIG)
        beside, both = fit_critic(network, beside, Regression(observation, target, weight, cost_target), key, CONFIG)
        np.testing.assert_allclose(both["value_loss"], metrics["value_loss"], rtol=2e-2)
    chex.assert_trees_all_close(beside.critic.params, alone.critic.params, rtol=2e-2, atol=1e-3)
    predicted = cost_values(network, beside.critic.cost_params, observation)
    assert explained_variance(cost_target - predicted, cost_target) > 0.98


@hypothesis.given(st.floats(1e-3, 1e4), st.floats(-5, 5), st.sampled_from([1.0, 0.1]))
def test_targets_are_measured_in_units_of_the_spread_of_all_so_far(spread, mean, reward_scaling):
    network = ValueNetwork((2,))
    state = init_critic(network, jax.random.key(1), jnp.zeros(2), reward_scaling, normalize_rewards=True)
    batches = spread * (mean + jax.random.normal(jax.random.key(0), (3, 64, 4)))
    weight = jnp.ones((64, 4)).at[:8].set(0.0)
    for i, batch in enumerate(batches):
        regression = Regression(jnp.zeros((64, 4, 2)), batch * state.critic.reward_scaling, weight)
        state, regression = rescaled(state, regression, reward_scaling)
        std = np.sqrt(np.var(np.asarray(batches[: i + 1, 8:], np.float64)) + 1e-6)
        np.testing.assert_allclose(state.critic.reward_scaling, reward_scaling / std, rtol=1e-3)
        np.testing.assert_allclose(regression.target, batch * reward_scaling / std, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(("num_steps", "num_envs", "count"), [(8, 4, 4), (4, 8, 16), (6, 4, 4), (6, 3, 4)])
def test_minibatches_hold_each_sample_once_and_spread_over_environments(num_steps, num_envs, count):
    time, env = jnp.meshgrid(jnp.arange(num_steps), jnp.arange(num_envs), indexing="ij")
    samples = Regression((time, env), time * num_envs + env, jnp.ones(time.shape))
    batches = minibatches(samples, jax.random.key(0), count)
    assert batches.target.shape[0] == count
    held = np.ravel(batches.target)
    assert len(np.unique(held)) == held.size == num_steps * num_envs // count * count
    np.testing.assert_array_equal(np.ravel(batches.observation[0] * num_envs + batches.observation[1]), held)
    if num_steps * num_envs % count == 0:
        halves = np.asarray(batches.observation[1]).reshape(count, -1) < num_envs / 2
        np.testing.assert_array_equal(halves.mean(axis=1), 0.5)
    assert (np.diff(np.asarray(batches.observation[0]).reshape(count, -1)) < 0).any(), "not shuffled"


def test_explained_variance_of_perfect_constant_and_opposite_predictions():
    target = jnp.asarray([1.0, 2.0, 3.0])
    np.testing.assert_allclose(explained_variance(-7 * jnp.ones(3), target), 1.0)
    np.testing.assert_allclose(explained_variance(target, target), 0.0, atol=1e-6)
    np.testing.assert_allclose(explained_variance(2 * target, target), -3.0, rtol=1e-5)
