"""Play an episode, and write it as an HTML page and an animation."""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Key, UInt8
from PIL import Image

from trpo_jax.agent.agent import Agent
from trpo_jax.agent.inference import PolicyMaker
from trpo_jax.environments.checked import checked_reset, checked_step
from trpo_jax.environments.host import Film, HostEnvironment
from trpo_jax.environments.protocol import Environment, EnvironmentState
from trpo_jax.environments.rendering import DrawingError, Scene, View, make_scene
from trpo_jax.environments.wrappers import is_faulty
from trpo_jax.errors import ConfigError, FileError, MissingPackageError
from trpo_jax.runs.run import load_policy
from trpo_jax.runs.run_folder import RunFolder
from trpo_jax.training.run_config import RunConfig

Format = Literal["gif", "mp4", "html"]
MIN_FRAME_SECONDS = 0.04
"""Shortest time per frame: 25 frames a second look smooth, and without a GPU drawing a frame takes 1/20 of a second."""


class Step(NamedTuple):
    """One played step of an episode; for K steps, stacked to `[K, …]`."""

    pose: Any
    """Pose after the step, from the environment's `Scene`."""
    reward: Float[Array, "..."]
    ended: Bool[Array, "..."]
    """The episode ended here, by a termination or the time limit."""
    faulty: Bool[Array, "..."]
    """The simulator lost the environment here; this step is not part of the episode."""


class Episode(NamedTuple):
    """One episode, or its beginning, on the host."""

    poses: list[Any]
    """The initial pose, and the pose after each step."""
    episode_return: float
    """Sum of unscaled rewards."""
    ended: bool
    """False if the episode was still running at the last recorded step."""


class Rendering(NamedTuple):
    """Result of `render_run`."""

    step: int
    """Environment steps for which the policy was trained."""
    episode: Episode
    files: list[Path]
    """Files that were written."""
    missing: list[str]
    """One line for each file that could not be drawn, with the reason."""


def render_run(
    run_config: RunConfig,
    folder: RunFolder,
    *,
    max_steps: int,
    seed: int,
    output: Format,
    view: View = View(),  # noqa: B008
) -> Rendering:
    """Play one episode deterministically with a run's newest policy, and write it as page and animation into the run's folder.

    Args:
        run_config: the run's configuration.
        folder: the run's folder; render.html and render.gif or render.mp4 in it are overwritten.
        max_steps: actions after which to stop, at least 1.
        seed: seed of the initial state.
        output: "gif" or "mp4" for the page and an animation, "html" for the page alone.
        view: size and camera of the animation.

    Raises:
        ConfigError: an environment that cannot be drawn, no such camera, or an episode that cannot be drawn.
        MissingPackageError: "mp4" without the package for it.
        FileError: a folder that cannot be written.
        CheckpointError: as `load_policy`.
    """
    encode = _video_encoder() if output == "mp4" else write_gif
    agent, step, params = load_policy(run_config, folder)
    if isinstance(agent.environment, HostEnvironment):
        film = _film(agent, params, max_steps=max_steps, seed=seed, output=output, view=view)
        path = folder.path / f"render.{output}"
        with _writing(path):
            encode(path, iter(film.frames), film.seconds_per_frame)
        return Rendering(step, Episode(film.frames, film.episode_return, film.ended), [path], [])
    scene = make_scene(agent.environment)
    scene.camera(view.camera)  # fail before anything is compiled
    record = jax.jit(functools.partial(_record, agent.environment, agent.make_policy, scene.pose, max_steps))
    episode = cut_episode(*jax.device_get(record(params, jax.random.key(seed))))
    writers = {"html": _write_page}
    if output != "html":
        writers[output] = functools.partial(_write_animation, encode, view)
    files, missing = [], []
    for ending, write in writers.items():
        path = folder.path / f"render.{ending}"
        try:
            with _writing(path):
                write(path, scene, episode.poses)
            files.append(path)
        except DrawingError as error:
            missing.append(str(error))
    if not files:
        raise ConfigError("run", str(folder.path), f"one that can be drawn here; this one cannot: {'; '.join(missing)}")
    return Rendering(step, episode, files, missing)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn an OSError into a FileError that names the file."""
    try:
        yield
    except OSError as error:
        raise FileError.unwritable(path, error) from None


def _film(agent: Agent, params: Any, *, max_steps: int, seed: int, output: Format, view: View) -> Film:
    """Play and draw an episode of an environment that draws itself."""
    if output == "html":
        raise ConfigError("format", output, "gif or mp4: this environment draws frames, and no page")
    if view != View():
        raise ConfigError("camera, width or height", "another than the default", "the default: this environment draws itself")
    policy, carry = jax.jit(agent.make_policy(params, True)), agent.make_policy.initial_carry((1,))

    def act(observation: Any) -> Any:
        nonlocal carry
        action, extras = policy(observation, None, carry)
        carry = extras.get("carry")
        return jax.device_get(action)

    environment: Any = agent.environment
    return environment.film(act, seed=seed, max_steps=max_steps)


def _record(
    environment: Environment,
    make_policy: PolicyMaker,
    pose: Callable[[EnvironmentState], Any],
    num_steps: int,
    params: Any,
    key: Key[Array, ""],
) -> tuple[Any, Step]:
    """Play steps; return (first pose, `Step` of `[num_steps, …]`). Steps after the episode's end are meaningless."""
    policy = make_policy(params, True)

    def play(now: tuple[EnvironmentState, Any], _: None) -> tuple[tuple[EnvironmentState, Any], Step]:
        state, carry = now
        action, extras = policy(state.observation, None, carry)
        state = checked_step(environment, state, action)
        step = Step(pose(state), state.reward, state.terminated | state.truncated, is_faulty(state))
        return (state, extras.get("carry")), jax.tree.map(lambda leaf: leaf[0], step)  # the step of the only environment

    start = checked_reset(environment, jax.random.split(key, 1))
    _, steps = jax.lax.scan(play, (start, make_policy.initial_carry((1,))), None, length=num_steps)
    return jax.tree.map(lambda leaf: leaf[0], pose(start)), steps


