"""Make an agent's configuration from the arguments of `train`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from trpo_jax.agent.config import AgentConfig
from trpo_jax.algorithms.registry import DEFAULT, algorithm_name, default_config
from trpo_jax.config import Allowed, as_integers, flatten, from_mapping, to_mapping, unknown_name
from trpo_jax.errors import ConfigError
from trpo_jax.training.brax_keywords import translate
from trpo_jax.training.run_config import shipped_config


def agent_config(
    environment: Any,
    config: AgentConfig | None,
    options: dict[str, Any],
    *,
    suite: str,
    algorithm: str | None,
    beside: Sequence[str],
) -> AgentConfig:
    """Return the config, or the one that ships for the environment's name, with options applied.

    Args:
        environment: a name, or an environment.
        config: None takes the one that ships for the environment's name, or else the defaults.
        options: fields by name, and keywords of Brax's PPO.
        suite: suite of an environment given by name.
        algorithm: algorithm to learn by; None takes the config's, or TRPO.
        beside: other names that the caller accepts, for the message about an unknown one.
    """
    if config is None:
        name = DEFAULT if algorithm is None else algorithm
        config = (
            shipped_config(environment, suite=suite, algorithm=name).agent
            if isinstance(environment, str)
            else default_config(name)
        )
    elif algorithm not in (None, algorithm_name(config)):
        raise ConfigError("algorithm", algorithm, f"{algorithm_name(config)}, which the config is for")
    return with_options(config, translate(options, algorithm_name(config)), beside=beside)


def with_options(config: AgentConfig, options: dict[str, Any], *, beside: Sequence[str] = ()) -> AgentConfig:
    """Override fields of a config by name; a mapping overrides fields of a part.

    Raises:
        ConfigError: an unknown name; the message has the nearest known ones, including those in `beside`.
    """
    algorithm_name(config)  # raises TypeError
    known, deeper = [field.name for field in dataclasses.fields(config)], list(flatten(to_mapping(config)))
    for name, value in options.items():
        if name not in known:
            names = [*known, *beside]
            raise ConfigError(
                name, value, unknown_name(f"option of train or field of {type(config).__name__}", name, names, deeper)
            )
    whole = {name: value for name, value in options.items() if not isinstance(value, Mapping)}
    parts = {name: value for name, value in options.items() if name not in whole}
    return from_mapping(dataclasses.replace(config, **whole), parts)


def whole_number_or_none(name: str, value: Any, *, at_least: int = 0) -> int | None:
    """Return a whole number as `whole_number` does, or None for None."""
    return None if value is None else whole_number(name, value, at_least=at_least)


def whole_number(name: str, value: Any, *, at_least: int = 0) -> int:
    """Return a whole number >= `at_least` as an integer; raise ConfigError for anything else."""
    number, allowed = as_integers(value), Allowed(at_least=at_least)
    if isinstance(number, bool) or not isinstance(number, int) or not allowed.admits(number):
        raise ConfigError(name, value, allowed.describe("an integer"))
    return number
