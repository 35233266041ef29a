import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from trpo_jax.objective.surrogate import Batch, check_batch, mask_unweighted, mean_and_max_kl, surrogate_objective
from trpo_jax.policy.distributions import Categorical, DiagonalGaussian
from trpo_jax.weights import unit_weight

WEIGHT = np.array([1.0, 0.0, 3.0, 0.5])


def gaussians(dtype, seed=0):
    rng = np.random.default_rng(seed)
    old = DiagonalGaussian(*(jnp.asarray(rng.normal(size=(4, 2)), dtype) for _ in range(2)))
    new = jax.tree.map(lambda leaf: leaf + jnp.asarray(0.3 * rng.normal(size=leaf.shape), dtype), old)
    action, advantage = jnp.asarray(rng.normal(size=(4, 2)), dtype), jnp.asarray(rng.normal(size=4), dtype)
    return old, new, Batch(observation=(), action=action, log_prob=old.log_prob(action), advantage=advantage)


def numpy_log_prob(p, action):
    mean, std, action = (np.asarray(x, np.float64) for x in (p.mean, jnp.exp(p.log_std), action))
    return scipy.stats.norm(mean, std).logpdf(action).sum(-1)


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_the_surrogate_is_the_importance_weighted_mean_advantage(dtype, weight):
    old, new, batch = gaussians(dtype)
    ratio = np.exp(numpy_log_prob(new, batch.action) - numpy_log_prob(old, batch.action))
    expected = np.average(ratio * np.asarray(batch.advantage, np.float64), weights=weight)
    batch = batch._replace(weight=None if weight is None else unit_weight(jnp.asarray(weight, dtype)))
    np.testing.assert_allclose(surrogate_objective(new, batch), expected, rtol=100 * float(jnp.finfo(dtype).eps))


def test_the_ratio_is_exactly_one_at_the_old_policy_so_that_the_surrogate_is_the_mean_advantage(dtype):
    old, _, batch = gaussians(dtype)
    np.testing.assert_array_equal(surrogate_objective(old, batch), jnp.mean(batch.advantage))
    kls = mean_and_max_kl(old, old)
    np.testing.assert_array_equal(kls, [0, 0])


def test_the_gradient_of_the_surrogate_at_the_old_policy_is_the_policy_gradient(x64):
    old, _, batch = gaussians("float64", seed=1)
    gradient = jax.grad(lambda p: surrogate_objective(p, batch))(old)
    standardized = (batch.action - old.mean) / jnp.exp(old.log_std)
    np.testing.assert_allclose(gradient.mean, batch.advantage[:, None] * standardized / jnp.exp(old.log_std) / 4, rtol=1e-12)
    np.testing.assert_allclose(gradient.log_std, batch.advantage[:, None] * (standardized**2 - 1) / 4, rtol=1e-10)


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_mean_and_largest_kl_leave_out_states_without_weight(dtype, weight):
    old, new, _ = gaussians(dtype)
    new = DiagonalGaussian(new.mean.at[1].add(100.0), new.log_std)  # the largest by far, where the weight is zero
    mean, std, new_mean, new_std = (
        np.asarray(x, np.float64) for x in (old.mean, jnp.exp(old.log_std), new.mean, jnp.exp(new.log_std))
    )
    kl = (np.log(new_std / std) + (std**2 + (mean - new_mean) ** 2) / (2 * new_std**2) - 0.5).sum(-1)
    expected = np.average(kl, weights=weight), kl.max() if weight is None else np.delete(kl, 1).max()
    result = mean_and_max_kl(old, new, None if weight is None else unit_weight(jnp.asarray(weight, dtype)))
    np.testing.assert_allclose(result, expected, rtol=1e-5 if dtype == "float32" else 1e-12)


