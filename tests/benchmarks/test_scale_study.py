"""Returns against the number of environments: what PPO is given at each, and what is drawn."""

import pytest

import brax_ppo
import scale_study
from scale_study import OURS, PPO, Arguments
from trpo_jax.sweep.plan import plan_file
from trpo_jax.sweep.report.scores import ScoredRun

PLAN = plan_file(scale_study.SWEEP)


def scored(num_envs, seed, curve, setting="searched"):
    return ScoredRun(f"ant-{seed}", "ant", setting, {"num_envs": num_envs}, seed, curve[-1][1], curve)


def test_ours_has_one_rule_at_every_size():
    assert {run.config.trpo.num_envs for run in PLAN} == {64, 256, 1024, 4096}
    assert len({repr(run.config.trpo) for run in PLAN}) == 4
    assert len({run.config.num_timesteps for run in PLAN}) == 1
    assert all(run.config.num_timesteps % (run.config.trpo.num_envs * run.config.trpo.unroll_length) == 0 for run in PLAN)


def test_ppo_is_trained_wherever_ours_is():
    runs = scale_study.ppo_runs(PLAN, Arguments())
    sizes = {(run.config.environment, run.config.trpo.num_envs) for run in PLAN}
    assert {(run.environment, run.settings["num_envs"]) for run in runs} == sizes
    for run in runs:
        assert run.settings["batch_size"] * run.settings["num_minibatches"] % run.settings["num_envs"] == 0  # Brax's condition


def test_ppo_keeps_its_searched_batch_until_a_rollout_is_larger_and_its_published_settings_where_they_are_for():
    few, many, published = (scale_study.ppo_settings("ant", size) for size in (64, 1024, 4096))
    assert few == {"searched": brax_ppo.ONE_SETTING}
    assert many["searched"]["batch_size"] * many["searched"]["num_minibatches"] == 1024
    assert many["published"]["batch_size"] == 512
    assert published["published"] == brax_ppo.PUBLISHED["ant"]


def test_returns_are_read_after_the_same_steps_and_the_better_setting_is_drawn():
    runs = [scored(64, 0, ((0, 0.0), (200, 20.0))), scored(64, 1, ((0, 0.0), (100, 30.0)))]
    worse = scored(64, 0, ((0, 0.0), (100, 1.0)), "published")
    rows = scale_study.rows_of([*runs, worse], PPO, 100)
    assert [(row["setting"], row["return"], row["each seed"]) for row in rows] == [
        ("searched", 20.0, [10.0, 30.0]),
        ("published", 1.0, [1.0]),
    ]
    (axis,) = scale_study.draw([*rows, *scale_study.rows_of([scored(256, 0, ((0, 5.0), (100, 6.0)))], OURS, 100)]).axes
    drawn = [list(line.get_ydata()) for line in axis.lines]
    assert drawn == [[6.0], [6.0], [20.0], [10.0, 30.0]]


@pytest.mark.parametrize("num_envs", [1, 64, 2048])
def test_batches_shrink_with_the_environments(num_envs):
    settings = brax_ppo.with_environments(brax_ppo.PUBLISHED["humanoid"], num_envs)
    assert settings["num_envs"] == num_envs
    assert settings["batch_size"] == max(1, num_envs // 2)
