"""A sweep trains every run once, whatever happens to it on the way."""

import gc
import json
import random
import shutil
import signal
import time
import weakref

import pytest

from sweep.sweeps import SIX_RUNS, TWO_CELLS, Silent, plan, records, runs_of, sweep, sweep_slowly
from trpo_jax import ConfigError
from trpo_jax.errors import CheckpointError
from trpo_jax.sweep import executor
from trpo_jax.sweep.folder import SweepFolder, begin_together
from trpo_jax.sweep.running import jobs_left


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
    before = {path: path.read_bytes() for path in undisturbed.rglob("*.*") if path.is_file()}
    assert sweep(undisturbed, SIX_RUNS) == []
    assert {path: path.read_bytes() for path in undisturbed.rglob("*.*") if path.is_file()} == before


def test_only_a_torn_run_is_trained_again_and_comes_out_the_same(undisturbed, tmp_path):
    path = shutil.copytree(undisturbed, tmp_path / "sweep")
    whole = records(path)
    torn = sorted(whole)[2]
    file = path / "runs" / torn / "metrics.jsonl"
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


def test_a_program_that_fails_keeps_no_other_from_being_trained(tmp_path, monkeypatch):
    train = executor.train_together
    told = []

    class Told(Silent):
        def failed(self, job, error):
            told.append((len(job.runs), str(error)))

    def train_or_fail(runs, *arguments, **options):
        if runs[0].config.agent.critic.num_epochs == 1:
            raise RuntimeError("RESOURCE_EXHAUSTED")
        return train(runs, *arguments, **options)

    monkeypatch.setattr(executor, "train_together", train_or_fail)
    with pytest.raises(ExceptionGroup, match="1 of 2 programs failed, the others are finished") as error:
        sweep(tmp_path, TWO_CELLS, progress=Told())
    (failure,) = error.value.exceptions
    assert str(failure) == "RESOURCE_EXHAUSTED"
    assert failure.__notes__[0].startswith("In a program of 4 runs: fast-")
    assert told == [(4, "RESOURCE_EXHAUSTED")]
    assert len(records(tmp_path)) == 4
    monkeypatch.setattr(executor, "train_together", train)
    (tried_again,) = sweep(tmp_path, TWO_CELLS)
    assert len(tried_again) == 4
    assert len(records(tmp_path)) == 8


def test_a_full_disk_ends_a_sweep_at_once(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(executor, "train_together", fail)
    progress = Silent()
    with pytest.raises(OSError, match="No space left"):
        sweep(tmp_path, TWO_CELLS, progress=progress)
    assert len(progress.begun) == 1


def begun_together(path, names):
    """Leave what runs leave that are trained together, checkpoint and all."""
    folder = SweepFolder(path)
    together = folder.place_of(names)
    begin_together(together, names)
    (together / "checkpoints" / "16").mkdir(parents=True)
    return folder, together


def test_what_was_begun_goes_on_together_as_long_as_a_program_may_hold_as_many(tmp_path):
    runs = runs_of(SIX_RUNS)
    names = [run.name for run in runs]
    SweepFolder(tmp_path).begin(runs)
    folder, together = begun_together(tmp_path, names[:4])
    jobs = jobs_left(folder, plan(SIX_RUNS, most=4), finished=set())  # anew they would be three and three
    assert [len(job.runs) for job in jobs] == [4, 2]
    assert jobs[0].folder == together
    assert [len(job.runs) for job in jobs_left(folder, plan(SIX_RUNS, most=4), finished=set(names[:3]))] == [4, 2]
    with pytest.warns(UserWarning, match="3 runs start over: a program may no longer hold as many runs as theirs"):
        jobs = jobs_left(folder, plan(SIX_RUNS, most=3), finished=set(names[3:4]))
    assert [len(job.runs) for job in jobs] == [3, 2]
    assert not together.exists()


def test_what_was_begun_with_runs_that_are_planned_no_more_begins_anew(tmp_path):
    names = [run.name for run in runs_of(SIX_RUNS)]
    SweepFolder(tmp_path).begin(runs_of(SIX_RUNS))
    folder, together = begun_together(tmp_path, names)
    with pytest.warns(UserWarning, match="3 runs start over: other runs of their program are no longer planned"):
        jobs = jobs_left(folder, plan(SIX_RUNS | {"seeds": 1}), finished=set())
    assert [len(job.runs) for job in jobs] == [3]
    assert not together.exists()


def test_a_kill_between_the_last_result_and_the_end_leaves_nothing_to_do_or_to_warn_of(tmp_path):
    names = [run.name for run in runs_of(SIX_RUNS)]
    SweepFolder(tmp_path).begin(runs_of(SIX_RUNS))
    folder, together = begun_together(tmp_path, names)
    assert jobs_left(folder, plan(SIX_RUNS, most=2), finished=set(names)) == []
    assert not together.exists()


def test_what_lies_aside_or_has_no_checkpoint_stays_until_the_sweep_is_done(tmp_path):
    names = [run.name for run in runs_of(SIX_RUNS)]
    folder = SweepFolder(tmp_path)
    folder.begin(runs_of(SIX_RUNS))
    other = folder.place_of(names[:2])
    begin_together(other, names[:2])
    (other / "checkpoints-unusable").mkdir()
    jobs = jobs_left(folder, plan(SIX_RUNS), finished=set())
    assert [len(job.runs) for job in jobs] == [6]
    assert (other / "checkpoints-unusable").is_dir()
    sweep(tmp_path, SIX_RUNS)
    assert list(folder.unfinished.iterdir()) == []


def test_a_failure_holds_on_to_nothing_that_the_next_job_needs_memory_for():
    class Array:
        pass

    alive = []

    def fail():
        array = Array()
        alive.append(weakref.ref(array))
        raise RuntimeError("RESOURCE_EXHAUSTED")

    def wrapped():
        try:
            fail()
        except RuntimeError as error:
            raise ValueError from error

    outcomes = [executor.outcome_of(work) for work in (fail, wrapped)]
    assert [type(outcome) for outcome in outcomes] == [RuntimeError, ValueError]
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


@pytest.mark.parametrize("error", [ConfigError("device", "gpu", "cpu"), CheckpointError("a checkpoint cannot be written")])
def test_what_all_programs_would_meet_ends_a_sweep_at_once(error):
    def fail():
        raise error

    with pytest.raises(type(error)):
        executor.outcome_of(fail)


@pytest.mark.slow
@pytest.mark.parametrize("num_kills", [2, 10])
def test_killed_at_random_moments_every_run_is_finished_once_and_as_if_undisturbed(num_kills, tmp_path, spawn):
    sweep(tmp_path / "whole", SIX_RUNS, most=2)
    rng = random.Random(0)
    killed = 0
    path = tmp_path / "killed"
    while True:
        begun = _num_begun(tmp_path)
        process = spawn(sweep_slowly, path, json.dumps(SIX_RUNS))
        while process.is_alive() and _num_begun(tmp_path) == begun:
            time.sleep(0.01)
        if killed < num_kills:
            process.join(rng.uniform(0.2, 2.0))
            killed += process.is_alive()
            process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL  # one that cannot even begin would be started for ever
    assert killed >= num_kills // 2
    assert records(path) == records(tmp_path / "whole")
    assert len((path / "results.csv").read_text().splitlines()) == 7


def _num_begun(path):
    file = path / "begun"
    return file.read_text().count("\n") if file.exists() else 0
