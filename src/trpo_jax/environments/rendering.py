"""Show what a simulator did: frames by MuJoCo, and an HTML page with Brax's viewer. Supports Brax and Playground."""

import copy
import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, UInt8

from trpo_jax.environments.history import innermost, innermost_simulator
from trpo_jax.environments.loading import quiet_import
from trpo_jax.environments.protocol import Environment, EnvironmentState
from trpo_jax.environments.randomization import Randomized
from trpo_jax.environments.wrappers import EpisodeLimit
from trpo_jax.errors import ConfigError

with quiet_import():
    import mujoco
    from brax.base import Transform
    from brax.io import html

FREE_CAMERA = "free"
"""Name of MuJoCo's camera that shows the whole model from outside it."""
BACKGROUND = (225, 232, 240)
"""Colour of the background: a pale sky."""


class DrawingError(Exception):
    """Report, in one line, why something cannot be drawn here and what would help."""


class View(NamedTuple):
    """Size and camera of the frames."""

    width: int = 480
    """Pixels; even, because H.264 requires it."""
    height: int = 360
    camera: str = "auto"
    """Name of one of the model's cameras, or "free"; "auto" is its first, or the free one if it has none."""


class Pose(NamedTuple):
    """The positions from which MuJoCo places a model's bodies. Leaves may have leading axes."""

    q: Float[Array, "... Q"]
    """Joint positions."""
    mocap_position: Float[Array, "... M 3"] | None
    """Mocap bodies, whose position is set and not simulated, such as targets; None for a simulator that has none."""
    mocap_rotation: Float[Array, "... M 4"] | None


@dataclasses.dataclass(frozen=True)
class Scene:
    """How to draw an environment."""

    model: mujoco.MjModel
    seconds_per_step: float
    """Simulated time from one pose to the next."""
    simulator_pose: Callable[[Any], Pose]

    def pose(self, state: EnvironmentState) -> Pose:
        """Return the poses `[N, …]` of N environments with a time limit. May be traced."""
        return self.simulator_pose(inner_simulator(state))

    def page(self, poses: Sequence[Pose]) -> str:
        """Return an HTML page that plays poses. It holds the geometry; its scripts come from a CDN when it is opened.

        Raises:
            DrawingError: the viewer does not know a shape of the model.
        """
        bodies = [self._data(pose) for pose in poses]
        # Rounded, since all digits of float64 make the page three times as long. The viewer already has body 0, the world.
        states = [SimpleNamespace(x=Transform(np.round(d.xpos[1:], 5), np.round(d.xquat[1:], 5))) for d in bodies]
        try:
            return html.render(_viewer_system(self.model, self.seconds_per_step), states, height="100vh", colab=False)
        except KeyError:
            raise DrawingError("no page: the model has a shape (an ellipsoid?) that Brax's viewer does not know") from None

    def camera(self, name: str) -> int:
        """Return MuJoCo's number of a camera; see `View`.

        Raises:
            ConfigError: the model has no camera of that name.
        """
        names = [self.model.camera(number).name for number in range(self.model.ncam)]
        if name == "auto":
            return 0 if names else -1
        if name not in (*names, FREE_CAMERA):
            raise ConfigError("camera", name, f"one of this environment: {', '.join((*filter(None, names), FREE_CAMERA))}")
        return names.index(name) if name in names else -1

    def frames(self, poses: Sequence[Pose], view: View) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        """Draw poses one by one.

        Raises:
            ConfigError: as `camera`.
            DrawingError: MuJoCo finds no OpenGL to draw with.
        """
        camera = self.camera(view.camera)
        background = not _has_sky(self.model)  # MuJoCo leaves it pure black; lit bodies never are
        renderer = self._renderer(view.width, view.height)
        with renderer:
            for pose in poses:
                renderer.update_scene(self._data(pose), camera=camera)
                frame = renderer.render()
                if background:
                    frame[~frame.any(axis=-1)] = BACKGROUND
                yield frame

    def _renderer(self, width: int, height: int) -> mujoco.Renderer:
        self.model.vis.global_.offwidth, self.model.vis.global_.offheight = width, height
        try:
            with warnings.catch_warnings(action="ignore"):  # GLFW warns before it fails
                return mujoco.Renderer(self.model, height, width)
        except Exception as error:  # each of MuJoCo's backends raises exceptions of its own, even AttributeError
            words = " ".join(str(error).split())[:120]
            raise DrawingError(
                "no animation: MuJoCo finds no OpenGL to draw with; on Debian or Ubuntu "
                "`apt-get install libegl1 libopengl0 libgl1-mesa-dri` installs it; MUJOCO_GL=egl, osmesa or glfw "
                f"selects the backend ({type(error).__name__}: {words})"
            ) from None

    def _data(self, pose: Pose) -> mujoco.MjData:
        """Place the model's bodies."""
        data = mujoco.MjData(self.model)
        data.qpos = pose.q
        if pose.mocap_position is not None:
            data.mocap_pos, data.mocap_quat = pose.mocap_position, pose.mocap_rotation
        mujoco.mj_forward(self.model, data)
        return data


