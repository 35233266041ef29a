import dataclasses
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from probes import Counter
from trpo_jax import ConfigError, TRPOConfig, make_trpo, train
from trpo_jax.environments.rendering import DrawingError, Scene
from trpo_jax.errors import FileError, MissingPackageError
from trpo_jax.runs import render
from trpo_jax.runs.run_folder import create_run_folder
from trpo_jax.training.run_config import RunConfig


@dataclasses.dataclass(frozen=True)
class FakeScene(Scene):
    """Keeps the observation as the pose; draws a white column at the number of steps."""

    model: Any = None
    seconds_per_step: float = 0.02
    simulator_pose: Any = None
    page_error: str | None = None
    frames_error: str | None = None

    def pose(self, state):
        return state.observation

    def page(self, poses):
        if self.page_error:
            raise DrawingError(self.page_error)
        return f"<html>{len(poses)} poses</html>"

    def camera(self, name):
        if name != "auto":
            raise ConfigError("camera", name, "one of this environment: free")

    def frames(self, poses, view):
        if self.frames_error:
            raise DrawingError(self.frames_error)
        return map(column, (int(steps) for _, steps in poses))


def column(x):
    frame = np.zeros((16, 32, 3), np.uint8)
    frame[:, x] = 255
    return frame


def show(tmp_path, monkeypatch, scene, *, lifetime=9, max_steps=20, output="gif", seed=0, **options):
    config = TRPOConfig(num_envs=8, unroll_length=32)
    trpo = make_trpo(Counter(lifetime=lifetime), config)
    _, params, _ = train(Counter(lifetime=lifetime), 0, config=config, num_evals=0)
    monkeypatch.setattr(render, "load_policy", lambda *_: (trpo, 7, params))
    monkeypatch.setattr(render, "make_scene", lambda _: scene)
    path = tmp_path / "run"
    folder = render.RunFolder(path) if path.exists() else create_run_folder(path, RunConfig())
    return render.render_run(RunConfig(), folder, max_steps=max_steps, seed=seed, output=output, **options)


def played(rendering):
    """Return the steps that the poses of an episode show."""
    return [int(steps) for _, steps in rendering.episode.poses]


def test_an_episode_is_played_to_its_end_and_written(tmp_path, monkeypatch):
    rendering = show(tmp_path, monkeypatch, FakeScene(), lifetime=9)
    assert played(rendering) == list(range(10))
    assert rendering.episode.episode_return == sum(range(1, 10))
    assert (rendering.step, rendering.episode.ended, rendering.missing) == (7, True, [])
    assert [path.name for path in rendering.files] == ["render.html", "render.gif"]
    assert rendering.files[0].read_text() == "<html>10 poses</html>"


def test_an_animation_runs_in_real_time_and_draws_no_more_frames_than_needed(tmp_path, monkeypatch):
    """Steps of 0.02 seconds: every second one is drawn, for 0.04 seconds."""
    with Image.open(show(tmp_path, monkeypatch, FakeScene(), lifetime=9).files[1]) as gif:
        assert (gif.n_frames, gif.info["duration"], gif.info["loop"]) == (5, 40, 0)
        shown = []
        for frame in range(gif.n_frames):
            gif.seek(frame)
            shown.append(int(np.asarray(gif.convert("L"))[0].argmax()))
    assert shown == [0, 2, 4, 6, 8]


def test_an_episode_is_cut_off_after_max_steps(tmp_path, monkeypatch):
    rendering = show(tmp_path, monkeypatch, FakeScene(), lifetime=9, max_steps=4, output="html")
    assert played(rendering) == [0, 1, 2, 3, 4]
    assert not rendering.episode.ended
    assert [path.name for path in rendering.files] == ["render.html"]


def test_a_camera_that_is_not_there_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="camera: got 'side', allowed: one of this environment: free"):
        show(tmp_path, monkeypatch, FakeScene(), view=render.View(camera="side"))
    assert not (tmp_path / "run" / "render.html").exists()


def test_another_seed_starts_elsewhere(tmp_path, monkeypatch):
    starts = [show(tmp_path, monkeypatch, FakeScene(), output="html", seed=s).episode.poses[0][0] for s in (0, 0, 1)]
    assert starts[0] == starts[1] != starts[2]


def steps(ended, faulty):
    k = len(ended)
    return render.Step(np.arange(1, k + 1), np.ones(k, np.float32), np.asarray(ended), np.asarray(faulty))


@pytest.mark.parametrize(
    ("ended", "faulty", "poses", "is_over"),
    [
        ([False, True, False, True], [False] * 4, [0, 1, 2], True),
        ([False] * 4, [False, False, True, True], [0, 1, 2], True),
        ([False, False, True, False], [False, True, False, False], [0, 1], True),
        ([False] * 4, [True] * 4, [0], True),
        ([False, False, False, True], [False] * 4, [0, 1, 2, 3, 4], True),
        ([False] * 4, [False] * 4, [0, 1, 2, 3, 4], False),
    ],
)
def test_what_follows_an_end_or_a_fault_is_not_shown(ended, faulty, poses, is_over):
    episode = render.cut_episode(0, steps(ended, faulty))
    assert episode.poses == poses
    assert episode.episode_return == len(poses) - 1
    assert episode.ended is is_over


def test_without_opengl_the_page_is_written_and_the_rest_explained(tmp_path, monkeypatch):
    rendering = show(tmp_path, monkeypatch, FakeScene(frames_error="no animation: reason"))
    assert [path.name for path in rendering.files] == ["render.html"]
    assert rendering.missing == ["no animation: reason"]
    assert not (tmp_path / "run" / "render.gif").exists()


def test_where_nothing_can_be_drawn_one_line_says_why(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"can be drawn here; this one cannot: no page; no animation"):
        show(tmp_path, monkeypatch, FakeScene(page_error="no page", frames_error="no animation"))


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path, monkeypatch):
    (tmp_path / "run" / "render.html").mkdir(parents=True)
    with pytest.raises(FileError, match=r"^.*run/render.html cannot be written: Is a directory$"):
        show(tmp_path, monkeypatch, FakeScene())


def test_an_mp4_holds_the_frames(tmp_path, monkeypatch):
    av = pytest.importorskip("av")
    path = show(tmp_path, monkeypatch, FakeScene(), lifetime=9, output="mp4").files[1]
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 25
    assert [int(frame.mean(0).argmax()) for frame in frames] == [0, 2, 4, 6, 8]


def test_without_its_package_mp4_is_one_line_that_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        MissingPackageError, match=r'--format mp4 needs av, which is not installed: pip install "trpo-jax\[video\]"'
    ):
        show(tmp_path, monkeypatch, FakeScene(), output="mp4")
