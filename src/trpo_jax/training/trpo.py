"""The whole algorithm as two pure functions: `init` and `update`, one iteration a call."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from trpo_jax.config import ConfigError, config, setting
from trpo_jax.environments.protocol import Box, Discrete, Environment
from trpo_jax.environments.registry import as_environment
from trpo_jax.environments.wrappers import EpisodeLimit, FreshAutoReset, strong
from trpo_jax.objective.advantages import generalized_advantage_estimation
from trpo_jax.objective.surrogate import Batch
from trpo_jax.objective.update import stateful_trust_region_update
from trpo_jax.policy.networks import (
    CategoricalPolicy,
    GaussianPolicy,
    Network,
    Networks,
    PolicyConfig,
    ValueNetwork,
    policy_distribution,
)
from trpo_jax.solver.trust_region import TrustRegionInfo
from trpo_jax.solver.trust_region_config import TrustRegionConfig, TrustRegionState, init_trust_region_state
from trpo_jax.training.critic import (
    CriticConfig,
    CriticParams,
    CriticState,
    explained_variance,
    fit_critic,
    init_critic,
    predict_scaled_value,
)
from trpo_jax.training.inference import Params, Policy, make_policy
from trpo_jax.training.keys import as_typed_key
from trpo_jax.training.metrics import init_episode_statistics, latest_episodes
from trpo_jax.training.normalization import NormalizerState, init_normalizer, normalize, update_normalizer
from trpo_jax.training.rollout import RolloutState, Transition, collect


@config
class TRPOConfig:
    """Everything that decides how TRPO learns."""

    num_envs: int = setting(default=64, at_least=1)
    """Environments simulated side by side (N)."""
    unroll_length: int = setting(default=64, at_least=1)
    """Environment steps each environment takes in an iteration (T); a batch holds N times T samples."""
    episode_length: int = setting(default=1000, at_least=1)
    """Time limit of an episode, in simulator steps (before action repeat)."""
    action_repeat: int = setting(default=1, at_least=1)
    """Simulator steps for which each action is held."""
    discounting: float = setting(default=0.99, at_least=0.0, at_most=1.0)
    """Discount a step (γ)."""
    gae_lambda: float = setting(default=0.95, at_least=0.0, at_most=1.0)
    """Decay of generalized advantage estimation (λ): 0 trusts the critic, 1 the returns."""
    reward_scaling: float = setting(default=1.0, above=0.0)
    """Rewards are multiplied by this before learning; reported returns are not."""
    normalize_observations: bool = setting(default=True)
    """Subtract the running mean from observations and divide by their running standard deviation."""
    normalize_advantages: bool = setting(default=True)
    """Shift and scale the advantages of a batch to mean 0 and standard deviation 1."""
    trust_region: TrustRegionConfig = TrustRegionConfig(curvature_fraction=0.1)
    critic: CriticConfig = CriticConfig()
    policy: PolicyConfig = PolicyConfig()


class TrainState(NamedTuple):
    """All that one iteration hands to the next."""

    policy: Any
    trust_region: TrustRegionState
    critic: CriticState
    normalizer: NormalizerState | None
    rollout: RolloutState
    hyperparameters: TRPOConfig
    key: Key[Array, ""]
    iteration: Int[Array, ""]


Metrics = dict[str, Float[Array, ""]]


def inference_params(state: TrainState) -> Params:
    """Return the part of a training state that acts and predicts."""
    return Params(state.normalizer, state.policy, state.critic.critic)


class TRPO(NamedTuple):
    """A training algorithm for one environment: pure functions and what they were made from."""

    init: Callable[..., TrainState]
    """init(key, hyperparameters=None) -> TrainState."""
    update: Callable[[TrainState], tuple[TrainState, Metrics]]
    """One iteration: rollout, advantages, policy step, critic fit, normalizer."""
    make_policy: Callable[..., Policy]
    """make_policy(params, deterministic=False) -> policy(observation, key) -> (action, extras)."""
    environment: Environment
    """With the time limit, without resets."""
    config: TRPOConfig

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of one iteration, repeated actions counted as the simulator does."""
        return self.config.num_envs * self.config.unroll_length * self.config.action_repeat


