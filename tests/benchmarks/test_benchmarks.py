"""The benchmarks run at their smallest size; what they measure is not asserted."""

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import jax.numpy as jnp
import pytest

import curvature_costs
import policy_update
import report


def test_competitors_take_turns_each_after_a_call_that_is_not_timed():
    calls = []
    competitors = {name: lambda name=name: calls.append(name) or jnp.zeros(()) for name in "ab"}
    seconds = report.alternate(competitors, rounds=2)
    assert calls == ["a", "a", "b", "b"] * 2
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_taken_round_by_round():
    assert report.ratio([1.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_a_result_says_where_it_was_measured(tmp_path):
    report.save(tmp_path / "new" / "result.json", [{"a": 1}])
    record = json.loads((tmp_path / "new" / "result.json").read_text())
    assert record["rows"] == [{"a": 1}]
    assert {"device", "versions", "commit", "date"} <= set(record["where"])


def test_what_cannot_be_found_out_about_a_machine_is_unknown(monkeypatch):
    def nothing(*_, **__):
        raise FileNotFoundError("git")

    def no_metadata(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(report.subprocess, "run", nothing)
    monkeypatch.setattr("trpo_jax.versions.version", no_metadata)
    where = report.describe_machine()
    assert where["commit"] == "unknown"
    assert set(where["versions"].values()) == {"unknown"}


def test_the_package_works_from_a_checkout_that_is_not_installed():
    code = (
        "import importlib.metadata as metadata\n"
        "known = metadata.version\n"
        "def version(name):\n"
        "    if name != 'trpo-jax': return known(name)\n"
        "    raise metadata.PackageNotFoundError(name)\n"
        "metadata.version = version\n"
        "import trpo_jax; print(trpo_jax.__version__)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "unknown"


def test_a_result_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "result.json"
    report.save(path, [{"a": 1}])
    with pytest.raises(TypeError):
        report.save(path, [{"a": object()}])
    assert json.loads(path.read_text())["rows"] == [{"a": 1}]


def test_no_rows_are_no_table(capsys):
    report.show("nothing", [])
    assert capsys.readouterr().out == ""


def test_a_row_may_lack_what_others_have(capsys):
    report.show("ragged", [{"name": "a", "late": 1}, {"name": "b", "early": 2, "late": 3}])
    lines = capsys.readouterr().out.replace("┃", "│").splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert rows == [["name", "late", "early"], ["a", "1", ""], ["b", "3", "2"]]


def test_the_policy_update_benchmark_runs_and_its_competitors_agree(tmp_path, capsys):
    path = tmp_path / "result.json"
    policy_update.main(policy_update.Arguments(samples=(256,), hidden_sizes=(8,), rounds=1, json=str(path)))
    (row,) = json.loads(path.read_text())["rows"]
    assert row["samples"] == 256
    assert row["ratio"] > 0
    assert "one policy update" in capsys.readouterr().out


def test_the_benchmark_of_curvature_costs_runs(tmp_path):
    path = tmp_path / "result.json"
    arguments = curvature_costs.Arguments(
        samples=256, memory_samples=512, num_microbatches=4, hidden_sizes=(8,), rounds=1, json=str(path)
    )
    curvature_costs.main(arguments)
    (row,) = json.loads(path.read_text())["rows"]
    assert 0 < row["memory ratio"] < 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the peer's mean of no critic losses
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what the peer imports
def test_the_peer_takes_the_same_step(tmp_path):
    pytest.importorskip("sb3_contrib", reason='needs the extra "bench"')
    import sb3_contrib_update

    path = tmp_path / "result.json"
    sb3_contrib_update.main(sb3_contrib_update.Arguments(samples=(256,), hidden_sizes=(8,), rounds=1, json=str(path)))
    whole, tenth = json.loads(path.read_text())["rows"]
    assert whole["cosine"] > 0.9999
    assert abs(whole["length"]) < 1e-3
    assert tenth["curvature_fraction"] == 0.1


@pytest.mark.filterwarnings("ignore::UserWarning")  # the peer's advice on devices
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what the peer imports
def test_whole_trainings_are_timed_with_the_same_settings(tmp_path):
    pytest.importorskip("sb3_contrib", reason='needs the extra "bench"')
    import sb3_contrib_training

    path = tmp_path / "result.json"
    arguments = sb3_contrib_training.Arguments(environments=("InvertedPendulum-v5",), steps=4096, json=str(path))
    sb3_contrib_training.main(arguments)
    (row,) = json.loads(path.read_text())["rows"]
    assert row["ratio"] == row["trpo_jax, seconds"] / row["sb3-contrib, seconds"] > 0
    assert row["trpo_jax, return"] > 0 < row["sb3-contrib, return"]
