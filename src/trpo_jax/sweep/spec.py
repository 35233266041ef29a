"""Reading a sweep file: environments, settings and seeds."""

import itertools
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from trpo_jax.algorithms.registry import ALGORITHMS
from trpo_jax.config import as_integers, config, from_mapping, setting, unknown_name
from trpo_jax.errors import ConfigError, errors_in
from trpo_jax.training.fields import SETTING, all_fields, check_known, flat_fields, traced_fields
from trpo_jax.training.run_config import read_toml

KEYS = ("environments", "seeds", "num_timesteps", "config", "settings", "grid", "random", "traced")
"""Keys that a sweep file may have."""

ELSEWHERE = {"environment": "environments", "seed": "seeds", "num_timesteps": "num_timesteps"}
"""Fields that have a key of their own in a sweep file, and that key."""


class Setting(NamedTuple):
    """One setting of a sweep."""

    swept: dict[str, Any]
    """What tells it from the others: its name under `SETTING`, if the file names settings, and the swept fields' values."""
    fields: dict[str, Any]
    """All its values, by dotted field; they override `config` and `of_algorithm`."""


class Sweep(NamedTuple):
    """What to train: every environment with every setting and every seed."""

    environments: tuple[str, ...]
    """Names of environments, which stand for their shipped settings, or TOML files."""
    seeds: tuple[int, ...]
    config: dict[str, Any]
    """Values by dotted field; they override each environment's configuration."""
    settings: tuple[Setting, ...]
    of_algorithm: dict[str, dict[str, Any]]
    """Values by algorithm and dotted field; they override `config` for that algorithm alone."""


@config
class RandomSamples:
    """Random draws of some fields; every point of the grid gets the same ones."""

    num_samples: int = setting(default=1, at_least=1)
    """How many settings to draw."""
    seed: int = setting(default=0, at_least=0)
    """Seed of the draws."""


@config
class Interval:
    """Range from which a field is drawn, uniformly or log-uniformly."""

    low: float = setting(default=0.0)
    high: float = setting(default=1.0)
    scale: Literal["linear", "log"] = setting(default="linear")


def read_sweep(path: Path | str) -> Sweep:
    """Read a sweep file.

    Raises:
        ConfigError: no such file, not TOML, an unknown key or field, an empty grid, a wrong value, or a static field
            under `traced`. Environments and the values of fields are checked when the sweep is planned.
    """
    mapping = read_toml(path, "sweep file")
    with errors_in(path):
        return sweep_from_mapping(mapping)


def sweep_from_mapping(mapping: Mapping[str, Any]) -> Sweep:
    """Build a `Sweep` from a parsed TOML file. Raises ConfigError as `read_sweep`."""
    for name, value in mapping.items():
        if name not in KEYS:
            raise ConfigError(name, value, unknown_name("key of a sweep file", name, list(KEYS)))
    environments = _list("environments", mapping.get("environments"), str)
    tables = {name: _table(name, mapping.get(name, {})) for name in ("config", "settings", "grid", "random")}
    own = {name: _table(f"config.{name}", value) for name, value in tables["config"].items() if name in ALGORITHMS}
    fixed = flat_fields({name: value for name, value in tables["config"].items() if name not in own})
    _check_fields("config", fixed)
    of_algorithm = {name: flat_fields(table) for name, table in own.items()}
    for name, fields in of_algorithm.items():
        _check_fields(f"config.{name}", fields)
    if "num_timesteps" in mapping:
        fixed["num_timesteps"] = mapping["num_timesteps"]
    named = _named(tables["settings"]) if "settings" in mapping else {}
    grid = _grid(flat_fields(tables["grid"])) if "grid" in mapping else [{}]
    samples = _samples(tables["random"]) if "random" in mapping else [{}]
    for name in grid[0].keys() & samples[0].keys():
        raise ConfigError("random.fields", name, "fields that are not under grid, too")
    for of_name, fields in named.items():
        for name in fields.keys() & (grid[0].keys() | samples[0].keys()):
            raise ConfigError(f"settings.{of_name}", name, "fields that are not under grid or random.fields, too")
    tables_of_names = [Setting({SETTING: name}, fields) for name, fields in named.items()] or [Setting({}, {})]
    settings = _distinct(
        [
            Setting(table.swept | point | sample, table.fields | point | sample)
            for table, point, sample in itertools.product(tables_of_names, grid, samples)
        ]
    )
    _check_traced(_list("traced", mapping["traced"], str) if "traced" in mapping else (), settings[0].swept)
    return Sweep(environments, _seeds(mapping.get("seeds", 1)), fixed, settings, of_algorithm)


