"""Tiny Gymnasium environments, registered when this module is imported."""

import os

import gymnasium
import numpy as np
from gymnasium import spaces


class Everything(gymnasium.Env):
    """Every kind of space. Ends after three steps, which cost 0.5 but for the second; pays the sum of the continuous action."""

    observation_space = spaces.Dict(
        {
            "action_mask": spaces.Dict({"pick": spaces.Box(0, 1, (5,), np.int8)}),
            "bits": spaces.MultiBinary(2),
            "image": spaces.Box(0, 255, (4, 4, 3), np.uint8),
            "pair": spaces.Tuple((spaces.Discrete(3, start=1), spaces.MultiDiscrete([2, 3]))),
            "x": spaces.Box(-np.inf, np.inf, (2, 2)),
        }
    )
    action_space = spaces.Dict(
        {
            "bits": spaces.MultiBinary(2),
            "go": spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([4.0, 1.0], np.float32)),
            "pick": spaces.MultiDiscrete([2, 3]),
            "pair": spaces.Tuple((spaces.Discrete(4, start=1), spaces.Box(-np.inf, np.inf, (1,)))),
        }
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.steps += 1
        return self._observation(), float(action["go"].sum()), self.steps == 3, False, self._told()

    def _told(self):
        return {"other": "text"} if self.steps == 2 else {"cost": 0.5, "other": "text"}

    def _observation(self):
        return {
            "action_mask": {"pick": np.array([1, 0, 1, 1, 1], np.int8)},
            "bits": np.array([0, 1], np.int8),
            "image": np.full((4, 4, 3), self.steps, np.uint8),
            "pair": (1 + self.steps % 3, np.array([1, 2])),
            "x": np.full((2, 2), self.steps, np.float32),
        }


class Line(gymnasium.Env):
    """A point on a line is to come to 0; it can draw itself. It has no time limit, and breaks or dies where it is told to."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, render_mode=None, breaks_at=None, dies_at=None):
        self.render_mode, self.breaks_at, self.dies_at, self.taken = render_mode, breaks_at, dies_at, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1)
        return np.array([self.place], np.float32), {}

    def step(self, action):
        self.taken += 1
        if self.taken == self.breaks_at:
            raise ValueError("the motor\n is hot")
        if self.taken == self.dies_at:
            os._exit(1)
        self.place = float(np.clip(self.place + 0.2 * action[0], -2, 2))
        return np.array([self.place], np.float32), 1.0 - abs(self.place), False, False, {}

    def render(self):
        frame = np.zeros((32, 64, 3), np.uint8)
        frame[:, int(32 + 15 * self.place)] = 255
        return frame


class NoSpace(Line):
    action_space = spaces.Text(5)


class NoSight(Line):
    observation_space = spaces.Sequence(spaces.Discrete(2))


gymnasium.register("Everything-v0", Everything, max_episode_steps=50)
gymnasium.register("Line-v0", Line)
gymnasium.register("Breaking-v0", Line, kwargs={"breaks_at": 40})
gymnasium.register("Dying-v0", Line, kwargs={"dies_at": 40})
gymnasium.register("NoSpace-v0", NoSpace)
gymnasium.register("NoSight-v0", NoSight)
