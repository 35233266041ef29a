"""Each policy update against an independent computation: dense float64 algebra, or a loop around optax."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trpo_jax import Batch, DiagonalGaussian
from trpo_jax.algorithms import natural_gradient, penalty, penalty_adam, policy_gradient, ppo
from trpo_jax.algorithms.registry import ALGORITHMS, default_config

T, N, O, A = 8, 4, 3, 2  # noqa: E741


def policy_fn(params, observation):
    mean = observation @ params["weight"]
    return DiagonalGaussian(mean, jnp.broadcast_to(params["log_std"], mean.shape))


def problem(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    params = {"weight": 0.3 * jax.random.normal(keys[0], (O, A)), "log_std": jnp.full(A, -0.5)}
    observation = jax.random.normal(keys[1], (T, N, O))
    distribution = policy_fn(params, observation)
    action = distribution.sample(keys[2])
    weight = jnp.ones((T, N)).at[0, 0].set(0.0)
    batch = Batch(observation, action, distribution.log_prob(action), jax.random.normal(keys[3], (T, N)), weight)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), (params, batch))


def dense(params, batch):
    """Gradient of the surrogate and Fisher matrix of the batch in float64, by the Gaussian's own formulas."""
    observation, action, advantage, weight = (
        np.asarray(leaf, np.float64).reshape(T * N, -1)
        for leaf in (batch.observation, batch.action, batch.advantage, batch.weight)
    )
    mean, log_std = observation @ np.asarray(params["weight"], np.float64), np.asarray(params["log_std"], np.float64)
    error = (action - mean) * np.exp(-2 * log_std)
    share = weight / weight.sum()
    # A tree's leaves come in the order of their names: log_std, then weight.
    of_std = np.sum(share * advantage * ((action - mean) ** 2 * np.exp(-2 * log_std) - 1), 0)
    of_weight = np.einsum("b,bo,ba->oa", (share * advantage)[:, 0], observation, error)
    fisher = np.zeros((A + O * A, A + O * A))
    fisher[:A, :A] = 2 * np.eye(A)
    second = np.einsum("b,bo,bp->op", share[:, 0], observation, observation)
    fisher[A:, A:] = np.kron(second, np.diag(np.exp(-2 * log_std)))
    return np.concatenate([of_std, of_weight.ravel()]), fisher


def flat(params):
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(params)])


def run(module, config, params, batch, state=None):
    state = module.init(params, config) if state is None else state
    return jax.jit(module.update, static_argnums=0)(policy_fn, params, state, batch, config, jax.random.key(7))


def test_the_natural_gradient_is_the_dense_solution_at_the_length_asked_for():
    params, batch = problem()
    options = natural_gradient.NaturalStepConfig(step_kl=0.01, damping=0.1, cg_iterations=20, curvature_fraction=1.0)
    new, _, metrics = run(natural_gradient, natural_gradient.NaturalGradientConfig(natural=options), params, batch)
    gradient, fisher = dense(params, batch)
    damped = fisher + 0.1 * np.eye(len(fisher))
    direction = np.linalg.solve(damped, gradient)
    step = direction * np.sqrt(2 * 0.01 / (direction @ damped @ direction))
    np.testing.assert_allclose(flat(new) - flat(params), step, rtol=2e-3, atol=2e-5)
    assert metrics["step_kl"] == np.float32(0.01)


def test_the_penalized_step_is_the_dense_solution_divided_by_the_coefficient():
    params, batch = problem()
    options = penalty.PenalizedConfig(coefficient=20.0, target_kl=0.0, damping=0.1, cg_iterations=20, curvature_fraction=1.0)
    new, state, metrics = run(penalty, penalty.PenaltyConfig(penalized=options), params, batch)
    gradient, fisher = dense(params, batch)
    step = np.linalg.solve(fisher + 0.1 * np.eye(len(fisher)), gradient) / 20
    np.testing.assert_allclose(flat(new) - flat(params), step, rtol=2e-3, atol=2e-5)
    assert metrics["accepted"] == 1
    assert metrics["step_fraction"] == 1
    assert state.coefficient == 20


