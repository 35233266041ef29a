"""Train Gymnasium's MuJoCo environments, which are stepped on the host, with the pure trust-region update.

    pip install -e ".[gymnasium]"
    python examples/gymnasium_mujoco.py --environments Hopper-v5 Swimmer-v5 --steps 1000000 --seeds 0 1 2

The simulator is ordinary Python. Learning is one jitted function: advantages, `trust_region_update`, critic fit, and
finally the normalizers. The default settings are those of the table in docs/benchmarks, the same for all environments.
"""

import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
import tyro

import trpo_jax
from trpo_jax import Batch, CriticConfig, GaussianPolicy, StepOutcome, TrustRegionConfig, ValueNetwork
from trpo_jax.agent.critic import (
    CriticState,
    Regression,
    explained_variance,
    fit_critic,
    init_critic,
)
from trpo_jax.policy.normalization import NormalizerState, init_normalizer, normalize, update_normalizer

TRUST_REGION = TrustRegionConfig(max_kl=0.02)
CRITIC = CriticConfig(learning_rate=1e-3, num_epochs=10, num_minibatches=16)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Train on Gymnasium's MuJoCo environments."""

    environments: tuple[str, ...] = ("Hopper-v5", "HalfCheetah-v5", "Walker2d-v5", "Swimmer-v5")
    """Names of Gymnasium environments with continuous (Box) actions."""
    steps: int = 1_000_000
    """Environment steps of each run."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; one run for each."""
    num_envs: int = 16
    """Environments stepped in turn (N)."""
    unroll_length: int = 128
    """Steps of each environment in a batch (T)."""
    discounting: float = 0.995
    """Discount per step (γ)."""
    gae_lambda: float = 0.97
    """Decay of generalized advantage estimation (λ)."""
    normalize_observations: bool = True
    """Subtract the running mean of the observations and divide by their standard deviation."""
    normalize_returns: bool = True
    """Divide rewards by the running standard deviation of the discounted return."""
    init_log_std: float = -0.5
    """Initial log of the policy's standard deviation, in units of the action."""
    trust_region: TrustRegionConfig = dataclasses.field(default_factory=lambda: TRUST_REGION)
    critic: CriticConfig = dataclasses.field(default_factory=lambda: CRITIC)
    evaluation_episodes: int = 20
    """Episodes that evaluate a run's last policy, acting with its mean."""
    json: str | None = None
    """Where to write the result of each run."""


class Agent(NamedTuple):
    """Everything that learning changes."""

    policy: Any
    critic: CriticState
    observations: NormalizerState
    returns: NormalizerState
    """Statistics of the discounted return, whose standard deviation scales the rewards."""


class Rollout(NamedTuple):
    """Experience of N environments; `[T, N, *]` after the steps are stacked."""

    observation: Any
    action: Any
    reward: Any
    next_observation: Any
    """Observation after the step, before any reset."""
    terminated: Any
    done: Any
    discounted_return: Any


class HostEnvironments:
    """Environments that are stepped in turn. One that ends is reset at once; its last observation is kept."""

    def __init__(self, name: str, num_envs: int, seed: int, discounting: float = 1.0):
        self.members = [gymnasium.make(name, disable_env_checker=True) for _ in range(num_envs)]
        self.observation = np.stack([env.reset(seed=1000 * seed + i)[0] for i, env in enumerate(self.members)])
        self.observation = self.observation.astype(np.float32)
        self.action_space = self.members[0].action_space
        self.discounting = discounting
        self.discounted_return = np.zeros(num_envs)
        self.episode_return = np.zeros(num_envs)
        self.returns: list[float] = []
        """Returns of the episodes that have ended, oldest first."""

    def step(self, action: np.ndarray) -> Rollout:
        """Step every environment by its action, clipped to the box."""
        size = len(self.members)
        reached, start = np.empty_like(self.observation), np.empty_like(self.observation)
        reward, terminated, done = np.empty(size, np.float32), np.zeros(size, bool), np.zeros(size, bool)
        clipped = np.clip(action, self.action_space.low, self.action_space.high)
        for i, env in enumerate(self.members):
            reached[i], reward[i], terminated[i], truncated, _ = env.step(clipped[i])
            done[i] = terminated[i] or truncated
            start[i] = env.reset()[0] if done[i] else reached[i]
        self.episode_return += reward
        self.returns += self.episode_return[done].tolist()
        self.discounted_return = reward + self.discounting * self.discounted_return
        rollout = Rollout(
            self.observation, action, reward, reached, terminated, done, self.discounted_return.astype(np.float32)
        )
        self.observation = start
        self.episode_return[done] = self.discounted_return[done] = 0.0
        return rollout


class Learner(NamedTuple):
    """The two jitted functions of a run."""

    act: Callable[..., jax.Array]
    """act(agent, observation, key, deterministic=False) -> action."""
    learn: Callable[..., tuple[Agent, dict[str, jax.Array]]]
    """learn(agent, rollout, key) -> (agent, metrics)."""


