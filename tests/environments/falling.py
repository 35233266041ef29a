"""A hand-made Brax environment that compiles at once: a mass that falls, and its model as Brax keeps one."""

import jax
import jax.numpy as jnp
from flax import struct

from trpo_jax.environments.brax import brax  # imported without its noise


@struct.dataclass
class FallingModel(brax.base.Base):
    gravity: jax.Array
    mass: jax.Array
    unused: jax.Array


class Falling(brax.envs.Env):
    """Observes (height, speed); the action pushes up; pays the height; terminates on the floor."""

    observation_size, action_size, backend = 2, 1, "none"

    def __init__(self, gravity=1.0, mass=2.0):
        self.sys = FallingModel(jnp.float32(gravity), jnp.float32(mass), jnp.arange(3.0))

    def reset(self, rng):
        height = jax.random.uniform(rng, minval=1.0, maxval=2.0)
        return self._state(jnp.stack([height, jnp.float32(0.0)]))

    def step(self, state, action):
        height, speed = state.pipeline_state
        speed = speed + 0.1 * (action[0] / self.sys.mass - self.sys.gravity)
        new = self._state(jnp.stack([height + 0.1 * speed, speed]))
        return state.replace(pipeline_state=new.pipeline_state, obs=new.obs, reward=new.reward, done=new.done)

    def _state(self, moving):
        return brax.envs.State(moving, moving, moving[0], (moving[0] < 0).astype(jnp.float32))


def random_gravity(sys, rng):
    """Randomize gravity; mass and what is unused stay shared."""
    gravity = jax.vmap(lambda key: jax.random.uniform(key, minval=0.5, maxval=5.0))(rng)
    in_axes = jax.tree.map(lambda _: None, sys).tree_replace({"gravity": 0})
    return sys.tree_replace({"gravity": gravity}), in_axes