def test_a_penalized_step_that_is_too_long_is_shortened_until_it_improves():
    params, batch = problem()
    options = penalty.PenalizedConfig(coefficient=0.01, target_kl=0.0, damping=1e-3, curvature_fraction=1.0)
    new, _, metrics = run(penalty, penalty.PenaltyConfig(penalized=options), params, batch)
    old_distribution, distribution = policy_fn(params, batch.observation), policy_fn(new, batch.observation)
    share = batch.weight / batch.weight.sum()
    ratio = jnp.exp(distribution.log_prob(batch.action) - batch.log_prob)
    kl = jnp.sum(share * old_distribution.kl(distribution))
    gain = jnp.sum(share * batch.advantage * (ratio - 1)) - 0.01 * kl
    assert 0 < metrics["step_fraction"] <= 1
    assert gain > 0
    np.testing.assert_allclose(metrics["penalized_improvement"], gain, rtol=1e-3)
    np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-4)


@pytest.mark.parametrize(("kl", "factor"), [(0.05, 2.0), (0.04, 1.0), (0.025, 1.0), (0.01, 0.5)])
def test_the_coefficient_follows_the_kl(kl, factor):
    assert penalty.adapted(jnp.float32(3.0), jnp.float32(kl), 0.03) == 3 * factor
    assert penalty.adapted(jnp.float32(3.0), jnp.float32(kl), 0.0) == 3
    assert penalty.adapted(jnp.float32(1e7), jnp.float32(kl), 0.0) == 1e7  # beyond where adaptation ends


def by_optax(loss_fn, params, learning_rate, num_steps):
    """Full-batch Adam, step by step."""
    optimizer = optax.adam(learning_rate)
    state = optimizer.init(params)
    for _ in range(num_steps):
        updates, state = optimizer.update(jax.grad(loss_fn)(params), state, params)
        params = optax.apply_updates(params, updates)
    return params


def weighted(batch, values):
    return jnp.sum(jnp.where(batch.weight > 0, values, 0.0)) / batch.weight.sum()


def test_ppo_takes_adams_steps_on_the_clipped_surrogate():
    """One minibatch a pass, so that the order of samples does not matter."""
    params, batch = problem()
    options = ppo.ClippedConfig(clipping_epsilon=0.1, learning_rate=0.05, num_epochs=6, num_minibatches=1, entropy_cost=0.02)
    new, _, metrics = run(ppo, ppo.PPOConfig(clipped=options), params, batch)

    def loss(params):
        distribution = policy_fn(params, batch.observation)
        ratio = jnp.exp(distribution.log_prob(batch.action) - batch.log_prob)
        gain = jnp.minimum(ratio * batch.advantage, jnp.clip(ratio, 0.9, 1.1) * batch.advantage)
        return -weighted(batch, gain) - 0.02 * weighted(batch, distribution.entropy())

    expected = by_optax(loss, params, 0.05, 6)
    np.testing.assert_allclose(flat(new), flat(expected), rtol=1e-3, atol=1e-4)
    assert metrics["gradient_steps"] == 6
    assert 0 < metrics["clip_fraction"] < 1


def test_ppo_stops_at_the_kl():
    params, batch = problem()
    options = ppo.ClippedConfig(learning_rate=0.05, num_epochs=20, num_minibatches=1, stop_at_kl=0.02, entropy_cost=0.0)
    _, _, stopped = run(ppo, ppo.PPOConfig(clipped=options), params, batch)
    _, _, free = run(ppo, ppo.PPOConfig(clipped=dataclasses.replace(options, stop_at_kl=0.0)), params, batch)
    assert 0 < stopped["gradient_steps"] < free["gradient_steps"] == 20
    assert 0.02 < stopped["kl"] < free["kl"]


