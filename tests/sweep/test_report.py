"""What a report says of runs with known returns, and that its page shows itself without a network."""

import csv
import html
import html.parser
import itertools
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib import cbook

from sweep.sweeps import TINY, pretend_finished, runs_of
from trpo_jax import ConfigError
from trpo_jax.errors import FileError
from trpo_jax.sweep.folder import SweepFolder
from trpo_jax.sweep.report.figures import curves
from trpo_jax.sweep.report.page import write_report
from trpo_jax.sweep.report.scores import read_scores
from trpo_jax.sweep.report.statistics import Estimate
from trpo_jax.sweep.report.tables import make_tables, show
from trpo_jax.training.fields import short_names

MAPPING = TINY | {
    "environments": ["fast", "inverted_pendulum"],
    "seeds": 4,
    "grid": {"trust_region.max_kl": [0.001, 0.1], "policy.activation": ["tanh", "swish"]},
}


def score(run):
    """Return what a run is made to score: tanh and a large max_kl are better, by far more than seeds differ."""
    scale = {"fast": 1.0, "inverted_pendulum": 100.0}[run.config.environment]
    better = 4 * (run.config.agent.trust_region.max_kl > 0.01) + 2 * (run.config.agent.policy.activation == "tanh")
    return scale * (better + 0.1 * run.config.seed)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A folder of finished runs, of which none was trained."""
    folder = SweepFolder(tmp_path_factory.mktemp("sweeps") / "pretended")
    runs = runs_of(MAPPING)
    folder.begin(runs)
    for run in runs:
        records = [
            {"step": 0, "eval/episode_reward": 0.0},
            {"step": 48, "training/episode_reward": -5.0},
            {"step": 96, "eval/episode_reward": score(run)},
        ]
        pretend_finished(folder, run, records, **{"return": score(run)})
    return folder.path


def table(swept, name):
    return next(table for table in make_tables(read_scores(swept)) if table.name == name)


def test_returns_are_told_by_environment_and_setting(swept):
    rows = table(swept, "returns").rows
    assert [(row["environment"], row["setting"]) for row in rows] == [
        (environment, f"max_kl {kl}, activation {activation}")
        for environment in ("fast", "inverted_pendulum")
        for kl, activation in itertools.product((0.001, 0.1), ("tanh", "swish"))
    ]
    first = rows[0]
    assert first["runs"] == 4
    np.testing.assert_allclose([first[name].value for name in ("IQM", "mean", "median")], 2.15)
    assert 2.0 <= first["IQM"].low < 2.15 < first["IQM"].high <= 2.3


def test_costs_are_told_by_environment_and_setting(tmp_path):
    """Five iterations, of which the last is the last fifth; the algorithm without a limit says nothing of limits."""
    mapping = TINY | {"environments": ["fast"], "seeds": 2, "config": {"suite": "brax"}}
    runs = runs_of(mapping | {"grid": {"algorithm": ["trpo", "cpo"]}})
    folder = SweepFolder(tmp_path / "sweep")
    folder.begin(runs)
    for run in runs:
        limit = {"training/cost_limit": 25.0} if run.config.algorithm == "cpo" else {}
        costs = [40.0, 30.0, 20.0, 10.0, 20.0 + 4 * run.config.seed]
        expected = [{"training/expected_cost": cost + 1} | limit if limit else {} for cost in costs]
        records = [
            {"step": step, "training/episode_cost": cost} | more
            for step, (cost, more) in enumerate(zip(costs, expected, strict=True))
        ]
        pretend_finished(folder, run, [*records, {"step": 9, "eval/episode_reward": 1.0}], **{"return": 1.0})
    free, limited = table(folder.path, "costs").rows
    assert (free["setting"], limited["setting"], free["cost"], free["runs"]) == (
        "algorithm trpo", "algorithm cpo", "episode_cost", 2
    )  # fmt: skip
    assert (limited["last fifth"].value, limited["highest"]) == (22.0, 24.0)
    assert limited["share above limit"] == 0.4
    assert np.isnan(free["share above limit"])


def test_numbers_of_tables_are_rounded_and_unknown_ones_left_out():
    assert [show(value) for value in (0.35833333333, 24.372817993164062, 3.0, np.nan, 7)] == [
        "0.358333",
        "24.3728",
        "3",
        "",
        "7",
    ]


def test_environments_are_put_on_one_scale_from_the_lowest_return_to_the_best_setting(swept):
    rows = {row["setting"]: row for row in table(swept, "overall").rows}
    assert read_scores(swept).ranking()[0] == "max_kl 0.1, activation tanh"
    np.testing.assert_allclose(rows["max_kl 0.1, activation tanh"]["mean"].value, 1.0)
    np.testing.assert_allclose(rows["max_kl 0.001, activation swish"]["mean"].value, 0.15 / 6.15)
    assert all(row["environments"] == 2 and row["runs"] == 8 for row in rows.values())


def test_the_best_setting_is_compared_with_each_other(swept):
    rows = table(swept, "improvement").rows
    assert len(rows) == 3
    assert all(row["P(best is better)"] == (1.0, 1.0, 1.0) for row in rows)


def test_the_sensitivity_to_a_field_takes_in_all_values_of_the_others(swept):
    rows = table(swept, "sensitivity-max_kl").rows
    assert [row["max_kl"] for row in rows] == [0.001, 0.1]
    np.testing.assert_allclose([row["mean"].value for row in rows], [1.15 / 6.15, 5.15 / 6.15])
    # What the activation does is no noise: only seeds are drawn again.
    assert all(row["mean"].high - row["mean"].low < 0.2 / 6.15 for row in rows)
    assert [row["activation"] for row in table(swept, "sensitivity-activation").rows] == ["tanh", "swish"]


def test_fields_are_named_by_their_last_part_unless_two_share_it():
    fields = ["critic.hidden_sizes", "policy.hidden_sizes", "trust_region.max_kl"]
    assert list(short_names(fields).values()) == ["critic.hidden_sizes", "policy.hidden_sizes", "max_kl"]


@pytest.fixture(scope="module")
def report(swept):
    return write_report(swept)


def test_tables_come_as_markdown_and_csv_and_figures_as_png_and_svg(report, swept):
    folder = report.parent
    figures = {"curves", "profiles", "improvement", "sensitivity"}
    tables = {"returns", "overall", "improvement", "sensitivity-max_kl", "sensitivity-activation"}
    wanted = {f"{name}.{kind}" for name in figures for kind in ("png", "svg")} | {f"{name}.csv" for name in tables}
    assert {path.name for path in folder.iterdir()} == wanted | {"report.html", "report.md"}
    markdown = (folder / "report.md").read_text()
    assert "| fast | max_kl 0.1, activation tanh | 4 | 6.15 (" in markdown
    assert "32 of 32 runs are finished: 2 environments × 4 settings × 4 seeds." in markdown
    assert all((folder / name).is_file() for name in re.findall(r"\]\((.*?)\)", markdown))
    with (folder / "returns.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["IQM low"]) < float(rows[0]["IQM"]) < float(rows[0]["IQM high"])


class _Links(html.parser.HTMLParser):
    """Collects what a page would load."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "xlink:href") and not value.startswith("#")]


