"""The accelerator's benchmark at its smallest size, and what its figures rest on."""

import dataclasses
import json
import math

import jax.numpy as jnp
import pytest

import accelerator
import throughput
from accelerator import Arguments, Recorder

TINY = Arguments(num_envs=16, unroll_length=16, rounds=1, iterations=1, samples=64, hidden_size=4, devices=(1,))


def fail():
    raise RuntimeError("out of memory")


def test_a_part_that_fails_is_written_down_and_the_rest_goes_on(tmp_path):
    path = tmp_path / "result.json"
    recorder = Recorder(Arguments(json=str(path)))
    recorder.part("a", "first", fail)
    assert json.loads(path.read_text())["rows"][0]["failed"] == "RuntimeError: out of memory"
    recorder.part("b", "second", lambda: [{"value": 1.0, "curve": []}])
    assert [(row["title"], row.get("value")) for row in json.loads(path.read_text())["rows"]] == [
        ("first", None),
        ("second", 1.0),
    ]


def test_a_part_that_would_end_after_the_time_does_not_begin():
    recorder = Recorder(Arguments(minutes=1.0))
    recorder.longest["a"] = 61.0
    recorder.part("a", "left out", fail)
    recorder.part("b", "measured", lambda: [{"value": 1.0}])
    assert [row.get("left out") for row in recorder.rows] == ["no time", None]


def test_the_simulators_environments_are_split_over_devices():
    tree = {"state": jnp.zeros((16, 3)), "key": jnp.zeros(2)}
    spread = throughput.over_devices(tree, num_envs=16, num_devices=2)
    assert [shard.data.shape for shard in spread["state"].addressable_shards] == [(8, 3)] * 2
    assert spread["key"].is_fully_replicated


@pytest.mark.brax
def test_the_smallest_size_runs(tmp_path, capsys):
    path = tmp_path / "result.json"
    # "fast" is Brax's own probe: a point that can only gain
    one = {"environments": ("fast",), "backends": ("spring",), "target": 0.0, "num_timesteps": 1280, "num_evals": 2}
    arguments = dataclasses.replace(TINY, **one, json=str(path))
    accelerator.main(arguments)
    rows = json.loads(path.read_text())["rows"]
    parts = [row["part"] for row in rows]
    assert parts == ["precision"] * 6 + ["throughput", "shares", "time to return", "time to return"]
    throughput, shares, ours, ppo = rows[6:]
    assert all(throughput[name] > 0 for name in ("training", "simulator", "PPO"))
    assert throughput["training ÷ PPO"] == pytest.approx(throughput["training"] / throughput["PPO"])
    assert shares["rollout"] + shares["policy"] + shares["critic"] == pytest.approx(1)
    assert [ours["algorithm"], ppo["algorithm"]] == ["trpo_jax", "Brax PPO"]
    assert all(row["arrived"] and math.isfinite(row["return"]) and row["part took"] > row["seconds"] > 0 for row in (ours, ppo))
    assert "shares of an iteration" in capsys.readouterr().out