def test_the_adam_penalty_takes_adams_steps_on_the_penalized_surrogate_and_doubles_the_coefficient():
    params, batch = problem()
    options = penalty_adam.PenalizedAdamConfig(
        coefficient=2.0, target_kl=1e-4, learning_rate=0.05, num_epochs=5, num_minibatches=1
    )
    new, state, metrics = run(penalty_adam, penalty_adam.PenaltyAdamConfig(penalized=options), params, batch)
    old = policy_fn(params, batch.observation)

    def loss(params):
        distribution = policy_fn(params, batch.observation)
        ratio = jnp.exp(distribution.log_prob(batch.action) - batch.log_prob)
        return 2.0 * weighted(batch, old.kl(distribution)) - weighted(batch, ratio * batch.advantage)

    np.testing.assert_allclose(flat(new), flat(by_optax(loss, params, 0.05, 5)), rtol=1e-3, atol=1e-4)
    assert (metrics["penalty_coefficient"], state.coefficient) == (2, 4)


def test_the_policy_gradient_is_that_of_mean_log_probability_times_advantage():
    params, batch = problem()
    config = policy_gradient.PolicyGradientConfig(gradient=policy_gradient.GradientStepConfig(learning_rate=0.05))
    new, state, metrics = run(policy_gradient, config, params, batch)

    def loss(params):
        return -weighted(batch, policy_fn(params, batch.observation).log_prob(batch.action) * batch.advantage)

    np.testing.assert_allclose(flat(new), flat(by_optax(loss, params, 0.05, 1)), rtol=1e-4, atol=1e-6)
    assert metrics["accepted"] == 1
    assert state.count == 1
    gradient, _ = dense(params, batch)
    np.testing.assert_allclose(flat(jax.grad(loss)(params)), -gradient, rtol=1e-3, atol=1e-5)


def test_the_coefficient_is_doubled_where_no_step_improves_and_stays_where_there_is_no_gradient():
    """A KL of 0 must not halve it: the next step would be longer still."""
    params, batch = problem()
    options = penalty.PenalizedConfig(coefficient=0.03, target_kl=0.03, damping=1e-3, max_backtracks=0, curvature_fraction=1.0)
    _, state, metrics = run(penalty, penalty.PenaltyConfig(penalized=options), params, batch)
    assert (metrics["accepted"], metrics["kl"]) == (0, 0)
    np.testing.assert_allclose(state.coefficient, 0.06, rtol=1e-6)
    for nothing in ({"advantage": jnp.zeros((T, N))}, {"weight": jnp.zeros((T, N))}):
        _, state, _ = run(penalty, penalty.PenaltyConfig(penalized=options), params, batch._replace(**nothing))
        np.testing.assert_allclose(state.coefficient, 0.03, rtol=1e-6)


@pytest.mark.parametrize(
    ("beta", "gradient", "target_kl", "after"),
    [(3.0, 1.0, 0.03, 6.0), (3.0, 0.0, 0.03, 3.0), (3.0, 1.0, 0.0, 3.0), (9e5, 1.0, 0.03, 1e6), (1e7, 1.0, 0.0, 1e7)],
)
def test_the_coefficient_after_a_miss(beta, gradient, target_kl, after):
    assert penalty.after_a_miss(jnp.float32(beta), {"w": jnp.full(3, gradient)}, target_kl) == after


@pytest.mark.parametrize("name", ["ppo", "penalty_adam", "policy_gradient"])
def test_adam_is_carried_in_float32_whatever_the_parameters(name):
    params, batch = problem(jnp.bfloat16)
    _, state, _ = run(ALGORITHMS[name].policy_update, default_config(name), params, batch)
    moments = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in moments} == {jnp.dtype(jnp.float32)}
    assert any(jnp.any(leaf != 0) for leaf in moments)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_parameters_keep_their_dtype(name):
    config = default_config(name)
    params, batch = problem(jnp.bfloat16)
    policy_update = ALGORITHMS[name].policy_update
    if policy_update.limits_costs:
        costs = jnp.stack([batch.advantage, -batch.advantage], axis=-1)
        state = policy_update.init(params, config, 2)
        arguments = batch._replace(cost_advantage=costs), config, jax.random.key(7), jnp.asarray([20.0, 20.0])
        new, _, metrics = jax.jit(policy_update.update, static_argnums=0)(policy_fn, params, state, *arguments)
    else:
        new, _, metrics = run(policy_update, config, params, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(jnp.bfloat16)}
    assert metrics["kl"] > 0
