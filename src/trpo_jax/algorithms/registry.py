"""All algorithms, by name and by the type of their configuration."""

from collections.abc import Mapping
from dataclasses import fields as fields_of
from types import MappingProxyType
from typing import Any, NamedTuple

from trpo_jax.agent.agent import Agent
from trpo_jax.agent.binding import bind
from trpo_jax.agent.config import AgentConfig
from trpo_jax.agent.policy_update import PolicyUpdate
from trpo_jax.algorithms.cpo import CPO, CPOConfig
from trpo_jax.algorithms.natural_gradient import NATURAL_GRADIENT, NaturalGradientConfig
from trpo_jax.algorithms.penalty import PENALTY, PenaltyConfig
from trpo_jax.algorithms.penalty_adam import PENALTY_ADAM, PenaltyAdamConfig
from trpo_jax.algorithms.policy_gradient import POLICY_GRADIENT, PolicyGradientConfig
from trpo_jax.algorithms.ppo import BRAX_KEYWORDS, PPO, PPOConfig
from trpo_jax.algorithms.trpo import TRPO, TRPOConfig
from trpo_jax.algorithms.trpo_lagrangian import TRPO_LAGRANGIAN, TRPOLagrangianConfig
from trpo_jax.errors import ConfigError
from trpo_jax.policy.networks import Networks


class Algorithm(NamedTuple):
    """The registry's entry for an algorithm."""

    config: type[AgentConfig]
    policy_update: PolicyUpdate
    brax_keywords: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """Keywords of Brax's trainer, and the fields of the configuration that they set."""


ALGORITHMS = {
    "trpo": Algorithm(TRPOConfig, TRPO),
    "ppo": Algorithm(PPOConfig, PPO, BRAX_KEYWORDS),
    "natural_gradient": Algorithm(NaturalGradientConfig, NATURAL_GRADIENT),
    "penalty": Algorithm(PenaltyConfig, PENALTY),
    "penalty_adam": Algorithm(PenaltyAdamConfig, PENALTY_ADAM),
    "policy_gradient": Algorithm(PolicyGradientConfig, POLICY_GRADIENT),
    "cpo": Algorithm(CPOConfig, CPO),
    "trpo_lagrangian": Algorithm(TRPOLagrangianConfig, TRPO_LAGRANGIAN),
}
"""Algorithms by the name that configuration files and the command line use; the first is the default."""

OWN = tuple(ALGORITHMS)
"""Names of the algorithms that this package provides."""

DEFAULT = OWN[0]


def register_algorithm(name: str, config: type[AgentConfig], policy_update: PolicyUpdate) -> None:
    """Add your own algorithm for `train`, `make_agent` and configuration files in this process.

    Args:
        name: its name; an algorithm registered earlier under this name is replaced.
        config: its configuration, a subclass of `AgentConfig` decorated by `trpo_jax.config.config`.
        policy_update: its `PolicyUpdate`.

    Raises:
        ConfigError: a name or configuration of the package's own, the name of a field, or a class of another kind.
    """
    is_config = isinstance(config, type) and issubclass(config, AgentConfig) and "__post_init__" in vars(config)
    if not is_config:
        raise ConfigError("config", config, "a subclass of AgentConfig, decorated by trpo_jax.config.config")
    fields = {
        field.name for algorithm in (config, *(each.config for each in ALGORITHMS.values())) for field in fields_of(algorithm)
    }
    if name in OWN or name in fields or name == "accelerator":
        raise ConfigError("algorithm", name, f"a name that no built-in algorithm ({', '.join(OWN)}) and no field has")
    if any(config is algorithm.config for other, algorithm in ALGORITHMS.items() if other != name):
        raise ConfigError("config", config, "a class that no other algorithm uses, because the class selects the algorithm")
    ALGORITHMS[name] = Algorithm(config, policy_update)


def default_config(name: Any = DEFAULT) -> AgentConfig:
    """Return an algorithm's configuration with its defaults. Raises ConfigError for an unknown name."""
    if not isinstance(name, str) or name not in ALGORITHMS:
        raise ConfigError("algorithm", name, f"one of {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name].config()


def algorithm_name(config: AgentConfig) -> str:
    """Return the name of the algorithm that a configuration is for. Raises TypeError for anything else."""
    for name, algorithm in ALGORITHMS.items():
        if type(config) is algorithm.config:
            return name
    allowed = " or ".join(f"a {algorithm.config.__name__}" for algorithm in ALGORITHMS.values())
    raise TypeError(f"config: got a {type(config).__name__}, allowed: {allowed}")


def make_agent(environment: Any, config: AgentConfig, networks: Networks | None = None) -> Agent:
    """Bind an algorithm to an environment. The type of `config` selects the algorithm: `TRPOConfig` is for TRPO.

    Args:
        environment: a name ("hopper"), a Brax environment, or an object that implements the `Environment` protocol. It must
            not be vectorized, time-limited or self-resetting, unless its attribute `resets_itself` is True.
        config: configuration of one of the algorithms.
        networks: policy and critic; None makes the multilayer perceptrons that the config describes.

    Returns:
        `Agent`. `agent.init(key, hyperparameters=None, num_iterations=0)` takes a typed or raw key. `hyperparameters` is a
        config that overrides the float fields of `config`; they may be traced. The values in `config.schedule` decay over
        `num_iterations` (0: no decay). `agent.update(state)` runs one iteration as one XLA program and keeps the state's
        avals. Both may be vmapped over keys and hyperparameters.

    Raises:
        ConfigError: an unknown environment, more minibatches than samples, or a batch that the microbatches do not divide.
        TypeError: an environment or config of another kind.
    """
    return bind(ALGORITHMS[algorithm_name(config)].policy_update, environment, config, networks)


def make_trpo(environment: Any, config: TRPOConfig = TRPOConfig(), networks: Networks | None = None) -> Agent:  # noqa: B008
    """Bind TRPO to an environment; see `make_agent`.

    Reference:
        Schulman et al. 2015 (arXiv 1502.05477), with the advantages of Schulman et al. 2016 (arXiv 1506.02438).
    """
    if type(config) is not TRPOConfig:  # CPO's is a TRPOConfig, too
        raise TypeError(f"config: got a {type(config).__name__}, allowed: a TRPOConfig")
    return make_agent(environment, config, networks)
