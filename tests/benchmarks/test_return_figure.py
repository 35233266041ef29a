"""The figure of the README is drawn from what was measured."""

from pathlib import Path

import pytest

import return_figure
from return_figure import Arguments

RESULT = Path(__file__).parents[2] / "docs" / "benchmarks" / "h200_2026-11-27" / "results.json"


def test_the_figure_shows_both_algorithms_over_seconds_and_steps(tmp_path):
    path = tmp_path / "figure.svg"
    return_figure.main(Arguments(RESULT, path))
    assert path.stat().st_size > 1000
    rows = return_figure.rows_of(RESULT, "ant", 0)
    seconds, steps = return_figure.draw(rows, "Ant").axes
    assert [line.get_label() for line in steps.lines] == ["trpo_jax", "Brax PPO"]
    assert len(seconds.lines) == 4  # with compilation and without
    assert steps.lines[0].get_ydata()[-1] == pytest.approx(7828.8)


def test_trainings_side_by_side_have_no_seconds_to_draw():
    with pytest.raises(SystemExit, match=r"got no training of halfcheetah with seed 0"):
        return_figure.main(Arguments(RESULT.with_name("results_efd48b8.json"), Path("figure.svg"), environment="halfcheetah"))


def test_a_training_that_was_not_measured_is_named():
    with pytest.raises(SystemExit, match=r"results.json: got no training of hopper with seed 3"):
        return_figure.main(Arguments(RESULT, Path("figure.svg"), environment="hopper", seed=3))
