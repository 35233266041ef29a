"""A point that collects goals among hazards: a small task with costs, in pure JAX."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from trpo_jax.environments.protocol import EnvironmentState
from trpo_jax.spaces import Box

GOAL_RADIUS = 0.2
ARENA = 1.5
"""Goals and hazards lie at most this far from the centre, where every episode starts."""
NUM_BINS = 16
"""Directions in which the point sees hazards."""


class Point(NamedTuple):
    """The state of one task; positions and velocity are in arena units."""

    key: Key[Array, ""]
    position: Float[Array, "2"]
    velocity: Float[Array, "2"]
    goal: Float[Array, "2"]
    hazards: Float[Array, "H 2"]


class PointHazards:
    """Accelerate a point to one goal after another, past hazards that cost.

    The reward of a step is the distance that the point has come nearer to its goal, and 1 more if it reaches it; then the
    next goal appears. The cost is 1 in each step within a hazard. Hazards stay where they are during an episode. The task
    never ends by itself.

    Observations are the vector to the goal, the velocity, and for each of 16 directions how near the nearest hazard is: 1 at
    its centre, falling to 0 at a distance of `ARENA`. Actions are accelerations in [-1, 1]².

    Args:
        num_hazards: H.
        hazard_radius: in arena units, less than half of `ARENA`; the point moves by at most 0.05 along each axis in a step.

    Raises:
        ValueError: no hazards, or a radius that is not allowed.

    Reference:
        After the goal task of Safety Gym (Ray, Achiam and Amodei 2019), without its robots and its simulator.
    """

    action_space = Box(2)

    def __init__(self, num_hazards: int = 8, hazard_radius: float = 0.25):
        if num_hazards < 1:
            raise ValueError(f"num_hazards: got {num_hazards}, allowed: an integer >= 1")
        if not 0.0 < hazard_radius < ARENA / 2:
            raise ValueError(f"hazard_radius: got {hazard_radius}, allowed: a number > 0 and < {ARENA / 2}")
        self.num_hazards, self.hazard_radius = num_hazards, hazard_radius

    def reset(self, keys: Key[Array, "N"]) -> EnvironmentState:
        """Draw N layouts."""
        points = jax.vmap(self._draw)(keys)
        zero = jnp.zeros(keys.shape)
        return self._state(points, zero, zero)

    def step(self, state: EnvironmentState, action: Float[Array, "N 2"]) -> EnvironmentState:
        """Move N points."""
        points, reward = jax.vmap(self._move)(state.simulator, action)
        inside = jnp.any(jax.vmap(_distances)(points) < self.hazard_radius, axis=-1)
        return self._state(points, reward, inside.astype(jnp.float32))

    def _state(self, points: Point, reward: Float[Array, "N"], cost: Float[Array, "N"]) -> EnvironmentState:
        never = jnp.zeros(reward.shape, bool)
        return EnvironmentState(points, jax.vmap(_observation)(points), reward, never, never, cost[:, None])

    def _draw(self, key: Key[Array, ""]) -> Point:
        key, hazard_key, goal_key = jax.random.split(key, 3)
        hazards = _in_ring(hazard_key, self.num_hazards, 2.0 * self.hazard_radius)
        return Point(key, jnp.zeros(2), jnp.zeros(2), _free_goal(goal_key, hazards), hazards)

    def _move(self, point: Point, action: Float[Array, "2"]) -> tuple[Point, Float[Array, ""]]:
        velocity = 0.8 * point.velocity + 0.2 * jnp.clip(action, -1.0, 1.0)
        position = point.position + 0.05 * velocity
        before, after = (jnp.linalg.norm(point.goal - each) for each in (point.position, position))
        reached = after < GOAL_RADIUS
        key, goal_key = jax.random.split(point.key)
        goal = jnp.where(reached, _free_goal(goal_key, point.hazards), point.goal)
        return Point(key, position, velocity, goal, point.hazards), before - after + reached


def _in_ring(key: Key[Array, ""], count: int, inner: float) -> Float[Array, "count 2"]:
    """Draw points uniformly from the ring between `inner` and `ARENA`."""
    radius_key, angle_key = jax.random.split(key)
    radius = jnp.sqrt(jax.random.uniform(radius_key, (count,), minval=inner**2, maxval=ARENA**2))
    angle = jax.random.uniform(angle_key, (count,), maxval=2.0 * jnp.pi)
    return radius[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def _free_goal(key: Key[Array, ""], hazards: Float[Array, "H 2"]) -> Float[Array, "2"]:
    """Draw eight goals and return the one that is farthest from all hazards."""
    goals = _in_ring(key, 8, 0.0)
    clearance = jnp.min(jnp.linalg.norm(goals[:, None] - hazards, axis=-1), axis=-1)
    return goals[jnp.argmax(clearance)]


def _distances(point: Point) -> Float[Array, "H"]:
    return jnp.linalg.norm(point.hazards - point.position, axis=-1)


def _observation(point: Point) -> Float[Array, "D"]:
    offset = point.hazards - point.position
    direction = jnp.arctan2(offset[:, 1], offset[:, 0]) / (2.0 * jnp.pi) * NUM_BINS
    nearness = jnp.clip(1.0 - _distances(point) / ARENA, 0.0, 1.0)
    seen = jnp.zeros(NUM_BINS).at[jnp.floor(direction).astype(jnp.int32) % NUM_BINS].max(nearness)
    return jnp.concatenate([point.goal - point.position, point.velocity, seen])
