"""Where a training runs does not change what it computes: one device, eight, and two processes with four each."""

from pathlib import Path

import jax
import numpy as np
import pytest

import trpo_jax
from probes import Target
from processes import several_processes
from trainings import SHARDED
from trpo_jax import ConfigError
from trpo_jax.execution.placement import OneTraining
from trpo_jax.execution.runner import Runner

STEPS = 5 * SHARDED.num_envs * SHARDED.unroll_length


def run(num_devices):
    rows = []
    _, params, metrics = trpo_jax.train(
        Target(),
        STEPS,
        config=SHARDED,
        num_eval_envs=8,
        max_devices_per_host=num_devices,
        iteration_fn=lambda step, metrics: rows.append(metrics["training/episode_reward"]),
    )
    return jax.tree.leaves(jax.device_get(params)), rows, metrics


@pytest.fixture(scope="module")
def alone():
    return run(1)


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        scale = np.maximum(np.abs(x).max(), 1e-6)
        np.testing.assert_allclose(x / scale, y / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize("learning", ["on the first", "on all, as accelerators do"])
def test_eight_devices_compute_what_one_does(alone, learning, monkeypatch):
    if learning != "on the first":
        monkeypatch.setattr(trpo_jax.execution.placement, "are_cores_of_one_processor", lambda devices: False)
    params, rows, metrics = run(8)
    assert_same(params, alone[0])
    np.testing.assert_allclose(rows, alone[1], rtol=1e-4)
    np.testing.assert_allclose(metrics["eval/episode_reward"], alone[2]["eval/episode_reward"], rtol=1e-4)


def test_environments_are_spread_and_stay_where_they_are(monkeypatch):
    monkeypatch.setattr(trpo_jax.execution.placement, "are_cores_of_one_processor", lambda devices: False)
    trpo = trpo_jax.make_trpo(Target(), SHARDED)
    runner = Runner(trpo, OneTraining(SHARDED.num_envs, jax.devices()[:8]))
    state = runner.init(jax.random.PRNGKey(0))
    before = [(x.aval, x.sharding) for x in jax.tree.leaves(state)]
    state, _ = runner.update(state)
    assert [(x.aval, x.sharding) for x in jax.tree.leaves(state)] == before
    observation = state.rollout.environments.observation
    assert [shard.data.shape for shard in observation.addressable_shards] == [(2, 2)] * 8
    for leaf in jax.tree.leaves((state.learner, state.critic)):
        assert leaf.is_fully_replicated
        assert leaf.sharding.num_devices == 8


def test_environments_must_divide_among_devices():
    with pytest.raises(ConfigError, match="num_envs: got 16, allowed: a multiple of 3, the number of devices"):
        run(3)


def test_a_training_of_eight_devices_goes_on_with_one(tmp_path, alone):
    rows = []
    for devices, iterations in ((8, 2), (1, 5)):
        _, params, _ = trpo_jax.train(
            Target(),
            iterations * STEPS // 5,
            config=SHARDED,
            num_eval_envs=0,
            max_devices_per_host=devices,
            save_checkpoint_path=tmp_path,
            resume=True,
            iteration_fn=lambda step, metrics: rows.append(metrics["training/episode_reward"]),
        )
    assert len(rows) == 5
    assert_same(jax.tree.leaves(jax.device_get(params)), alone[0])


@pytest.mark.slow
def test_two_processes_of_four_devices_interrupted_and_resumed_compute_what_one_does(tmp_path, alone):
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    worker = Path(__file__).with_name("distributed_worker.py")
    several_processes(worker, *((str(folder), str(folders[0])) for folder in folders), num_devices=4)
    with np.load(folders[0] / "result.npz") as result:
        assert result["devices"] == 8
        assert_same([result[f"arr_{i}"] for i in range(len(alone[0]))], alone[0])
        np.testing.assert_allclose(result["rows"], alone[1], rtol=1e-4)
    assert (folders[0] / "checkpoints" / str(STEPS)).is_dir()
    assert list(folders[1].iterdir()) == []  # only the first process writes
