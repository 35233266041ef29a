"""The folder of a sweep keeps what is finished, and notices what is not whole."""

import csv
import shutil
import subprocess
import sys

import numpy as np
import pytest

from sweep.sweeps import SIX_RUNS, pretend_finished, runs_of
from trpo_jax import ConfigError
from trpo_jax.agent.inference import Params
from trpo_jax.errors import CheckpointError, FileError
from trpo_jax.runs.run_folder import locked, open_run_folder, read_metrics
from trpo_jax.sweep.folder import SweepFolder, begin_together
from trpo_jax.training.checkpoint import load_params

RECORDS = [{"step": 16, "training/kl": 0.5}, {"step": 32, "eval/episode_reward": 3.0}]


@pytest.fixture
def begun(tmp_path):
    folder = SweepFolder(tmp_path / "sweep")
    folder.begin(runs_of(SIX_RUNS))
    return folder


def test_a_finished_run_is_read_back_and_stands_in_the_table(begun):
    first, second, *_ = runs_of(SIX_RUNS)
    pretend_finished(begun, first, RECORDS, **{"return": 3.0})
    pretend_finished(begun, second, RECORDS, **{"return": 4.0, "new": "column"})
    assert begun.finished(first.name).records == RECORDS
    assert begun.finished(first.name).result == {"run": first.name, "steps": 32, "return": 3.0}
    begun.write_results([begun.finished(run.name).result for run in (first, second)])
    with begun.results.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["return"], row["new"]) for row in rows] == [
        (first.name, "3.0", ""),
        (second.name, "4.0", "column"),
    ]


def test_a_finished_run_is_a_folder_like_that_of_any_run(begun):
    run, *_ = runs_of(SIX_RUNS)
    pretend_finished(begun, run, RECORDS)
    folder, config = open_run_folder(begun.runs / run.name)
    assert config == run.config
    assert read_metrics(folder.metrics) == RECORDS
    step, params = load_params(folder.checkpoints, Params(None, np.zeros(2, np.float32), np.zeros(1, np.float32)))
    assert step == 32
    assert params[2].tolist() == [1.0]


def test_a_torn_or_changed_file_is_none_of_a_finished_run(begun):
    run, other, *_ = runs_of(SIX_RUNS)
    assert begun.finished(run.name) is None
    pretend_finished(begun, run, RECORDS, **{"return": 3.0})
    path = begun.runs / run.name
    for file in (path / "metrics.jsonl", path / "result.json"):
        whole = file.read_bytes()
        for length in range(len(whole) - 1):
            file.write_bytes(whole[:length])
            assert begun.finished(run.name) is None
        changed = whole.replace(b"0.5", b"0.6").replace(b'"return": 3.0', b'"return": 4.0')
        assert changed != whole
        file.write_bytes(changed)
        assert begun.finished(run.name) is None
        file.write_bytes(whole)
        assert begun.finished(run.name) is not None
    shutil.rmtree(path / "checkpoints")
    assert begun.finished(run.name) is None
    pretend_finished(begun, run, RECORDS, **{"return": 5.0})  # in place of what stands there
    assert begun.finished(run.name).result["return"] == 5.0
    path.rename(begun.runs / other.name)
    assert begun.finished(other.name) is None


def test_a_run_that_cannot_be_written_leaves_nothing(begun, monkeypatch):
    run, *_ = runs_of(SIX_RUNS)

    def fail(*_):
        raise CheckpointError("No space left on device")

    monkeypatch.setattr("trpo_jax.sweep.folder.save_params", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        pretend_finished(begun, run, RECORDS)
    assert list(begun.runs.iterdir()) == []


def test_runs_that_an_earlier_version_finished_are_not_trained_again_without_a_word(begun):
    (begun.runs / "fast-0123456789ab-seed0.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"sweep_dir: got .*, allowed: a new folder; an earlier version of trpo_jax wrote"):
        begun.begin(runs_of(SIX_RUNS))
    with pytest.raises(ConfigError, match="allowed: a new folder; an earlier version of trpo_jax"):
        begun.planned()


def test_more_runs_may_be_planned_later_but_none_that_is_finished_left_out(begun, tmp_path):
    more = runs_of(SIX_RUNS | {"seeds": 3})
    begun.begin(more)
    assert len(begun.planned()) == 9
    begun.begin(runs_of(SIX_RUNS))
    assert len(begun.planned()) == 6
    begun.begin(more)
    pretend_finished(begun, more[-1], [{"step": 0}])
    with pytest.raises(ConfigError, match=r"sweep_dir: got .*, allowed: a sweep that has the finished runs of this .*-seed2"):
        begun.begin(runs_of(SIX_RUNS))
    assert len(begun.planned()) == 9


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="a sweep's folder, or a new or empty one; nothing was changed"):
        SweepFolder(tmp_path).begin(runs_of(SIX_RUNS))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ConfigError, match=r"a folder that a sweep has written, with a plan\.json"):
        SweepFolder(tmp_path).planned()


def test_two_sweeps_in_one_folder_are_refused_by_a_lock_that_a_crash_does_not_leave(begun):
    code = f"""
import os, signal
from trpo_jax.sweep.folder import SweepFolder, begin_together
with SweepFolder({str(begun.path)!r}).locked():
    print("locked", flush=True)
    input()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"locked\n"
    with (
        pytest.raises(FileError, match=r"^another sweep is running in .*; let it end, or take another folder$"),
        begun.locked(),
    ):
        pass
    other.communicate(b"\n")
    assert other.returncode == -9
    with begun.locked():
        pass


def test_what_was_begun_is_found_again_by_its_runs_and_whether_there_is_a_checkpoint_to_go_on_from(begun):
    names = list(begun.planned())
    path, other, bare = (begun.place_of(some) for some in (names[:2], names[2:4], names[4:]))
    assert len({path, other, bare}) == 3
    assert begun.place_of(names[:2]) == path
    begin_together(path, names[:2])
    begin_together(other, names[2:4])
    begin_together(bare, names[4:])
    for each in (path, other):
        (each / "checkpoints" / "16").mkdir(parents=True)
    (other / "runs.json").write_text("[")  # torn
    found = {(each.path, each.names, each.goes_on) for each in begun.unfinished_programs()}
    assert found == {(path, tuple(names[:2]), True), (other, (), True), (bare, tuple(names[4:]), False)}


def test_where_a_worker_trains_nothing_is_removed(begun, monkeypatch):
    monkeypatch.setattr("trpo_jax.sweep.folder.PATIENCE", 0.05)
    path = begun.place_of(["one"])
    begin_together(path, ["one"])
    with (
        locked(path, AssertionError()),
        pytest.raises(FileError, match=r"^another worker is still training in .*; let it end, or end it$"),
    ):
        begun.drop(path)
    assert path.is_dir()
    begun.drop(path)
    assert not path.exists()
    begun.drop(path)


def test_a_plan_that_a_kill_has_torn_does_not_lock_anyone_out(tmp_path):
    folder = SweepFolder(tmp_path)
    (tmp_path / "plan.json.new").write_text('[{"run"')
    with folder.locked():
        folder.begin(runs_of(SIX_RUNS))
    assert len(folder.planned()) == 6
