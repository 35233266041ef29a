import gc

import chex
import jax
import pytest

from probes import Target
from trpo_jax import CriticConfig, PolicyConfig, TRPOConfig, inference_params, make_trpo
from trpo_jax.training.checkpoint import CheckpointError, load_params, save_params


def make_params(hidden):
    config = TRPOConfig(
        num_envs=4,
        unroll_length=4,
        critic=CriticConfig(hidden_sizes=(8,), num_minibatches=1),
        policy=PolicyConfig(hidden_sizes=(hidden,)),
    )
    return inference_params(make_trpo(Target(), config).init(jax.random.key(0)))


@pytest.fixture(scope="module")
def params():
    return make_params(8)


def test_the_newest_step_comes_back_bit_for_bit(tmp_path, params):
    save_params(tmp_path, 7, jax.tree.map(lambda x: x + 1, params))
    save_params(tmp_path, 10, params)
    step, loaded = load_params(tmp_path, params)
    assert step == 10
    chex.assert_trees_all_equal(loaded, params)


def test_a_missing_one_is_reported(tmp_path, params):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match="no checkpoint here"):
            load_params(path, params)


def test_saving_a_step_again_replaces_it(tmp_path, params):
    save_params(tmp_path, 7, params)
    changed = jax.tree.map(lambda x: x + 1, params)
    save_params(tmp_path, 7, changed)
    step, loaded = load_params(tmp_path, params)
    assert step == 7
    chex.assert_trees_all_equal(loaded, changed)


# Orbax leaves coroutines unawaited when a read fails; they are collected here, not in some later test.
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "remove"])
def test_a_damaged_one_is_reported_and_left_as_it_is(tmp_path, params, damage):
    save_params(tmp_path, 7, params)
    largest = max((p for p in (tmp_path / "7").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = largest.read_bytes()
    middle = len(content) // 2
    damaged = {
        "truncate": content[:middle],
        "empty": b"",
        "flip": content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :],
    }
    if damage == "remove":
        largest.unlink()
    else:
        largest.write_bytes(damaged[damage])
    with pytest.raises(CheckpointError, match=r"7: cannot be read \(") as error:
        load_params(tmp_path, params)
    assert "\n" not in str(error.value)
    assert (tmp_path / "7").is_dir()
    del error
    gc.collect()


def test_one_for_other_networks_is_reported(tmp_path, params):
    save_params(tmp_path, 7, params)
    with pytest.raises(CheckpointError, match=r"7: cannot be read \(.*9"):
        load_params(tmp_path, make_params(9))


def test_an_earlier_step_can_be_written_after_a_later_one(tmp_path, params):
    for step in (0, 100, 50, 0):
        save_params(tmp_path, step, params)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [0, 50, 100]
