"""Episode statistics and metrics of a training."""

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from trpo_jax.agent.policy_update import Metrics


class EpisodeStatistics(NamedTuple):
    """Return and length of the running episode and of the latest finished one, for each of N environments."""

    running_return: Float[Array, "N"]
    running_length: Float[Array, "N"]
    age: Float[Array, "N"]
    """Actions by which the first episode's time limit was advanced; 0 for later episodes."""
    last_return: Float[Array, "N"]
    last_length: Float[Array, "N"]
    has_finished: Bool[Array, "N"]
    is_whole: Bool[Array, "N"]
    """Whether the latest finished episode was played in full, so that its return and length are no estimates."""
    ended_early: Bool[Array, "N"]
    """Whether any episode has ended before its time limit."""
    running_cost: Float[Array, "N K"] | None = None
    """Sum of each cost over the running episode; None without costs."""
    last_cost: Float[Array, "N K"] | None = None
    recent_steps: Float[Array, "N"] | None = None
    """Decaying count of steps; None without costs."""
    recent_ends: Float[Array, "N"] | None = None
    """Decaying count of finished episodes; None without costs."""


def init_episode_statistics(
    reward: Float[Array, "N"], age: Float[Array, "N"], cost: Float[Array, "N K"] | None = None, *, most_actions: int = 1
) -> EpisodeStatistics:
    """Start with no finished episode; returns have the dtype of `reward`, costs that of `cost`.

    Counts start as if one environment had played one episode of `most_actions`, the number of actions to the time limit.
    """
    returns = jnp.zeros_like(reward)
    lengths = jnp.zeros_like(reward, jnp.float32)
    none = jnp.zeros_like(reward, bool)
    begun = EpisodeStatistics(returns, lengths, age, returns, lengths, none, none, none)
    if cost is None:
        return begun
    costs, share = jnp.zeros_like(cost), jnp.full_like(lengths, 1.0 / lengths.size)
    return begun._replace(running_cost=costs, last_cost=costs, recent_steps=most_actions * share, recent_ends=share)


def record_step(
    statistics: EpisodeStatistics,
    reward: Float[Array, "N"],
    done: Bool[Array, "N"],
    fault: Bool[Array, "N"],
    at_limit: Bool[Array, "N"],
    cost: Float[Array, "N K"] | None = None,
) -> EpisodeStatistics:
    """Record one step of each environment. An episode that a fault breaks off is discarded.

    An environment's first episode may begin part-way to its time limit. If the limit ends it, its return and costs are scaled
    up to the full length; if less than half was played, it is discarded.
    """
    running_return = statistics.running_return + reward
    running_length = statistics.running_length + 1
    is_cut = at_limit & (statistics.age > 0)
    finished = done & ~fault & ~(is_cut & (running_length < statistics.age))
    length = running_length + jnp.where(is_cut, statistics.age, 0)
    scale = length / running_length
    estimate = running_return * scale.astype(running_return.dtype)
    running_cost = jax.tree.map(jnp.add, statistics.running_cost, cost)
    last_cost = jax.tree.map(
        lambda running, last: jnp.where(finished[:, None], running * scale[:, None].astype(running.dtype), last),
        running_cost,
        statistics.last_cost,
    )
    counted = statistics._replace(
        running_return=running_return,
        running_length=running_length,
        last_return=jnp.where(finished, estimate, statistics.last_return),
        last_length=jnp.where(finished, length, statistics.last_length),
        has_finished=statistics.has_finished | finished,
        is_whole=statistics.is_whole | (finished & ~is_cut),
        ended_early=statistics.ended_early | (finished & ~at_limit),
        running_cost=running_cost,
        last_cost=last_cost,
        recent_steps=jax.tree.map(lambda count: count + 1.0, statistics.recent_steps),
        recent_ends=jax.tree.map(lambda count: count + (done & ~fault), statistics.recent_ends),
    )
    return break_off(counted, done | fault)


def break_off(statistics: EpisodeStatistics, which: Bool[Array, "N"]) -> EpisodeStatistics:
    """Discard the running episode of some environments."""
    return statistics._replace(
        running_return=jnp.where(which, 0.0, statistics.running_return),
        running_length=jnp.where(which, 0.0, statistics.running_length),
        age=jnp.where(which, 0.0, statistics.age),
        running_cost=jax.tree.map(lambda cost: jnp.where(which[:, None], 0.0, cost), statistics.running_cost),
    )


