"""`trpo-jax sweep` and `trpo-jax report`, from a sweep file to a page."""

import contextlib
import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

import processes
from trpo_jax.cli import main
from trpo_jax.sweep import executor

SWEEP = """
environments = ["fast"]
seeds = 2
num_timesteps = 64
[config]
num_envs = 4
unroll_length = 4
episode_length = 5
num_evals = 2
num_eval_envs = 2
critic = { num_minibatches = 1, num_epochs = 1, hidden_sizes = [8] }
policy.hidden_sizes = [8]
[grid]
gae_lambda = [0.8, 0.9]
trust_region.cg_iterations = [2, 3]
"""


@pytest.fixture(autouse=True)
def in_a_folder_with_a_sweep_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "configure_process", lambda: None)  # it changes this process's jax.config
    Path("mine.toml").write_text(SWEEP)


def test_a_dry_run_prints_the_plan_and_leaves_nothing(capsys, tmp_path):
    assert main.run(["sweep", "mine.toml", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "8 runs in 2 cells and 2 programs, 512 environment steps in all" in printed
    assert printed.count("fast (spring)") == 2
    assert printed.count("2 values of gae_lambda,") == 2
    assert "trust_region.cg_iterations = 3" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


def test_a_sweep_trains_reports_and_does_nothing_when_called_again(capsys):
    assert main.run(["sweep", "mine.toml"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == ["8 runs in 2 programs", "sweep folder sweeps/mine"]
    assert "fast: 4 runs of 64 steps; compiling …" in printed
    assert "fast: 4 finished, 8 of 8 in all" in printed
    assert printed[-1] == "make a report with: trpo-jax report sweeps/mine"
    assert len(Path("sweeps/mine/results.csv").read_text().splitlines()) == 9

    assert main.run(["sweep", "mine.toml"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "8 runs in 2 programs, 8 of them finished already"
    assert len(printed) == 4

    assert main.run(["report", "sweeps/mine", "--out", "told"]) == 0
    assert capsys.readouterr().out == "wrote told/report.html\n"
    assert "8 of 8 runs are finished" in Path("told/report.md").read_text()
    check_policies_are_shown(capsys)


def check_policies_are_shown(capsys):
    """Evaluate and plot runs of the finished sweep, by names that a person can type."""
    names = [path.name for path in sorted(Path("sweeps/mine/runs").iterdir())]
    assert main.run(["evaluate", "sweeps/mine", "--episodes", "2"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in printed[::5]) == names
    assert {line.partition(" ")[2] for line in printed[::5]} == {
        f"gae_lambda {value}, cg_iterations {count}" for value in (0.8, 0.9) for count in (2, 3)
    }
    assert set(printed[1::5]) == {"fast (spring) after 64 steps, 2 deterministic episodes"}
    assert main.run(["evaluate", f"sweeps/mine/{names[3][:9]}-seed1", "--episodes", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main.run(["plot", "sweeps/mine"]) == 0
    assert capsys.readouterr().out == "wrote sweeps/mine/plot.png\n"
    assert main.run(["plot", "sweeps/mine/fast-seed0", f"sweeps/mine/runs/{names[0]}"]) == 0
    assert capsys.readouterr().out == "wrote plot.png\n"
    assert main.run(["evaluate", "sweeps/mine/slow"]) == 2
    resume = ["train", "--resume", f"sweeps/mine/runs/{names[0]}", "--num-timesteps", "128", "--max-devices-per-host", "1"]
    config = Path("sweeps/mine/runs", names[0], "config.toml")
    before = config.read_text()
    assert main.run(resume) == 2
    assert config.read_text() == before
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith(
        "trpo-jax evaluate: error: run: got 'sweeps/mine/slow', allowed: one of the sweep's 8 finished runs, such"
    )
    assert "holds only the parameters of a finished run, so training cannot resume; start a new training from" in errors[1]
    assert len(errors) == 2


def test_a_program_that_fails_is_told_of_in_whole_and_is_an_exit_code(capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr(executor, "train_together", fail)
    assert main.run(["sweep", "mine.toml"]) == 1
    printed = capsys.readouterr()
    failed = "fast: 4 runs failed: 2 values of gae_lambda, trust_region.cg_iterations = 2, 2 seeds; the others continue"
    assert failed in printed.out.splitlines()
    assert printed.err.count("RuntimeError: RESOURCE_EXHAUSTED\nIn a program of 4 runs: fast-") == 2
    message = "2 of 2 programs failed, the others are finished; the same command tries them again"
    assert printed.err.splitlines()[-1] == f"trpo-jax sweep: error: {message}"


def _sweep_without_disk(path, limit):
    """Sweep where no file may grow beyond some bytes, as on a full disk."""
    processes.forbid_files_beyond(limit)
    with (path / "said").open("w") as said, contextlib.redirect_stderr(said):
        code = main.run(["sweep", str(path / "mine.toml"), "--sweep-dir", str(path / "sweep")])
    (path / "code").write_text(str(code))


# Too small for the plan; large enough for that, and not for the rest.
@pytest.mark.parametrize("limit", [pytest.param(6_000, marks=pytest.mark.slow), 25_000])
def test_a_full_disk_is_one_clear_line_and_nothing_is_lost(limit, tmp_path, spawn):
    Path("mine.toml").write_text(SWEEP.replace("num_timesteps = 64", "num_timesteps = 640"))
    spawn(_sweep_without_disk, tmp_path, limit).join()
    assert Path("code").read_text() == "2"
    said = [line for line in Path("said").read_text().splitlines() if "persistent compilation cache" not in line]
    assert len(said) == 1
    assert said[0].startswith("trpo-jax sweep: error: ")
    assert "File too large" in said[0]
    assert Path("sweep/plan.json").exists() == (limit > 6_000)
    # With room again, it goes on.
    assert main.run(["sweep", "mine.toml", "--sweep-dir", "sweep"]) == 0
    assert len(Path("sweep/results.csv").read_text().splitlines()) == 9


def test_a_processors_cores_share_the_runs():
    """In a process of its own, in which nothing has asked JAX for its devices yet."""
    command = [sys.executable, "-m", "trpo_jax", "sweep", "mine.toml", "--runs-per-program", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    Path("mine.toml").write_text(SWEEP.replace("[2, 3]", "[2]").replace("[0.8, 0.9]", "[0.8]"))
    subprocess.run(command, env=environment, check=True, capture_output=True)
    with Path("sweeps/mine/results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["num_devices"]) for row in rows] == [min(2, len(os.sched_getaffinity(0)))] * 2


def test_they_do_where_loading_an_environment_asks_jax_for_its_devices():
    Path("mine.toml").write_text(SWEEP.replace("fast", "inverted_pendulum"))
    command = [sys.executable, "-m", "trpo_jax", "sweep", "mine.toml", "--dry-run"]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    (row, _) = (line.split("│") for line in printed.splitlines() if "inverted_pendulum" in line)
    assert int(row[7]) == min(len(os.sched_getaffinity(0)), 4)  # of four runs


SMALL = """
environment = "fast"
num_timesteps = 64
num_envs = 4
unroll_length = 4
num_eval_envs = 2
critic = { num_minibatches = 1, num_epochs = 1, hidden_sizes = [8] }
policy.hidden_sizes = [8]
[trpo]
trust_region.cg_iterations = 2
[ppo]
clipped = { num_minibatches = 2, num_epochs = 1 }
"""


def test_compare_trains_by_each_algorithm_and_reports(capsys):
    Path("small.toml").write_text(SMALL)
    assert main.run(["compare", "small.toml", "--algorithms", "trpo,ppo", "--seeds", "2", "--sweep-dir", "both"]) == 0
    printed = capsys.readouterr().out
    assert "4 finished, 4 of 4 in all" not in printed  # algorithms share no program
    assert "| fast | algorithm trpo | 2 |" in printed
    assert "| fast | algorithm ppo | 2 |" in printed
    assert printed.endswith("wrote both/report/report.html\n")
    rows = list(csv.DictReader(Path("both/results.csv").read_text().splitlines()))
    assert [(row["config.algorithm"], row["config.trust_region.cg_iterations"]) for row in rows] == [("trpo", "2")] * 2 + [
        ("ppo", "")
    ] * 2
    assert main.run(["compare", "small.toml", "--algorithms", "trpo,dqn"]) == 2
    assert "algorithm: got 'dqn', allowed: one of trpo, ppo" in capsys.readouterr().err
