"""Drawing on hand-made models. MuJoCo's renderer runs in processes of its own: it takes MUJOCO_GL at its first import."""

import base64
import ctypes.util
import json
import os
import re
import subprocess
import sys
import zlib
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from probes import Counter
from trpo_jax import ConfigError
from trpo_jax.environments import rendering
from trpo_jax.environments.protocol import EnvironmentState
from trpo_jax.environments.randomization import Randomized
from trpo_jax.environments.registry import as_environment
from trpo_jax.environments.rendering import DrawingError, Pose, Scene, make_scene
from trpo_jax.environments.wrappers import ActionRepeat, EpisodeLimit, _TimedSimulator

SLIDER = """<mujoco><asset><material name="red" rgba="1 0 0 1"/></asset><worldbody>
<light pos="0 -1 3"/>{cameras}<geom name="rail" type="box" size="2 .05 .05" rgba="0 0 1 1"/>
<body name="cart" pos="0 0 .5"><joint type="slide" axis="1 0 0"/><geom type="{shape}" size=".2 .2 .2" material="red"/>
<geom name="hull" type="sphere" size=".4" group="3"/></body></worldbody></mujoco>"""


CAMERAS = """<camera name="front" pos="0 -4 .5" xyaxes="1 0 0 0 0 1"/>
<camera name="behind" pos="0 4 .5" xyaxes="-1 0 0 0 0 1"/>"""


def slider(shape="sphere", cameras=CAMERAS):
    model = rendering.mujoco.MjModel.from_xml_string(SLIDER.format(shape=shape, cameras=cameras))
    return Scene(model, 0.25, lambda simulator: simulator)


def at(x):
    return Pose(np.asarray([x]), None, None)


def viewed(page):
    """Return what a page hands to the viewer."""
    return json.loads(zlib.decompress(base64.b64decode(re.search(r'var system = "([^"]+)"', page)[1])))


def test_a_page_holds_geometry_colours_poses_and_time():
    page = slider().page([at(-1.0), at(0.5)])
    assert page.count("<html>") == page.count("</html>") == 1
    system = viewed(page)
    assert system["opt"]["timestep"] == 0.25
    ((rail,), (cart,)) = system["geoms"]["world"], system["geoms"]["cart"]  # without the hull, which MuJoCo does not show
    assert (rail["name"], rail["size"], rail["rgba"]) == ("Box", [2, 0.05, 0.05], pytest.approx([0, 0, 1, 1]))
    assert (cart["name"], cart["link_idx"], cart["rgba"]) == ("Sphere", 0, pytest.approx([1, 0, 0, 1]))
    assert [x["pos"] for x in system["states"]["x"]] == [[[-1, 0, 0.5]], [[0.5, 0, 0.5]]]


def test_a_shape_that_the_viewer_lacks_is_one_clear_line():
    with pytest.raises(DrawingError, match=r"^no page: the model has a shape .* that Brax's viewer does not know$"):
        slider("ellipsoid").page([at(0.0)])


FRAMES = """
import json, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from test_rendering import BACKGROUND, DrawingError, at, slider
from trpo_jax.environments.rendering import View
try:
    view = View(*map(int, sys.argv[2:4]), *sys.argv[4:])
    frames = [frame.astype(int) for frame in slider().frames([at(-1.0), at(1.0)], view)]
except DrawingError as error:
    print(json.dumps({"error": str(error)}))
    sys.exit()
red = [np.argwhere((f[..., 0] > 100) & (f[..., 1] < 60) & (f[..., 2] < 60)).mean(0).tolist() for f in frames]
print(json.dumps({"shape": frames[0].shape, "red": red, "corner": frames[0][0, 0].tolist()}))
"""
BACKGROUND = rendering.BACKGROUND


