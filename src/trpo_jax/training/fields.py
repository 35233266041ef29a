"""A run's configuration as fields with dotted names, such as `trust_region.max_kl`."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from trpo_jax.algorithms.registry import ALGORITHMS, default_config
from trpo_jax.config import flatten, unknown_name
from trpo_jax.errors import ConfigError
from trpo_jax.training.run_config import RunConfig, file_fields, run_config_from_mapping

SETTING = "setting"
"""What stands for the name of a setting among swept fields. No field has this name."""


def fields_of(run_config: RunConfig) -> dict[str, Any]:
    """Return every field and its value; tuples become lists."""
    return flatten(file_fields(run_config))


def with_fields(run_config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Override fields of a configuration.

    Raises:
        ConfigError: an unknown field, a value of the wrong type, or one out of range.
    """
    nested: dict[str, Any] = {}
    for name, value in values.items():
        check_known(name, value)
        *tables, field = name.split(".")
        table = nested
        for each in tables:
            table = table.setdefault(each, {})
        table[field] = value
    return run_config_from_mapping(nested, run_config)


def all_fields() -> dict[str, Any]:
    """Return every field that an algorithm has, and its default."""
    return _all_fields(tuple((name, algorithm.config) for name, algorithm in ALGORITHMS.items()))


@functools.lru_cache
def _all_fields(algorithms: tuple[tuple[str, type], ...]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for config in _defaults():
        fields = fields_of(config) | fields  # if several algorithms have a field, the first one's default
    return fields


def traced_fields() -> frozenset[str]:
    """Return the fields of which one compiled program can hold many values. Others need one program per value."""
    leaves = [path for config in _defaults() for path, _ in jax.tree.leaves_with_path(config.agent)]
    return frozenset(".".join(key.name for key in path) for path in leaves) | {"seed"}


def _defaults() -> list[RunConfig]:
    return [RunConfig(agent=default_config(name)) for name in ALGORITHMS]


def check_known(name: str, value: Any) -> None:
    """Raise ConfigError for a name that is not a field of any algorithm."""
    known = list(all_fields())
    if name not in known:
        raise ConfigError(name, value, unknown_name("field", name, known, known))


def flat_fields(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a TOML table by dotted name, whether they are in nested tables or not."""
    known = all_fields()
    tables = {name.rpartition(".")[0] for name in known} - {""}
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if name in tables and isinstance(value, Mapping):
            flat |= {f"{name}.{field}": each for field, each in value.items()}
        else:
            flat[name] = value
    return flat


def setting_in_words(swept: Mapping[str, Any]) -> str:
    """Name a setting by its own name, if it has one, and by its swept fields and their values."""
    return ", ".join(value if field == SETTING else f"{field} {format_value(value)}" for field, value in swept.items())


def short_names(fields: Sequence[str]) -> dict[str, str]:
    """Name fields by their last part, or by the full name if two share that part."""
    last = {field: field.rpartition(".")[2] for field in dict.fromkeys(fields)}
    return {field: name if list(last.values()).count(name) == 1 else field for field, name in last.items()}


def format_value(value: Any) -> str:
    """Write a swept value, with all its digits."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e6 else str(value)
