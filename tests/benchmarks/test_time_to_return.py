"""The benchmark of the time to a return: what it counts, and what it calls a bound."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import brax_ppo
import time_to_return
from brax_ppo import Stopwatch, device_put_replicated, falling_learning_rate, gradient_steps, replicate, steady_stretch
from probes import Counter
from time_to_return import Course, Ended, bound, compare
from trpo_jax.environments.wrappers import EpisodeLimit


def stand_still(params, deterministic=False):
    return lambda observation, key: (jnp.zeros((*observation.shape[:-1], 2)), {})


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless a test advances it."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


class SlowVisits(Stopwatch):
    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def visit(self, steps, make_policy, params):
        self.clock[0] += 100.0


def test_the_clock_stands_still_during_visits(clock):
    stopwatch = SlowVisits(clock)
    for steps, seconds in ((0, 1.0), (10, 5.0), (20, 2.0)):
        clock[0] += seconds
        stopwatch(steps, None, jnp.zeros(()))
    assert stopwatch.stretches == [1.0, 5.0, 2.0]


@pytest.mark.parametrize(
    ("stretches", "expected"),
    [([1.0, 9.0], 9.0), ([1.0, 9.0, 5.0], 5.0), ([1.0, 9.0, 5.0, 2.0], 2.0), ([1.0, 9.0, 5.0, 2.0, 4.0, 3.0], 3.0)],
)
def test_stretches_that_compile_do_not_count_where_there_are_others(stretches, expected):
    assert steady_stretch(stretches) == expected


def test_a_course_ends_at_the_return_but_not_before_training(clock):
    course = Course(EpisodeLimit(Counter(lifetime=3), 10), target=6.0, episodes=2)  # an episode pays 1 + 2 + 3
    course(0, stand_still, jnp.zeros(()))
    clock[0] += 4.0
    with pytest.raises(Ended):
        course(50, stand_still, jnp.zeros(()))
    assert course.points == [{"steps": 0, "seconds": 0.0, "return": 6.0}, {"steps": 50, "seconds": 4.0, "return": 6.0}]
    assert course.summary() == {
        "arrived": True,
        "return": 6.0,
        "steps": 50,
        "seconds": 4.0,
        "without compile": 4.0,
        "steps/s": 12.5,
    }


def test_a_course_ends_when_its_time_is_up(clock):
    course = Course(EpisodeLimit(Counter(lifetime=3), 10), target=7.0, episodes=2, time_limit=5.0)
    for steps in (0, 50):
        clock[0] += 2.0
        course(steps, stand_still, jnp.zeros(()))
    clock[0] += 2.0
    with pytest.raises(Ended):
        course(100, stand_still, jnp.zeros(()))
    assert not course.arrived


def test_ratios_are_taken_seed_by_seed():
    rows = [
        {"algorithm": name, "seed": seed, "seconds": seconds, "arrived": True}
        for seed, (ours, ppo) in enumerate([(1.0, 3.0), (2.0, 4.0), (4.0, 20.0)])
        for name, seconds in (("trpo_jax", ours), ("Brax PPO", ppo))
    ]
    expected = {"measure": "seconds", "median": 3.0, "min": 2.0, "max": 5.0, "bound": "exact"}
    assert compare(rows, "seconds") == expected
    rows[-1]["arrived"] = False
    assert compare(rows, "seconds") == expected | {"bound": "at least"}


def test_a_run_that_does_not_arrive_turns_its_ratio_into_a_bound():
    assert [bound(*arrived) for arrived in ((True, True), (True, False), (False, True), (False, False))] == [
        "exact",
        "at least",
        "at most",
        "unknown",
    ]


def test_jax_has_its_former_function_only_while_ppo_runs():
    devices = jax.local_devices()[:2]
    with device_put_replicated():
        copies = jax.device_put_replicated({"a": np.arange(3), "b": 7}, devices)
    assert not hasattr(jax, "device_put_replicated")
    np.testing.assert_array_equal(copies["a"], [[0, 1, 2]] * 2)
    np.testing.assert_array_equal(copies["b"], [7, 7])
    assert copies["a"].sharding.device_set == set(devices)
    assert replicate(jnp.zeros(()), devices[:1]).shape == (1,)


@pytest.mark.slow
@pytest.mark.brax
def test_both_trainings_run_along_the_same_course(tmp_path, monkeypatch, capsys):
    small = {"num_envs": 16, "batch_size": 16, "num_minibatches": 1, "unroll_length": 8}
    monkeypatch.setattr(time_to_return, "SMALL_SCALE", {**brax_ppo.SMALL_SCALE, **small})
    path = tmp_path / "result.json"
    # "fast" is Brax's own probe: a point that can only gain
    arguments = time_to_return.Arguments(
        environment="fast", target=0.0, seeds=(3,), stretch=5120, num_stretches=2, episodes=2, json=str(path)
    )
    time_to_return.main(arguments)
    *runs, seconds, without_compile = json.loads(path.read_text())["rows"]
    assert [(row["algorithm"], row["seed"], row["arrived"]) for row in runs] == [("trpo_jax", 3, True), ("Brax PPO", 3, True)]
    for row in runs:
        assert [point["steps"] for point in row["curve"]] == [0, 5120]  # the first visit after step 0 ends it
        assert row["seconds"] > row["without compile"] > 0
        assert row["return"] >= 0
    assert (seconds["measure"], seconds["bound"]) == ("seconds", "exact")
    assert without_compile["median"] == runs[1]["without compile"] / runs[0]["without compile"]
    assert "time to a return of 0" in capsys.readouterr().out


def test_the_learning_rate_of_ppo_falls_over_its_gradient_steps():
    """Adam moves by its learning rate along a gradient that stays the same."""
    with falling_learning_rate(0.2, 4):
        falling = optax.adam(learning_rate=0.1)
    state, moved = falling.init(jnp.zeros(())), []
    for _ in range(6):
        update, state = falling.update(jnp.ones(()), state)
        moved.append(-float(update))
    np.testing.assert_allclose(moved, [0.1, 0.08, 0.06, 0.04, 0.02, 0.02], rtol=1e-4)


@pytest.mark.parametrize("at_end", [1.0, 0.5])
def test_ppo_is_given_the_falling_rate_and_optax_is_left_as_it_was(monkeypatch, at_end):
    given, adam = {}, optax.adam

    def stub(environment, num_timesteps, **options):
        given.update(options, optimizer=optax.adam(learning_rate=options["learning_rate"]))

    monkeypatch.setattr(brax_ppo.ppo, "train", stub)
    small = {
        "batch_size": 8,
        "num_minibatches": 1,
        "unroll_length": 2,
        "num_updates_per_batch": 1,
        "learning_rate_at_end": at_end,
    }
    settings = {**brax_ppo.SMALL_SCALE, **small, "learning_rate": 0.1}
    brax_ppo.train_ppo("fast", 32, settings, seed=0, num_evals=2, policy_params_fn=None, backend="generalized")
    assert optax.adam is adam
    assert "learning_rate_at_end" not in given
    state, moved = given["optimizer"].init(jnp.zeros(())), []
    for _ in range(2):  # of two gradient steps
        update, state = given["optimizer"].update(jnp.ones(()), state)
        moved.append(-float(update))
    np.testing.assert_allclose(moved, [0.1, 0.1 * (1 + at_end) / 2], rtol=1e-4)


def test_gradient_steps_of_ppo_are_counted_as_brax_rounds_them():
    # A training step takes 32 · 8 · 20 = 5120 environment steps, and 4 passes of 8 minibatches.
    settings = {"batch_size": 32, "num_minibatches": 8, "unroll_length": 20, "num_updates_per_batch": 4}
    assert gradient_steps(5120, settings, num_evals=1) == 32
    assert gradient_steps(5121, settings, num_evals=2) == 64
    assert gradient_steps(15_000, settings, num_evals=3) == 4 * 32  # in two parts of two training steps each
