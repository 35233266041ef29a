"""Bad input: one line that names the field, what came and what is allowed; exit code 2; nothing written."""

import os
import subprocess
import sys

import jax
import pytest

from trpo_jax.cli import main, train
from trpo_jax.errors import ConfigError
from trpo_jax.runs.run_folder import RunFolder, create_run_folder
from trpo_jax.training.run_config import RunConfig, write_run_config

SWEEPS = {
    "good": "num_timesteps = 1",
    "nogrid": "[grid]",
    "unknown": "[grid]\ntrust_region.max_lk = [0.1]",
    "static": 'traced = ["num_envs"]\n[grid]\nnum_envs = [8, 16]',
}
"""Sweep files, but for their first line."""


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "configure_process", lambda: None)  # it changes this process's jax.config
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("precious")
    (tmp_path / "typo.toml").write_text("[trust_region]\nmax_kll = 0.01\n")
    (tmp_path / "began").mkdir()
    write_run_config(tmp_path / "began" / "config.toml", RunConfig())
    for name, text in SWEEPS.items():
        (tmp_path / f"{name}.toml").write_text(f'environments = ["fast"]\n{text}')
    (tmp_path / "noconfig.toml").write_text('environments = ["missing.toml"]')
    (tmp_path / "zero.toml").write_text("num_envs = 0\n")
    (tmp_path / "empty.toml").write_text("")
    (tmp_path / "toplevel.toml").write_text('environment = "ant"\nmax_kl = 0.1\n')
    (tmp_path / "nothing.toml").write_text('environment = "ant"\nnum_envs = 8\n')
    (tmp_path / "strange.toml").write_text("[accelerator]\nnum_env = 3\n")


PLATFORMS = {
    "nonsense": "JAX_PLATFORMS: got 'nonsense', allowed: platforms that JAX can start here (Unable to initialize backend",
    "cuda": "JAX_PLATFORMS: got 'cuda', allowed: platforms that JAX can start here",
}


