"""A training that is stopped, killed or out of disk goes on as if nothing had happened."""

import dataclasses
import json
import random
import time

import chex
import pytest

import processes
import trpo_jax
from probes import Target
from trainings import SMALL, one_device_train, without_clocks
from trpo_jax import CheckpointError, ConfigError, PPOConfig, TrustRegionConfig
from trpo_jax.training import store
from trpo_jax.training.checkpoint import load_params

FULL = 25 * 16


def run(folder, num_timesteps=FULL, **options):
    rows = []
    options = {"num_evals": 3, "num_eval_envs": 2, "config": SMALL, "max_devices_per_host": 1} | options
    _, params, metrics = trpo_jax.train(
        Target(),
        num_timesteps,
        iteration_fn=lambda step, metrics: rows.append((step, without_clocks(metrics))),
        save_checkpoint_path=folder,
        checkpoint_interval=3,
        **options,
    )
    return params, without_clocks(metrics), rows


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"))


def test_a_resumed_training_is_bit_for_bit_the_one_that_was_not_interrupted(tmp_path, undisturbed):
    params, metrics, rows = undisturbed
    _, _, before = run(tmp_path, 13 * 16)
    params_after, metrics_after, after = run(tmp_path, resume=True)
    assert before + after == rows
    assert metrics_after == metrics
    chex.assert_trees_all_equal(params_after, params)


def test_so_is_one_whose_rollouts_are_spread_over_cores(tmp_path):
    params, _, rows = run(tmp_path / "whole", 6 * 16, max_devices_per_host=2)
    run(tmp_path / "parts", 4 * 16, max_devices_per_host=2)
    params_after, _, after = run(tmp_path / "parts", 6 * 16, max_devices_per_host=2, resume=True)
    assert after == rows[4:]
    chex.assert_trees_all_equal(params_after, params)


def test_options_that_carry_a_state_are_resumed_too(tmp_path):
    trust_region = TrustRegionConfig(damping_shape="gradient", curvature_fraction=0.5, curvature_sampling="random")
    config = dataclasses.replace(SMALL, trust_region=trust_region)
    _, _, rows = run(tmp_path / "whole", 6 * 16, config=config)
    run(tmp_path / "parts", 3 * 16, config=config)
    _, _, after = run(tmp_path / "parts", 6 * 16, config=config, resume=True)
    assert after == rows[3:]


def test_to_resume_where_there_is_nothing_is_to_start(tmp_path):
    _, _, rows = run(tmp_path / "new", 2 * 16, resume=True)
    assert [step for step, _ in rows] == [16, 32]


def test_the_only_checkpoint_is_not_written_again(tmp_path):
    run(tmp_path, 0)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert written
    run(tmp_path, 0, resume=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written


def test_a_training_that_is_done_is_not_shortened(tmp_path):
    run(tmp_path, 4 * 16)
    with pytest.raises(ConfigError, match=r"num_timesteps: got 48, allowed: at least 64, already trained in .*"):
        run(tmp_path, 3 * 16, resume=True)


def test_a_training_that_is_done_is_only_evaluated_again(tmp_path):
    params, metrics, _ = run(tmp_path, 4 * 16)
    params_after, metrics_after, rows = run(tmp_path, 4 * 16, resume=True)
    assert rows == []
    assert metrics_after["eval/episode_reward"] == metrics["eval/episode_reward"]
    chex.assert_trees_all_equal(params_after, params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"discounting": 0.9}, r"discounting: got 0.9, allowed: 0.995, the value that the training in .* started with"),
        ({"trust_region": TrustRegionConfig(max_kl=0.5)}, r"trust_region.\w+: got .*, the value that the training"),
        ({"seed": 1}, r"seed: got 1, allowed: 0, the value that the training in .* started with"),
        ({"config": PPOConfig(num_envs=4, unroll_length=4, critic=SMALL.critic)}, r"algorithm: got 'ppo', allowed: 'trpo'"),
    ],
)
def test_a_checkpoint_of_another_config_is_refused_by_field_name(tmp_path, change, message):
    run(tmp_path, 16)
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, resume=True, **change)


# Orbax leaves coroutines unawaited when a read fails.
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_of_a_torn_checkpoint_it_is_said_that_an_older_one_is_used(tmp_path, undisturbed):
    run(tmp_path, 13 * 16)
    newest = tmp_path / str(13 * 16)
    for path in newest.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(UserWarning, match=r"208: cannot be read \(.*\); the one of step 192 is used instead"):
        params, _, rows = run(tmp_path, resume=True)
    assert rows == undisturbed[2][12:]
    chex.assert_trees_all_equal(params, undisturbed[0])


def test_a_training_of_another_version_is_not_gone_on_with_but_its_parameters_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "LAYOUT", 1)
    params, _, _ = run(tmp_path, 16)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"was written by another version of trpo_jax. .*restore_checkpoint_path"):
        run(tmp_path, resume=True)
    _, restored, _ = one_device_train(Target(), 0, config=SMALL, num_eval_envs=0, restore_checkpoint_path=tmp_path)
    chex.assert_trees_all_equal(restored, params)


def test_resume_needs_a_folder():
    with pytest.raises(ConfigError, match="save_checkpoint_path: got None, allowed: the folder to resume from"):
        one_device_train(Target(), 16, config=SMALL, resume=True)


def finish(process):
    process.join(timeout=240)
    assert process.exitcode == 0


def read(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [without_clocks(row) for row in rows]


@pytest.mark.parametrize("num_kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_as_if_undisturbed(num_kills, tmp_path, spawn):
    finish(spawn(processes.train_with_log, tmp_path / "whole"))
    rng, folder = random.Random(0), tmp_path / "killed"
    log = folder / "metrics.jsonl"
    for _ in range(num_kills):
        process = spawn(processes.train_with_log, folder)
        # Half of them while it starts, the others while it trains.
        seen, wanted = processes.count_lines(log), rng.choice([0, rng.randrange(1, 5)])
        deadline = time.monotonic() + 120
        while process.is_alive() and processes.count_lines(log) < seen + wanted and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05 if wanted else 1.0))
        process.kill()
        process.join()
    finish(spawn(processes.train_with_log, folder))
    assert read(folder) == read(tmp_path / "whole")
    template = one_device_train(Target(), 0, config=SMALL, num_eval_envs=0)[1]
    chex.assert_trees_all_equal(
        load_params(folder / "checkpoints", template), load_params(tmp_path / "whole" / "checkpoints", template)
    )


def test_without_room_on_the_disk_there_is_a_clear_error_and_the_last_checkpoint_stays(tmp_path, spawn):
    finish(spawn(processes.train_until_no_file_may_grow, tmp_path))
    message = (tmp_path / "message").read_text()
    assert "a checkpoint cannot be written (" in message
    assert "File too large" in message
    assert "\n" not in message
    template = one_device_train(Target(), 0, config=SMALL, num_eval_envs=0)[1]
    step, params = load_params(tmp_path / "checkpoints", template)
    assert step == params.normalizer.count
    assert step >= 3 * 16