def test_the_page_loads_nothing(report):
    page = report.read_text()
    links = _Links()
    links.feed(page)
    assert links.found == []
    assert "@import" not in page
    assert page.count("<svg") == 4


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_chromium_shows_the_page_with_every_figure_and_table(report, tmp_path):
    """In its own words: what the browser has made of the page, and a picture of it that is not blank."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--window-size=1100,3000"]
    page = report.absolute().as_uri()
    shown = subprocess.run(["chromium", *options, "--dump-dom", page], capture_output=True, text=True, timeout=60, check=True)
    assert shown.stdout.count("</svg>") == 4
    assert shown.stdout.count("</table>") == 5
    picture = tmp_path / "page.png"
    subprocess.run(["chromium", *options, f"--screenshot={picture}", page], capture_output=True, timeout=60, check=True)
    import PIL.Image

    pixels = np.asarray(PIL.Image.open(picture).convert("RGB"))
    for colour in ("#0072B2", "#D55E00", "#009E73", "#CC79A7"):  # the four settings' curves
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        assert np.sum(np.all(pixels == wanted, axis=-1)) > 100, colour


def test_a_sweep_that_is_going_on_is_reported_as_far_as_it_is(swept, tmp_path):
    part = tmp_path / "part"
    shutil.copytree(swept, part)
    files = sorted((part / "runs").iterdir())
    for file in files[:-3]:
        shutil.rmtree(file)
    scores = read_scores(part)
    assert (len(scores.runs), scores.num_planned) == (3, 32)
    assert write_report(part, tmp_path / "out").is_file()
    for file in files[-3:]:
        shutil.rmtree(file)
    with pytest.raises(ConfigError, match="a sweep with at least one finished run"):
        read_scores(part)


def test_a_single_run_is_reported_without_comparisons(tmp_path):
    folder = SweepFolder(tmp_path / "one")
    (run,) = runs_of(TINY | {"environments": ["fast"]})
    folder.begin([run])
    pretend_finished(folder, run, [{"step": 16, "training/episode_reward": 1.0}], **{"return": 1.0})
    assert [table.name for table in make_tables(read_scores(folder.path))] == ["returns"]
    assert write_report(folder.path).is_file()
    assert "as configured" in (folder.path / "report" / "report.md").read_text()


def test_settings_of_one_seed_each_are_drawn_and_have_no_intervals(tmp_path):
    mapping = TINY | {"environments": ["fast"], "grid": {"discounting": [0.8, 0.9, 1.0]}}
    path = pretend(tmp_path / "sweep", mapping, lambda run: [{"step": 96, "eval/episode_reward": run.config.agent.discounting}])
    assert write_report(path).is_file()
    words = (path / "report" / "report.md").read_text()
    assert "0.95" not in words
    assert "nan" not in words
    assert " to " not in "".join(line for line in words.splitlines() if line.startswith("|"))


@pytest.mark.parametrize(
    ("value", "words"), [(999.9, "1,000"), (999.4, "999"), (1234.5, "1,234"), (-999.9, "-1,000"), (0.01234, "0.0123")]
)
def test_numbers_have_no_exponents_where_people_compare_returns(value, words):
    assert show(Estimate(value, np.nan, np.nan)) == words


def pretend(path, mapping, records_of):
    folder = SweepFolder(path)
    runs = runs_of(mapping)
    folder.begin(runs)
    for run in runs:
        records = records_of(run)
        pretend_finished(folder, run, records, **{"return": records[-1].get("eval/episode_reward")})
    return folder.path


def test_environments_that_share_no_setting_are_reported_side_by_side(tmp_path):
    (tmp_path / "mine.toml").write_text('environment = "fast"\ndiscounting = 0.5\n')
    mapping = TINY | {"environments": ["fast", str(tmp_path / "mine.toml"), "inverted_pendulum"], "seeds": 2}
    path = pretend(tmp_path / "sweep", mapping, lambda run: [{"step": 96, "eval/episode_reward": 1.0 + run.config.seed}])
    scores = read_scores(path)
    assert scores.settings == ("fast", str(tmp_path / "mine.toml"), "as configured")
    assert {table.name for table in make_tables(scores)} == {"returns", "overall", "improvement"}
    one = pretend(
        tmp_path / "one",
        mapping | {"environments": mapping["environments"][1:]},
        lambda run: [{"step": 96, "eval/episode_reward": 1.0}],
    )
    assert write_report(path).is_file()
    assert write_report(one).is_file()


def test_runs_too_short_for_an_episode_are_drawn_as_the_evaluation_that_they_have(tmp_path):
    path = pretend(
        tmp_path / "sweep",
        TINY | {"environments": ["fast"], "seeds": 2},
        lambda run: [
            {"step": 16, "training/kl": 0.1},
            {"step": 16, "eval/episode_reward": 2.0},
        ],
    )
    assert read_scores(path).runs[0].curve == ((16, 2.0),)
    assert write_report(path).is_file()


def test_values_that_are_nearly_equal_are_settings_of_their_own(tmp_path):
    mapping = TINY | {"environments": ["fast"], "grid": {"discounting": [0.9999991, 0.9999992]}}
    path = pretend(tmp_path / "sweep", mapping, lambda run: [{"step": 96, "eval/episode_reward": 1.0}])
    assert read_scores(path).settings == ("discounting 0.9999991", "discounting 0.9999992")


def test_where_a_report_cannot_be_made_one_line_says_why(swept, tmp_path):
    with pytest.raises(ConfigError, match=r"sweep_dir: got .*, allowed: a folder that a sweep has written"):
        write_report(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"^.* cannot be written: "):
        write_report(swept, tmp_path / "file")


def test_names_with_dollars_bars_and_underscores_are_shown_as_they_are(tmp_path):
    name = str(tmp_path / "_$a_1$|b.toml")
    Path(name).write_text('environment = "fast"\ndiscounting = 0.5\n')
    mapping = TINY | {"environments": ["fast", name], "seeds": 2, "grid": {"gae_lambda": [0.8, 0.9]}}
    path = pretend(tmp_path / "sweep", mapping, lambda run: [{"step": 96, "eval/episode_reward": 1.0 + run.config.seed}])
    page = write_report(path)
    shown = html.unescape(page.read_text())
    assert shown.count(f"{name}, gae_lambda") > 3  # a table's cells, and a figure's legend
    (row,) = [line for line in (path / "report" / "report.md").read_text().splitlines() if "b.toml, gae_lambda 0.8" in line][:1]
    assert name.replace("|", r"\|") in row
    figure = curves(read_scores(path))
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words[2].replace(r"\$", "$") == f"{name}, gae_lambda 0.8"
    assert not cbook.is_math_text(words[2])
