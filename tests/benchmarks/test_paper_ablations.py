"""The comparison of the paper: evolution strategies in the place of runs, on a task of a few steps."""

import dataclasses

import jax.numpy as jnp
import pytest

import paper_ablations
from sweep.sweeps import TINY, runs_of
from trpo_jax.agent.evaluate import Episodes
from trpo_jax.sweep.report.scores import ScoredRun, gather

RUNS = runs_of(TINY | {"environments": ["fast"], "seeds": 1})


def test_a_row_is_a_setting_with_its_returns_in_each_environment():
    scores = gather(
        [
            ScoredRun(f"{environment}-{setting}", environment, setting, {}, 0, score, ((0, 0.0), (9, score)))
            for environment, setting, score in [("a", "vine", 1.0), ("a", "CMA-ES", 3.0), ("b", "vine", 5.0)]
        ]
    )
    rows = paper_ablations.rows_of(scores)
    assert [(row["setting"], row.get("a"), row.get("b")) for row in rows] == [("vine", "1", "5"), ("CMA-ES", "3", None)]


@pytest.mark.parametrize("name", paper_ablations.STRATEGIES)
def test_a_strategy_takes_as_many_steps_as_a_run_and_is_not_repeated(name, tmp_path, monkeypatch):
    pytest.importorskip("evosax", reason='needs the extra "bench"')
    run = paper_ablations.scored(RUNS[0], name, tmp_path)
    assert run.curve[0][0] == 0
    assert run.curve[-1][0] == RUNS[0].config.num_timesteps
    assert (run.environment, run.setting, run.score) == ("fast", name, run.curve[-1][1])
    monkeypatch.delattr(paper_ablations, "evolve")
    assert paper_ablations.scored(RUNS[0], name, tmp_path) == run


@pytest.mark.parametrize("name", paper_ablations.STRATEGIES)
def test_a_strategy_seeks_high_returns(name, monkeypatch):
    """The return is highest where all weights are 0; they start at 1."""
    pytest.importorskip("evosax", reason='needs the extra "bench"')

    def play(candidates, key):
        returns = -jnp.sum(candidates**2, axis=-1)
        return Episodes(returns, jnp.full(returns.shape, 100))

    monkeypatch.setattr(paper_ablations, "programs", lambda config: (play, play, jnp.ones(5)))
    config = dataclasses.replace(RUNS[0].config, num_timesteps=640_000)
    curve = paper_ablations.evolve(RUNS[0]._replace(config=config), name)
    assert [step for step, _ in curve] == [k * 64_000 for k in range(11)]
    assert curve[0][1] == -5
    assert curve[-1][1] > -0.1