def make_agent(arguments: Arguments, observation: jax.Array, action_size: int, key: jax.Array) -> tuple[Agent, Learner]:
    """Initialize an agent for observations like `observation` (a single one), and make its learner."""
    policy_network = GaussianPolicy(action_size, init_log_std=arguments.init_log_std)
    critic_network = ValueNetwork(arguments.critic.hidden_sizes, arguments.critic.activation)
    policy_key, critic_key = jax.random.split(key)
    agent = Agent(
        policy=policy_network.init(policy_key, observation),
        critic=init_critic(critic_network, critic_key, observation, 1.0),
        observations=init_normalizer(observation),
        returns=init_normalizer(jnp.zeros(())),
    )

    def normalized(agent: Agent, observation: Any) -> Any:
        return normalize(agent.observations if arguments.normalize_observations else None, observation)

    @functools.partial(jax.jit, static_argnames="deterministic")
    def act(agent: Agent, observation: Any, key: jax.Array, deterministic: bool = False) -> jax.Array:
        distribution = policy_network.apply(agent.policy, normalized(agent, observation))
        return distribution.mode() if deterministic else distribution.sample(key)

    @jax.jit
    def learn(agent: Agent, rollout: Rollout, key: jax.Array) -> tuple[Agent, dict[str, jax.Array]]:
        observation = normalized(agent, rollout.observation)
        value = critic_network.apply(agent.critic.critic.params, observation)
        advantage = trpo_jax.generalized_advantage_estimation(
            rollout.reward / (agent.returns.std if arguments.normalize_returns else 1.0),
            value,
            critic_network.apply(agent.critic.critic.params, normalized(agent, rollout.next_observation)),
            rollout.terminated,
            rollout.done,
            discounting=arguments.discounting,
            gae_lambda=arguments.gae_lambda,
        )
        target = value + advantage
        batch = Batch(
            observation,
            rollout.action,
            policy_network.apply(agent.policy, observation).log_prob(rollout.action),
            (advantage - advantage.mean()) / (advantage.std() + 1e-8),
        )
        policy, info = trpo_jax.trust_region_update(policy_network.apply, agent.policy, batch, arguments.trust_region)
        column = (-1, 1)  # one environment with all samples as its steps, so that all are shuffled together
        regression = Regression(
            observation.reshape(*column, observation.shape[-1]), target.reshape(column), jnp.ones_like(target.reshape(column))
        )
        critic, _ = fit_critic(critic_network, agent.critic, regression, key, arguments.critic)
        # The normalizers are updated last, so that the old policy does not change within an iteration.
        observations = update_normalizer(agent.observations, rollout.observation)
        returns = update_normalizer(agent.returns, rollout.discounted_return)
        metrics = {"kl": info.kl, "outcome": info.outcome, "explained_variance": explained_variance(target - value, target)}
        return Agent(policy, critic, observations, returns), metrics

    return agent, Learner(act, learn)


def train(name: str, seed: int, arguments: Arguments) -> dict[str, Any]:
    """Train one run; print its progress and return its result."""
    environments = HostEnvironments(name, arguments.num_envs, seed, arguments.discounting)
    key, init_key = jax.random.split(jax.random.key(seed))
    agent, learner = make_agent(
        arguments, jnp.asarray(environments.observation[0]), environments.action_space.shape[0], init_key
    )
    start, steps_per_iteration = time.time(), arguments.num_envs * arguments.unroll_length
    iterations = -(-arguments.steps // steps_per_iteration)
    for iteration in range(iterations):
        key, rollout_key, learn_key = jax.random.split(key, 3)
        steps = [
            environments.step(np.asarray(learner.act(agent, environments.observation, step_key)))
            for step_key in jax.random.split(rollout_key, arguments.unroll_length)
        ]
        agent, metrics = learner.learn(agent, jax.tree.map(lambda *leaves: np.stack(leaves), *steps), learn_key)
        if (iteration + 1) % max(1, iterations // 10) == 0:
            print(
                f"{name} seed {seed}  {(iteration + 1) * steps_per_iteration:>9,} steps  "
                f"return {np.mean(environments.returns[-20:] or [np.nan]):8.1f}  kl {metrics['kl']:.4f}  "
                f"{StepOutcome(int(metrics['outcome'])).name.lower()}  "
                f"explained variance {metrics['explained_variance']:.2f}",
                flush=True,
            )
    returns = evaluate(name, seed, agent, learner, arguments)
    return {
        "environment": name,
        "seed": seed,
        "return": float(np.mean(returns)),
        "return_std": float(np.std(returns)),
        "training_return": float(np.mean(environments.returns[-20:] or [np.nan])),
        "seconds": time.time() - start,
    }


def evaluate(name: str, seed: int, agent: Agent, learner: Learner, arguments: Arguments) -> np.ndarray:
    """Return the first episode's return in each of several fresh environments, acting with the policy's mean."""
    environments = HostEnvironments(name, arguments.evaluation_episodes, 10_000 + seed)
    total, playing = np.zeros(arguments.evaluation_episodes), np.ones(arguments.evaluation_episodes, bool)
    while playing.any():
        action = learner.act(agent, environments.observation, jax.random.key(0), deterministic=True)
        step = environments.step(np.asarray(action))
        total += np.where(playing, step.reward, 0.0)
        playing &= ~step.done
    return total


def make_table(results: list[dict[str, Any]]) -> rich.table.Table:
    """Return a table with a row per environment: mean and standard deviation over seeds."""
    table = rich.table.Table(title="deterministic return of the last policy")
    for column in ("environment", "mean", "std over seeds", "each seed", "seconds a run"):
        table.add_column(column, justify="left" if column == "environment" else "right")
    for name in dict.fromkeys(result["environment"] for result in results):
        runs = [result for result in results if result["environment"] == name]
        returns = [run["return"] for run in runs]
        table.add_row(
            name,
            f"{np.mean(returns):.0f}",
            f"{np.std(returns):.0f}",
            " ".join(f"{value:.0f}" for value in returns),
            f"{statistics.median(run['seconds'] for run in runs):.0f}",
        )
    return table


def main(arguments: Arguments) -> list[dict[str, Any]]:
    """Train every environment with every seed; print the table and return the results."""
    results = [train(name, seed, arguments) for name in arguments.environments for seed in arguments.seeds]
    rich.console.Console(width=100).print(make_table(results))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