MEMORY = 2.0
"""Time over which counts of steps and episodes decay by a factor of e, in episodes. If it were shorter than an episode, the
expected length would rise and fall with the number of environments that happen to end theirs."""


def forget(statistics: EpisodeStatistics, num_steps: int) -> EpisodeStatistics:
    """Let the counts of recent steps and episodes decay, before a rollout of `num_steps` steps of each environment."""
    if statistics.recent_steps is None:
        return statistics
    kept = jnp.exp(-num_steps / (MEMORY * expected_length(statistics)))
    steps, ends = jax.tree.map(lambda count: kept * count, (statistics.recent_steps, statistics.recent_ends))
    return statistics._replace(recent_steps=steps, recent_ends=ends)


def expected_length(statistics: EpisodeStatistics) -> Float[Array, ""]:
    """Return the mean length of an episode, in actions: recent steps per finished episode.

    Episodes that have finished are too few for their mean, and those that are long finish late. By the renewal theorem, the
    ratio of counts has no such bias for a policy that no longer changes.
    """
    assert statistics.recent_steps is not None
    assert statistics.recent_ends is not None
    return jnp.sum(statistics.recent_steps) / jnp.sum(statistics.recent_ends)


def numbered(name: str, costs: Any) -> dict[str, Any]:
    """Return a metric of each cost, `[..., K]`, by name: "NAME" if there is one cost, else "NAME_0", "NAME_1", …."""
    if costs.shape[-1] == 1:
        return {name: costs[..., 0]}
    return {f"{name}_{k}": costs[..., k] for k in range(costs.shape[-1])}


def without_number(name: str) -> str:
    """Return the name that `numbered` was given."""
    return re.sub(r"_\d+$", "", name)


def episode_metrics(statistics: EpisodeStatistics, action_repeat: int) -> Metrics:
    """Report mean return, length and costs of each environment's latest finished episode; 0 before any has finished.

    Estimates count only until any episode ends early, because they cover only episodes that reached the time limit.
    """
    counted = jnp.where(jnp.any(statistics.ended_early), statistics.is_whole, statistics.has_finished)
    num_episodes = jnp.sum(counted, dtype=jnp.float32)
    scale = 1.0 / jnp.maximum(num_episodes, 1)
    costs: Metrics = {}
    if statistics.last_cost is not None:
        costs = numbered("episode_cost", jnp.sum(jnp.where(counted[:, None], statistics.last_cost, 0), axis=0) * scale)
    return costs | {
        "episode_reward": jnp.sum(jnp.where(counted, statistics.last_return, 0)) * scale,
        "episode_length": jnp.sum(jnp.where(counted, statistics.last_length, 0)) * scale * action_repeat,
        "num_episodes": num_episodes,
    }


BOUND = ("bound_change", "bound_surrogate", "bound_penalty")
"""Terms of the policy improvement bound."""

SAMPLE_MEANS = ("explained_variance", "mean_value", "mean_return", "value_loss", "cost_value_loss", "normalizer_kl", *BOUND)
"""Metrics of every agent that are averages over samples."""

OF_LOOP = ("sps", "walltime", "time_share_rollout", "time_share_policy", "time_share_critic")
"""Metrics that the training's loop adds to the agent's."""

EPISODE_MEANS = ("episode_reward", "episode_length", "episode_cost")


def without_unknown(metrics: Mapping[str, Any], num_samples: int, sample_means: Collection[str]) -> dict[str, np.ndarray]:
    """Replace averages over nothing by NaN: episode means before any episode has ended, sample means if all are faulty.

    This is done on the host, because `JAX_DEBUG_NANS` treats every NaN on a device as an error. On the device such averages
    are 0 or arbitrary.

    Args:
        metrics: from `update`; `[]`, or `[R]` for R runs.
        num_samples: samples per iteration.
        sample_means: the algorithm's additions to `SAMPLE_MEANS`.
    """
    known = {name: np.asarray(value) for name, value in metrics.items()}
    unknown = dict.fromkeys(EPISODE_MEANS, known["training/num_episodes"] == 0)
    unknown |= dict.fromkeys((*SAMPLE_MEANS, *sample_means), known["training/num_faults"] == num_samples)
    for name in known:
        bare = name.removeprefix("training/")
        bare = bare if bare in unknown else without_number(bare)
        if bare in unknown:
            known[name] = np.where(unknown[bare], np.nan, known[name])
    return known
