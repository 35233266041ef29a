"""Train Gymnasium's MuJoCo environments, stepped on the host, with the pure trust-region update.

    python examples/gymnasium_mujoco.py --environments Hopper-v5 Swimmer-v5 --steps 1000000 --seeds 0 1 2

The simulator is ordinary Python; what learns is one jitted function: advantages, `trust_region_update`, critic fit. At the
end a table gives, for each environment, the mean and standard deviation over seeds of the last policies' deterministic returns.
"""

import dataclasses
import functools
import json
import time
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import tyro

import trpo_jax
from trpo_jax import Batch, CriticConfig, GaussianPolicy, PolicyConfig, TrustRegionConfig, ValueNetwork
from trpo_jax.training.critic import CriticState, explained_variance, fit_critic, init_critic, predict_scaled_value
from trpo_jax.training.normalization import NormalizerState, init_normalizer, normalize, update_normalizer


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Train on Gymnasium's MuJoCo environments."""

    environments: tuple[str, ...] = ("Hopper-v5", "HalfCheetah-v5", "Walker2d-v5", "Swimmer-v5")
    """Names of Gymnasium environments with a box of actions."""
    steps: int = 1_000_000
    """Environment steps of each run."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """A run for each."""
    num_envs: int = 16
    """Environments stepped in turn (N)."""
    unroll_length: int = 128
    """Steps of each environment in a batch (T)."""
    discounting: float = 0.99
    """γ."""
    gae_lambda: float = 0.95
    """λ."""
    normalize_returns: bool = True
    """Divide rewards by the running standard deviation of the discounted return."""
    trust_region: TrustRegionConfig = TrustRegionConfig()
    critic: CriticConfig = CriticConfig(num_epochs=5)
    policy: PolicyConfig = PolicyConfig()
    evaluation_episodes: int = 10
    tag: str = ""
    normalize_targets: bool = False


class Agent(NamedTuple):
    policy: Any
    critic: CriticState
    observations: NormalizerState
    returns: NormalizerState
    """Statistics of the discounted return: its standard deviation scales the rewards."""


class Rollout(NamedTuple):
    """Experience, time-major [T, N, …]; `next_observation` is the one reached, before any reset."""

    observation: Any
    action: Any
    reward: Any
    next_observation: Any
    terminated: Any
    done: Any
    discounted_return: Any


class HostEnvironments:
    """N environments stepped in turn; one that ends is reset at once."""

    def __init__(self, name: str, num_envs: int, seed: int, discounting: float):
        self.members = [gymnasium.make(name, disable_env_checker=True) for _ in range(num_envs)]
        self.observation = np.stack([env.reset(seed=seed * 1000 + i)[0] for i, env in enumerate(self.members)]).astype(
            np.float32
        )
        space = self.members[0].action_space
        self.low, self.high = space.low, space.high
        self.discounting = discounting
        self.discounted_return = np.zeros(num_envs)
        self.episode_return = np.zeros(num_envs)
        self.finished: list[float] = []

    def step(self, action: np.ndarray) -> Rollout:
        observation = self.observation
        size = len(self.members)
        next_observation = np.empty_like(observation)
        reward = np.empty(size, np.float32)
        terminated, done = np.zeros(size, bool), np.zeros(size, bool)
        start = observation.copy()
        for i, env in enumerate(self.members):
            next_observation[i], reward[i], terminated[i], truncated, _ = env.step(np.clip(action[i], self.low, self.high))
            done[i] = terminated[i] or truncated
            start[i] = env.reset()[0] if done[i] else next_observation[i]
        self.observation = start
        self.episode_return += reward
        self.finished += self.episode_return[done].tolist()
        self.episode_return[done] = 0.0
        self.discounted_return = reward + self.discounting * self.discounted_return
        discounted_return = self.discounted_return.astype(np.float32)
        self.discounted_return = np.where(done, 0.0, self.discounted_return)
        return Rollout(observation, action, reward, next_observation, terminated, done, discounted_return)


def make_agent(arguments: Arguments, observation: np.ndarray, action_size: int, key: jax.Array):
    policy = GaussianPolicy(
        action_size, arguments.policy.hidden_sizes, arguments.policy.activation, arguments.policy.init_log_std
    )
    critic = ValueNetwork(arguments.critic.hidden_sizes, arguments.critic.activation)
    policy_key, critic_key = jax.random.split(key)
    agent = Agent(
        policy.init(policy_key, observation),
        init_critic(critic, critic_key, observation, 1.0),
        init_normalizer(observation),
        init_normalizer(jnp.zeros(())),
    )

    @functools.partial(jax.jit, static_argnums=3)
    def act(agent: Agent, observation, key, deterministic=False):
        distribution = policy.apply(agent.policy, normalize(agent.observations, observation))
        return distribution.mode() if deterministic else distribution.sample(key)

    @jax.jit
    def learn(agent: Agent, rollout: Rollout, key):
        observation = normalize(agent.observations, rollout.observation)
        scale = 1.0 / agent.returns.std if arguments.normalize_returns else jnp.float32(1)
        value = predict_scaled_value(agent.critic.critic, observation)
        next_value = predict_scaled_value(agent.critic.critic, normalize(agent.observations, rollout.next_observation))
        advantage = trpo_jax.generalized_advantage_estimation(
            rollout.reward * scale,
            value,
            next_value,
            rollout.terminated,
            rollout.done,
            discounting=arguments.discounting,
            gae_lambda=arguments.gae_lambda,
        )
        target = value + advantage
        standardized = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        log_prob = policy.apply(agent.policy, observation).log_prob(rollout.action)
        batch = Batch(observation, rollout.action, log_prob, standardized)
        new_policy, info = trpo_jax.trust_region_update(policy.apply, agent.policy, batch, arguments.trust_region)
        flat = observation.reshape(-1, observation.shape[-1])
        critic_state, _ = fit_critic(agent.critic, flat, target.reshape(-1), key, arguments.critic)
        new = Agent(
            new_policy,
            critic_state,
            update_normalizer(agent.observations, rollout.observation),
            update_normalizer(agent.returns, rollout.discounted_return),
        )
        return new, info, explained_variance(value, target)

    return agent, act, learn


def train(name: str, seed: int, arguments: Arguments):
    environments = HostEnvironments(name, arguments.num_envs, seed, arguments.discounting)
    key, init_key = jax.random.split(jax.random.key(seed))
    agent, act, learn = make_agent(arguments, environments.observation[0], environments.low.size, init_key)
    start, curve = time.time(), []
    iterations = -(-arguments.steps // (arguments.num_envs * arguments.unroll_length))
    for iteration in range(iterations):
        key, rollout_key, learn_key = jax.random.split(key, 3)
        steps = []
        for step_key in np.asarray(jax.random.key_data(jax.random.split(rollout_key, arguments.unroll_length))):
            action = np.asarray(act(agent, environments.observation, jax.random.wrap_key_data(step_key)))
            steps.append(environments.step(action))
        agent, info, explained = learn(agent, jax.tree.map(lambda *leaves: np.stack(leaves), *steps), learn_key)
        if (iteration + 1) % max(1, iterations // 10) == 0:
            curve.append(round(float(np.mean(environments.finished[-20:] or [np.nan]))))
    returns = evaluate(name, agent, act, environments, arguments, seed)
    std = float(jnp.exp(jax.tree.leaves(agent.policy["params"]["log_std"])[0]).mean())
    print(
        json.dumps(
            dict(
                tag=arguments.tag,
                env=name,
                seed=seed,
                eval=round(float(np.mean(returns)), 1),
                sd=round(float(np.std(returns)), 1),
                curve=curve,
                ev=round(float(explained), 3),
                std=round(std, 3),
                outcome=int(info.outcome),
                wall=round(time.time() - start),
            )
        ),
        flush=True,
    )
    return float(np.mean(returns))


def evaluate(name, agent, act, environments, arguments, seed):
    environments = HostEnvironments(name, arguments.evaluation_episodes, 10_000 + seed, 1.0)
    key = jax.random.key(0)
    firsts = np.full(arguments.evaluation_episodes, np.nan)
    total = np.zeros(arguments.evaluation_episodes)
    while np.isnan(firsts).any():
        step = environments.step(np.asarray(act(agent, environments.observation, key, True)))
        total += step.reward
        firsts = np.where(np.isnan(firsts) & step.done, total, firsts)
    return firsts


if __name__ == "__main__":
    arguments = tyro.cli(Arguments, description=__doc__)
    for name in arguments.environments:
        for seed in arguments.seeds:
            train(name, seed, arguments)
