"""A run's configuration as fields with dotted names, such as `trust_region.max_kl`."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from trpo_jax.agent.trpo_config import TRPOConfig
from trpo_jax.config import flatten, to_mapping, unknown_name
from trpo_jax.errors import ConfigError
from trpo_jax.training.run_config import RunConfig, run_config_from_mapping


def fields_of(run_config: RunConfig) -> dict[str, Any]:
    """Return every field and its value, a list for a tuple."""
    mapping = to_mapping(run_config)
    trpo = mapping.pop("trpo")
    return flatten(mapping | trpo)


def with_fields(run_config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Put values over a configuration.

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


def traced_fields() -> frozenset[str]:
    """Return the fields whose values one compiled program may hold many of; all others select a program of their own."""
    leaves = jax.tree.leaves_with_path(TRPOConfig())
    return frozenset(".".join(key.name for key in path) for path, _ in leaves) | {"seed"}


def check_known(name: str, value: Any) -> None:
    """Raise ConfigError for a name that is no field."""
    known = list(fields_of(RunConfig()))
    if name not in known:
        raise ConfigError(name, value, unknown_name("field", name, known, known))


def flat_fields(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a TOML table by dotted name, whether they stood in tables of their own or not."""
    known = fields_of(RunConfig())
    tables = {name.rpartition(".")[0] for name in known} - {""}
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if name in tables and isinstance(value, Mapping):
            flat |= {f"{name}.{field}": each for field, each in value.items()}
        else:
            flat[name] = value
    return flat


def setting_in_words(swept: Mapping[str, Any]) -> str:
    """Name a setting by its swept fields and their values."""
    return ", ".join(f"{field} {format_value(value)}" for field, value in swept.items())


def short_names(fields: Sequence[str]) -> dict[str, str]:
    """Name fields by their last part, or whole where two share it."""
    last = {field: field.rpartition(".")[2] for field in dict.fromkeys(fields)}
    return {field: name if list(last.values()).count(name) == 1 else field for field, name in last.items()}


def format_value(value: Any) -> str:
    """Write a swept value, with all its digits."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e6 else str(value)
