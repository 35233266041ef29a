"""How an agent is put together: algorithm, environment with its time limit, networks."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from trpo_jax.agent.agent import Agent
from trpo_jax.agent.config import AgentConfig
from trpo_jax.agent.critic import CriticConfig
from trpo_jax.agent.host import HostAgent
from trpo_jax.agent.policy_update import PolicyUpdate
from trpo_jax.environments.history import FrameStack, LastStep, innermost
from trpo_jax.environments.host import AnyEnvironment, HostEnvironment
from trpo_jax.environments.registry import as_environment
from trpo_jax.environments.wrappers import ActionRepeat, EpisodeLimit
from trpo_jax.errors import ConfigError
from trpo_jax.policy.entries import OfEntries, RecurrentOfEntries
from trpo_jax.policy.layers import Hidden
from trpo_jax.policy.memory import CELLS, Recurrent, RecurrentNetwork
from trpo_jax.policy.networks import Network, Networks, PolicyConfig, PolicyNetwork, ValueNetwork
from trpo_jax.spaces import ActionSpace, Box, Composite, is_bounded, parts_of


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
        _check_costs(name, environment, config.num_envs, policy_update.most_costs)
    networks = networks or make_networks(environment, config)
    _check_memory(policy_update, networks, config)
    kind = HostAgent if isinstance(environment, HostEnvironment) else Agent
    return kind(environment, networks, config, policy_update)


def _check_costs(name: str, environment: AnyEnvironment, num_envs: int, most: int | None) -> None:
    """Raise ConfigError for an environment without costs, or with more than an algorithm can limit."""
    cost = _described(environment, num_envs).cost
    if cost is None:
        allowed = 'one with costs, because the algorithm limits them; the suite "safety" has some'
        raise ConfigError("environment", name, allowed)
    if most is not None and cost.shape[-1] > most:
        allowed = f"one with at most {most} costs, which the algorithm can limit; this one has {cost.shape[-1]}"
        raise ConfigError("environment", name, allowed)


def _check_memory(policy_update: PolicyUpdate, networks: Networks, config: AgentConfig) -> None:
    """Raise ConfigError if networks with memory are asked for where they cannot be used."""
    for name, network in networks._asdict().items():
        if isinstance(network, RecurrentNetwork) and config.sampler == "vine":
            raise ConfigError(f"{name}.network", "one with memory", 'mlp with the sampler "vine"')
    if isinstance(networks.critic, RecurrentNetwork):
        if policy_update.limits_costs:
            raise ConfigError("critic.network", "one with memory", "mlp for an algorithm that limits costs")
        if config.critic.num_minibatches > config.num_envs:
            allowed = f"at most num_envs = {config.num_envs}, for a critic with memory"
            raise ConfigError("critic.num_minibatches", config.critic.num_minibatches, allowed)


def _name_of(environment: Any) -> str:
    """Return an environment's name, or the name of its type without the package's own wrappers."""
    while hasattr(environment, "environment"):
        environment = environment.environment
    return environment if isinstance(environment, str) else type(environment).__name__


def _check_vine(policy_update: PolicyUpdate, environment: Any) -> None:
    """Raise ConfigError if an algorithm or environment cannot use the sampler "vine"."""
    if not policy_update.takes_vines:
        allowed = "path, for this algorithm; docs/training.md names those that can use vine"
        raise ConfigError("sampler", "vine", allowed)
    if getattr(environment, "resets_itself", False) or isinstance(environment, HostEnvironment):
        raise ConfigError("sampler", "vine", "path, for an environment that resets itself or that Python steps")


def with_time_limit(environment: Any, config: AgentConfig) -> Any:
    """Add what the observations are to hold besides, and the configured time limit, unless the environment has one.

    Raises:
        ConfigError: an environment that Python steps, or one that resets itself, with a setting that it cannot take.
    """
    if isinstance(environment, EpisodeLimit):
        return environment
    is_whole = getattr(environment, "resets_itself", False)
    if isinstance(environment, HostEnvironment) or is_whole:
        for name, default in (("action_repeat", 1), ("frame_stack", 1), ("observe_last_step", False)):
            if getattr(config, name) != default and not (is_whole and name == "action_repeat"):
                kind = "resets itself" if is_whole else "Python steps"
                raise ConfigError(name, getattr(config, name), f"{default}, for an environment that {kind}")
        return environment if is_whole else environment.limited(config.episode_length)
    if config.action_repeat > 1:
        environment = ActionRepeat(environment, config.action_repeat)
    if config.frame_stack > 1:
        environment = FrameStack(environment, config.frame_stack)
    if config.observe_last_step:
        environment = LastStep(environment)
    inner = innermost(environment)
    length = min(config.episode_length, getattr(inner, "time_limit", config.episode_length))
    return EpisodeLimit(environment, length)


def make_networks(environment: Any, config: AgentConfig) -> Networks:
    """Make the networks that a config describes, for an environment's actions and observations.

    Raises:
        ConfigError: settings that do not fit.
    """
    observation = _one_observation(environment, config.num_envs)
    return Networks(_policy_network(environment.action_space, observation, config), _critic_network(observation, config))


def _one_observation(environment: Any, num_envs: int) -> Any:
    """Return a description of one environment's observation; None for vectors of a simulator that is slow to trace."""
    inner = innermost(getattr(environment, "environment", environment))
    if getattr(inner, "observes_vectors", False):
        return None
    state = _described(environment, num_envs)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), state.observation)


