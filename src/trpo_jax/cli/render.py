"""`trpo-jax render`."""

import os
import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from trpo_jax.cli.arguments import parse
from trpo_jax.cli.startup import complain
from trpo_jax.config import LARGEST_SEED, config, setting
from trpo_jax.errors import ConfigError

DESCRIPTION = (
    "Play one episode with the newest policy of a run folder, acting with the policy's mean, and write RUN/render.html (open "
    "it in a browser, which fetches the viewer's scripts from the network) and RUN/render.gif. Works for environments of "
    "Brax and MuJoCo Playground. Gymnasium's draw themselves: of those there is RUN/render.gif only."
)


@config
class RenderArguments:
    """Arguments of `trpo-jax render`."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder that `trpo-jax train` or `trpo-jax sweep` wrote, or SWEEP/NAME (NAME: ant or ant-seed0); of several runs, the
    one with the highest return is shown."""
    max_steps: int = setting(default=500, at_least=1)
    """Largest number of actions; a longer episode is cut off."""
    seed: int = setting(default=0, at_least=0, at_most=LARGEST_SEED)
    """Seed of the initial state."""
    format: Literal["gif", "mp4", "html"] = setting(default="gif")
    """gif or mp4 (smaller; needs the extra "video") writes the page and an animation, html the page alone."""
    size: Annotated[str, tyro.conf.arg(metavar="WIDTHxHEIGHT")] = setting(default="480x360")
    """Size of the animation, in pixels."""
    camera: str = setting(default="auto")
    """Name of one of the environment's cameras, or free, which shows the whole scene; auto is the first camera, else free."""


def render_command(arguments: list[str]) -> int:
    """Render as the arguments say; return the exit code."""
    parsed = parse(RenderArguments, arguments, command="render", description=DESCRIPTION)
    size = _pixels(parsed.size)
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")  # draws without a screen; must be set before mujoco is imported

    from trpo_jax.runs.run_folder import open_run_folder
    from trpo_jax.sweep.finding import best_run

    folder, run_config = open_run_folder(best_run(parsed.run))
    import jax

    jax.devices()  # start the devices now: only a failure here is reported as a one-line error
    from trpo_jax.environments.rendering import View  # not before RUN is checked: it imports simulators, slowly
    from trpo_jax.runs.render import render_run

    rendering = render_run(
        run_config, folder, max_steps=parsed.max_steps, seed=parsed.seed, output=parsed.format, view=View(*size, parsed.camera)
    )
    episode = rendering.episode
    end = "" if episode.ended else ", then cut off"
    if folder.path != Path(parsed.run):
        print(folder.path.name)
    print(f"{run_config.environment} ({run_config.backend}) after {rendering.step:,} steps")
    print(f"an episode of {len(episode.poses) - 1} actions{end}; return {episode.episode_return:.1f}")
    for file in rendering.files:
        print(f"wrote {file}")
    for line in rendering.missing:
        complain(f"warning: {line}", "render")
    return 0


def _pixels(size: str) -> tuple[int, int]:
    """Return width and height."""
    numbers = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,4})", size)
    width, height = (int(number) for number in numbers.groups()) if numbers else (0, 0)
    if not all(16 <= each <= 4096 and each % 2 == 0 for each in (width, height)):
        raise ConfigError("size", size, "WIDTHxHEIGHT in pixels, such as 640x480: even numbers from 16 to 4096")
    return width, height
