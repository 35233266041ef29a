"""Time limits, automatic resets that keep the final observation and start afresh, and what a simulator has lost."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from trpo_jax.environments.protocol import Box, Discrete, Environment, EnvironmentState


class _TimedSimulator(NamedTuple):
    simulator: Any
    steps: Int[Array, "N"]


class EpisodeLimit:
    """End episodes after `episode_length` simulator steps by truncation, and repeat every action `action_repeat` times.

    A limit that is reached in the very step that terminates is a termination. Rewards of repeated actions add up;
    after a termination between repeats the environment stands still.
    """

    def __init__(self, environment: Environment, episode_length: int, action_repeat: int = 1):
        self.environment, self.episode_length, self.action_repeat = environment, episode_length, action_repeat

    @property
    def action_space(self) -> Box | Discrete:
        return self.environment.action_space

    def reset(self, keys: Key[Array, "N"]) -> EnvironmentState:
        state = self.environment.reset(keys)
        return state._replace(simulator=_TimedSimulator(state.simulator, jnp.zeros(keys.shape, jnp.int32)))

    def step(self, state: EnvironmentState, action: jax.Array) -> EnvironmentState:
        simulator, steps = state.simulator
        inner = state._replace(simulator=simulator)
        inner = self.environment.step(inner, action) if self.action_repeat == 1 else self._repeat(inner, action)
        steps = steps + self.action_repeat
        truncated = (inner.truncated | (steps >= self.episode_length)) & ~inner.terminated
        return inner._replace(simulator=_TimedSimulator(inner.simulator, steps), truncated=truncated)

    def _repeat(self, state: EnvironmentState, action: jax.Array) -> EnvironmentState:
        def repeat(state, _):
            ended = state.terminated | state.truncated
            new = cast_like(self.environment.step(state, action), state)
            new = new._replace(reward=state.reward + new.reward)
            return select(ended, state, new), None

        fresh = state._replace(
            reward=jnp.zeros_like(state.reward),
            terminated=jnp.zeros_like(state.terminated),
            truncated=jnp.zeros_like(state.truncated),
        )
        return jax.lax.scan(repeat, fresh, None, length=self.action_repeat)[0]


class AutoResetState(NamedTuple):
    """N environments that never stand at the end of an episode."""

    current: EnvironmentState
    num_resets: Int[Array, "N"]
    """Episodes each environment has ended; picks its next start from the pool."""


class FreshAutoReset:
    """Restart every environment whose episode ends, from an initial state drawn for it, and hand on the final state.

    So it does with one that its simulator has lost (`is_faulty`). One that `resets_itself` it leaves to do so.

    Initial states come from a pool `[S, N, ...]` that the caller draws anew as often as it likes (`draw_starts`), so
    that a step never pays for a reset that it does not use. Each environment takes the entries of its own column in
    turn: no state crosses environments, and so no device.
    """

    def __init__(self, environment: Environment):
        self.environment: Any = environment

    @property
    def action_space(self) -> Box | Discrete:
        return self.environment.action_space

    @property
    def keeps_final_observation(self) -> bool:
        """Whether the final state of an episode that a time limit ends shows what the episode had come to."""
        return getattr(self.environment, "keeps_final_observation", True)

    def reset(self, keys: Key[Array, "N"]) -> AutoResetState:
        return self.begin(strong(self.environment.reset(keys)))

    def begin(self, start: EnvironmentState) -> AutoResetState:
        """Begin with initial states `[N, ...]` that were drawn already."""
        return AutoResetState(start, jnp.zeros(start.terminated.shape, jnp.int32))

    def draw_starts(self, keys: Key[Array, "S N"]) -> EnvironmentState:
        """Draw a pool of initial states, `[S, N, ...]`."""
        return strong(jax.vmap(self.environment.reset)(keys))

    def step(
        self, state: AutoResetState, action: jax.Array, starts: EnvironmentState
    ) -> tuple[AutoResetState, EnvironmentState]:
        """Advance by one action; return the state to act on next, and the state as the step left it, before any reset."""
        final = new = cast_like(self.environment.step(state.current, action), state.current)
        restarted = is_faulty(new)
        if getattr(self.environment, "resets_itself", False):
            final = new._replace(observation=self.environment.final_observation(new))
        else:
            restarted |= new.terminated | new.truncated
        num_starts = starts.terminated.shape[0]
        index = state.num_resets % num_starts

        def pick(pool):
            shaped = index.reshape((1, -1) + (1,) * (pool.ndim - 2))
            return jnp.take_along_axis(pool, shaped, axis=0)[0]

        fresh = jax.tree.map(pick, starts)
        return AutoResetState(select(restarted, fresh, new), state.num_resets + restarted), final


def is_faulty(state: EnvironmentState) -> Bool[Array, "N"]:
    """Tell which environments are beyond use: a NaN in the simulator, or an observation or reward that is not finite."""
    lost = jnp.any(jnp.isnan(_floating_columns((state.simulator, state.reward))), axis=1)
    return lost | ~is_finite((state.observation, state.reward))


def is_finite(tree: Any) -> Bool[Array, "N"]:
    """Tell for which environments all that a tree of `[N, ...]` holds is finite."""
    return jnp.all(jnp.isfinite(_floating_columns(tree)), axis=1)


def _floating_columns(tree: Any) -> Float[Array, "N D"]:
    """Put the floating leaves `[N, ...]` of a tree side by side: one look at many small ones is quicker than one each."""
    leaves = jax.tree.leaves(tree)
    num_envs = leaves[0].shape[0]
    floating = [leaf.reshape(num_envs, -1) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.concatenate([jnp.zeros((num_envs, 0)), *floating], axis=1)


def select(condition: Bool[Array, "*N"], on_true: Any, on_false: Any) -> Any:
    """Choose between two pytrees environment by environment."""

    def choose(a, b):
        return jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - condition.ndim)), a, b)

    return jax.tree.map(choose, on_true, on_false)


def strong(tree: Any) -> Any:
    """Strip weak types, which would make the first state differ from later ones and cost a second compilation."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.result_type(x)), tree)


def cast_like(tree: Any, reference: Any) -> Any:
    """Give each leaf the dtype (and strong type) of its counterpart, since simulators step and reset in different ones."""
    return jax.tree.map(lambda x, like: jax.lax.convert_element_type(x, like.dtype), tree, reference)
