"""`trpo-jax render` as a person uses it: a process of its own, with and without OpenGL."""

import ctypes.util
import os
import subprocess
import sys

import pytest
from PIL import Image

from trpo_jax.cli import main

SMALL = ["--num-envs", "4", "--unroll-length", "8", "--critic.num-minibatches", "2"]


@pytest.fixture(scope="module")
def trpo_jax(tmp_path_factory):
    """Run the command line in a working directory that holds a run."""
    cwd, cache = tmp_path_factory.mktemp("work"), str(tmp_path_factory.mktemp("cache"))
    variables = {name: value for name, value in os.environ.items() if name not in ("JAX_COMPILATION_CACHE_DIR", "MUJOCO_GL")}
    variables |= {"XDG_CACHE_HOME": cache, "JAX_PLATFORMS": "cpu"}

    def run(*arguments, **more):
        command = [sys.executable, "-m", "trpo_jax", *arguments]
        options = {"capture_output": True, "text": True, "check": False, "timeout": 300}
        return cwd, subprocess.run(command, env=variables | more, cwd=cwd, **options)

    _, trained = run("train", "inverted_pendulum", "--num-timesteps", "0", "--num-evals", "0", "--run-dir", "run", *SMALL)
    assert trained.returncode == 0, trained.stderr
    return run


@pytest.mark.brax
def test_render_writes_a_page_and_a_moving_picture(trpo_jax):
    cwd, result = trpo_jax("render", "run", "--max-steps", "6")
    assert result.returncode == 0, result.stderr
    if ctypes.util.find_library("EGL") is None:
        assert "no animation" in result.stderr
        pytest.skip("needs libEGL")
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "inverted_pendulum (spring) after 0 steps",
        "an episode of 6 actions, then cut off; return 6.0",
        "wrote run/render.html",
        "wrote run/render.gif",
    ]
    assert "cdn.jsdelivr.net" in (cwd / "run" / "render.html").read_text()
    with Image.open(cwd / "run" / "render.gif") as gif:
        assert (gif.n_frames, gif.info["duration"]) == (4, 40)
        first = gif.convert("RGB").tobytes()
        gif.seek(3)
        assert gif.convert("RGB").tobytes() != first


@pytest.mark.slow
@pytest.mark.brax
def test_an_animation_has_the_size_that_is_asked_for(trpo_jax):
    cwd, result = trpo_jax("render", "run", "--max-steps", "2", "--size", "640x482", "--camera", "free")
    assert result.returncode == 0, result.stderr
    if ctypes.util.find_library("EGL") is None:
        pytest.skip("needs libEGL")
    with Image.open(cwd / "run" / "render.gif") as gif:
        assert gif.size == (640, 482)


@pytest.mark.parametrize("size", ["640", "640x", "641x480", "0x480", "640x5000", "-2x4", "6.4e2x480", "640 x 480"])
def test_a_size_that_is_none_is_one_clear_line(size, capsys, monkeypatch):
    monkeypatch.setattr(main, "configure_process", lambda: None)  # it changes this process's jax.config
    assert main.run(["render", "run", f"--size={size}"]) == 2
    message = f"trpo-jax render: error: size: got '{size}', allowed: WIDTHxHEIGHT in pixels, such as 640x480: even numbers"
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.brax
def test_without_opengl_the_page_is_written_and_one_line_says_what_is_missing(trpo_jax):
    cwd, result = trpo_jax("render", "run", "--max-steps", "6", "--format", "mp4", MUJOCO_GL="disable")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "wrote run/render.html"
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("trpo-jax render: warning: no animation: MuJoCo finds no OpenGL to draw with; on Debian")
    assert not (cwd / "run" / "render.mp4").exists()
