"""What falls over a training, and what becomes of it when the training is gone on with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probes import Target
from trainings import SMALL, one_device_train
from trpo_jax import ConfigError, TRPOScheduleConfig, make_trpo
from trpo_jax.agent.schedule import progress_of, share_left

FALLING = dataclasses.replace(SMALL, schedule=TRPOScheduleConfig(max_kl_at_end=0.2, learning_rate_at_end=0.5))
STEPS = 16
"""Of an iteration."""


def train(num_iterations, config=FALLING, **options):
    """Return KL, its bound, and the critic's learning rate of each iteration."""
    rows = []

    def note(_, metrics):
        rows.append([metrics[f"training/{name}"] for name in ("kl", "kl_bound", "critic_learning_rate")])

    one_device_train(Target(), num_iterations * STEPS, config=config, num_evals=0, iteration_fn=note, **options)
    return np.asarray(rows).T


@pytest.mark.parametrize(
    ("iteration", "num_iterations", "progress"), [(0, 4, 0.0), (1, 4, 0.25), (4, 4, 1.0), (9, 4, 1.0), (7, 0, 0.0)]
)
def test_progress_is_the_share_that_lies_behind(iteration, num_iterations, progress):
    assert progress_of(jnp.int32(iteration), jnp.int32(num_iterations)) == progress


def test_what_is_left_falls_by_equal_parts():
    np.testing.assert_allclose([share_left(0.2, jnp.float32(p)) for p in (0.0, 0.25, 1.0)], [1.0, 0.8, 0.2], rtol=1e-6)
    assert [float(share_left(1.0, jnp.float32(p))) for p in (0.0, 0.25, 1.0)] == [1.0, 1.0, 1.0]
    np.testing.assert_allclose(share_left(1e-9, jnp.float32(1)), 1e-9, rtol=1e-6)  # never 0, with which no step is taken


def test_the_bound_and_the_learning_rate_fall_and_nothing_else_changes():
    late = FALLING.at(jnp.float32(1))
    np.testing.assert_allclose(late.trust_region.max_kl, 0.2 * SMALL.trust_region.max_kl, rtol=1e-6)
    np.testing.assert_allclose(late.critic.learning_rate, 0.5 * SMALL.critic.learning_rate, rtol=1e-6)
    changed = {"max_kl": SMALL.trust_region.max_kl}
    assert dataclasses.replace(late.trust_region, **changed) == SMALL.trust_region
    assert dataclasses.replace(late.critic, learning_rate=SMALL.critic.learning_rate) == SMALL.critic


def test_every_update_of_a_training_keeps_the_bound_of_its_moment():
    kl, bound, learning_rate = train(5)
    left = 1 - 0.8 * np.arange(5) / 5
    np.testing.assert_allclose(bound, SMALL.trust_region.max_kl * left, rtol=1e-6)
    np.testing.assert_allclose(learning_rate, SMALL.critic.learning_rate * (1 - 0.5 * np.arange(5) / 5), rtol=1e-6)
    assert (kl <= bound).all()
    assert (kl > 0.2 * bound).all()


def test_a_training_without_an_end_keeps_what_is_configured():
    trpo = make_trpo(Target(), FALLING)
    state = trpo.init(jax.random.key(0))
    for _ in range(3):
        state, metrics = trpo.update(state)
    np.testing.assert_allclose(metrics["training/kl_bound"], SMALL.trust_region.max_kl, rtol=1e-6)
    ending = trpo.init(jax.random.key(0), num_iterations=4)._replace(iteration=jnp.int32(3))
    _, metrics = trpo.update(ending)
    np.testing.assert_allclose(metrics["training/kl_bound"], SMALL.trust_region.max_kl * (1 - 0.8 * 3 / 4), rtol=1e-6)


def test_a_population_has_a_schedule_for_each_member():
    trpo = make_trpo(Target(), SMALL)

    def bound_of(at_end):
        config = dataclasses.replace(SMALL, schedule=TRPOScheduleConfig(max_kl_at_end=at_end))
        state = trpo.init(jax.random.key(0), config, 2)
        return trpo.update(trpo.update(state)[0])[1]["training/kl_bound"]

    bounds = jax.vmap(bound_of)(jnp.asarray([1.0, 0.5]))
    np.testing.assert_allclose(bounds, SMALL.trust_region.max_kl * np.array([1.0, 0.75]), rtol=1e-6)


def test_a_training_that_is_resumed_goes_on_as_if_nothing_had_happened(tmp_path):
    whole = train(6, save_checkpoint_path=tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(steps, _):
        if steps == 3 * STEPS:
            raise Stop

    options = {"save_checkpoint_path": tmp_path / "parts", "checkpoint_interval": 1}
    with pytest.raises(Stop):
        one_device_train(Target(), 6 * STEPS, config=FALLING, num_evals=0, iteration_fn=stop, **options)
    rest = train(6, resume=True, **options)
    np.testing.assert_array_equal(rest, whole[:, -rest.shape[1] :])
    assert 3 <= rest.shape[1] < 6


def test_a_training_that_is_lengthened_says_so_and_continues_as_the_longer_one(tmp_path):
    train(2, save_checkpoint_path=tmp_path)
    with pytest.warns(UserWarning, match="schedule: this training of 2 iterations now ends after 4; scheduled values"):
        _, bound, _ = train(4, save_checkpoint_path=tmp_path, resume=True)
    np.testing.assert_allclose(bound, SMALL.trust_region.max_kl * (1 - 0.8 * np.array([2, 3]) / 4), rtol=1e-6)


def test_a_training_without_a_schedule_is_lengthened_without_a_word(tmp_path):
    train(2, config=SMALL, save_checkpoint_path=tmp_path)
    _, bound, _ = train(4, config=SMALL, save_checkpoint_path=tmp_path, resume=True)
    np.testing.assert_allclose(bound, SMALL.trust_region.max_kl, rtol=1e-6)


@pytest.mark.parametrize(("field", "value"), [("max_kl_at_end", 0.0), ("max_kl_at_end", 1.5), ("learning_rate_at_end", -0.1)])
def test_shares_out_of_range_are_refused(field, value):
    with pytest.raises(ConfigError, match=rf"{field}: got {value}, allowed: a number"):
        TRPOScheduleConfig(**{field: value})
