"""Vine sampling: several actions in the same state, each followed by a short rollout with the same random numbers."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from trpo_jax.agent.policy_update import PolicyFn
from trpo_jax.agent.rollout import RolloutState, Transition, num_starts, to_environment_action
from trpo_jax.config import config, setting
from trpo_jax.environments.checked import checked_step
from trpo_jax.environments.protocol import EnvironmentState
from trpo_jax.environments.wrappers import FreshAutoReset, is_faulty, select
from trpo_jax.objective.self_normalized import SelfNormalized
from trpo_jax.objective.surrogate import Batch
from trpo_jax.policy.distributions import Distribution
from trpo_jax.policy.normalization import NormalizerState, normalize
from trpo_jax.spaces import ActionSpace, Discrete


@config
class VineConfig:
    """Size of a vine; it counts only for the sampler "vine"."""

    num_states: int = setting(default=4, at_least=1)
    """States of each environment from which branches start, evenly spaced over a rollout; a divisor of unroll_length (M)."""
    num_branches: int = setting(default=4, at_least=2)
    """Actions that are tried in each of these states (K). With discrete actions, the number of them tries each once."""
    branch_length: int = setting(default=8, at_least=1)
    """Steps of a branch, including the one that is tried; the critic's value stands for the rest (L)."""


class Branches(NamedTuple):
    """K branches from the states of N environments; a rollout stacks them to `[M, N, ...]`."""

    observation: Any
    """Of the state that they start from."""
    action: Any
    """`[..., K, *]`, the first of each branch, before it is brought into the action box."""
    log_prob: Float[Array, "... K"]
    """Of that action under the policy."""
    log_q: Float[Array, "... K"]
    """Of that action under the distribution that it was drawn from."""
    reward: Float[Array, "... K L"]
    """Zero after the branch's episode has ended."""
    length: Float[Array, "... K"]
    """Steps until the branch, or its episode, ended."""
    terminated: Bool[Array, "... K"]
    last_observation: Any
    """`[..., K, *]`, at the branch's end."""
    fault: Bool[Array, "..."]
    """The simulator failed in a branch, so that the state is unusable."""


class _Growing(NamedTuple):
    state: EnvironmentState
    alive: Bool[Array, "B"]
    length: Float[Array, "B"]


def collect_vine(
    collect_fn: Callable[[RolloutState, EnvironmentState, Key[Array, ""]], tuple[RolloutState, Transition]],
    grow_fn: Callable[[EnvironmentState, Key[Array, ""]], Branches],
    state: RolloutState,
    starts: EnvironmentState,
    key: Key[Array, ""],
    *,
    num_states: int,
) -> tuple[RolloutState, Transition]:
    """Let a policy act for a while, and grow branches on its way.

    Args:
        collect_fn: `rollout.collect` for a part of the rollout: (state, starts, key) -> (state, `Transition` `[T/M, N, ...]`).
        grow_fn: `grow`: (the states of N environments, key) -> their branches.
        state: environments and episode statistics at the start.
        starts: `[S, N, ...]` with S = `num_vine_starts(T, vine)`.
        key: consumed.
        num_states: M, the number of parts; static. Branches start where a part begins.

    Returns:
        (state, `Transition` of `[T, N, ...]` with `Branches` of `[M, N, ...]`).

    Reference:
        Schulman et al. 2015 (arXiv 1502.05477), section 5.2.
    """

    def part(state: RolloutState, now: tuple[EnvironmentState, Key[Array, ""]]) -> tuple[RolloutState, Any]:
        starts, key = now
        branch_key, path_key = jax.random.split(key)
        branches = grow_fn(state.environments, branch_key)
        state, path = collect_fn(state, starts, path_key)
        return state, (path, branches)

    of_parts = jax.tree.map(lambda leaf: leaf.reshape(num_states, -1, *leaf.shape[1:]), starts)
    state, (path, branches) = jax.lax.scan(part, state, (of_parts, jax.random.split(key, num_states)))
    transition = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), path)
    return state, transition._replace(branches=branches)


