import dataclasses
import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trpo_jax import ConfigError, PPOConfig, TRPOConfig, TrustRegionConfig
from trpo_jax.errors import FileError, MissingPackageError
from trpo_jax.runs import plot
from trpo_jax.runs.run_folder import create_run_folder
from trpo_jax.training.run_config import RunConfig

RECORDS = [
    (0, {"eval/episode_reward": 1.0}),
    *((step, {"training/kl": 0.01, "training/accepted": 1.0, "training/sps": 100.0}) for step in range(10, 70, 10)),
    (60, {"eval/episode_reward": 5.0}),
]


def make_run(path, records=RECORDS, max_kl=0.02, **fields):
    config = RunConfig(agent=TRPOConfig(trust_region=TrustRegionConfig(max_kl=max_kl)), **fields)
    folder = create_run_folder(path, config)
    bound = {"training/kl_bound": max_kl}
    lines = [{"step": step} | metrics | (bound if "training/kl" in metrics else {}) for step, metrics in records]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_curves_are_read_by_metric(tmp_path):
    curves = plot.read_curves(make_run(tmp_path / "run").metrics)
    assert curves["eval/episode_reward"].step.tolist() == [0, 60]
    assert curves["eval/episode_reward"].value.tolist() == [1, 5]
    assert curves["training/kl"].step.tolist() == [10, 20, 30, 40, 50, 60]


