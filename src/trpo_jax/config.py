"""How configuration dataclasses are declared, checked, and read from plain mappings.

A configuration is a frozen dataclass and a pytree. Its float fields are leaves, so they may be traced, batched by `vmap`
or swept in one program. Every other field is static: each of its values needs a separate program.
"""

import dataclasses
import difflib
import math
import operator
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np

from trpo_jax.errors import ConfigError

ConfigT = TypeVar("ConfigT")

LARGEST_SEED = 2**32 - 1
"""For a larger seed `jax.random.key` returns the same key as for some smaller seed."""


@dataclasses.dataclass(frozen=True)
class Allowed:
    """The range in which a number must lie."""

    at_least: int | float | None = None
    above: int | float | None = None
    at_most: int | float | None = None
    below: int | float | None = None

    def describe(self, kind: str) -> str:
        """Describe the allowed values in words, such as "an integer >= 1"."""
        bounds = ((">", self.above), (">=", self.at_least), ("<", self.below), ("<=", self.at_most))
        limits = [
            f"{sign} {limit if isinstance(limit, int) else format(limit, 'g')}" for sign, limit in bounds if limit is not None
        ]
        return " ".join([kind, " and ".join(limits)]).strip()

    def admits(self, value: Any) -> bool:
        """Tell whether a concrete value of the right type lies in range."""
        return bool(
            (isinstance(value, int) or math.isfinite(value))
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


def setting(*, default: Any, static: bool = False, **allowed: Any) -> Any:
    """Declare a field of a configuration with its default and the values it may hold.

    Args:
        default: the value when none is given.
        static: keep a float out of the pytree's leaves, because it decides shapes.
        **allowed: the fields of `Allowed`; they apply to each element of a tuple.
    """
    return dataclasses.field(default=default, metadata={"allowed": Allowed(**allowed), "force_static": static})


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, setting))
def config(cls: type) -> type:
    """Make a class a configuration: a frozen dataclass, checked when it is built, registered as a pytree.

    A float field also accepts an array, traced or not, whose values are not checked.
    """
    cls.__post_init__ = check  # type: ignore[attr-defined]
    cls = dataclasses.dataclass(frozen=True)(cls)
    typing.no_type_check(vars(cls)["__init__"])  # `check` checks types instead: it lets tracers pass
    leaves: list[str] = []
    static: list[str] = []
    for field in dataclasses.fields(cls):
        is_leaf = field.type is float or dataclasses.is_dataclass(_plain(field.type))
        (leaves if is_leaf and not field.metadata.get("force_static") else static).append(field.name)
    register_fields(cls, leaves, static)
    return cls


def register_fields(cls: type, leaves: Sequence[str], static: Sequence[str]) -> None:
    """Register a dataclass as a pytree whose children are the fields `leaves`; the fields `static` are part of its structure.

    This does not use `jax.tree_util.register_dataclass`: with it, the structures of two classes with the same field names
    compare equal (jax 0.10 to 0.12), and jit sometimes reuses for one class a program compiled for the other.
    """

    def flatten(instance: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(instance, name) for name in leaves], tuple(getattr(instance, name) for name in static)

    def flatten_with_keys(instance: Any) -> tuple[list[Any], tuple[Any, ...]]:
        children, static_values = flatten(instance)
        return list(zip(map(jax.tree_util.GetAttrKey, leaves), children, strict=True)), static_values

    def unflatten(static_values: Any, children: Any) -> Any:
        instance: Any = object.__new__(cls)  # unchecked: JAX rebuilds pytrees around placeholders and axis numbers
        for name, value in zip((*leaves, *static), (*children, *static_values), strict=True):
            object.__setattr__(instance, name, value)
        return instance

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)


def check(settings: Any) -> None:
    """Raise `ConfigError` for the first field whose value is not allowed; the elements of arrays are not checked.

    Floats that are whole numbers (1e6) become integers in integer fields.
    """
    for field in dataclasses.fields(settings):
        allowed = field.metadata.get("allowed", Allowed())
        value = as_integers(getattr(settings, field.name), field.type)
        object.__setattr__(settings, field.name, value)
        if not (field.type is float and isinstance(value, (jax.Array, np.ndarray))):
            _check_value(field.name, value, field.type, allowed)