def _described(environment: AnyEnvironment, num_envs: int) -> Any:
    """Return a description of an environment's initial states."""
    return jax.eval_shape(environment.reset, jax.eval_shape(lambda: jax.random.split(jax.random.key(0), num_envs)))


def _policy_network(action_space: ActionSpace, observation: Any, config: AgentConfig) -> Network:
    policy = config.policy
    boxes = [space for space in _leaves(action_space) if isinstance(space, Box)]
    if policy.action_bounds == "tanh" and not all(map(is_bounded, boxes)):
        raise ConfigError("policy.action_bounds", "tanh", f'"clip" for actions in an unbounded {action_space}')
    head = functools.partial(
        PolicyNetwork,
        action_space,
        activation=policy.activation,
        init_log_std=policy.init_log_std,
        tanh=policy.action_bounds == "tanh",
    )
    return _network(policy, "policy", observation, head, policy.action_mask_key)


def _critic_network(observation: Any, config: AgentConfig) -> Network:
    head = functools.partial(ValueNetwork, activation=config.critic.activation)
    return _network(config.critic, "critic", observation, head, config.policy.action_mask_key)


def _network(config: PolicyConfig | CriticConfig, name: str, observation: Any, head: Callable[..., Any], mask: str) -> Network:
    """Make a network that sees its entries of the observation; `head` takes the hidden layers' sizes and the encoder."""
    names, field = config.observation_key, f"{name}.observation_key"
    one = jax.eval_shape(OfEntries(None, names, field, mask).seen, observation)
    if isinstance(one, Mapping):
        raise ConfigError(field, names, "an entry of the observation that has no entries of its own")
    encoder = None if one is None else config.image.encoder(one, f"{name}.image")
    if config.network == "mlp":
        return OfEntries(head(hidden_sizes=config.hidden_sizes, encoder=encoder), names, field, mask)
    if not config.hidden_sizes:
        raise ConfigError(f"{name}.hidden_sizes", (), f"at least one layer, the last of which is the {config.network}")
    *sizes, size = config.hidden_sizes
    cell = CELLS[config.network](size)
    recurrent = Recurrent(Hidden(tuple(sizes), config.activation, encoder), cell, head(hidden_sizes=()))
    return RecurrentOfEntries(recurrent, names, field, mask)


def _leaves(space: ActionSpace) -> list[ActionSpace]:
    """Return the spaces that have no parts."""
    if not isinstance(space, Composite):
        return [space]
    return [leaf for part in parts_of(space).values() for leaf in _leaves(part)]