@pytest.mark.parametrize("platform", ["nonsense", pytest.param("cuda", marks=pytest.mark.slow)])
@pytest.mark.parametrize("command", ["train fast", "sweep good.toml", "evaluate began", "render began"])
def test_a_device_that_cannot_start_is_one_clear_line(tmp_path, command, platform):
    variables = os.environ | {"JAX_PLATFORMS": platform}
    arguments = [sys.executable, "-m", "trpo_jax", *command.split()]
    ended = subprocess.run(arguments, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert PLATFORMS[platform] in ended.stderr
    assert not (tmp_path / "runs").exists()


def test_a_device_without_enough_memory_is_one_clear_line_and_leaves_no_folder(tmp_path, monkeypatch, capsys):
    def exhausted(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99999999999 bytes.")

    monkeypatch.setattr("trpo_jax.runs.run.train", exhausted)
    assert main.run(["train", "fast", "--run-dir", "run"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("trpo-jax train: error: the device is out of memory; fewer environments (--num-envs)")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


BAD = {
    "": "usage: trpo-jax COMMAND",
    "trian ant": "trpo-jax trian: error: command: got 'trian', allowed: a known command; did you mean train?",
    "train": "ENV|CONFIG.toml: got '', allowed: an environment or a TOML file as first argument",
    "train --resume none": "run: got 'none', allowed: a folder that a training wrote, with a config.toml",
    "train ant --resume began": "ENV|CONFIG.toml: got 'ant', allowed: no value with --resume",
    "train --resume began --run-dir other": "run_dir: got 'other', allowed: no value with --resume, which names",
    "train --resume began --accelerator": "accelerator: got True, allowed: no value with --resume",
    "train nothing.toml --accelerator": "accelerator: got True, allowed: a configuration file whose table [accelerator]",
    "train strange.toml": "strange.toml: accelerator.num_env: got 3, allowed: a known field; did you mean num_envs",
    "train --resume began --num-envs 7": "num_envs: got 7, allowed: 128, the value that the run started with",
    "train --resume began --trust-region.max-kl 0.5": "trust_region.max_kl: got 0.5, allowed: 0.1, the value",
    "train ant --process-index 1": "process_index: got 1, allowed: no value without --distributed",
    "train ant --distributed": "distributed: got True, allowed: only if a cluster's environment variables or all three options",
    "train CartpoleBalanced --suite playground": "did you mean CartpoleBalance",
    "train ant --suite gym": "invalid choice 'gym' for argument '--suite'",
    "train CartpoleBalance": "allowed: a Brax environment; this one belongs to the suite playground (--suite playground)",
    "train empty.toml": "empty.toml: environment: got None, allowed: the name of an environment",
    "train toplevel.toml": "toplevel.toml: max_kl: got 0.1, allowed: a known field; did you mean trust_region.max_kl?",
    "train --seed 1": "ENV|CONFIG.toml: got '--seed', allowed:",
    "train antt": "environment: got 'antt', allowed: a known Brax environment; did you mean ant",
    "train none.toml": "config file: got 'none.toml', allowed: a readable TOML file (No such file or directory)",
    "train typo.toml": "typo.toml: trust_region.max_kll: got 0.01, allowed: a known field; did you mean max_kl?",
    "train zero.toml": "zero.toml: num_envs: got 0, allowed: an integer >= 1",
    "train ant --nope 3": "Unrecognized options: --nope, 3",
    "train ant --trust-region.maxkl 3": "Perhaps you meant: --trust-region.max-kl FLOAT",
    "train ant --num-envs": "Missing value for argument '--num-envs'",
    "train ant --num-envs 3.5": "--num-envs: got '3.5', allowed: an integer; Argument helptext: --num-envs INT",
    "train fast --num-envs 1e11": "got '4,000,000,000,000 samples per iteration', allowed: fewer than 2^31",
    "train fast --episode-length 3e9": "episode_length: got 3000000000, allowed: an integer >= 1 and <= 1073741824",
    "train ant --num-envs 0": "num_envs: got 0, allowed: an integer >= 1",
    "train ant --discounting 1.5": "discounting: got 1.5, allowed: a number >= 0 and <= 1",
    "train ant --trust-region.max-kl -1": "trust_region.max_kl: got -1.0, allowed: a number > 0",
    "train ant --trust-region.max-kl nan": "trust_region.max_kl: got nan, allowed: a number > 0",
    "train ant --backend bullet": "invalid choice 'bullet' for argument '--backend'",
    "train ant --critic.num-minibatches 9999": "critic.num_minibatches: got 9999, allowed: at most num_envs·unroll_length",
    "train swimmer --backend spring": "backend: got 'spring', allowed: one that swimmer offers: generalized",
    "train hopper --num-envs 60 --max-devices-per-host 8": "num_envs: got 60, allowed: a multiple of 8, the number of devices",
    "train ant --run-dir taken": "run_dir: got 'taken', allowed: a folder that is new or empty; nothing was changed",
    "train ant --run-dir taken/file/run": "error: taken/file/run cannot be written: ",
    "evaluate": "RUN",
    "evaluate none": "run: got 'none', allowed: a folder that a training wrote, with a config.toml",
    "evaluate taken --episodes 1": "episodes: got 1, allowed: an integer >= 2",
    "render none": "run: got 'none', allowed: a folder that a training wrote, with a config.toml",
    "render taken --max-steps 0": "max_steps: got 0, allowed: an integer >= 1",
    "sweep": "SWEEP.toml",
    "sweep none.toml": "sweep file: got 'none.toml', allowed: a readable TOML file (No such file or directory)",
    "sweep nogrid.toml": "nogrid.toml: grid: got {}, allowed: at least one field with a list of values",
    "sweep unknown.toml": "unknown.toml: grid.trust_region.max_lk: got [0.1], allowed: a known field; did you mean",
    "sweep static.toml": "static.toml: traced: got 'num_envs', allowed: fields that one program may hold many values of:",
    "sweep noconfig.toml": "config file: got 'missing.toml', allowed: a readable TOML file (No such file or directory)",
    "sweep good.toml --device gpu": "device: got 'gpu', allowed: one that JAX sees here: cpu",
    "sweep good.toml --executor ray --ray-address 127.0.0.1:1": "ray_address: got '127.0.0.1:1', allowed: HOST:PORT or ray://",
    "sweep good.toml --ray-address auto": "ray_address: got 'auto', allowed: no value without --executor ray",
    "sweep good.toml --memory-limit 0": "memory_limit: got 0.0, allowed: a number > 0",
    "sweep good.toml --memory-limit 1e-6": "memory_limit: got 0.0, allowed: at least",
    "sweep good.toml --sweep-dir taken": "sweep_dir: got 'taken', allowed: a sweep's folder, or a new or empty one",
    "sweep good.toml --sweep-dir taken/file/sweep": "Not a directory",
    "report": "DIR",
    "report taken": "sweep_dir: got 'taken', allowed: a folder that a sweep has written, with a plan.json",
    "render taken --format avi": "invalid choice 'avi' for argument '--format'",
    "plot": "RUN: got '', allowed: one or more folders that a training wrote",
    "plot none": "run: got 'none', allowed: a folder that a training wrote, with a config.toml",
    "plot none --out plot.bmp": "out: got 'plot.bmp', allowed: a file name that ends in .png or .pdf or .svg",
}


@pytest.mark.parametrize("command", BAD)
def test_bad_input_is_one_clear_line(command, capsys, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert main.run(command.split()) == 2
    out, err = capsys.readouterr()
    if command:
        assert out == ""
        assert err.count("\n") == 1, err
        assert err.startswith("trpo-jax ")
    assert BAD[command] in out + err
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "taken" / "file").read_text() == "precious"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--num-envs 500_000_000 --unroll-length 4", "got '500,000,000 environments × 4 steps, which take at least"),
        ("--num-timesteps 1e25", "allowed: fewer than 2^31 iterations of 5,120 steps"),
    ],
)
def test_what_no_machine_holds_is_refused_before_it_is_tried(options, message, capsys, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert main.run(["train", "fast", "--run-dir", "run", *options.split()]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1, err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_without_a_policy_is_reported(capsys, tmp_path):
    create_run_folder(tmp_path / "run", RunConfig(environment="fast"))
    assert main.run(["evaluate", "run"]) == 2
    assert "run/checkpoints: no checkpoint here" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [["--help"], ["train", "--help"], ["evaluate", "--help"], ["plot", "--help"], ["render", "--help"], ["--version"]],
)
def test_help_explains_and_exits_with_0(command, capsys):
    try:
        code = main.run(command)
    except SystemExit as stop:
        code = stop.code or 0
    assert code == 0
    assert capsys.readouterr().out


def test_the_help_of_train_explains_every_option(capsys):
    with pytest.raises(SystemExit):
        main.run(["train", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for option, words in {
        "--trust-region.max-kl FLOAT": "in nats",
        "--num-timesteps INT": "Environment steps",
        "--critic.learning-rate FLOAT": "Adam",
        "--backend {auto,spring,positional,generalized,mjx,jax,warp,envpool,async,sync}": "Who simulates",
        "--policy.activation {tanh,relu,elu,swish}": "Nonlinearity",
    }.items():
        assert option in text
        assert words in text.split(option)[1][:160]


def test_a_run_that_could_not_begin_leaves_no_folder(tmp_path, monkeypatch, capsys):
    def no_login(*arguments, **options):
        raise ConfigError("wandb_project", "p", "any, after `wandb login`")

    monkeypatch.setattr("trpo_jax.cli.train.WandbLogger", no_login)
    command = "train inverted_pendulum --run-dir new --max-devices-per-host 1 --wandb-project p"
    assert main.run(command.split()) == 2
    assert "wandb_project: got 'p', allowed: any, after `wandb login`" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_folder_that_another_training_writes_is_refused(tmp_path, capsys):
    with RunFolder(tmp_path / "began").locked():
        assert main.run(["train", "--resume", "began", "--max-devices-per-host", "1"]) == 2
    assert "error: another training is running in began; wait for it, or use another folder" in capsys.readouterr().err


def test_two_trainings_that_begin_in_one_folder_at_once_do_not_harm_each_other(tmp_path, capsys, monkeypatch):
    """The one that comes second into a folder that both found empty leaves it alone, also before a checkpoint is in it."""
    first = create_run_folder(tmp_path / "both", RunConfig(environment="fast"))
    monkeypatch.setattr("trpo_jax.cli.train.create_run_folder", lambda *arguments: RunFolder(first.path))
    with first.locked():
        assert main.run(["train", "inverted_pendulum", "--run-dir", "both", "--max-devices-per-host", "1"]) == 2
    assert "another training is running in" in capsys.readouterr().err
    assert first.config.exists()


def test_a_lock_in_an_empty_folder_is_no_run(tmp_path):
    (tmp_path / "new").mkdir()
    with RunFolder(tmp_path / "new").locked():
        pass
    assert create_run_folder(tmp_path / "new", RunConfig(environment="fast")).config.exists()


def test_integers_are_read_as_people_write_them():
    options = ["--num-timesteps", "1e6", "--num-envs", "1_000", "--critic.hidden-sizes", "1e2", "32", "--seed", "7"]
    run = train.parse_arguments(["ant", *options]).run
    assert (run.num_timesteps, run.agent.num_envs, run.agent.critic.hidden_sizes, run.seed) == (1_000_000, 1000, (100, 32), 7)
