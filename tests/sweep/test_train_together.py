"""Runs trained together are, each of them, the run alone."""

import jax
import numpy as np
import pytest

import trpo_jax
from sweep.sweeps import TINY, plan, timeless
from trpo_jax.sweep.train_together import train_together

GRID = {"grid": {"trust_region.max_kl": [0.01, 0.05], "gae_lambda": [0.8, 1.0], "schedule.max_kl_at_end": [0.2, 1.0]}}


def alone(run):
    """Train one run by `train`; return its records and its parameters."""
    rows = []
    config = run.config
    _, params, _ = trpo_jax.train(
        config.environment,
        config.num_timesteps,
        config=config.agent,
        seed=config.seed,
        num_evals=config.num_evals,
        num_eval_envs=config.num_eval_envs,
        deterministic_eval=config.deterministic_eval,
        iteration_fn=lambda step, metrics: rows.append({"step": step} | metrics),
        progress_fn=lambda step, metrics: rows.append({"step": step} | of_evaluation(metrics)),
        max_devices_per_host=1,
    )
    return rows, params


def of_evaluation(metrics):
    return {name: value for name, value in metrics.items() if name.startswith("eval/")}


def assert_like_alone(runs, together, rtol):
    for run, (records, params) in zip(runs, together, strict=True):
        by_itself, expected_params = alone(run)
        jax.tree.map(lambda leaf, other: np.testing.assert_allclose(leaf, other, rtol, rtol), params, expected_params)
        assert len(records) == len(by_itself)
        for found, expected in zip(records, by_itself, strict=True):
            found, expected = timeless(found), {name: value for name, value in timeless(expected).items() if np.isfinite(value)}
            assert found.keys() == expected.keys()
            np.testing.assert_allclose(
                list(found.values()), [expected[name] for name in found], rtol=rtol, atol=rtol, err_msg=run.name
            )


def test_the_metrics_of_a_packed_run_are_those_of_the_run_alone(tmp_path):
    (program,) = plan(TINY | GRID | {"environments": ["fast"], "seeds": 2})
    together = train_together(program.runs, tmp_path, devices=jax.devices()[:1])
    assert len(together) == 16
    assert_like_alone(program.runs[:2] + program.runs[-1:], together[:2] + together[-1:], 1e-4)
    records = together[0].records
    assert {"training/kl", "training/explained_variance"} <= records[1].keys()
    assert {"eval/episode_reward", "eval/episode_reward_std"} <= records[-1].keys()
    assert [record["step"] for record in records] == [0, 16, 32, 48, 64, 80, 96, 96]
    assert records != together[1].records


@pytest.fixture(scope="module")
def three_runs():
    (program,) = plan(TINY | {"environments": ["fast"], "seeds": 3})
    return program.runs


@pytest.fixture(scope="module")
def on_one_device(three_runs, tmp_path_factory):
    return train_together(three_runs, tmp_path_factory.mktemp("one"), devices=jax.devices()[:1])


def test_on_several_devices_each_has_its_share_and_none_waits_for_runs_to_divide(three_runs, on_one_device, tmp_path):
    two = train_together(three_runs, tmp_path, devices=jax.devices()[:2])
    assert len(two) == 3
    for run, other in zip(on_one_device, two, strict=True):
        assert_alike(run, other)


def assert_alike(run, other):
    for found, expected in zip(map(timeless, run.records), map(timeless, other.records), strict=True):
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda leaf, expected: np.testing.assert_allclose(leaf, expected, 1e-4, 1e-5), run.params, other.params)


class Stop(Exception):
    pass


def begin(runs, folder, devices):
    """Train three iterations, of which the second leaves a checkpoint."""

    def stop(step, metrics):
        if step == 48:
            raise Stop

    with pytest.raises(Stop):
        train_together(runs, folder, devices=devices, progress_fn=stop)


def test_what_was_begun_goes_on_with_another_number_of_devices(three_runs, on_one_device, tmp_path):
    begin(three_runs, tmp_path, jax.devices()[:3])
    told = []
    options = {"devices": jax.devices()[:2], "progress_fn": lambda *arguments: told.append(arguments)}
    parts = train_together(three_runs, tmp_path, **options)
    assert [step for step, _ in told] == [48, 64, 80, 96]
    assert {len(metrics["training/kl"]) for _, metrics in told} == {3}
    for run, other in zip(parts, on_one_device, strict=True):
        assert_alike(run, other)


# Orbax leaves coroutines unawaited when a read fails.
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_was_begun_and_cannot_be_read_is_trained_anew(tmp_path):
    (program,) = plan(TINY | {"environments": ["fast"]})
    whole = train_together(program.runs, tmp_path / "whole", devices=jax.devices()[:1])
    begin(program.runs, tmp_path / "torn", jax.devices()[:1])
    for path in (tmp_path / "torn" / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(UserWarning, match="the training starts over"):
        again = train_together(program.runs, tmp_path / "torn", devices=jax.devices()[:1])
    assert list(map(timeless, again[0].records)) == list(map(timeless, whole[0].records))
    assert list((tmp_path / "torn" / "checkpoints-unusable").iterdir())


@pytest.mark.slow
@pytest.mark.brax
def test_so_are_those_of_a_simulator(tmp_path):
    mapping = TINY | {"environments": ["inverted_pendulum"], "seeds": 2, "num_timesteps": 48}
    (program,) = plan(mapping)
    together = train_together(program.runs, tmp_path, devices=jax.devices()[:1])
    assert_like_alone(program.runs[1:], together[1:], 1e-3)
