"""Which runs the benchmark of returns makes, and what it says of them; the runs themselves are trainings."""

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


def test_jobs_have_cores_of_their_own():
    shares = returns.share_of_cores(1)
    assert shares.qsize() == 1
    two = returns.share_of_cores(2)
    a, b = two.get(), two.get()
    assert not set(a) & set(b) or a == b  # the same only where there is one core
