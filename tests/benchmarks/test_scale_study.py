"""Returns against the number of environments: what PPO is given at each, and what is drawn."""

import brax_ppo
import scale_study
from scale_study import OURS, PPO
from trpo_jax import shipped_config
from trpo_jax.sweep.plan import plan_file
from trpo_jax.sweep.report.scores import ScoredRun

PLAN = plan_file(scale_study.SWEEP)


def scored(num_envs, seed, score):
    return ScoredRun(f"ant-{seed}", "ant", "", {"num_envs": num_envs}, seed, score, ((0, 0.0), (100, score)))


def test_ours_has_the_settings_for_an_accelerator_at_every_size():
    assert {run.config.agent.num_envs for run in PLAN} == {64, 256, 1024, 4096}
    assert len({repr(run.config.agent) for run in PLAN}) == 4
    shipped = shipped_config("ant", accelerator=True).agent
    assert all(run.config.agent == shipped for run in PLAN if run.config.agent.num_envs == 4096)
    assert len({run.config.num_timesteps for run in PLAN}) == 1
    assert all(run.config.num_timesteps % (run.config.agent.num_envs * run.config.agent.unroll_length) == 0 for run in PLAN)


def test_ppo_is_trained_at_both_ends_with_the_same_seeds_and_steps():
    runs = scale_study.ppo_runs(PLAN)
    ours = {(run.config.environment, run.config.seed, run.config.num_timesteps) for run in PLAN}
    assert {(run.environment, run.seed, run.num_timesteps) for run in runs} == ours
    assert {run.swept["num_envs"] for run in runs} == {64, 4096}
    assert len(runs) == len(PLAN) / 2
    for run in runs:
        assert run.settings["batch_size"] * run.settings["num_minibatches"] % run.settings["num_envs"] == 0  # Brax's condition


def test_ppo_has_its_searched_minibatches_at_every_size():
    few, many, most = (scale_study.ppo_settings(size) for size in (64, 1024, 4096))
    assert few == brax_ppo.ONE_SETTING
    assert many == {**brax_ppo.ONE_SETTING, "num_envs": 1024, "num_minibatches": 32}
    assert most["batch_size"] * most["num_minibatches"] == 4096


def test_the_mean_over_seeds_is_drawn_with_every_seed():
    rows = scale_study.rows_of([scored(64, 0, 10.0), scored(64, 1, 30.0)], PPO)
    assert [(row["steps"], row["return"], row["each seed"]) for row in rows] == [(100, 20.0, [10.0, 30.0])]
    (axis,) = scale_study.draw([*rows, *scale_study.rows_of([scored(256, 0, 6.0)], OURS)]).axes
    drawn = [list(line.get_ydata()) for line in axis.lines]
    assert drawn == [[6.0], [6.0], [20.0], [10.0, 30.0]]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["64", "256"]