def _named(table: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the fields of each named setting."""
    if not table:
        raise ConfigError("settings", {}, "at least one table, such as [settings.short]")
    named = {name: flat_fields(_table(f"settings.{name}", fields)) for name, fields in table.items()}
    for name, fields in named.items():
        _check_fields(f"settings.{name}", fields)
    return named


def _grid(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every combination of values."""
    if not table:
        raise ConfigError("grid", {}, "at least one field with a list of values")
    _check_fields("grid", table)
    columns = [_list(f"grid.{name}", values) for name, values in table.items()]
    return [dict(zip(table, point, strict=True)) for point in itertools.product(*columns)]


def _samples(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Draw settings. A field's draws do not depend on the other fields."""
    fields = flat_fields(_table("random.fields", table.get("fields", {})))
    if not fields:
        raise ConfigError("random.fields", {}, "at least one field with a range or a list of values")
    _check_fields("random.fields", fields)
    try:
        random = from_mapping(RandomSamples(), {name: value for name, value in table.items() if name != "fields"})
    except ConfigError as error:
        raise error.within("random") from None
    columns = [_draw(name, values, random) for name, values in fields.items()]
    return [dict(zip(fields, sample, strict=True)) for sample in zip(*columns, strict=True)]


def _draw(name: str, values: Any, random: RandomSamples) -> list[Any]:
    rng = np.random.default_rng([random.seed, zlib.crc32(name.encode())])
    where = f"random.fields.{name}"
    if isinstance(values, list):
        choices = _list(where, values)
        return [choices[i] for i in rng.integers(len(choices), size=random.num_samples)]
    if not isinstance(values, Mapping) or {"low", "high"} - values.keys():
        raise ConfigError(where, values, 'a list of values, or a table with low, high and optionally scale = "log"')
    try:
        interval = from_mapping(Interval(), values)
    except ConfigError as error:
        raise error.within(where) from None
    if not interval.low < interval.high:
        raise ConfigError(f"{where}.high", interval.high, f"a number above low, which is {interval.low}")
    kind = type(all_fields()[name])
    if kind not in (int, float):
        raise ConfigError(where, dict(values), "a list of values, because the field is not a number")
    top = interval.high + (kind is int)  # integers are rounded down, and `high` must be drawn too
    if interval.scale == "log":
        if interval.low <= 0:
            raise ConfigError(f"{where}.low", interval.low, 'a number > 0 if scale is "log"')
        drawn = np.exp(rng.uniform(np.log(interval.low), np.log(top), random.num_samples))
    else:
        drawn = rng.uniform(interval.low, top, random.num_samples)
    rounded = np.floor(drawn) if kind is int else [float(f"{x:.6g}") for x in drawn]
    return [kind(x) for x in np.clip(rounded, interval.low, interval.high)]


def _distinct(settings: Sequence[Setting]) -> tuple[Setting, ...]:
    """Leave out repeated settings."""
    return tuple(setting for i, setting in enumerate(settings) if setting not in settings[:i])


def _check_fields(where: str, table: Mapping[str, Any]) -> None:
    for name, value in table.items():
        try:
            check_known(name, value)
        except ConfigError as error:
            raise error.within(where) from None
        if name in ELSEWHERE and (name, where) != ("num_timesteps", "grid"):
            raise ConfigError(f"{where}.{name}", value, f"other fields; this one is given as {ELSEWHERE[name]}, at the top")
        if name == "algorithm" and where not in ("config", "grid") and not where.startswith("settings."):
            raise ConfigError(f"{where}.{name}", value, "other fields; this one is given under config, settings or grid")
        if name == "suite" and where != "config":
            raise ConfigError(f"{where}.{name}", value, "other fields; this one is given under config")


def _check_traced(names: Sequence[str], setting: Mapping[str, Any]) -> None:
    """Raise ConfigError for a field under `traced` that is static or not swept."""
    for name in names:
        check_known(name, name)
        if name not in traced_fields():
            raise ConfigError("traced", name, f"fields that one program may hold many values of: {_words(traced_fields())}")
        if name not in setting:
            raise ConfigError("traced", name, "fields under grid or random.fields")


def _words(names: frozenset[str]) -> str:
    return ", ".join(sorted(names - {"seed"}))


def _seeds(value: Any) -> tuple[int, ...]:
    value = [as_integers(seed) for seed in value] if isinstance(value, list) else as_integers(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return tuple(range(value))
    if isinstance(value, list):
        seeds = _list("seeds", value, int)
        if min(seeds) >= 0:
            return seeds
    raise ConfigError("seeds", value, "a number of seeds >= 1, or a list of seeds >= 0")


def _table(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(name, value, "a table")
    return value


def _list(name: str, value: Any, kind: type = object) -> tuple[Any, ...]:
    """Return a list as a tuple, after checking that it is not empty and its items are distinct and of a kind."""
    words = {str: "strings", int: "integers"}.get(kind, "values")
    if not isinstance(value, list) or not value or not all(isinstance(item, kind) for item in value):
        raise ConfigError(name, value, f"a list of one or more {words}" if words == "values" else f"a list of {words}")
    if any(item in value[:i] for i, item in enumerate(value)):
        raise ConfigError(name, value, f"{words} that differ from each other")
    return tuple(value)
