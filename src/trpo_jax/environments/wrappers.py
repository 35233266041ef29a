"""Time limits, automatic resets that keep the final observation, and checks for faulty environments."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from trpo_jax.environments.checked import checked_reset, checked_step
from trpo_jax.environments.host import AnyEnvironment
from trpo_jax.environments.protocol import Environment, EnvironmentState
from trpo_jax.spaces import ActionSpace

GOLDEN_RATIO = 2654435769
"""The golden ratio's fractional part times 2^32: its multiples modulo 2^32 are evenly spread, however many there are."""


class _TimedSimulator(NamedTuple):
    simulator: Any
    steps: Int[Array, "N"]


class ActionRepeat:
    """Repeat every action `number` times; sum rewards and costs.

    If an episode ends between repeats, the remaining repeats leave the environment unchanged.
    """

    def __init__(self, environment: Environment, number: int):
        self.environment, self.number = environment, number

    @property
    def action_space(self) -> ActionSpace:
        return self.environment.action_space

    def reset(self, keys: Key[Array, "N"]) -> EnvironmentState:
        return checked_reset(self.environment, keys)

    def step(self, state: EnvironmentState, action: Any) -> EnvironmentState:
        def repeat(state, _):
            ended = state.terminated | state.truncated
            new = checked_step(self.environment, state, action)
            new = new._replace(reward=state.reward + new.reward, cost=jax.tree.map(jnp.add, state.cost, new.cost))
            return select(ended, state, new), None

        fresh = state._replace(
            reward=jnp.zeros_like(state.reward),
            cost=jax.tree.map(jnp.zeros_like, state.cost),
            terminated=jnp.zeros_like(state.terminated),
            truncated=jnp.zeros_like(state.truncated),
        )
        return jax.lax.scan(repeat, fresh, None, length=self.number)[0]


