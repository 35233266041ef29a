"""A sweep trains every run once, whatever happens to it on the way."""

import json
import random
import shutil
import time

import pytest

from sweep.sweeps import SIX_RUNS, records, sweep, sweep_slowly
from trpo_jax.sweep.folder import SweepFolder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweep") / "whole"
    sweep(path, SIX_RUNS)
    return path


def test_every_run_leaves_its_metrics_and_a_row_of_the_table(undisturbed):
    folder = SweepFolder(undisturbed)
    found = [folder.finished(name) for name in folder.planned()]
    assert len(found) == 6
    assert list(folder.unfinished.iterdir()) == []
    for each in found:
        result = each.result
        assert result["return"] == each.records[-1]["eval/episode_reward"]
        assert (result["steps"], result["runs_in_program"], result["environment"]) == (96, 6, "fast")
        assert {"git_commit", "version.jax", "device", "seconds", "config.gae_lambda", "seed"} <= result.keys()
    assert len(folder.results.read_text().splitlines()) == 7


def test_a_finished_sweep_has_nothing_left_to_do(undisturbed):
    before = {path: path.read_bytes() for path in undisturbed.rglob("*.*")}
    assert sweep(undisturbed, SIX_RUNS) == []
    assert {path: path.read_bytes() for path in undisturbed.rglob("*.*")} == before


def test_only_a_torn_run_is_trained_again_and_comes_out_the_same(undisturbed, tmp_path):
    path = shutil.copytree(undisturbed, tmp_path / "sweep")
    whole = records(path)
    torn = sorted(whole)[2]
    file = path / "runs" / f"{torn}.jsonl"
    file.write_bytes(file.read_bytes()[:-30])
    assert sweep(path, SIX_RUNS) == [[torn]]
    again = records(path)
    assert {name: again[name] for name in again if name != torn} == {name: whole[name] for name in whole if name != torn}
    assert [record["step"] for record in again[torn]] == [record["step"] for record in whole[torn]]


def test_later_seeds_are_trained_and_earlier_ones_are_not(undisturbed, tmp_path):
    path = shutil.copytree(undisturbed, tmp_path / "sweep")
    before = records(path)
    (more,) = sweep(path, SIX_RUNS | {"seeds": 3})
    assert len(more) == 3
    assert all(name.endswith("-seed2") for name in more)
    after = records(path)
    assert len(after) == 9
    assert {name: after[name] for name in before} == before


def test_killed_at_ten_random_moments_every_run_is_finished_once_and_as_if_undisturbed(tmp_path, spawn):
    sweep(tmp_path / "whole", SIX_RUNS, most=2)
    rng = random.Random(0)
    killed = 0
    path = tmp_path / "killed"
    while True:
        begun = _num_begun(tmp_path)
        process = spawn(sweep_slowly, path, json.dumps(SIX_RUNS))
        while process.is_alive() and _num_begun(tmp_path) == begun:
            time.sleep(0.01)
        if killed < 10:
            process.join(rng.uniform(0.2, 2.0))
            killed += process.is_alive()
            process.kill()
        process.join()
        if process.exitcode == 0:
            break
    assert killed >= 5
    assert records(path) == records(tmp_path / "whole")
    assert len((path / "results.csv").read_text().splitlines()) == 7


def _num_begun(path):
    file = path / "begun"
    return file.read_text().count("\n") if file.exists() else 0
