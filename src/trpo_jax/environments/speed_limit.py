"""A limit on the speed of Brax's robots, as a cost."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trpo_jax.environments.loading import quiet_import

with quiet_import():
    import brax.envs


class SpeedLimit(brax.envs.Wrapper):
    """A Brax environment with the cost 1 in each step in which its robot is faster than a limit, else 0.

    The cost is in the states' `info["cost"]`. Speed is that of the metrics: along x, and for robots that move in a plane
    √(v_x² + v_y²).

    Args:
        env: a bare Brax environment whose states have the metric "x_velocity".
        limit: in metres per second.

    Reference:
        The velocity tasks of Safety-Gymnasium (Ji et al. 2023, arXiv 2310.12567).
    """

    def __init__(self, env: brax.envs.Env, limit: float):
        super().__init__(env)
        self.limit = limit

    def reset(self, rng: jax.Array) -> brax.envs.State:
        state = self.env.reset(rng)
        if "x_velocity" not in state.metrics:
            raise TypeError(
                f"env: got a {type(self.unwrapped).__name__}, allowed: one whose states have the metric 'x_velocity'"
            )
        return _with_cost(state, jnp.zeros_like(state.reward))

    def step(self, state: brax.envs.State, action: jax.Array) -> brax.envs.State:
        state = self.env.step(state, action)
        return _with_cost(state, (speed(state) > self.limit).astype(state.reward.dtype))


def speed(state: brax.envs.State) -> Float[Array, "..."]:
    """Return the speed that a state's metrics tell."""
    along = state.metrics["x_velocity"]
    across = state.metrics.get("y_velocity")
    return along if across is None else jnp.hypot(along, across)


def _with_cost(state: brax.envs.State, cost: jax.Array) -> brax.envs.State:
    return state.replace(info={**state.info, "cost": cost})
