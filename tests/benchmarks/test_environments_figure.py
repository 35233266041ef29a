"""The figure of several environments is drawn from what was measured."""

from pathlib import Path

import environments_figure
from environments_figure import OURS, PPO, Arguments

RESULTS = tuple(
    Path(__file__).parents[2] / "docs" / "benchmarks" / "h200_2026-11-27" / f"results_{commit}.json"
    for commit in ("efd48b8", "2547e8d")
)


def test_every_seed_of_the_first_rule_and_ppo_of_either_result_are_drawn(tmp_path):
    runs = environments_figure.runs_of(RESULTS, num_envs=4096, steps=12_000_000)
    assert len({run.environment for run in runs}) == 9
    ant = {(run.setting, run.seed): run for run in runs if run.environment == "ant"}
    assert set(ant) == {*((OURS, seed) for seed in range(5)), (PPO, 1), (PPO, 2)}
    assert round(ant[OURS, 0].score) == 10817  # the second rule has 9064
    assert ant[PPO, 1].curve[-1][0] <= 12_000_000
    environments_figure.main(Arguments(RESULTS, tmp_path / "figure.svg"))
    assert (tmp_path / "figure.svg").stat().st_size > 1000


def test_trainings_with_another_number_of_environments_are_not_drawn():
    assert not environments_figure.runs_of(RESULTS, num_envs=1024, steps=12_000_000)


def test_environments_that_only_one_algorithm_was_measured_in_are_left_out():
    assert not environments_figure.runs_of(RESULTS[1:], num_envs=4096, steps=12_000_000)
