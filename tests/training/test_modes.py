"""JAX's modes: a whole training, evaluations and checkpoints included, works in each of them."""

import contextlib
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trpo_jax
from probes import Bandit, Counter, Target
from trainings import SMALL, one_device_train
from trpo_jax.agent.metrics import without_unknown
from trpo_jax.algorithms.trpo import TRPO

MODES = ("jax_enable_x64", "jax_debug_nans", "jax_debug_infs", "jax_disable_jit")


@contextlib.contextmanager
def mode(name):
    """Switch a mode on in all threads, as its environment variable does."""
    before = getattr(jax.config, name)
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, before)


@pytest.mark.parametrize("name", [*MODES[:-1], pytest.param(MODES[-1], marks=pytest.mark.slow)])
def test_a_training_and_its_continuation_work_in_each_mode(name, tmp_path):
    config = dataclasses.replace(SMALL, episode_length=6)  # so that no episode ends in the first iteration
    options = {"config": config, "num_eval_envs": 2, "save_checkpoint_path": tmp_path, "resume": True}
    with mode(name):
        one_device_train(Target(), 2 * 16, **options)
        _, params, metrics = one_device_train(Target(), 3 * 16, **options)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert np.isfinite(metrics["eval/episode_reward"])
    assert metrics["training/num_episodes"] == config.num_envs


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("environment", [Target(), Bandit(), Counter(4)])
def test_an_iteration_keeps_the_avals_of_its_state_in_float64(environment, normalized):
    config = dataclasses.replace(SMALL, normalize_observations=normalized)
    with mode("jax_enable_x64"):
        trpo = trpo_jax.make_trpo(environment, config)
        before = jax.eval_shape(trpo.init, jax.random.key(0))
        after, _ = jax.eval_shape(trpo.update, before)
        assert jnp.zeros(()).dtype == jnp.float64
    avals = [[(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(state)] for state in (before, after)]
    assert avals[0] == avals[1]


def test_returns_and_statistics_are_as_precise_as_what_they_are_made_of():
    with mode("jax_enable_x64"):
        state = trpo_jax.make_trpo(Target(), SMALL).init(jax.random.key(0))
        assert state.rollout.episodes.running_return.dtype == state.learner.normalizer.mean.dtype == jnp.float64
    assert trpo_jax.make_trpo(Target(), SMALL).init(jax.random.key(0)).learner.normalizer.mean.dtype == jnp.float32


MIXTURES = list(itertools.product(("bfloat16", "float32", "float64"), repeat=2))


@pytest.mark.parametrize(("rewards", "knobs"), MIXTURES)
def test_advantages_take_every_mixture_of_dtypes(rewards, knobs):
    with jax.enable_x64(True):
        ones, no = jnp.ones((3, 2), rewards), jnp.zeros((3, 2), bool)
        knob = jnp.asarray(0.5, knobs)
        advantage = jax.jit(trpo_jax.generalized_advantage_estimation)(
            ones, 0 * ones, 0 * ones, no, no, discounting=knob, gae_lambda=knob
        )
        assert advantage.dtype == (jnp.float64 if "float64" in (rewards, knobs) else jnp.float32)
        np.testing.assert_array_equal(advantage[:, 0], [1.3125, 1.25, 1.0])


@pytest.mark.parametrize(("right", "matrix"), MIXTURES)
def test_conjugate_gradients_take_every_mixture_of_dtypes(right, matrix):
    with jax.enable_x64(True):
        a = jnp.diag(jnp.asarray([1.0, 2.0, 4.0], matrix))
        x, _ = trpo_jax.conjugate_gradient(
            lambda v: a @ v,
            jnp.ones(3, right),
            x0=jnp.zeros(3, matrix),
            preconditioner=lambda r: r * jnp.asarray(0.5, matrix),
        )
        assert x.dtype == (jnp.float64 if right == "float64" else jnp.float32)
        np.testing.assert_allclose(x, [1.0, 0.5, 0.25], rtol=1e-2 if right == "bfloat16" else 1e-5)


def test_an_average_over_nothing_is_no_number():
    metrics = {
        "training/episode_reward": 0.0,
        "training/entropy": 1.5,
        "training/num_faults": 16.0,
        "training/num_episodes": 2.0,
    }
    known = without_unknown(metrics | {"training/loss_1": 0.5}, 16, (*TRPO.sample_means, "loss_1"))
    assert np.isnan(known.pop("training/loss_1"))  # a name of its own, not the second of several costs
    assert known["training/episode_reward"] == 0.0
    assert np.isnan(known["training/entropy"])
    several = {name: np.asarray([value, value]) for name, value in metrics.items()}
    several["training/num_faults"], several["training/num_episodes"] = np.asarray([0.0, 16.0]), np.asarray([0.0, 1.0])
    known = without_unknown(several, 16, TRPO.sample_means)
    np.testing.assert_array_equal(np.isnan(known["training/entropy"]), [False, True])
    np.testing.assert_array_equal(np.isnan(known["training/episode_reward"]), [True, False])
