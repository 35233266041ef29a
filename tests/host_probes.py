"""A tiny environment that Python steps, behind the package's protocol for such."""

import jax.numpy as jnp
import numpy as np

from trpo_jax.environments.host import Film, HostStep
from trpo_jax.environments.protocol import EnvironmentState
from trpo_jax.errors import SimulatorError
from trpo_jax.spaces import Box


class HostCounter:
    """Observes (seed's last digit, steps); terminates after `lifetime` steps, is cut off after `limit`; pays the step count.

    Every n-th step of the first environment, counted over all episodes, is lost (a NaN) or raises an error. The restart with
    the number `lost_start` gives it a NaN.
    """

    action_space = Box(2)

    def __init__(self, lifetime=5, limit=100, lost_every=None, fails_at=None, lost_start=None):
        self.lifetime, self.limit, self.lost_every, self.fails_at = lifetime, limit, lost_every, fails_at
        self.lost_start, self.opened = lost_start, []

    @property
    def most_actions(self):
        return self.limit

    def reset(self, keys):
        n = keys.shape[0]
        nothing, no = jnp.zeros(n), jnp.zeros(n, bool)
        return EnvironmentState(jnp.zeros(n, jnp.int32), jnp.zeros((n, 2)), nothing, no, no, jnp.zeros((n, 1)))

    def open(self, num_envs):
        self.opened.append(Counters(self, num_envs))
        return self.opened[-1]

    def limited(self, episode_length):
        return HostCounter(self.lifetime, min(self.limit, episode_length), self.lost_every, self.fails_at, self.lost_start)

    def film(self, act, *, seed, max_steps):
        counters = self.open(1)
        observation, total, frames = counters.reset(np.asarray([seed])), 0.0, [np.zeros((16, 16, 3), np.uint8)]
        for _ in range(max_steps):
            step = counters.step(act(observation))
            observation, total = step.observation, total + float(step.reward[0])
            frames.append(np.full((16, 16, 3), 40 * len(frames) % 256, np.uint8))
            if step.terminated[0] or step.truncated[0]:
                return Film(frames, 0.05, total, True)
        return Film(frames, 0.05, total, False)


class Counters:
    def __init__(self, environment, num_envs):
        self.environment, self.num_envs = environment, num_envs
        self.begun = self.taken = self.restarts = 0
        self.actions, self.closed = [], False

    def reset(self, seeds):
        self.begun += 1
        self.digit, self.steps = seeds % 10, np.zeros(self.num_envs)
        return self._observation()

    def step(self, action):
        self.actions.append(action)
        self.taken += 1
        self.steps += 1
        if self.taken == self.environment.fails_at:
            raise SimulatorError("HostCounter failed: it was told to")
        observation = self._observation()
        if self.environment.lost_every and self.taken % self.environment.lost_every == 0:
            observation[0, 1] = np.nan
        terminated = self.steps >= self.environment.lifetime
        truncated = (self.steps >= self.environment.limit) & ~terminated
        cost = 0.5 * np.ones((self.num_envs, 1), np.float32)
        return HostStep(observation, self.steps.astype(np.float32), terminated, truncated, cost)

    def restart(self, which):
        self.steps[which] = 0
        self.restarts += 1
        observation = self._observation()
        if self.restarts == self.environment.lost_start:
            observation[which] = np.nan
        return observation

    def close(self):
        self.closed = True

    def _observation(self):
        return np.stack([self.digit, self.steps], -1).astype(np.float32)