class EpisodeLimit:
    """Truncate episodes after `episode_length` simulator steps, of which an action takes several under `ActionRepeat`.

    A step that both terminates and reaches the limit counts as a termination.
    """

    def __init__(self, environment: Environment, episode_length: int):
        self.environment, self.episode_length, self.action_repeat = environment, episode_length, _repeats(environment)

    @property
    def action_space(self) -> ActionSpace:
        return self.environment.action_space

    @property
    def most_actions(self) -> int:
        """Number of actions after which an episode is over."""
        return -(-self.episode_length // self.action_repeat)

    def reset(self, keys: Key[Array, "N"]) -> EnvironmentState:
        state = checked_reset(self.environment, keys)
        return state._replace(simulator=_TimedSimulator(state.simulator, jnp.zeros(keys.shape, jnp.int32)))

    def step(self, state: EnvironmentState, action: Any) -> EnvironmentState:
        simulator, steps = state.simulator
        inner = checked_step(self.environment, state._replace(simulator=simulator), action)
        steps = steps + self.action_repeat
        truncated = (inner.truncated | (steps >= self.episode_length)) & ~inner.terminated
        return inner._replace(simulator=_TimedSimulator(inner.simulator, steps), truncated=truncated)

    def out_of_step(self, state: EnvironmentState) -> tuple[EnvironmentState, Float[Array, "N"]]:
        """Spread the time limits of initial states, as if each episode had started some actions ago.

        Otherwise all environments would be at the same point of their episodes, and none would end for a long time.

        Returns:
            (the states, the number of actions since each episode's assumed start).
        """
        num_actions = self.most_actions
        multiple = jnp.arange(state.reward.shape[0], dtype=jnp.uint32) * jnp.uint32(GOLDEN_RATIO)  # modulo 2^32
        share = (multiple >> 8).astype(jnp.float32) * 2**-24
        age = jnp.minimum(jnp.floor(share * num_actions), num_actions - 1)
        steps = age.astype(jnp.int32) * self.action_repeat
        return state._replace(simulator=state.simulator._replace(steps=steps)), age

    def has_reached_limit(self, state: EnvironmentState) -> Bool[Array, "N"]:
        """Tell which episodes ended at the time limit without terminating."""
        return (state.simulator.steps >= self.episode_length) & ~state.terminated


def _repeats(environment: Any) -> int:
    """Return how often an environment's `ActionRepeat` repeats an action; 1 without one."""
    while environment is not None and not isinstance(environment, ActionRepeat):
        environment = getattr(environment, "environment", None)
    return 1 if environment is None else environment.number


class FreshAutoReset:
    """Restart every environment whose episode ends from a fresh initial state of its own, and also return the final state.

    Environments with a non-finite observation, reward or cost are also reset. Self-resetting environments are left alone.

    Initial states are drawn in advance, so a step never pays for a reset that it does not use. The caller decides how often
    to draw new ones. Each environment has its own, so no state moves between environments or devices.
    """

    def __init__(self, environment: AnyEnvironment):
        self.environment: Any = environment

    @property
    def action_space(self) -> ActionSpace:
        return self.environment.action_space

    @property
    def keeps_final_observation(self) -> bool:
        """Whether the final state of a truncated episode has the observation that the episode ended with."""
        return getattr(self.environment, "keeps_final_observation", True)

    def reset(self, keys: Key[Array, "N"]) -> EnvironmentState:
        """Draw initial states, to start or restart from."""
        return checked_reset(self.environment, keys)

    def out_of_step(self, state: EnvironmentState) -> tuple[EnvironmentState, Float[Array, "N"]]:
        """Spread the time limits; see `EpisodeLimit.out_of_step`. Other environments stay unchanged."""
        if isinstance(self.environment, EpisodeLimit):
            return self.environment.out_of_step(state)
        return state, jnp.zeros(state.reward.shape, jnp.float32)

    def has_reached_limit(self, state: EnvironmentState) -> Bool[Array, "N"]:
        """Tell which episodes `EpisodeLimit` has ended."""
        if isinstance(self.environment, EpisodeLimit):
            return self.environment.has_reached_limit(state)
        return jnp.zeros(state.reward.shape, bool)

    def step(
        self, state: EnvironmentState, action: Any, fresh: EnvironmentState
    ) -> tuple[EnvironmentState, EnvironmentState, Bool[Array, "N"]]:
        """Advance by one action.

        Args:
            state: the states to act on.
            action: `[N, *]`.
            fresh: the states to restart from.

        Returns:
            (the states to act on next, the states after the step and before any reset, whether the simulator lost each
            environment in this step: its observation, reward or cost is not finite).
        """
        final = new = checked_step(self.environment, state, action)
        if getattr(self.environment, "resets_itself", False):
            final = new._replace(observation=self.environment.final_observation(new))
            lost = ~is_finite((new.observation, final.observation, new.reward, new.cost))
            return select(lost, fresh, new), final, lost
        lost = ~is_finite((new.observation, new.reward, new.cost))
        return select(lost | new.terminated | new.truncated, fresh, new), final, lost


def is_faulty(state: EnvironmentState) -> Bool[Array, "N"]:
    """Tell which environments have a NaN in the simulator, or an observation, reward or cost that is not finite."""
    return has_nan(state.simulator) | ~is_finite((state.observation, state.reward, state.cost))


def has_nan(tree: Any) -> Bool[Array, "N"]:
    """Tell for which environments a tree of `[N, ...]` holds a NaN."""
    return jnp.any(jnp.isnan(_floating_columns(tree)), axis=1)


def is_finite(tree: Any) -> Bool[Array, "N"]:
    """Tell for which environments all values in a tree of `[N, ...]` are finite."""
    return jnp.all(jnp.isfinite(_floating_columns(tree)), axis=1)


def _floating_columns(tree: Any) -> Float[Array, "N D"]:
    """Concatenate the floating leaves `[N, ...]` of a tree: one check of all is faster than one per leaf."""
    leaves = jax.tree.leaves(tree)
    num_envs = leaves[0].shape[0]
    floating = [leaf.reshape(num_envs, -1) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.concatenate([jnp.zeros((num_envs, 0)), *floating], axis=1)


def select(condition: Bool[Array, "*N"], on_true: Any, on_false: Any) -> Any:
    """Choose between two pytrees environment by environment."""

    def choose(a, b):
        return jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - condition.ndim)), a, b)

    return jax.tree.map(choose, on_true, on_false)