def make_trpo(environment: Any, config: TRPOConfig = TRPOConfig(), networks: Networks | None = None) -> TRPO:  # noqa: B008
    """Bind TRPO to an environment and a configuration.

    Args:
        environment: a name ("hopper"), a Brax environment, or an object behind the `Environment` protocol; neither
            vectorized, nor time-limited, nor resetting itself.
        config: `TRPOConfig`.
        networks: policy and critic; None makes multilayer perceptrons as the config says.

    Returns:
        `TRPO(init, update, …)`. `init(key, hyperparameters=None)` takes a typed or raw key and, if its float fields
        should differ from `config`, a TRPOConfig whose float fields may be traced. `update(state)` is one iteration and
        one XLA program, and leaves the state's avals as they were. Both may be vmapped over keys and hyperparameters.

    Raises:
        ConfigError: an unknown environment, or a batch that the minibatches do not divide.
        TypeError: an environment or config of another kind.

    Reference:
        Schulman et al. 2015 (arXiv 1502.05477), with the advantages of Schulman et al. 2016 (arXiv 1506.02438).
    """
    if not isinstance(config, TRPOConfig):
        raise TypeError(f"config: got a {type(config).__name__}, allowed: a TRPOConfig")
    batch_size = config.num_envs * config.unroll_length
    for name, number in (
        ("critic.num_minibatches", config.critic.num_minibatches),
        ("trust_region.num_microbatches", config.trust_region.num_microbatches),
    ):
        if batch_size % number:
            raise ConfigError(name, number, f"a divisor of num_envs·unroll_length = {batch_size}")
    limited = EpisodeLimit(as_environment(environment), config.episode_length, config.action_repeat)
    networks = networks or make_networks(limited.action_space, config)
    iteration = _Iteration(FreshAutoReset(limited), networks, config)
    return TRPO(
        init=jax.jit(iteration.init),
        update=jax.jit(iteration.update),
        make_policy=functools.partial(make_policy, networks.policy, limited.action_space),
        environment=limited,
        config=config,
    )


def make_networks(action_space: Box | Discrete, config: TRPOConfig) -> Networks:
    """Make the multilayer perceptrons that a config describes, for an action space."""
    policy, critic = config.policy, config.critic
    if isinstance(action_space, Box):
        network: Network = GaussianPolicy(action_space.size, policy.hidden_sizes, policy.activation, policy.init_log_std)
    else:
        network = CategoricalPolicy(action_space.num_actions, policy.hidden_sizes, policy.activation)
    return Networks(network, ValueNetwork(critic.hidden_sizes, critic.activation))


