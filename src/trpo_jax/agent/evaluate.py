"""Evaluation of a policy: whole episodes from fresh initial states."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from trpo_jax.agent.inference import Policy
from trpo_jax.agent.keys import as_typed_key
from trpo_jax.agent.metrics import numbered
from trpo_jax.environments.checked import checked_reset, checked_step
from trpo_jax.environments.protocol import Environment, EnvironmentState
from trpo_jax.environments.wrappers import is_faulty


def initial_carry_of(make_policy: Any, batch_shape: tuple[int, ...]) -> Any:
    """Return the memory that policies of a maker begin with; None if they have none, or if the maker is a mere function."""
    return make_policy.initial_carry(batch_shape) if hasattr(make_policy, "initial_carry") else None


class Episodes(NamedTuple):
    """The return (sum of unscaled rewards), length (environment steps) and sums of K costs of each of E episodes."""

    episode_return: Float[Array, "E"]
    episode_length: Int[Array, "E"]
    episode_cost: Float[Array, "E K"] | None = None
    """None without costs."""


class _Progress(NamedTuple):
    state: EnvironmentState
    carry: Any
    key: Key[Array, ""]
    active: Bool[Array, "E"]
    episodes: Episodes


def make_evaluator(
    environment: Environment,
    make_policy: Callable[..., Policy],
    *,
    num_episodes: int,
    deterministic: bool,
) -> Callable[[Any, Any], Episodes]:
    """Return a jitted function (params, key) -> `Episodes` that plays `num_episodes` episodes side by side to their end.

    If the simulator fails in a step (`wrappers.is_faulty`), the episode ends before that step.

    Args:
        environment: has a time limit and no automatic resets, like `Agent.environment`; every episode must end.
        make_policy: (params, deterministic) -> policy(observation, key) -> (action, extras), or a `PolicyMaker`.
        num_episodes: E, static.
        deterministic: act with the distribution's mode instead of a sample.

    Raises:
        ValueError: num_episodes < 1.
    """
    if num_episodes < 1:
        raise ValueError(f"num_episodes: got {num_episodes}, allowed: an integer >= 1")

    def evaluate(params: Any, key: Any) -> Episodes:
        policy, carry = make_policy(params, deterministic), initial_carry_of(make_policy, (num_episodes,))

        def play(progress: _Progress) -> _Progress:
            key, action_key = jax.random.split(progress.key)
            action, extras = policy(progress.state.observation, action_key, *(() if carry is None else (progress.carry,)))
            state = checked_step(environment, progress.state, action)
            counted = progress.active & ~is_faulty(state)
            episodes = Episodes(
                progress.episodes.episode_return + jnp.where(counted, state.reward, 0.0),
                progress.episodes.episode_length + counted,
                jax.tree.map(
                    lambda total, cost: total + jnp.where(counted[:, None], cost, 0.0),
                    progress.episodes.episode_cost,
                    state.cost,
                ),
            )
            active = counted & ~(state.terminated | state.truncated)
            return _Progress(state, extras.get("carry"), key, active, episodes)

        reset_key, key = jax.random.split(as_typed_key(key))
        state = checked_reset(environment, jax.random.split(reset_key, num_episodes))
        no_cost = jax.tree.map(jnp.zeros_like, state.cost)
        nothing = Episodes(jnp.zeros_like(state.reward), jnp.zeros(num_episodes, jnp.int32), no_cost)
        start = _Progress(state, carry, key, jnp.ones(num_episodes, bool), nothing)
        return jax.lax.while_loop(lambda progress: jnp.any(progress.active), play, start).episodes

    return jax.jit(evaluate)


def summarize(episodes: Episodes, action_repeat: int = 1) -> dict[str, Any]:
    """Return mean and standard deviation of episode return, length (simulator steps) and costs, under Brax's metric names.

    Each value is a number, or a list of R numbers if the episodes are those of R runs, `[R, E]`.
    """
    episode_return, length = (np.asarray(leaf, np.float32) for leaf in episodes[:2])
    length = length * action_repeat
    costs: dict[str, Any] = {}
    if episodes.episode_cost is not None:
        for name, cost in numbered("eval/episode_cost", np.asarray(episodes.episode_cost, np.float32)).items():
            costs |= {name: np.mean(cost, axis=-1).tolist(), f"{name}_std": np.std(cost, axis=-1).tolist()}
    return costs | {
        "eval/episode_reward": np.mean(episode_return, axis=-1).tolist(),
        "eval/episode_reward_std": np.std(episode_return, axis=-1).tolist(),
        "eval/avg_episode_length": np.mean(length, axis=-1).tolist(),
        "eval/std_episode_length": np.std(length, axis=-1).tolist(),
    }


def confidence_interval(episodes: Episodes) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean return, by Student's t over at least two episodes."""
    returns = np.asarray(episodes.episode_return, np.float64)
    from scipy import stats  # slow to import, and no training needs it

    half = stats.t.ppf(0.975, len(returns) - 1) * stats.sem(returns)
    return float(returns.mean() - half), float(returns.mean() + half)
