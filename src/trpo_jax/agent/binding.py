"""How an agent is put together: algorithm, environment with its time limit, networks."""

from typing import Any

import jax

from trpo_jax.agent.agent import Agent
from trpo_jax.agent.config import AgentConfig
from trpo_jax.agent.policy_update import PolicyUpdate
from trpo_jax.environments.checked import is_bounded
from trpo_jax.environments.protocol import Box, Discrete, Environment
from trpo_jax.environments.registry import as_environment
from trpo_jax.environments.wrappers import EpisodeLimit
from trpo_jax.errors import ConfigError
from trpo_jax.policy.networks import CategoricalPolicy, GaussianPolicy, Network, Networks, OfEntry, ValueNetwork


def bind(policy_update: PolicyUpdate, environment: Any, config: AgentConfig, networks: Networks | None = None) -> Agent:
    """Make an agent.

    Args:
        policy_update: the algorithm.
        environment: a name ("hopper"), a Brax environment, or an object that implements the `Environment` protocol. It must
            not be vectorized, time-limited or self-resetting, unless its attribute `resets_itself` is True.
        config: the algorithm's configuration.
        networks: policy and critic; None makes the multilayer perceptrons that the config describes.

    Raises:
        ConfigError: an unknown environment, one without costs or with too many for an algorithm that limits costs, or a batch
            of a size that the config cannot use.
        TypeError: an environment of another kind.
    """
    config.check_batch()
    name = _name_of(environment)
    environment = with_time_limit(as_environment(environment), config)
    if config.sampler == "vine":
        _check_vine(policy_update, environment)
    if policy_update.limits_costs:
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), config.num_envs))
        cost, most = jax.eval_shape(environment.reset, keys).cost, policy_update.most_costs
        if cost is None:
            raise ConfigError(
                "environment", name, 'one with costs, because the algorithm limits them; the suite "safety" has some'
            )
        if most is not None and cost.shape[-1] > most:
            allowed = f"one with at most {most} costs, which the algorithm can limit; this one has {cost.shape[-1]}"
            raise ConfigError("environment", name, allowed)
    return Agent(environment, networks or make_networks(environment.action_space, config), config, policy_update)


def _name_of(environment: Any) -> str:
    """Return an environment's name, or the name of its type without the package's own wrappers."""
    while hasattr(environment, "environment"):
        environment = environment.environment
    return environment if isinstance(environment, str) else type(environment).__name__


def _check_vine(policy_update: PolicyUpdate, environment: Environment) -> None:
    """Raise ConfigError if an algorithm or environment cannot use the sampler "vine"."""
    if not policy_update.takes_vines:
        allowed = "path, for this algorithm; docs/training.md names those that can use vine"
        raise ConfigError("sampler", "vine", allowed)
    if getattr(environment, "resets_itself", False):
        raise ConfigError("sampler", "vine", "path, for an environment that resets itself")


def with_time_limit(environment: Environment, config: AgentConfig) -> Environment:
    """Add the configured time limit, unless the environment has one."""
    if isinstance(environment, EpisodeLimit) or getattr(environment, "resets_itself", False):
        return environment
    return EpisodeLimit(environment, config.episode_length, config.action_repeat)


def make_networks(action_space: Box | Discrete, config: AgentConfig) -> Networks:
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