def draw(mujoco_gl, *view):
    here = os.path.dirname(__file__)
    environment = os.environ | {"MUJOCO_GL": mujoco_gl, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), os.path.dirname(here)])
    command = [sys.executable, "-c", FRAMES, here, *map(str, view)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("view", "is_mirrored"),
    [
        pytest.param((800, 600), False, marks=pytest.mark.slow),
        ((480, 360, "behind"), True),
        pytest.param((480, 360), False, marks=pytest.mark.slow),
        pytest.param((480, 360, "free"), False, marks=pytest.mark.slow),
    ],
)
def test_frames_show_the_body_where_it_is_as_large_as_they_are_wanted_and_from_any_camera(view, is_mirrored):
    drawn = draw("egl", *view)
    if ctypes.util.find_library("EGL") is None:
        assert "error" in drawn
        pytest.skip("needs libEGL")
    width, height = view[:2]
    assert drawn["shape"] == [height, width, 3]
    assert drawn["corner"] == list(BACKGROUND)
    (_, left), (_, right) = reversed(drawn["red"]) if is_mirrored else drawn["red"]
    assert left < width / 2 - 50
    assert right > width / 2 + 50


def test_cameras_are_named_and_a_wrong_name_says_which_there_are():
    scene = slider()
    assert [scene.camera(name) for name in ("auto", "front", "behind", "free")] == [0, 0, 1, -1]
    with pytest.raises(ConfigError, match="camera: got 'side', allowed: one of this environment: front, behind, free"):
        scene.camera("side")
    without = slider(cameras="")
    assert without.camera("auto") == -1
    with pytest.raises(ConfigError, match=r"one of this environment: free$"):
        without.camera("front")


def test_without_opengl_one_line_says_so_and_how_to_get_it():
    error = draw("disable", 480, 360)["error"]
    assert error.startswith("no animation: MuJoCo finds no OpenGL to draw with; on Debian or Ubuntu `apt-get install")
    assert "\n" not in error


def state_of(simulator):
    return EnvironmentState(_TimedSimulator(simulator, jnp.zeros(1, int)), None, None, None, None)


def test_a_brax_environment_is_drawn_through_time_limit_action_repeat_and_randomization():
    environment = EpisodeLimit(ActionRepeat(as_environment("inverted_pendulum"), 3), 100)
    scene = make_scene(environment)
    assert scene.seconds_per_step == pytest.approx(3 * environment.environment.environment.environment.dt)
    q = jnp.asarray([[0.5, 0.1]])
    simulator = SimpleNamespace(pipeline_state=SimpleNamespace(q=q))
    for carried in (simulator, Randomized((jnp.ones(1),), simulator)):
        assert scene.pose(state_of(carried)).q is q
    pole = viewed(scene.page([Pose(np.asarray(q[0]), None, None)]))["states"]["x"][0]
    assert pole["pos"][1] == pytest.approx([0.5, 0, 0])
    assert pole["rot"][1] == pytest.approx([np.cos(0.05), 0, np.sin(0.05), 0], abs=1e-4)


def test_a_playground_environment_is_drawn():
    pytest.importorskip("mujoco_playground")
    environment = EpisodeLimit(as_environment("CartpoleBalance", suite="playground"), 100)
    scene = make_scene(environment)
    data = SimpleNamespace(qpos=jnp.zeros((1, 2)), mocap_pos=jnp.zeros((1, 0, 3)), mocap_quat=jnp.zeros((1, 0, 4)))
    pose = scene.pose(state_of(SimpleNamespace(data=data)))
    system = viewed(scene.page([Pose(*(np.asarray(leaf[0]) for leaf in pose))]))
    assert system["opt"]["timestep"] == pytest.approx(environment.environment.environment.dt)
    assert {"cart", "pole_1"} <= set(system["geoms"])


@pytest.mark.parametrize("environment", [EpisodeLimit(Counter(), 10), Counter()])
def test_an_environment_of_ones_own_is_one_clear_line(environment):
    with pytest.raises(ConfigError) as error:
        make_scene(environment)
    assert str(error.value) == "environment: got 'Counter', allowed: one of Brax or Playground; others cannot be drawn"
