"""The whole algorithm as two pure functions: `init` and `update`, one iteration a call."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from trpo_jax.agent.inference import PolicyMaker
from trpo_jax.agent.iteration import Iteration
from trpo_jax.agent.metrics import Metrics
from trpo_jax.agent.state import TrainState
from trpo_jax.agent.trpo_config import TRPOConfig
from trpo_jax.environments.checked import is_bounded
from trpo_jax.environments.protocol import Box, Discrete, Environment
from trpo_jax.environments.registry import as_environment
from trpo_jax.environments.wrappers import EpisodeLimit, FreshAutoReset
from trpo_jax.errors import ConfigError
from trpo_jax.policy.networks import CategoricalPolicy, GaussianPolicy, Network, Networks, OfEntry, ValueNetwork


class TRPO(NamedTuple):
    """A training algorithm for one environment: pure functions and what they were made from."""

    init: Callable[..., TrainState]
    """init(key, hyperparameters=None, num_iterations=0) -> TrainState."""
    update: Callable[[TrainState], tuple[TrainState, Metrics]]
    """One iteration: rollout, advantages, policy step, critic fit, normalizer."""
    make_policy: PolicyMaker
    """make_policy(params, deterministic=False) -> policy(observation, key) -> (action, extras); and
    make_policy.value_fn(params) -> value_fn(observation) -> value."""
    environment: Environment
    """With the time limit, without resets."""
    config: TRPOConfig
    iteration: Iteration
    """What `init` and `update` are made of, for those who run the stages of an iteration one by one."""

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of one iteration, repeated actions counted as the simulator does."""
        return self.config.num_envs * self.config.unroll_length * self.config.action_repeat


def make_trpo(environment: Any, config: TRPOConfig = TRPOConfig(), networks: Networks | None = None) -> TRPO:  # noqa: B008
    """Bind TRPO to an environment and a configuration.

    Args:
        environment: a name ("hopper"), a Brax environment, or an object behind the `Environment` protocol; neither
            vectorized, nor time-limited, nor resetting itself, unless it says so (`resets_itself`).
        config: `TRPOConfig`.
        networks: policy and critic; None makes multilayer perceptrons as the config says.

    Returns:
        `TRPO(init, update, …)`. `init(key, hyperparameters=None, num_iterations=0)` takes a typed or raw key; if its
        float fields should differ from `config`, a TRPOConfig whose float fields may be traced; and the number of
        iterations over which `config.schedule` falls (0: nothing falls). `update(state)` is one iteration and one XLA
        program, and leaves the state's avals as they were. Both may be vmapped over keys and hyperparameters.

    Raises:
        ConfigError: an unknown environment, more minibatches than samples, or a batch that the microbatches do not divide.
        TypeError: an environment or config of another kind.

    Reference:
        Schulman et al. 2015 (arXiv 1502.05477), with the advantages of Schulman et al. 2016 (arXiv 1506.02438).
    """
    if not isinstance(config, TRPOConfig):
        raise TypeError(f"config: got a {type(config).__name__}, allowed: a TRPOConfig")
    _check_batch_size(config)
    environment = with_time_limit(as_environment(environment), config)
    networks = networks or make_networks(environment.action_space, config)
    iteration = Iteration(FreshAutoReset(environment), networks, config)
    return TRPO(
        init=jax.jit(iteration.init),
        update=jax.jit(iteration.update),
        make_policy=PolicyMaker(networks, environment.action_space),
        environment=environment,
        config=config,
        iteration=iteration,
    )


def with_time_limit(environment: Environment, config: TRPOConfig) -> Environment:
    """Add the configured time limit, unless the environment has one."""
    if isinstance(environment, EpisodeLimit) or getattr(environment, "resets_itself", False):
        return environment
    return EpisodeLimit(environment, config.episode_length, config.action_repeat)


def _check_batch_size(config: TRPOConfig) -> None:
    batch_size = config.num_envs * config.unroll_length
    if batch_size >= 2**31:
        raise ConfigError("num_envs and unroll_length", f"{batch_size:,} samples an iteration", "fewer than 2^31")
    if config.critic.num_minibatches > batch_size:
        raise ConfigError(
            "critic.num_minibatches", config.critic.num_minibatches, f"at most num_envs·unroll_length = {batch_size}"
        )
    if batch_size % config.trust_region.num_microbatches:
        raise ConfigError(
            "trust_region.num_microbatches",
            config.trust_region.num_microbatches,
            f"a divisor of num_envs·unroll_length = {batch_size}",
        )


def make_networks(action_space: Box | Discrete, config: TRPOConfig) -> Networks:
    """Make the multilayer perceptrons that a config describes, for an action space."""
    policy, critic = config.policy, config.critic
    if isinstance(action_space, Box):
        if policy.action_bounds == "tanh" and not is_bounded(action_space):
            raise ConfigError("policy.action_bounds", "tanh", f'"clip" for actions in an unbounded {action_space}')
        network: Network = GaussianPolicy(
            int(action_space.size), policy.hidden_sizes, policy.activation, policy.init_log_std, policy.action_bounds == "tanh"
        )
    else:
        network = CategoricalPolicy(int(action_space.num_actions), policy.hidden_sizes, policy.activation)
    value_network = ValueNetwork(critic.hidden_sizes, critic.activation)
    return Networks(
        OfEntry(network, policy.observation_key, "policy.observation_key"),
        OfEntry(value_network, critic.observation_key, "critic.observation_key"),
    )
