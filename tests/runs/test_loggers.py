import math
import os
import struct
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from trpo_jax.errors import MissingPackageError
from trpo_jax.runs import loggers
from trpo_jax.runs.loggers import STEP_METRIC, TensorBoardLogger, WandbLogger

EXTRAS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def event_file_records(data):
    """Take apart a TFRecord file: length (8 bytes), its checksum (4), the record, its checksum (4)."""
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield data[12 : 12 + length]
        data = data[16 + length :]


def tensorboard_events(folder):
    from tensorboardX.proto.event_pb2 import Event

    return [Event.FromString(record) for path in folder.iterdir() for record in event_file_records(path.read_bytes())]


def tensorboard_scalars(folder):
    events = tensorboard_events(folder)
    return {(event.step, value.tag): value.simple_value for event in events for value in event.summary.value}


def wandb_file_records(data):
    """Take apart a .wandb file of one block: 7 bytes, then checksum (4), length (2), kind (1; 1 is whole) and the record."""
    data = data[7:]
    while data:
        _, length, kind = struct.unpack("<IHB", data[:7])
        assert kind == 1
        yield data[7 : 7 + length]
        data = data[7 + length :]


def wandb_records(path):
    from wandb.proto.wandb_internal_pb2 import Record

    return [Record.FromString(record) for record in wandb_file_records(path.read_bytes())]


def wandb_history(records):
    rows = [record.history for record in records if record.WhichOneof("record_type") == "history"]
    return [{".".join(item.nested_key) or item.key: float(item.value_json) for item in row.item} for row in rows]


def test_tensorboard_gets_every_finite_value_at_its_step(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.log(64, {"training/kl": 0.25, "training/episode_reward": math.nan})
    logger.log(128, {"training/kl": 0.5, "eval/episode_reward": math.inf})
    logger.close()
    assert tensorboard_scalars(tmp_path) == {(64, "training/kl"): 0.25, (128, "training/kl"): 0.5}


def test_tensorboard_goes_on_in_a_folder_that_was_used_and_is_told_what_is_replaced(tmp_path):
    for step in (1, 2):
        logger = TensorBoardLogger(tmp_path)
        logger.log(step, {"a": float(step)})
        logger.close()
    assert tensorboard_scalars(tmp_path) == {(1, "a"): 1.0, (2, "a"): 2.0}
    assert sorted(event.step for event in tensorboard_events(tmp_path) if event.HasField("session_log")) == [1, 2]


PROGRAM = """
import math, sys
from trpo_jax.runs import loggers
from trpo_jax.runs.loggers import WandbLogger

folder, step = sys.argv[1], int(sys.argv[2])
logger = WandbLogger(folder, project="trpo", config={"trust_region": {"max_kl": 0.02}})
logger.log(step, {"training/kl": step / 256, "training/episode_reward": math.nan})
logger.close()
"""


def log_by_wandb(folder, step, mode="offline"):
    """Log in a process of its own, since wandb reads its settings once a process and names folders by the second."""
    home = {"HOME": str(folder.parent), "NETRC": str(folder.parent / "netrc"), "WANDB_API_KEY": ""}
    environment = os.environ | home | {"WANDB_MODE": mode, "WANDB_SILENT": "true", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM, str(folder), str(step)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_wandb_gets_every_finite_value_over_environment_steps_and_goes_on_under_its_id(tmp_path):
    folder = tmp_path / "ant-wide"
    for step in (64, 128):
        assert log_by_wandb(folder, step).returncode == 0
    first, second = (wandb_records(path) for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")))
    runs = [record.run for records in (first, second) for record in records if record.WhichOneof("record_type") == "run"]
    assert {(run.run_id, run.project, run.display_name) for run in runs} == {
        ((folder / "wandb" / "id.txt").read_text().strip(), "trpo", "ant-wide")
    }
    assert any("max_kl" in item.value_json and "0.02" in item.value_json for item in runs[0].config.update)
    for records, step in ((first, 64), (second, 128)):
        (row,) = wandb_history(records)
        assert (row["training/kl"], row[STEP_METRIC]) == (step / 256, step)
        assert "training/episode_reward" not in row


def test_wandb_without_login_is_one_clear_line(tmp_path):
    result = log_by_wandb(tmp_path / "run", 1, mode="online")
    last = result.stderr.splitlines()[-1]
    assert result.returncode == 1
    assert "ConfigError: wandb_project: got 'trpo', allowed: any, after `wandb login` or with WANDB_MODE=offline (" in last


def test_a_run_id_is_drawn_once_a_folder(tmp_path):
    first = loggers._run_id(tmp_path / "a" / "wandb" / "id.txt")
    assert loggers._run_id(tmp_path / "a" / "wandb" / "id.txt") == first
    assert loggers._run_id(tmp_path / "b" / "wandb" / "id.txt") != first


@pytest.mark.parametrize(("package", "extra"), [("tensorboardX", "tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_one_line_that_names_the_extra(package, extra, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    make = {"tensorboard": TensorBoardLogger, "wandb": lambda folder: WandbLogger(folder, project="trpo")}[extra]
    with pytest.raises(MissingPackageError) as error:
        make(tmp_path / "run")
    assert f'which is not installed: pip install "trpo-jax[{extra}]"' in str(error.value)
    assert str(error.value).startswith({"tensorboard": "--tensorboard ", "wandb": "--wandb-project "}[extra])
    assert not (tmp_path / "run").exists()
    assert any(requirement.lower().startswith(package.lower()) for requirement in EXTRAS[extra])
