"""Collecting experience: T steps of N environments in one scan."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from trpo_jax.agent.metrics import EpisodeStatistics, break_off, record_step
from trpo_jax.environments.protocol import EnvironmentState
from trpo_jax.environments.wrappers import FreshAutoReset, has_nan, is_finite, select
from trpo_jax.policy.distributions import TanhGaussian
from trpo_jax.policy.memory import Memory, policy_step
from trpo_jax.policy.networks import Network
from trpo_jax.policy.normalization import NormalizerState, normalize
from trpo_jax.spaces import ActionSpace, Box, Composite, parts_of, with_parts

STEPS_PER_START = 8
"""Rollout steps per fresh initial state of an environment. Episodes that begin within these steps share it. With 32, double
pendulums fell again and again from the same state, and learned worse on three seeds of six."""


class Transition(NamedTuple):
    """One step of an environment. A rollout stacks them to `[T, N, ...]`."""

    observation: Any
    action: Any
    """The sampled action, before it is brought into the action box."""
    log_prob: Float[Array, "..."]
    reward: Float[Array, "..."]
    next_observation: Any
    """The observation the step led to, before any reset."""
    terminated: Bool[Array, "..."]
    truncated: Bool[Array, "..."]
    fault: Bool[Array, "..."]
    """The simulator failed, so the sample is unusable. All other fields are zero."""
    cost: Float[Array, "... K"] | None = None
    episode_length: Float[Array, "1 N"] | None = None
    """Mean length of an episode, in actions, the same for all environments; None without costs, or before it is estimated."""
    branches: Any = None
    """`vine.Branches`, `[M, N, ...]`, of the sampler "vine"."""
    memory: Memory | None = None
    """Before the step, if the policy or the critic has a memory."""


class _Stored(NamedTuple):
    """A `Transition` in fewer arrays: in a loop on an accelerator, each stored array costs one launch per step."""

    arrays: tuple[Any, ...]
    numbers: Float[Array, "*batch 2"]
    flags: Bool[Array, "*batch 3"]

    @classmethod
    def of(cls, transition: Transition) -> "_Stored":
        numbers = jnp.stack([transition.log_prob, transition.reward], axis=-1)
        flags = jnp.stack([transition.terminated, transition.truncated, transition.fault], axis=-1)
        arrays = transition.observation, transition.action, transition.next_observation, transition.cost, transition.memory
        return cls(arrays, numbers, flags)

    def transition(self) -> Transition:
        observation, action, next_observation, cost, memory = self.arrays
        log_prob, reward = (self.numbers[..., i] for i in range(2))
        terminated, truncated, fault = (self.flags[..., i] for i in range(3))
        fields = observation, action, log_prob, reward, next_observation, terminated, truncated, fault, cost
        return Transition(*fields, memory=memory)


class RolloutState(NamedTuple):
    """State carried from one rollout to the next."""

    environments: EnvironmentState
    """Finished environments have already been reset."""
    episodes: EpisodeStatistics
    memory: Memory | None = None
    """For the next step, if the policy or the critic has a memory."""


def to_environment_action(action_space: ActionSpace, distribution: Any, action: Any) -> Any:
    """Bring a continuous action into the action box, by tanh for `TanhGaussian`, else by clipping; discrete ones pass."""
    if isinstance(action_space, Composite):
        parts = parts_of(action_space)
        inside = {key: to_environment_action(part, distribution.parts[key], action[key]) for key, part in parts.items()}
        return with_parts(action_space, inside)
    if not isinstance(action_space, Box):
        return action
    if isinstance(distribution, TanhGaussian):
        middle, half = 0.5 * (action_space.high + action_space.low), 0.5 * (action_space.high - action_space.low)
        return middle + half * distribution.squash(action)
    return jnp.clip(action, action_space.low, action_space.high)


def num_starts(unroll_length: int) -> int:
    """Return how many initial states a rollout draws for each environment (S)."""
    return math.ceil(unroll_length / STEPS_PER_START)


def collect(
    environment: FreshAutoReset,
    policy: Network,
    params: Any,
    normalizer: NormalizerState | None,
    state: RolloutState,
    starts: EnvironmentState,
    key: Key[Array, ""],
    *,
    unroll_length: int,
) -> tuple[RolloutState, Transition]:
    """Let a policy act for `unroll_length` steps in every environment.

    Observations and rewards are checked in every step, but the simulator's own state only at the end. An environment with a
    NaN there loses all its steps of this rollout, because nobody can tell how many steps are affected.

    Args:
        environment: has automatic resets.
        policy: network; apply(params, normalized observation) -> Distribution.
        params: the policy's parameters.
        normalizer: frozen for the rollout; None leaves observations as they are.
        state: environments and episode statistics at the start.
        starts: `[S, N, ...]`, initial states for the episodes that begin in this rollout; see `num_starts`.
        key: consumed.
        unroll_length: T, static.

    Returns:
        (state, `Transition` of `[T, N, ...]`).
    """

    def step(state: RolloutState, now: tuple[Key[Array, ""], Int[Array, ""]]) -> tuple[RolloutState, _Stored]:
        key, time = now
        observation = state.environments.observation
        carry, distribution = policy_step(policy, params, state.memory, normalize(normalizer, observation))
        action = distribution.sample(key)
        environments, final, fault = environment.step(
            state.environments,
            to_environment_action(environment.action_space, distribution, action),
            jax.tree.map(lambda leaf: leaf[time // STEPS_PER_START], starts),
        )
        reward = jnp.where(fault, 0.0, final.reward)
        cost = jax.tree.map(lambda each: jnp.where(fault[:, None], 0.0, each), final.cost)
        at_limit = environment.has_reached_limit(final)
        episodes = record_step(state.episodes, reward, final.terminated | final.truncated, fault, at_limit, cost)
        transition = Transition(
            observation,
            action,
            distribution.log_prob(action),
            final.reward,
            final.observation,
            final.terminated,
            final.truncated,
            fault,
            cost,
            memory=state.memory,
        )
        ended = final.terminated | final.truncated | fault
        memory = None if state.memory is None else Memory(carry, ended)
        return RolloutState(environments, episodes, memory), _Stored.of(transition)

    steps = jax.random.split(key, unroll_length), jnp.arange(unroll_length)
    state, stored = jax.lax.scan(step, state, steps)
    transition = stored.transition()
    lost = has_nan(state.environments.simulator)
    fresh = jax.tree.map(lambda leaf: leaf[-1], starts)
    memory = None if state.memory is None else state.memory._replace(begins=state.memory.begins | lost)
    state = RolloutState(select(lost, fresh, state.environments), break_off(state.episodes, lost), memory)
    fault = transition.fault | ~jax.vmap(is_finite)(transition.observation) | lost
    nothing = jax.tree.map(jnp.zeros_like, transition)
    return state, select(fault, nothing, transition)._replace(fault=fault)