def _viewer_system(model: mujoco.MjModel, seconds_per_step: float) -> Any:
    """Return those parts of a `brax.System` that Brax's viewer reads, for the geoms that MuJoCo shows by default (groups 0-2).

    A real System can hold only models that Brax can simulate, and it loses the colours of materials.
    """
    shown = np.flatnonzero(model.geom_group < 3)
    material = model.geom_matid[shown]
    colour = np.where(material[:, None] < 0, model.geom_rgba[shown], _material_colours(model)[material])
    meshes = ("nmesh", "mesh_faceadr", "mesh_face", "mesh_vertadr", "mesh_vert")
    return SimpleNamespace(
        opt=SimpleNamespace(timestep=seconds_per_step),  # for the viewer, the time between two poses
        link_names=[model.body(body).name for body in range(1, model.nbody)],
        ngeom=len(shown),
        geom_bodyid=model.geom_bodyid[shown],
        geom_type=model.geom_type[shown],
        geom_pos=model.geom_pos[shown],
        geom_quat=model.geom_quat[shown],
        geom_size=model.geom_size[shown],
        geom_dataid=model.geom_dataid[shown],
        mj_model=SimpleNamespace(geom_rgba=colour, **{name: getattr(model, name) for name in meshes}),
    )


def _material_colours(model: mujoco.MjModel) -> Float[np.ndarray, "M 4"]:
    """Return the colour of every material, and one unused last row so that a model without materials can be indexed."""
    return np.concatenate([model.mat_rgba, np.ones((1, 4))])


def inner_simulator(state: EnvironmentState) -> Any:
    """Return the simulator's own state of N environments, from inside `EpisodeLimit` and any domain randomization."""
    simulator = innermost_simulator(state.simulator.simulator)
    return simulator.state if isinstance(simulator, Randomized) else simulator


def make_scene(environment: Environment) -> Scene:
    """Return how to draw an environment with a time limit (`Agent.environment`).

    Domain randomization changes the motion, but the drawn model is always the nominal one.

    Raises:
        ConfigError: an environment of a kind that cannot be drawn.
    """
    if isinstance(environment, EpisodeLimit):
        inner = innermost(environment.environment)
        for module, kind, make in _KINDS:
            if module in sys.modules and isinstance(inner, getattr(sys.modules[module], kind)):
                return make(inner.environment, environment.action_repeat)
        environment = inner
    raise ConfigError("environment", type(environment).__name__, "one of Brax or Playground; others cannot be drawn")


def _presentable(model: mujoco.MjModel) -> mujoco.MjModel:
    """Return a copy that looks better. A model with a sky was made for display and keeps its light."""
    model = copy.copy(model)
    model.vis.quality.shadowsize = 1024  # a larger one looks no better in small frames, and doubles their cost on a CPU
    if not _has_sky(model):
        model.vis.headlight.ambient[:] = 0.35
        model.vis.headlight.diffuse[:] = 0.45
        model.vis.global_.elevation = -30  # of the free camera, which otherwise looks down steeply
    return model


def _has_sky(model: mujoco.MjModel) -> bool:
    return bool(np.any(model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX))


def _brax_scene(environment: Any, action_repeat: int) -> Scene:
    return Scene(_presentable(environment.sys.mj_model), float(environment.dt) * action_repeat, _brax_pose)


def _brax_pose(simulator: Any) -> Pose:
    return Pose(simulator.pipeline_state.q, None, None)


def _playground_scene(environment: Any, action_repeat: int) -> Scene:
    return Scene(_presentable(environment.mj_model), float(environment.dt) * action_repeat, _playground_pose)


def _playground_pose(simulator: Any) -> Pose:
    data = simulator.data
    return Pose(data.qpos, data.mocap_pos, data.mocap_quat)


_KINDS: tuple[tuple[str, str, Callable[[Any, int], Scene]], ...] = (
    ("trpo_jax.environments.brax", "BraxEnvironment", _brax_scene),
    ("trpo_jax.environments.playground", "PlaygroundEnvironment", _playground_scene),
)
"""Module and class of the environments that can be drawn, and how. If the module is not imported, no such object exists."""