def cut_episode(start: Any, steps: Step) -> Episode:
    """Keep only the first recorded episode: through its last step, or up to the step before the simulator lost it."""
    num_steps = len(steps.reward)
    end = int(np.argmax(steps.ended)) + 1 if steps.ended.any() else num_steps
    lost = int(np.argmax(steps.faulty)) if steps.faulty.any() else num_steps
    length = min(end, lost)
    poses = [start, *(jax.tree.map(lambda leaf, k=k: leaf[k], steps.pose) for k in range(length))]
    return Episode(poses, float(steps.reward[:length].sum()), length < num_steps or bool(steps.ended.any()))


def _write_page(path: Path, scene: Scene, poses: list[Any]) -> None:
    path.write_text(scene.page(poses), encoding="utf-8")


Encoder = Callable[[Path, Iterable[UInt8[np.ndarray, "height width 3"]], float], None]
"""(file, frames, seconds per frame) -> None."""


def _write_animation(encode: Encoder, view: View, path: Path, scene: Scene, poses: list[Any]) -> None:
    """Draw poses in real time. If drawing is impossible, raise DrawingError and leave an earlier file unchanged."""
    stride = max(1, math.ceil(MIN_FRAME_SECONDS / scene.seconds_per_step - 1e-6))
    frames: Iterator[Any] = scene.frames(poses[::stride], view)
    first = next(frames)  # drawing fails here or not at all, before the file is opened
    encode(path, itertools.chain([first], frames), scene.seconds_per_step * stride)


def write_gif(path: Path, frames: Iterable[UInt8[np.ndarray, "height width 3"]], seconds_per_frame: float) -> None:
    """Write an animated GIF that repeats forever. GIF durations are in hundredths of a second."""
    images = iter(_with_one_palette(frames))
    milliseconds = max(10, 10 * round(100 * seconds_per_frame))
    next(images).save(path, save_all=True, append_images=images, duration=milliseconds, loop=0, optimize=False)


def _with_one_palette(frames: Iterable[UInt8[np.ndarray, "height width 3"]]) -> Iterator[Image.Image]:
    """Reduce all frames to the first one's 256 colours. With separate palettes or dithering, still parts would flicker."""
    palette = None
    for frame in frames:
        image = Image.fromarray(frame)
        palette = palette or image.quantize(256)
        yield image.quantize(palette=palette, dither=Image.Dither.NONE)


def _video_encoder() -> Encoder:
    try:
        import av
    except ImportError:
        raise MissingPackageError.of("--format mp4", "av", "video") from None
    return functools.partial(_write_mp4, av)


def _write_mp4(av: Any, path: Path, frames: Iterable[UInt8[np.ndarray, "height width 3"]], seconds_per_frame: float) -> None:
    """Write H.264 in the pixel format that every browser plays."""
    images = (av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames)
    first = next(images)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=Fraction(1 / seconds_per_frame).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = first.width, first.height, "yuv420p"
        for image in itertools.chain([first], images):
            container.mux(stream.encode(image))
        container.mux(stream.encode())  # frames that the encoder still holds
