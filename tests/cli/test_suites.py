"""Suites of other libraries on the command line: train, evaluate, render, resume; and what fails says so in one sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

SMALL = [
    *("--num-envs", "2", "--unroll-length", "8", "--critic.num-minibatches", "2", "--critic.hidden-sizes", "8"),
    *("--policy.hidden-sizes", "8", "--episode-length", "12", "--num-eval-envs", "2", "--num-timesteps", "32"),
]
LINE = ["gymnasium_probes:Line-v0", "--suite", "gymnasium"]


@pytest.fixture(scope="module")
def trpo_jax(tmp_path_factory):
    """Run the command line in a working directory."""
    cwd, cache = tmp_path_factory.mktemp("work"), str(tmp_path_factory.mktemp("cache"))
    variables = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    variables |= {"XDG_CACHE_HOME": cache, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[1])}
    if os.environ.get("PYTHONPATH"):
        variables["PYTHONPATH"] += os.pathsep + os.environ["PYTHONPATH"]

    def run(*arguments):
        command = [sys.executable, "-m", "trpo_jax", *arguments]
        options = {"capture_output": True, "text": True, "check": False, "timeout": 300}
        return cwd, subprocess.run(command, env=variables, cwd=cwd, **options)

    return run


def test_a_gymnasium_environment_is_trained_resumed_evaluated_and_rendered(trpo_jax):
    cwd, trained = trpo_jax("train", *LINE, "--run-dir", "line", *SMALL)
    assert trained.returncode == 0, trained.stderr
    assert trained.stderr == ""
    assert trained.stdout.splitlines()[0] == (
        "gymnasium_probes:Line-v0 (sync), 32 steps, 2 environments × 8 steps an iteration"
    )
    _, resumed = trpo_jax("train", "--resume", "line", "--num-timesteps", "48")
    assert resumed.returncode == 0, resumed.stderr
    _, evaluated = trpo_jax("evaluate", "line", "--episodes", "3")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "length     12.0" in evaluated.stdout or "length  12.0" in evaluated.stdout, evaluated.stdout
    _, rendered = trpo_jax("render", "line", "--max-steps", "5")
    assert rendered.returncode == 0, rendered.stderr
    with Image.open(cwd / "line" / "render.gif") as image:
        frames = [image.seek(k) or image.info["duration"] for k in range(image.n_frames)]
        assert sum(frames) == 6 * 50, "equal frames are one that is shown for longer"
        assert image.size == (64, 32)


def test_a_page_of_an_environment_that_draws_itself_is_refused(trpo_jax):
    trpo_jax("train", *LINE, "--run-dir", "page", *SMALL)
    _, result = trpo_jax("render", "page", "--format", "html")
    assert result.returncode == 2
    assert "format: got 'html', allowed: gif or mp4" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gymnasium_probes:Breaking-v0", "gymnasium_probes:Breaking-v0 failed: ValueError: the motor is hot"),
        ("gymnasium_probes:Lin-v0", "environment: got 'gymnasium_probes:Lin-v0', allowed: a registered Gymnasium environment"),
    ],
)
def test_what_fails_says_so_in_one_sentence(trpo_jax, name, message):
    _, result = trpo_jax("train", name, "--suite", "gymnasium", *SMALL, "--num-timesteps", "400", "--num-evals", "0")
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr


def test_gymnax_is_trained_with_a_memory(trpo_jax):
    pytest.importorskip("gymnax")
    memory = ["--policy.network", "gru", "--critic.network", "gru"]
    _, trained = trpo_jax("train", "MemoryChain-bsuite", "--suite", "gymnax", "--run-dir", "chain", *SMALL, *memory)
    assert trained.returncode == 0, trained.stderr
    _, evaluated = trpo_jax("evaluate", "chain", "--episodes", "3")
    assert evaluated.returncode == 0, evaluated.stderr
