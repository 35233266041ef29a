"""Which runs the benchmark of returns makes, and what it says of them; the runs themselves are trainings."""

import concurrent.futures
import json

import pytest

import returns
from returns import Arguments, Run


@pytest.fixture
def made(monkeypatch):
    runs = []

    def measure(run, arguments, cores):
        runs.append(run)
        return {**vars(run), "steps": 10, "return": 100.0 * run.seed, "seconds": 1.0, "curve": [(0, 0.0, 0.0), (10, 1.0, 1.0)]}

    monkeypatch.setattr(returns, "measure_apart", measure)
    return runs


def test_every_environment_algorithm_and_seed_is_run_and_what_a_file_holds_is_not_run_again(made, tmp_path):
    path = str(tmp_path / "result.json")
    first = Arguments(environments=("ant",), seeds=(0, 2), algorithms=("trpo_jax", "ppo"), json=path)
    returns.main(first)
    assert sorted(map(str, made)) == sorted(str(Run(a, "ant", s)) for a in ("trpo_jax", "ppo") for s in (0, 2))
    made.clear()
    returns.main(Arguments(environments=("ant", "hopper"), seeds=(0, 1, 2), json=path, resume=True))
    assert sorted(map(str, made)) == sorted(
        map(str, [Run("trpo_jax", "ant", 1), *(Run("trpo_jax", "hopper", s) for s in range(3))])
    )
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert len(rows) == 8
    summary = {(row["environment"], row["algorithm"]): row for row in returns.summary(rows)}
    assert summary["ant", "trpo_jax"]["mean return"] == 100.0
    assert summary["ant", "trpo_jax"]["each seed"] == "0, 100, 200"
    assert summary["ant", "ppo"]["standard deviation"] == pytest.approx(200 / 2**0.5)
    made.clear()
    returns.main(first)  # begins anew
    assert len(made) == 4


def test_a_run_that_fails_is_written_down_and_the_rest_goes_on(monkeypatch, tmp_path):
    def measure(run, arguments, cores):
        if run.seed == 1:
            raise MemoryError("no room")
        return {**vars(run), "steps": 10, "return": 1.0, "seconds": 1.0, "curve": []}

    class Here:
        """Runs what another process would."""

        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def submit(self, function, *arguments):
            future = concurrent.futures.Future()
            try:
                future.set_result(function(*arguments))
            except MemoryError as error:
                future.set_exception(error)
            return future

    monkeypatch.setattr(returns, "measure", measure)
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Here)
    path = tmp_path / "result.json"
    with pytest.raises(SystemExit, match="failed: trpo_jax on ant, seed 1"):
        returns.main(Arguments(environments=("ant",), seeds=(0, 1, 2), json=str(path)))
    rows = json.loads(path.read_text())["rows"]
    assert sorted(row["seed"] for row in rows if "failed" not in row) == [0, 2]
    assert [row["failed"] for row in rows if "failed" in row] == ["MemoryError: no room"]


def test_ppo_without_published_settings_is_refused_before_anything_runs(made):
    from brax_ppo import PUBLISHED

    with pytest.raises(SystemExit, match=rf"ppo: got 'hopper', allowed: {', '.join(PUBLISHED)}, "):
        returns.main(Arguments(environments=("ant", "hopper"), algorithms=("ppo",)))
    assert made == []


def test_runs_with_other_settings_are_run_again(made, tmp_path):
    path = str(tmp_path / "result.json")
    returns.main(Arguments(environments=("ant",), seeds=(0,), json=path))
    returns.main(Arguments(environments=("ant",), seeds=(0,), json=path, accelerator=True, resume=True))
    assert len(made) == 2


def test_jobs_have_cores_of_their_own():
    shares = returns.share_of_cores(1)
    assert shares.qsize() == 1
    two = returns.share_of_cores(2)
    a, b = two.get(), two.get()
    assert not set(a) & set(b) or a == b  # the same only where there is one core
