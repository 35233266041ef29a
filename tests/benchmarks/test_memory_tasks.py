"""Tasks that need a memory: what is hidden, and that a run of the smallest size leaves a row and a curve."""

import json

import jax
import numpy as np
import pytest

memory_tasks = pytest.importorskip("memory_tasks", reason='needs the extra "gymnax"', exc_type=ImportError)


def test_only_some_numbers_are_shown():
    environment = memory_tasks.load_environment("CartPole-v1")
    keys = jax.random.split(jax.random.key(0), 3)
    whole, shown = environment.reset(keys), memory_tasks.Shown(environment, (0, 2)).reset(keys)
    np.testing.assert_array_equal(shown.observation, whole.observation[:, [0, 2]])


def test_runs_become_a_row_for_each_network_and_a_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_tasks, "NETWORKS", ("gru",))
    arguments = memory_tasks.Arguments(
        seeds=(0,),
        tasks=("MemoryChain",),
        steps=2048,
        num_evals=2,
        folder=str(tmp_path / "curves"),
        json=str(tmp_path / "rows.json"),
        figure=str(tmp_path / "curves.svg"),
    )
    memory_tasks.main(arguments)
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert row["setting"] == "gru"
    assert -1 <= float(row["MemoryChain"]) <= 1
    assert (tmp_path / "curves.svg").stat().st_size > 0
