"""The benchmarks run at their smallest size; what they measure is not asserted."""

import json

import jax.numpy as jnp

import policy_update
import report


def test_competitors_take_turns_after_a_warm_up():
    calls = []
    competitors = {name: lambda name=name: calls.append(name) or jnp.zeros(()) for name in "ab"}
    seconds = report.alternate(competitors, rounds=2)
    assert calls == ["a", "b", "a", "b", "a", "b"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_taken_round_by_round():
    assert report.ratio([1.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_a_result_says_where_it_was_measured(tmp_path):
    report.save(tmp_path / "new" / "result.json", [{"a": 1}])
    record = json.loads((tmp_path / "new" / "result.json").read_text())
    assert record["rows"] == [{"a": 1}]
    assert {"device", "versions", "commit", "date"} <= set(record["where"])


def test_the_policy_update_benchmark_runs_and_its_competitors_agree(tmp_path, capsys):
    path = tmp_path / "result.json"
    policy_update.main(policy_update.Arguments(samples=(256,), hidden_sizes=(8,), rounds=1, json=str(path)))
    (row,) = json.loads(path.read_text())["rows"]
    assert row["samples"] == 256
    assert row["ratio"] > 0
    assert "one policy update" in capsys.readouterr().out