def num_vine_starts(unroll_length: int, vine: VineConfig) -> int:
    """Return how many initial states a rollout with branches draws for each environment (S)."""
    return vine.num_states * num_starts(unroll_length // vine.num_states)


def num_branch_steps(num_envs: int, vine: VineConfig) -> int:
    """Return how many steps the branches of an iteration simulate."""
    return num_envs * vine.num_states * vine.num_branches * vine.branch_length


def grow(
    environment: FreshAutoReset,
    act: Callable[[Any], Distribution],
    state: EnvironmentState,
    key: Key[Array, ""],
    vine: VineConfig,
) -> Branches:
    """Grow K branches of L steps from N states. All branches of a state have the same random numbers after the first action.

    Args:
        environment: its automatic resets are not used.
        act: unnormalized observations -> the policy's distribution.
        state: N states; simulators that draw random numbers have a key in it, which is copied with the state.
        key: consumed.
        vine: sizes, static.
    """
    first_key, key = jax.random.split(key)
    distribution, count = act(state.observation), vine.num_branches
    action, log_prob, log_q = _tried(environment, distribution, first_key, vine)

    def spread(leaf: Array) -> Array:
        """Turn `[N, ...]` into `[N·K, ...]`."""
        return jnp.repeat(leaf, count, axis=0)

    def gathered(leaf: Array) -> Array:
        """Turn `[N·K, ...]` into `[N, K, ...]`."""
        return leaf.reshape(-1, count, *leaf.shape[1:])

    def step(growing: _Growing, key: Key[Array, ""]) -> tuple[_Growing, tuple[Array, Array]]:
        each = act(growing.state.observation)
        of_branches = jax.vmap(lambda branch: branch.sample(key), in_axes=1, out_axes=1)
        return _advance(environment, growing, each, _joined(of_branches(jax.tree.map(gathered, each))))

    begin = jax.tree.map(spread, state)
    start = _Growing(begin, jnp.ones(begin.reward.shape, bool), jnp.zeros(begin.reward.shape))
    growing, (reward, fault) = _advance(environment, start, jax.tree.map(spread, distribution), _joined(action))
    growing, (rewards, faults) = jax.lax.scan(step, growing, jax.random.split(key, vine.branch_length - 1))
    faulty = fault | jnp.any(faults, axis=0)
    return Branches(
        observation=state.observation,
        action=action,
        log_prob=log_prob,
        log_q=log_q,
        reward=gathered(jnp.moveaxis(jnp.concatenate([reward[None], rewards]), 0, -1)),
        length=gathered(growing.length),
        terminated=gathered(growing.state.terminated),
        last_observation=jax.tree.map(gathered, growing.state.observation),
        fault=jnp.any(gathered(faulty), axis=1) | is_faulty(state),
    )


def _tried(
    environment: FreshAutoReset, distribution: Distribution, key: Key[Array, ""], vine: VineConfig
) -> tuple[Any, Float[Array, "N K"], Float[Array, "N K"]]:
    """Return K actions for each state, `[N, K, *]`, their log-probability under the policy, and `Branches.log_q`."""
    count = vine.num_branches
    log_probs = jax.vmap(distribution.log_prob, in_axes=1, out_axes=1)
    if tries_every_action(environment.action_space, vine):
        likely = distribution.mode()
        action = jnp.broadcast_to(jnp.arange(count, dtype=likely.dtype), (*likely.shape, count))
        log_prob = log_probs(action)
        return action, log_prob, jnp.full_like(log_prob, -math.log(count))
    action = jax.vmap(distribution.sample, out_axes=1)(jax.random.split(key, count))
    log_prob = log_probs(action)
    return action, log_prob, log_prob


def _joined(tree: Any) -> Any:
    """Turn `[N, K, ...]` into `[N·K, ...]`."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)


def _advance(
    environment: FreshAutoReset, growing: _Growing, distribution: Distribution, action: Any
) -> tuple[_Growing, tuple[Float[Array, "B"], Bool[Array, "B"]]]:
    """Take a step in every branch whose episode goes on; return its reward and whether the simulator failed in it."""
    inside = to_environment_action(environment.action_space, distribution, action)
    new = checked_step(environment.environment, growing.state, inside)
    fault = growing.alive & is_faulty(new)
    goes_on = growing.alive & ~fault
    reward = jnp.where(goes_on, new.reward, 0.0)
    alive = goes_on & ~(new.terminated | new.truncated)
    return _Growing(select(goes_on, new, growing.state), alive, growing.length + growing.alive), (reward, fault)


def branch_values(
    value_fn: Callable[[Any], Float[Array, "..."]],
    branches: Branches,
    *,
    reward_scaling: float | Float[Array, ""],
    discounting: float | Float[Array, ""],
) -> Float[Array, "... K"]:
    """Estimate Q(s, a) of each branch: its discounted rewards, then the critic's value unless it has terminated.

    Args:
        value_fn: unnormalized observations -> values, in units of the scaled reward.
        branches: from `collect_vine`.
        reward_scaling: rewards are multiplied by this.
        discounting: γ.
    """
    powers = jnp.asarray(discounting, jnp.float32) ** jnp.arange(branches.reward.shape[-1])
    tail = jnp.where(branches.terminated, 0.0, value_fn(branches.last_observation))
    return reward_scaling * jnp.sum(branches.reward * powers, axis=-1) + discounting**branches.length * tail


def tries_every_action(action_space: ActionSpace, vine: VineConfig) -> bool:
    """Tell whether each action is tried once, instead of actions drawn from the policy."""
    return isinstance(action_space, Discrete) and action_space.num_actions == vine.num_branches


def branch_advantages(branches: Branches, value: Float[Array, "... K"], *, every_action: bool) -> Float[Array, "... K"]:
    """Return Q(s, a) minus the policy's mean of it, estimated from the state's own branches.

    If every action is tried once, the mean is exact. A mean of sampled actions contains the action itself, which makes
    differences too small by (K - 1) / K; that is undone.
    """
    count = value.shape[-1]
    if every_action:
        probability = jnp.exp(branches.log_prob)
        return value - jnp.sum(probability * value, axis=-1, keepdims=True)
    return (value - jnp.mean(value, axis=-1, keepdims=True)) * (count / (count - 1))


class Tried(NamedTuple):
    """What the policy of a vine's batch sees."""

    observation: Any
    log_q: Float[Array, "..."]


def vine_batch(
    policy_fn: PolicyFn, normalizer: NormalizerState | None, branches: Branches, advantage: Float[Array, "M N K"]
) -> tuple[PolicyFn, Batch]:
    """Return a policy and a batch `[M·K, N]` whose surrogate is self-normalized over the actions of each state.

    The first axis holds the K actions of a state one after the other, for `in_rows`.
    """
    count = advantage.shape[-1]

    def along_time(leaf: Array) -> Array:
        """Turn `[M, N, K, ...]` into `[M·K, N, ...]`."""
        return jnp.moveaxis(leaf, 2, 1).reshape(-1, leaf.shape[1], *leaf.shape[3:])

    def repeated(leaf: Array) -> Array:
        """Turn `[M, N, ...]` into `[M·K, N, ...]`."""
        return jnp.repeat(leaf, count, axis=0)

    def of_tried(params: Any, tried: Tried) -> SelfNormalized:
        return SelfNormalized(policy_fn(params, tried.observation), tried.log_q, count)

    log_q = along_time(branches.log_q)
    observation = jax.tree.map(repeated, normalize(normalizer, branches.observation))
    weight = repeated(1.0 - branches.fault.astype(jnp.float32))
    action = jax.tree.map(along_time, branches.action)
    return of_tried, Batch(Tried(observation, log_q), action, log_q, along_time(advantage), weight)