@dataclasses.dataclass(frozen=True)
class _Iteration:
    environment: FreshAutoReset
    networks: Networks
    config: TRPOConfig

    def init(self, key: jax.Array, hyperparameters: TRPOConfig | None = None) -> TrainState:
        hyperparameters = self.config if hyperparameters is None else hyperparameters
        if not _same_structure(hyperparameters, self.config):
            raise ConfigError("hyperparameters", hyperparameters, "a TRPOConfig that differs in float fields only")
        environment_key, policy_key, critic_key, key = jax.random.split(as_typed_key(key), 4)
        environments = self.environment.reset(jax.random.split(environment_key, self.config.num_envs))
        observation = jax.tree.map(lambda leaf: leaf[0], environments.current.observation)
        policy = self.networks.policy.init(policy_key, observation)
        state = TrainState(
            policy=policy,
            trust_region=init_trust_region_state(policy, hyperparameters.trust_region),
            critic=init_critic(self.networks.critic, critic_key, observation, hyperparameters.reward_scaling),
            normalizer=init_normalizer(observation) if self.config.normalize_observations else None,
            rollout=RolloutState(environments, init_episode_statistics(self.config.num_envs)),
            hyperparameters=jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), hyperparameters),
            key=key,
            iteration=jnp.int32(0),
        )
        return strong(state)

    def update(self, state: TrainState) -> tuple[TrainState, Metrics]:
        hyperparameters, normalizer = state.hyperparameters, state.normalizer
        rollout_key, curvature_key, critic_key, key = jax.random.split(state.key, 4)
        rollout, transition = collect(
            self.environment,
            self.networks.policy,
            state.policy,
            normalizer,
            state.rollout,
            rollout_key,
            unroll_length=self.config.unroll_length,
        )
        observation = normalize(normalizer, transition.observation)
        value, advantage = _estimate(state.critic.critic, normalizer, observation, transition, hyperparameters)
        target = value + advantage
        policy, trust_region, info = stateful_trust_region_update(
            self.networks.policy.apply,
            state.policy,
            _flatten_by_environment(Batch(observation, transition.action, transition.log_prob, self._standardize(advantage))),
            state.trust_region,
            hyperparameters.trust_region,
            key=curvature_key,
        )
        critic, value_loss = fit_critic(
            state.critic, _flatten(observation), target.reshape(-1), critic_key, hyperparameters.critic
        )
        if normalizer is not None:
            normalizer = update_normalizer(normalizer, transition.observation)
        episode_return, episode_length = latest_episodes(rollout.episodes)
        metrics = {
            "training/episode_reward": episode_return,
            "training/episode_length": episode_length * self.config.action_repeat,
            "training/value_loss": value_loss,
            "training/explained_variance": explained_variance(value, target),
            "training/mean_value": jnp.mean(value) / hyperparameters.reward_scaling,
            "training/mean_return": jnp.mean(target) / hyperparameters.reward_scaling,
        }
        metrics |= _solver_metrics(info) | self._policy_metrics(policy, observation)
        new = TrainState(policy, trust_region, critic, normalizer, rollout, hyperparameters, key, state.iteration + 1)
        return new, metrics

    def _standardize(self, advantage: Float[Array, "T N"]) -> Float[Array, "T N"]:
        if not self.config.normalize_advantages:
            return advantage
        return (advantage - jnp.mean(advantage)) / (jnp.std(advantage) + 1e-8)

    def _policy_metrics(self, params: Any, observation: Any) -> Metrics:
        """Report the mean standard deviation of a Gaussian policy, in units of the action box."""
        distribution = policy_distribution(self.networks.policy, params, jax.tree.map(lambda x: x[-1], observation))
        log_std = getattr(distribution, "log_std", None)
        return {} if log_std is None else {"training/policy_std": jnp.mean(jnp.exp(log_std))}


def _estimate(
    critic: CriticParams,
    normalizer: NormalizerState | None,
    observation: Any,
    transition: Transition,
    hyperparameters: TRPOConfig,
) -> tuple[Float[Array, "T N"], Float[Array, "T N"]]:
    """Return values and advantages of a rollout, in units of the scaled reward."""
    value = predict_scaled_value(critic, observation)
    next_value = predict_scaled_value(critic, normalize(normalizer, transition.next_observation))
    advantage = generalized_advantage_estimation(
        transition.reward * hyperparameters.reward_scaling,
        value,
        next_value,
        transition.terminated,
        transition.terminated | transition.truncated,
        discounting=hyperparameters.discounting,
        gae_lambda=hyperparameters.gae_lambda,
    )
    return value, advantage


def _same_structure(a: Any, b: Any) -> bool:
    return len({jax.tree.structure(a), jax.tree.structure(b)}) == 1


def _flatten(tree: Any) -> Any:
    """Merge the axes T and N of every leaf."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)


def _flatten_by_environment(tree: Any) -> Any:
    """Merge the axes T and N, each environment's steps together: evenly spaced samples are then spread over both."""
    return _flatten(jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), tree))


def _solver_metrics(info: TrustRegionInfo) -> Metrics:
    names = (
        *("kl", "max_kl", "surrogate_improvement", "expected_improvement", "accepted", "outcome", "step_fraction"),
        *("damping", "cg_iterations", "cg_residual", "entropy"),
    )
    return {f"training/{name}": getattr(info, name).astype(jnp.float32) for name in names}
