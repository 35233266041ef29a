import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trpo_jax.objective.advantages import generalized_advantage_estimation

# Five steps with γ = 0.5 and λ = 0.5: the episode terminates at t = 1; the next one is cut off by a time limit at t = 3.
REWARD = [1.0, 2.0, 3.0, 4.0, 5.0]
VALUE = [10.0, 20.0, 30.0, 40.0, 50.0]
NEXT_VALUE = [20.0, 7.0, 40.0, 60.0, 70.0]  # at t = 1 a terminal state's, which must not count; at t = 3 the real last one's
TERMINATED = [0, 1, 0, 0, 0]
DONE = [0, 1, 0, 1, 0]
# δ₀ = 1 + 10 - 10 = 1, δ₁ = 2 + 0 - 20 = -18, δ₂ = 3 + 20 - 30 = -7, δ₃ = 4 + 30 - 40 = -6, δ₄ = 5 + 35 - 50 = -10
# A₄ = δ₄; A₃ = δ₃ (episode ends); A₂ = δ₂ + ¼A₃; A₁ = δ₁ (episode ends); A₀ = δ₀ + ¼A₁
ADVANTAGE = [-3.5, -18.0, -8.5, -6.0, -10.0]

gae = jax.jit(generalized_advantage_estimation)


def inputs(dtype="float32", flags="bool"):
    numbers = (jnp.asarray(x, dtype) for x in (REWARD, VALUE, NEXT_VALUE))
    return (*numbers, *(jnp.asarray(x, flags) for x in (TERMINATED, DONE)))


@pytest.mark.parametrize("flags", ["bool", "float32"])
def test_advantages_equal_the_sequence_computed_by_hand(dtype, flags):
    advantage = gae(*inputs(dtype, flags), discounting=0.5, gae_lambda=0.5)
    assert advantage.dtype == dtype
    np.testing.assert_array_equal(advantage, ADVANTAGE)


def test_a_time_limit_bootstraps_but_nothing_leaks_across_it_bug_3():
    reward, value, next_value, terminated, done = inputs()
    later = [reward.at[4].add(1000.0), value.at[4].add(1000.0), next_value.at[4].add(1000.0)]
    moved = gae(*later, terminated, done, discounting=0.5, gae_lambda=0.5)
    np.testing.assert_array_equal(moved[:4], ADVANTAGE[:4])
    assert moved[4] != ADVANTAGE[4]
    bootstrapped = gae(reward, value, next_value.at[3].add(8.0), terminated, done, discounting=0.5, gae_lambda=0.5)
    np.testing.assert_array_equal(bootstrapped - jnp.asarray(ADVANTAGE), [0, 0, 1, 4, 0])  # γ·8 at t = 3, and ¼ of it before


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_value_after_a_termination_is_never_looked_at(bad):
    reward, value, next_value, terminated, done = inputs()
    advantage = gae(reward, value, next_value.at[1].set(bad), terminated, done, discounting=0.5, gae_lambda=0.5)
    np.testing.assert_array_equal(advantage, ADVANTAGE)
    loss_gradient = jax.grad(
        lambda v: generalized_advantage_estimation(reward, value, v, terminated, done, discounting=0.5, gae_lambda=0.5).sum()
    )(next_value.at[1].set(bad))
    assert np.isfinite(loss_gradient).all()


def episode_by_episode(reward, value, next_value, terminated, done, discounting, gae_lambda):
    """The definition: each advantage is the sum of (γλ)ˡ δ over the rest of its own episode."""
    delta = reward + discounting * np.where(terminated, 0, next_value) - value
    advantage = np.zeros_like(delta)
    for t in range(len(delta)):
        for step in range(t, len(delta)):
            advantage[t] += (discounting * gae_lambda) ** (step - t) * delta[step]
            if done[step]:
                break
    return advantage


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=40)
def test_advantages_equal_the_sum_over_each_episode_by_itself(x64, seed, discounting, gae_lambda):
    rng = np.random.default_rng(seed)
    reward, value, next_value = rng.normal(size=(3, 12))
    done = rng.random(12) < 0.3
    terminated = done & (rng.random(12) < 0.5)
    arguments = reward, value, next_value, terminated, done
    expected = episode_by_episode(*arguments, discounting, gae_lambda)
    result = gae(*map(jnp.asarray, arguments), discounting=discounting, gae_lambda=gae_lambda)
    np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-12)


def test_environments_beside_one_another_do_not_mix_and_the_knobs_may_be_traced():
    batch = tuple(jnp.stack([x, x[::-1], x], axis=1) for x in inputs())
    discounts, lambdas = jnp.asarray([0.5, 0.9]), jnp.asarray([0.5, 1.0])
    swept = jax.vmap(lambda g, lam: generalized_advantage_estimation(*batch, discounting=g, gae_lambda=lam))(discounts, lambdas)
    assert swept.shape == (2, 5, 3)
    np.testing.assert_array_equal(swept[0, :, 0], ADVANTAGE)
    for i, column in enumerate((inputs(), tuple(x[::-1] for x in inputs()))):
        np.testing.assert_allclose(swept[1, :, i], gae(*column, discounting=0.9, gae_lambda=1.0), rtol=1e-6)


@pytest.mark.parametrize("name", ["value", "next_value", "terminated", "done"])
@pytest.mark.parametrize("shape", [(4,), (5, 1), (1,)])
def test_a_shape_that_differs_is_named(own_errors, name, shape):
    arguments = dict(zip(("reward", "value", "next_value", "terminated", "done"), inputs(), strict=True))
    arguments[name] = jnp.zeros(shape)
    call = functools.partial(generalized_advantage_estimation, **arguments, discounting=0.5, gae_lambda=0.5)
    with pytest.raises(
        ValueError, match=rf"{name}: got shape \({', ?'.join(map(str, shape))},?\), allowed: \(5,\), the shape of reward"
    ):
        call()


def test_a_nan_in_one_episode_does_not_reach_the_one_before():
    reward = jnp.asarray([1.0, 2.0, jnp.nan, 1.0])
    zeros, done = jnp.zeros(4), jnp.asarray([False, True, False, True])
    advantage = generalized_advantage_estimation(reward, zeros, zeros, done, done, discounting=0.5, gae_lambda=0.5)
    np.testing.assert_array_equal(advantage[:2], [1.5, 2.0])
