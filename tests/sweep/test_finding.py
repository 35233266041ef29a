"""A run is found by what a person types."""

from pathlib import Path

import pytest

from sweep.sweeps import SIX_RUNS, TINY, pretend_finished, runs_of
from trpo_jax import ConfigError
from trpo_jax.runs.run_folder import create_run_folder
from trpo_jax.sweep.finding import FoundRun, best_run, find_runs
from trpo_jax.sweep.folder import SweepFolder
from trpo_jax.training.run_config import RunConfig

RECORDS = [{"step": 32, "eval/episode_reward": 3.0}]


@pytest.fixture
def finished(tmp_path):
    """A sweep of two environments, two settings and two seeds, of which all but one run are finished."""
    runs = runs_of(TINY | {"environments": ["fast", "inverted_pendulum"], "seeds": 2, "grid": {"gae_lambda": [0.8, 0.9]}})
    folder = SweepFolder(tmp_path / "sweep")
    folder.begin(runs)
    for number, run in enumerate(runs[:-1]):
        pretend_finished(folder, run, RECORDS, **{"return": [3.0, None, 8.0, 1.0, 7.0, 2.0, 4.0][number]})
    return folder, [run.name for run in runs]


def test_runs_are_found_by_a_name_that_a_person_can_type(finished):
    folder, names = finished

    def found(typed):
        return [run.path.relative_to(folder.runs).name for run in find_runs(folder.path / typed)]

    assert found("") == names[:-1]
    assert found("fast") == names[:4]
    assert found("fast-seed1") == [names[1], names[3]]
    environment, digest, seed = names[2].split("-")
    assert found(f"{environment}-{digest[:5]}") == [names[2], names[3]]
    assert found(f"{environment}-{digest[:5]}-{seed}") == [names[2]]
    assert found(names[2]) == [names[2]]
    assert find_runs(folder.path / names[2])[0].swept == {"gae_lambda": 0.9}
    assert find_runs(folder.runs / names[0]) == [FoundRun(folder.runs / names[0], {}, None)]
    assert find_runs("elsewhere") == [FoundRun(Path("elsewhere"), {}, None)]
    for typed in ("fas", "fast-seed", "fast-seed11", f"fast-{digest}0", names[-1]):
        with pytest.raises(ConfigError, match=r"run: got .*, allowed: one of the sweep's 7 finished runs, .*/sweep/fast-"):
            find_runs(folder.path / typed)


def test_the_best_of_several_runs_has_the_highest_return(finished):
    folder, names = finished
    assert best_run(folder.path).name == names[2]
    assert best_run(folder.path / "inverted_pendulum").name == names[4]
    assert best_run(folder.path / "fast-seed1").name == names[3]  # the other has no return
    assert best_run("elsewhere") == Path("elsewhere")


def test_a_sweep_that_has_finished_nothing_has_no_runs_to_show(tmp_path):
    SweepFolder(tmp_path / "sweep").begin(runs_of(SIX_RUNS))
    with pytest.raises(ConfigError, match=r"run: got .*, allowed: a finished run; the sweep .*/sweep has none yet"):
        find_runs(tmp_path / "sweep")


def test_a_run_by_itself_is_found_whatever_lies_beside_it(tmp_path):
    (tmp_path / "plan.json").write_text("of something else")
    path = create_run_folder(tmp_path / "mine", RunConfig()).path
    assert find_runs(path) == [FoundRun(path, {}, None)]
