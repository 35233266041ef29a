"""Collecting experience: T steps of N environments in one scan."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from trpo_jax.environments.protocol import Box, Discrete
from trpo_jax.environments.wrappers import AutoResetState, FreshAutoReset
from trpo_jax.policy.networks import Network, policy_distribution
from trpo_jax.training.metrics import EpisodeStatistics, record_step
from trpo_jax.training.normalization import NormalizerState, normalize

STEPS_PER_START = 32
"""A rollout draws one fresh initial state an environment for so many steps: the price of a reset spread over 32 steps.
An environment that ends more episodes within one rollout goes through its drawn states again."""


class Transition(NamedTuple):
    """What one step of an environment left behind; stacked to `[T, N, ...]` by a rollout."""

    observation: Any
    action: Any
    """As sampled, before it is clipped to the action box."""
    log_prob: Float[Array, "..."]
    reward: Float[Array, "..."]
    next_observation: Any
    """The observation the step led to, before any reset."""
    terminated: Bool[Array, "..."]
    truncated: Bool[Array, "..."]


class RolloutState(NamedTuple):
    """What goes on from one rollout to the next."""

    environments: AutoResetState
    episodes: EpisodeStatistics


def to_environment_action(action_space: Box | Discrete, action: Any) -> Any:
    """Clip continuous actions to the action box; discrete ones pass."""
    if isinstance(action_space, Box):
        return jnp.clip(action, action_space.low, action_space.high)
    return action


def collect(
    environment: FreshAutoReset,
    policy: Network,
    params: Any,
    normalizer: NormalizerState | None,
    state: RolloutState,
    key: Key[Array, ""],
    *,
    unroll_length: int,
) -> tuple[RolloutState, Transition]:
    """Let a policy act for `unroll_length` steps in every environment.

    Args:
        environment: with automatic resets.
        policy: network; apply(params, normalized observation) -> Distribution.
        params: the policy's parameters.
        normalizer: frozen for the rollout; None leaves observations as they are.
        state: where the environments stand.
        key: consumed.
        unroll_length: T, static.

    Returns:
        (state, `Transition` of `[T, N, ...]`).
    """
    num_envs = state.environments.num_resets.shape[0]
    start_key, action_key = jax.random.split(key)
    num_starts = max(1, unroll_length // STEPS_PER_START)
    starts = environment.draw_starts(jax.random.split(start_key, (num_starts, num_envs)))

    def step(state: RolloutState, key: Key[Array, ""]) -> tuple[RolloutState, Transition]:
        observation = state.environments.current.observation
        distribution = policy_distribution(policy, params, normalize(normalizer, observation))
        action = distribution.sample(key)
        environments, final = environment.step(
            state.environments, to_environment_action(environment.action_space, action), starts
        )
        transition = Transition(
            observation,
            action,
            distribution.log_prob(action),
            final.reward,
            final.observation,
            final.terminated,
            final.truncated,
        )
        episodes = record_step(state.episodes, final.reward, final.terminated | final.truncated)
        return RolloutState(environments, episodes), transition

    return jax.lax.scan(step, state, jax.random.split(action_key, unroll_length))