def test_masking_replaces_whatever_a_sample_without_weight_holds_and_nothing_else():
    weight = jnp.asarray([1.0, 0.0, 2.0])
    bad = jnp.asarray([1.0, jnp.nan, 3.0])
    image = jnp.broadcast_to(bad[:, None, None], (3, 2, 2))
    batch = Batch({"image": image, "flag": bad < 5}, jnp.asarray([5, -7, 6]), bad, bad, weight)
    masked = mask_unweighted(batch)
    np.testing.assert_array_equal(masked.observation["image"][:, 0, 1], [1, 0, 3])
    np.testing.assert_array_equal(masked.action, [5, 0, 6])
    np.testing.assert_array_equal(masked.log_prob, [1, 0, 3])
    np.testing.assert_array_equal(masked.advantage, [1, 0, 3])
    np.testing.assert_array_equal(masked.weight, weight)
    assert [leaf.dtype for leaf in jax.tree.leaves(masked)] == [leaf.dtype for leaf in jax.tree.leaves(batch)]
    unweighted = batch._replace(weight=None)
    assert mask_unweighted(unweighted) is unweighted


def test_masking_leaves_what_a_sequence_may_need():
    weight = jnp.asarray([[1.0, 0.0, 0.0, 0.0, 0.0]])
    observation = {"x": jnp.asarray([[1.0, 2.0, jnp.nan, -jnp.inf, 1e30]]), "first": jnp.asarray([[True] * 5])}
    ones = jnp.ones((1, 5))
    masked = mask_unweighted(Batch(observation, ones, ones, ones, weight))
    np.testing.assert_array_equal(masked.observation["x"], [[1, 2, 0, 0, 0]])
    assert masked.observation["first"].all()
    np.testing.assert_array_equal(masked.action, weight)


def valid_batch():
    observation = {"image": jnp.zeros((2, 3, 4)), "speed": jnp.zeros((2, 3))}
    return Batch(observation, jnp.zeros((2, 3, 1)), jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.ones((2, 3)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"log_prob": jnp.zeros(())}, ValueError, "log_prob: got shape (), allowed: at least one batch axis, none of size 0"),
        ({"log_prob": jnp.zeros((0, 3))}, ValueError, "log_prob: got shape (0, 3), allowed: at least one batch axis"),
        (
            {"advantage": jnp.zeros((3, 2))},
            ValueError,
            "advantage: got shape (3, 2), allowed: (2, 3), the shape of batch.log_prob",
        ),
        ({"advantage": jnp.zeros((2, 3, 1))}, ValueError, "advantage: got shape (2, 3, 1), allowed: (2, 3)"),
        ({"weight": jnp.ones(3)}, ValueError, "weight: got shape (3,), allowed: (2, 3)"),
        (
            {"action": jnp.zeros((3, 2, 1))},
            ValueError,
            "action: got shape (3, 2, 1), allowed: leading axes (2, 3), as in batch.",
        ),
        ({"action": (jnp.zeros((2, 3)), jnp.zeros(2))}, ValueError, "action[1]: got shape (2,), allowed: leading axes (2, 3)"),
        ({"observation": {"v": jnp.zeros(6)}}, ValueError, "observation['v']: got shape (6,), allowed: leading axes (2, 3)"),
        ({"advantage": jnp.zeros((2, 3), int)}, TypeError, "advantage: got dtype int32, allowed: a floating dtype"),
        ({"log_prob": jnp.zeros((2, 3), bool)}, TypeError, "log_prob: got dtype bool, allowed: a floating dtype"),
        ({"weight": jnp.ones((2, 3), bool)}, TypeError, "weight: got dtype bool, allowed: a floating dtype"),
    ],
)
def test_a_batch_that_does_not_fit_together_is_refused_naming_leaf_and_fix(change, error, message):
    with pytest.raises(error, match="^batch." + re.escape(message)):
        check_batch(valid_batch()._replace(**change))


def test_batches_with_any_number_of_axes_or_without_weights_are_valid():
    check_batch(valid_batch())
    check_batch(valid_batch()._replace(weight=None, observation=()))
    check_batch(jax.tree.map(lambda leaf: leaf[0], valid_batch()))
    check_batch(jax.eval_shape(valid_batch))  # shapes alone are enough: nothing is computed


def test_the_surrogate_takes_discrete_actions_too():
    old = Categorical(jnp.log(jnp.asarray([[0.5, 0.5], [0.2, 0.8]])))
    new = Categorical(jnp.log(jnp.asarray([[0.25, 0.75], [0.4, 0.6]])))
    action = jnp.asarray([1, 0])
    batch = Batch((), action, old.log_prob(action), jnp.asarray([2.0, 10.0]))
    np.testing.assert_allclose(surrogate_objective(new, batch), (1.5 * 2 + 2 * 10) / 2, rtol=1e-6)