def test_a_torn_line_is_skipped_wherever_it_stands(tmp_path):
    """A crash tears the last line; a resumed run writes on behind it."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "a": 1.0}\n{"step": 2, "a": 2.\n7\n{"step": 3, "a": 3.0}\n{"step": 4, "a": \xc3')
    assert plot.read_curves(path)["a"].value.tolist() == [1, 3]


def test_of_two_values_at_one_step_the_later_one_counts(tmp_path):
    records = [(1, {"a": 1.0}), (2, {"a": 2.0}), (3, {"a": 3.0}), (2, {"a": 20.0}), (3, {"a": 30.0}), (4, {"a": 40.0})]
    curve = plot.read_curves(make_run(tmp_path / "run", records).metrics)["a"]
    assert curve.step.tolist() == [1, 2, 3, 4]
    assert curve.value.tolist() == [1, 20, 30, 40]


@pytest.mark.parametrize("content", ["", "\n", '{"step": 3, "a', '{"step": 3}\n'])
def test_metrics_without_a_record_are_one_clear_line(content, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=r"metrics: got '.*metrics.jsonl', allowed: a file with at least one complete line"):
        plot.read_curves(tmp_path / "metrics.jsonl")


def test_a_missing_metrics_file_is_one_clear_line(tmp_path):
    with pytest.raises(ConfigError, match=r"metrics: got '.*', allowed: a file that a training wrote \(No such file"):
        plot.read_curves(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("window", [1, 2, 3, 5, 100])
def test_the_moving_average_is_the_mean_of_the_neighbours(window):
    value = np.random.default_rng(0).normal(size=9)
    half = min(window, 9) // 2
    expected = [value[max(0, i - half) : i + half + 1].mean() for i in range(9)]
    np.testing.assert_allclose(plot.moving_average(value, window), expected)


def test_runs_are_named_after_their_folders_or_by_their_paths_where_those_are_alike():
    assert plot.run_names(["runs/a", "runs/b/"]) == ["a", "b"]
    assert plot.run_names(["x/seed0", "y/seed0", "other"]) == ["x/seed0", "y/seed0", "other"]


def draw(*runs):
    return plot.draw([plot.read_run(run.path, run.path.name) for run in runs])


def legend(figure):
    return [text.get_text() for each in figure.legends for text in each.get_texts()]


def drawn(axis):
    """Return the lines with data, as (steps, values)."""
    return [line.get_xydata().T.tolist() for line in axis.lines if len(line.get_xdata()) > 0]


def test_one_figure_shows_every_metric_of_every_run(tmp_path):
    paths = [make_run(tmp_path / name, max_kl=max_kl).path for name, max_kl in (("narrow", 0.02), ("wide", 0.05))]
    figure = plot.draw([plot.read_run(path, path.name) for path in paths])
    returns, kl, accepted, explained, speed = figure.axes
    assert legend(figure) == ["max_kl 0.02", "max_kl 0.05"]
    assert returns.get_title("left") == "ant: return"
    assert drawn(returns).count([[0, 60], [1, 5]]) == 2  # evaluations; no episode has ended in training
    assert drawn(kl)[0] == [[10, 20, 30, 40, 50, 60], pytest.approx([0.01] * 6)]
    assert [y for _, y in drawn(kl)[2:]] == [[0.02] * 6, [0.05] * 6]
    assert [text.get_text() for text in kl.texts] == ["max_kl 0.02", "max_kl 0.05"]
    assert kl.get_ylim()[1] > 0.05
    assert drawn(accepted)[0][1] == pytest.approx([1.0] * 6)
    assert drawn(explained) == []
    assert drawn(speed)[0][1] == pytest.approx([100.0] * 6)
    assert all("environment steps" in axis.get_xlabel() for axis in figure.axes)


def test_the_bound_is_drawn_as_it_falls(tmp_path):
    bounds = ((10, 0.1), (20, 0.05), (30, 0.01))
    run = make_run(tmp_path / "run", [(step, {"training/kl_bound": bound}) for step, bound in bounds], max_kl=0.1)
    kl = draw(run).axes[1]
    assert [[10, 20, 30], [0.1, 0.05, 0.01]] in drawn(kl)
    assert [text.get_text() for text in kl.texts] == ["max_kl 0.1"]


def returns_of(*values):
    return [(step, {"training/episode_reward": value}) for step, value in zip((10, 20, 30, 40), values, strict=False)]


def test_seeds_of_a_setting_are_their_mean_with_a_band(tmp_path):
    runs = [
        make_run(tmp_path / str(seed), returns_of(*values), seed=seed) for seed, values in enumerate([(1, 2, 3), (3, 6, 9)])
    ]
    figure = draw(*runs)
    assert legend(figure) == []  # there is a single setting
    returns = figure.axes[0]
    assert drawn(returns) == [[[10, 20, 30], [2, 4, 6]]]
    (band,) = returns.collections
    points = band.get_paths()[0].vertices.tolist()
    assert {(10.0, 1.0), (10.0, 3.0), (30.0, 3.0), (30.0, 9.0)} <= {tuple(point) for point in points}
    assert [text.get_text() for text in returns.get_legend().get_texts()][2:] == ["lowest to highest seed"]


def test_a_seed_that_has_not_come_as_far_counts_as_far_as_it_has_come(tmp_path):
    runs = [make_run(tmp_path / str(seed), returns_of(*values), seed=seed) for seed, values in enumerate([(1, 2), (3, 6, 9)])]
    assert drawn(draw(*runs).axes[0]) == [[[10, 20, 30], [2, 4, 9]]]


@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.floats(-5, 5)), min_size=1), min_size=1, max_size=4))
def test_the_average_lies_between_the_lowest_and_the_highest_and_is_the_mean_where_all_have_a_step(points):
    curves = [plot.Curve(*np.array(sorted(dict(some).items()), float).T) for some in points]
    mean, lowest, highest = plot.average(curves)
    assert mean.step.tolist() == sorted({step for curve in curves for step in curve.step})
    assert (lowest.value <= mean.value + 1e-9).all()
    assert (mean.value <= highest.value + 1e-9).all()
    for step, value in zip(*mean, strict=True):
        if all(step in curve.step for curve in curves):
            assert value == pytest.approx(np.mean([curve.value[curve.step == step] for curve in curves]))


def test_each_environment_has_panels_of_its_own_and_a_setting_one_colour_in_all(tmp_path):
    fields = [
        {"environment": environment, "max_kl": max_kl, "seed": seed}
        for environment in ("ant", "hopper")
        for max_kl in (0.02, 0.05)
        for seed in (0, 1)
    ]
    figure = draw(*(make_run(tmp_path / str(number), **each) for number, each in enumerate(fields)))
    assert legend(figure) == ["max_kl 0.02", "max_kl 0.05"]
    assert [axis.get_title("left") for axis in figure.axes[::5]] == ["ant: return", "hopper: return"]
    kl_panels = figure.axes[1::5]
    colours = [[line.get_color() for line in axis.lines if len(line.get_xdata()) == 6] for axis in kl_panels]
    assert colours == [2 * list(plot.COLOURS[:2])] * 2  # the KL and its bound


def test_what_only_environments_differ_in_is_no_setting(tmp_path):
    runs = make_run(tmp_path / "a", environment="ant"), make_run(tmp_path / "h", max_kl=0.05, environment="hopper")
    assert legend(draw(*runs)) == []


def test_runs_of_two_algorithms_are_named_by_what_both_have(tmp_path):
    ours = make_run(tmp_path / "a", seed=1)
    other = create_run_folder(tmp_path / "b", RunConfig(agent=dataclasses.replace(PPOConfig(), gae_lambda=0.99), seed=1))
    other.metrics.write_text(ours.metrics.read_text())
    figure = plot.draw([plot.read_run(folder.path, folder.path.name) for folder in (ours, other)])
    assert legend(figure) == ["algorithm trpo", "algorithm ppo"]


def test_two_runs_of_one_setting_and_seed_are_told_apart_by_their_folders(tmp_path):
    names = ["before", "_af$ter$"]
    figure = draw(*(make_run(tmp_path / name) for name in names))
    assert legend(figure) == ["before", r" _af\$ter\$"]  # as matplotlib shows what it neither hides nor takes for a formula


def test_two_sweeps_of_one_setting_are_told_apart_by_the_folders_that_their_runs_lie_in(tmp_path):
    runs = [make_run(tmp_path / when / str(seed), seed=seed) for when in ("before", "after") for seed in (0, 1)]
    (groups,) = plot.group_runs([plot.read_run(run.path, run.path.name) for run in runs]).values()
    assert [(group.label, len(group.runs)) for group in groups] == [(str(tmp_path / "before"), 2), (str(tmp_path / "after"), 2)]


def test_how_a_run_is_evaluated_and_saved_is_no_setting(tmp_path):
    runs = [make_run(tmp_path / str(seed), seed=seed, num_evals=seed, keep_checkpoints=seed + 1) for seed in range(3)]
    (groups,) = plot.group_runs([plot.read_run(run.path, run.path.name) for run in runs]).values()
    assert [(group.label, len(group.runs)) for group in groups] == [("", 3)]


def test_single_outcomes_are_shown_as_a_fraction(tmp_path):
    records = [(step, {"training/accepted": float(step % 2)}) for step in range(1000)]
    figure = plot.draw([plot.read_run(make_run(tmp_path / "run", records).path, "run")])
    ((_, fraction),) = drawn(figure.axes[2])
    assert 0.4 < min(fraction) < max(fraction) < 0.6


def test_a_wild_critic_does_not_press_its_curve_flat(tmp_path):
    records = [(step, {"training/explained_variance": -1e6 if step == 1 else 0.9}) for step in range(1, 100)]
    figure = plot.draw([plot.read_run(make_run(tmp_path / "run", records).path, "run")])
    assert figure.axes[3].get_ylim() == (-1.0, 1.05)


def test_more_runs_than_colours_are_told_apart_by_line_style():
    styles = {tuple(plot._style(number).values()) for number in range(20)}
    assert len(styles) == 20


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_the_ending_says_the_format(ending, start, tmp_path):
    run = make_run(tmp_path / "run").path
    path = plot.plot_runs([run], tmp_path / f"picture.{ending}")
    assert path.read_bytes().startswith(start)


def test_the_picture_is_one_to_look_at(tmp_path):
    with Image.open(plot.plot_runs([make_run(tmp_path / "run").path], tmp_path / "plot.png")) as picture:
        image = picture.convert("RGB")
    assert image.width > 1500
    assert len(image.getcolors(1_000_000)) > 50


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("picture.gif", r"out: got 'picture.gif', allowed: a file name that ends in .png or .pdf or .svg"),
        ("none/picture.png", r"^none/picture.png cannot be written: No such file"),
    ],
)
def test_an_output_that_cannot_be_written_is_one_clear_line(out, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run")
    with pytest.raises((ConfigError, FileError), match=message):
        plot.plot_runs(["run"], out)


def test_without_matplotlib_one_line_names_the_extra(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run").path
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackageError) as error:
        plot.plot_runs([run], "plot.png")
    assert str(error.value) == 'a plot needs matplotlib, which is not installed: pip install "trpo-jax[plot]"'
