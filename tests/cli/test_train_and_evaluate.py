"""The command line as a person uses it: a process of its own, Brax compiled, a small budget."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib

import jax.numpy as jnp
import pytest

from trpo_jax import ConfigError, load_run

SMALL = [
    *("--num-envs", "4", "--unroll-length", "8", "--critic.num-minibatches", "2", "--critic.hidden-sizes", "8"),
    *("--policy.hidden-sizes", "8", "--episode-length", "20", "--num-eval-envs", "2"),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Environment variables with a compilation cache of the tests' own."""
    variables = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    return variables | {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")), "JAX_PLATFORMS": "cpu"}


def trpo_jax(arguments, environment, cwd, **options):
    command = [sys.executable, "-m", "trpo_jax", *arguments]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def finished_run(environment, tmp_path_factory):
    cwd = tmp_path_factory.mktemp("work")
    arguments = ["train", "inverted_pendulum", "--num-timesteps", "96", "--run-dir", "run", "--seed", "3", *SMALL]
    return cwd, trpo_jax(arguments, environment, cwd)


@pytest.mark.brax
def test_training_prints_plain_lines_and_nothing_else(finished_run):
    _, result = finished_run
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0] == "inverted_pendulum (spring), 96 steps, 4 environments × 8 steps an iteration"
    assert [line for line in lines if line.startswith("step         96") and "steps/s" in line]
    assert lines[-1] == "evaluate it with: trpo-jax evaluate run"
    assert "warp" not in result.stdout


@pytest.mark.brax
def test_a_run_folder_holds_the_resolved_config_metrics_and_policy(finished_run, environment):
    cwd, _ = finished_run
    config = tomllib.loads((cwd / "run" / "config.toml").read_text())
    assert (config["environment"], config["seed"], config["num_envs"]) == ("inverted_pendulum", 3, 4)
    assert config["trust_region"]["damping"] == 1.0
    records = [json.loads(line) for line in (cwd / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [32, 64, 96, 96]
    assert "training/kl" in records[0]
    assert "eval/episode_reward" in records[-1]
    assert sorted(path.name for path in (cwd / "run" / "checkpoints").iterdir()) == ["0", "96"]
    assert (environment_cache := list((cwd.parent / environment["XDG_CACHE_HOME"]).rglob("*-cache"))), environment_cache


@pytest.mark.brax
def test_evaluate_loads_the_policy(finished_run, environment):
    cwd, _ = finished_run
    result = trpo_jax(["evaluate", "run", "--episodes", "3"], environment, cwd)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("inverted_pendulum (spring) after 96 steps, 3 deterministic episodes\nreturn  ")
    assert "95 % interval of the mean:" in result.stdout


@pytest.mark.brax
def test_a_run_is_loaded_into_python(finished_run):
    cwd, _ = finished_run
    run = load_run(cwd / "run")
    assert (run.config.seed, run.step, len(run.metrics)) == (3, 96, 4)
    observation = jnp.ones((5, 4))
    action, _ = run.make_policy(run.params, deterministic=True)(observation)
    assert action.shape == (5, 1)
    assert run.make_policy.value_fn(run.params)(observation).shape == (5,)


def test_a_folder_without_a_run_is_not_loaded(tmp_path):
    with pytest.raises(ConfigError, match=r"run: got .* allowed: a folder that a training wrote"):
        load_run(tmp_path)


@pytest.mark.brax
def test_a_finished_run_is_not_overwritten(finished_run, environment):
    cwd, _ = finished_run
    before = (cwd / "run" / "metrics.jsonl").read_bytes()
    result = trpo_jax(["train", "inverted_pendulum", "--run-dir", "run"], environment, cwd)
    assert result.returncode == 2
    assert "run_dir: got 'run', allowed: a folder that is new or empty" in result.stderr
    assert (cwd / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.brax
# The first when Python itself is up, on a busy machine too.
@pytest.mark.parametrize("moment", [2.0, *(pytest.param(moment, marks=pytest.mark.slow) for moment in (4.0, 6.0, 9.0))])
def test_ctrl_c_before_the_training_ends_the_process_at_once(finished_run, environment, moment):
    """While Python imports, JAX traces and XLA compiles; an exception is lost there in one of two tries."""
    cwd, name = finished_run[0], f"early-{moment}"
    command = [sys.executable, "-m", "trpo_jax_launcher", "train", "inverted_pendulum", "--run-dir", name]
    process = subprocess.Popen(command, env=environment, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(moment)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert err == ""
    if out:  # it had begun, and left what can be gone on with
        assert out.splitlines()[-1].endswith(f"resume with: trpo-jax train --resume {name}")
        assert (cwd / name / "config.toml").is_file()


def test_ctrl_c_leaves_a_usable_run_folder_and_says_where(environment, tmp_path):
    cwd = tmp_path
    command = [sys.executable, "-m", "trpo_jax", "train", "fast", "--run-dir", "stopped", *SMALL]
    process = subprocess.Popen(command, env=environment, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = cwd / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 3) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == ""
    steps = sorted(int(path.name) for path in (cwd / "stopped" / "checkpoints").iterdir())
    last = json.loads(metrics.read_text().splitlines()[-1])["step"]
    message = f"interrupted; saved after {last:,} steps; resume with: trpo-jax train --resume stopped"
    assert out.splitlines()[-1] == message
    assert steps[-1] == last
    resumed = trpo_jax(["train", "--resume", "stopped", "--num-timesteps", str(last + 64)], environment, cwd)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming in stopped" in resumed.stdout
    trained = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if "training/kl" in line]
    assert trained == list(range(32, last + 65, 32))
    config = (cwd / "stopped" / "config.toml").read_bytes()
    shorter = trpo_jax(["train", "--resume", "stopped", "--num-timesteps", "32"], environment, cwd)
    assert shorter.returncode == 2
    assert f"num_timesteps: got 32, allowed: at least {last + 64}, already trained in stopped/checkpoints" in shorter.stderr
    assert (cwd / "stopped" / "config.toml").read_bytes() == config
    again = trpo_jax(["train", "--resume", "stopped"], environment, cwd)
    assert f"all {last + 64:,} steps had been trained before; this was only evaluated again" in again.stdout
    assert "done: return" in again.stdout


def test_costs_are_shown_by_training_and_evaluation(environment, tmp_path):
    options = ["--num-envs", "8", "--unroll-length", "10", "--episode-length", "20", "--critic.num-minibatches", "2"]
    small = [*options, "--num-timesteps", "240", "--num-evals", "2", "--num-eval-envs", "4"]
    command = ["train", "point_hazards", "--suite", "safety", "--algorithm", "cpo", "--cost-limit", "5", "--run-dir", "safe"]
    trained = trpo_jax([*command, *small], environment, tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert re.search(r"evaluation: return -?\d+ ± \d+, cost \d+\.\d ± \d+\.\d", trained.stdout)
    evaluated = trpo_jax(["evaluate", "safe", "--episodes", "4"], environment, tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert re.search(r"^cost    \d+\.\d ± \d+\.\d$", evaluated.stdout, re.MULTILINE)
    refused = trpo_jax(["train", "inverted_pendulum", "--algorithm", "cpo", "--run-dir", "unsafe"], environment, tmp_path)
    assert refused.returncode == 2
    assert "environment: got 'InvertedPendulum', allowed: one with costs" in refused.stderr
    assert not (tmp_path / "unsafe").exists()