def _check_value(name: str, value: Any, kind: Any, allowed: Allowed) -> None:
    kind = _plain(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, kind):
            raise ConfigError(name, value, f"a {kind.__name__}")
    elif typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise ConfigError(name, value, "one of " + ", ".join(choices))
    elif typing.get_origin(kind) is tuple:
        element = typing.get_args(kind)[0]
        if not isinstance(value, tuple) or not all(_fits(item, element, allowed) for item in value):
            raise ConfigError(name, value, f"a list, each item {allowed.describe(_KIND_NAMES[element])}")
    elif not _fits(value, kind, allowed):
        raise ConfigError(name, value, allowed.describe(_KIND_NAMES[kind]))


def as_integers(value: Any, kind: Any = int) -> Any:
    """Return whole numbers of any type as Python integers if `kind` is int or a tuple of int; return other values unchanged."""
    kind = _plain(kind)
    if typing.get_origin(kind) is tuple and isinstance(value, tuple):
        return tuple(as_integers(item, typing.get_args(kind)[0]) for item in value)
    if kind is not int or isinstance(value, (bool, np.bool_)):
        return value
    if isinstance(value, (float, np.floating)):
        return int(value) if float(value).is_integer() else value
    try:
        return operator.index(value)  # numpy's integers overflow, and scalar arrays are no numbers to `isinstance`
    except TypeError:
        return value


def _plain(kind: Any) -> Any:
    """Strip `Annotated`, which only the command line reads, from a type."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind


_KIND_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
_ACCEPTED = {int: (int, np.integer), float: (int, float, np.number), bool: (bool, np.bool_), str: (str,)}


def _fits(value: Any, kind: type, allowed: Allowed) -> bool:
    if isinstance(value, bool) and kind is not bool:
        return False
    if not isinstance(value, _ACCEPTED[kind]):
        return False
    return kind in (bool, str) or allowed.admits(value)


def from_mapping(defaults: ConfigT, mapping: Mapping[str, Any]) -> ConfigT:
    """Return `defaults` updated with the values of a nested mapping (such as a parsed TOML file).

    Args:
        defaults: a configuration; fields that the mapping leaves out keep their values.
        mapping: field name -> value; a nested configuration is given as a mapping, a tuple as a list.

    Raises:
        ConfigError: an unknown name (with the nearest known one), a value of the wrong type, or one out of range.
    """
    settings: Any = defaults
    names = [field.name for field in dataclasses.fields(settings)]
    changes: dict[str, Any] = {}
    for name, value in mapping.items():
        if name not in names:
            raise ConfigError(name, value, unknown_name("field", name, names, list(flatten(to_mapping(settings)))))
        current = getattr(settings, name)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise ConfigError(name, value, f"a table with the fields of {type(current).__name__}")
            try:
                changes[name] = from_mapping(current, value)
            except ConfigError as error:
                raise error.within(name) from None
        elif isinstance(value, Mapping):
            raise ConfigError(name, dict(value), "a single value, not a table")
        else:
            changes[name] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(settings, **changes)


def to_mapping(settings: Any) -> dict[str, Any]:
    """Turn a configuration with concrete values into a nested dict of plain Python values, without fields that are None."""
    mapping: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            mapping[field.name] = to_mapping(value)
        elif isinstance(value, tuple):
            mapping[field.name] = list(value)
        elif value is not None:
            mapping[field.name] = value.tolist() if isinstance(value, (np.generic, np.ndarray, jax.Array)) else value
    return mapping


def flatten(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a nested mapping into one with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in mapping.items():
        inner = flatten(value) if isinstance(value, Mapping) else {"": value}
        flat |= {f"{name}.{rest}".removesuffix("."): each for rest, each in inner.items()}
    return flat


def unknown_name(kind: str, name: str, known: list[str], deeper: Sequence[str] = ()) -> str:
    """Describe the names that are allowed instead of an unknown one: the nearest ones, or all if none is near.

    Args:
        kind: word for what the names denote, such as "field".
        name: the unknown name.
        known: the allowed names.
        deeper: dotted names of the fields of tables.
    """
    within = [dotted for dotted in deeper if dotted.rpartition(".")[2] == name]
    if within:
        return f"a known {kind}; did you mean {' or '.join(within)}?"
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if nearest:
        return f"a known {kind}; did you mean {' or '.join(nearest)}?"
    return f"a known {kind}: {', '.join(sorted(known))}"
