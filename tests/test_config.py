import dataclasses
import pickle
import re
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax import TrustRegionConfig
from trpo_jax.config import check, config, from_mapping, setting, to_mapping, unknown_name
from trpo_jax.errors import ConfigError, MissingPackageError


@config
class Inner:
    rate: float = setting(default=0.5, at_least=0.0, below=1.0)
    size: int = setting(default=4, at_least=1)
    widths: tuple[int, ...] = setting(default=(8, 8), at_least=1)
    kind: Literal["big", "small"] = setting(default="big")
    seed_scale: float = setting(default=2.0, static=True)


@config
class Outer:
    speed: float = setting(default=1.0, above=0.0)
    verbose: bool = setting(default=False)
    name: str = setting(default="run")
    inner: Inner = setting(default=Inner())


def test_float_fields_are_the_leaves_and_everything_else_is_static():
    settings = Outer(speed=3.0, inner=Inner(rate=0.25))
    assert jax.tree.leaves(settings) == [3.0, 0.25]
    other = [Outer(verbose=True), Outer(name="x"), Outer(inner=Inner(size=5)), Outer(inner=Inner(seed_scale=1.0))]
    assert len({jax.tree.structure(each) for each in (*other, settings)}) == 5
    assert jax.tree.structure(settings) == jax.tree.structure(Outer())
    doubled = jax.tree.map(lambda leaf: leaf * 2, settings)
    assert doubled == Outer(speed=6.0, inner=Inner(rate=0.5))


def test_new_floats_reuse_the_program_and_new_static_values_compile_their_own():
    @jax.jit
    def f(settings):
        return settings.speed * settings.inner.size

    results = [f(Outer(speed=s, inner=Inner(size=n))) for s, n in ((1.0, 2), (3.0, 2), (1.0, 5))]
    assert results == [2.0, 6.0, 5.0]
    assert f._cache_size() == 2


def test_traced_and_batched_floats_and_jaxs_placeholders_pass_unchecked():
    speeds = jax.vmap(lambda s: dataclasses.replace(Outer(), speed=s).speed * 2)(jnp.asarray([-1.0, 2.0]))
    assert speeds.tolist() == [-2.0, 4.0]
    for placeholder in (None, object(), jax.ShapeDtypeStruct((), jnp.float32)):
        assert jax.tree.map(lambda _, p=placeholder: p, Outer()).speed is placeholder


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Outer(speed=0.0), "speed: got 0.0, allowed: a number > 0"),
        (lambda: Outer(speed=-1), "speed: got -1, allowed: a number > 0"),
        (lambda: Outer(speed=float("nan")), "speed: got nan, allowed: a number > 0"),
        (lambda: Outer(speed=float("inf")), "speed: got inf, allowed: a number > 0"),
        (lambda: Outer(speed="fast"), "speed: got 'fast', allowed: a number > 0"),
        (lambda: Outer(speed=True), "speed: got True, allowed: a number > 0"),
        (lambda: Outer(speed=np.float32(-1)), "speed: got np.float32(-1.0), allowed: a number > 0"),
        (lambda: Outer(verbose=1), "verbose: got 1, allowed: true or false"),
        (lambda: Outer(name=3), "name: got 3, allowed: a string"),
        (lambda: Outer(inner=3), "inner: got 3, allowed: a Inner"),
        (lambda: Inner(rate=1.0), "rate: got 1.0, allowed: a number >= 0 and < 1"),
        (lambda: Inner(size=0), "size: got 0, allowed: an integer >= 1"),
        (lambda: Inner(size=2.5), "size: got 2.5, allowed: an integer >= 1"),
        (lambda: Inner(size=False), "size: got False, allowed: an integer >= 1"),
        (lambda: Inner(widths=[8, 8]), "widths: got [8, 8], allowed: a list, each item an integer >= 1"),
        (lambda: Inner(widths=(8, -1)), "widths: got (8, -1), allowed: a list, each item an integer >= 1"),
        (lambda: Inner(widths=8), "widths: got 8, allowed: a list"),
        (lambda: Inner(kind="medium"), "kind: got 'medium', allowed: one of big, small"),
        (lambda: Inner(seed_scale="x"), "seed_scale: got 'x', allowed: a number"),
        (lambda: dataclasses.replace(Inner(), size=-2), "size: got -2, allowed: an integer >= 1"),
        (lambda: from_mapping(Outer(), {"sped": 1.0}), "sped: got 1.0, allowed: a known field; did you mean speed?"),
        (lambda: from_mapping(Outer(), {"qq": 1}), "qq: got 1, allowed: a known field: inner, name, speed, verbose"),
        (lambda: from_mapping(Outer(), {"inner": {"rates": 1}}), "inner.rates: got 1, allowed: a known field; did you mean"),
        (lambda: from_mapping(Outer(), {"inner": {"size": 0}}), "inner.size: got 0, allowed: an integer >= 1"),
        (lambda: from_mapping(Outer(), {"inner": 3}), "inner: got 3, allowed: a table with the fields of Inner"),
        (lambda: from_mapping(Outer(), {"speed": {"a": 1}}), "speed: got {'a': 1}, allowed: a single value, not a table"),
        (lambda: from_mapping(Outer(), {"speed": "1.0"}), "speed: got '1.0', allowed: a number > 0"),
        (lambda: from_mapping(Outer(), {"inner": {"widths": [1, "2"]}}), "inner.widths: got (1, '2'), allowed: a list"),
    ],
)  # fmt: skip
def test_each_wrong_value_is_refused_with_field_value_and_what_is_allowed(build, message):
    with pytest.raises(ConfigError, match="^" + re.escape(message)) as raised:
        build()
    assert message.startswith(raised.value.field + ":")
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (Outer, {"speed": 2, "name": ""}),
        (Outer, {"speed": np.float32(2)}),
        (Inner, {"rate": 0, "size": np.int64(3), "widths": ()}),
        (Inner, {"rate": np.float64(0.999), "kind": "small"}),
    ],
)
def test_values_at_the_edge_of_what_is_allowed_pass(cls, values):
    settings = cls(**values)
    check(settings)
    assert {name: getattr(settings, name) for name in values} == values


def test_a_mapping_changes_what_it_names_and_keeps_the_rest():
    defaults = Outer(name="mine", inner=Inner(size=7))
    settings = from_mapping(defaults, {"speed": 2, "inner": {"widths": [1, 2, 3], "kind": "small"}})
    assert settings == Outer(speed=2, name="mine", inner=Inner(size=7, widths=(1, 2, 3), kind="small"))
    assert from_mapping(defaults, {}) == defaults
    assert defaults.speed == 1.0


def test_a_configuration_survives_the_way_to_a_mapping_and_back():
    settings = Outer(speed=0.1, verbose=True, inner=Inner(rate=0.3, widths=(), kind="small"))
    mapping = to_mapping(settings)
    assert mapping == {
        "speed": 0.1,
        "verbose": True,
        "name": "run",
        "inner": {"rate": 0.3, "size": 4, "widths": [], "kind": "small", "seed_scale": 2.0},
    }
    assert from_mapping(Outer(), mapping) == settings


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), jnp.float32(0.5), np.asarray(0.5)])
def test_a_mapping_holds_plain_python_numbers_that_any_writer_knows(number):
    mapping = to_mapping(Outer(speed=number))
    assert type(mapping["speed"]) is float
    assert mapping["speed"] == 0.5


def test_a_configuration_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Outer().speed = 2.0


def test_the_nearest_names_are_offered_and_all_of_them_when_none_is_near():
    known = ["max_kl", "max_backtracks", "damping"]
    assert unknown_name("field", "maxkl", known) == "a known field; did you mean max_kl?"
    assert unknown_name("field", "zzz", known) == "a known field: damping, max_backtracks, max_kl"


@pytest.mark.parametrize("value", [None, {}, "0.1", True, [0.1]])
def test_a_value_of_no_use_is_refused_where_a_float_is_wanted(value):
    with pytest.raises(ConfigError, match="max_kl: got"):
        TrustRegionConfig(max_kl=value)


def test_a_tree_of_axes_can_be_made_from_a_config():
    config = TrustRegionConfig(max_kl=jnp.asarray([0.01, 0.02]))
    axes = jax.tree.map(lambda leaf: 0 if jnp.ndim(leaf) else None, config)
    doubled = jax.vmap(lambda config: 2 * config.max_kl, in_axes=(axes,))(config)
    np.testing.assert_allclose(doubled, [0.02, 0.04])


def test_whole_numbers_may_be_written_as_floats():
    @config
    class Counts:
        number: int = setting(default=1, at_least=1)
        several: tuple[int, ...] = setting(default=(1,), at_least=1)
        real: float = setting(default=1.0)

    counts = from_mapping(Counts(), {"number": 1e6, "several": [2.0, 3], "real": 2.0})
    assert (counts.number, counts.several) == (1_000_000, (2, 3))
    assert [type(value) for value in (counts.number, *counts.several, counts.real)] == [int, int, int, float]
    for value in (np.float32(8), np.uint8(8), np.array(8), jnp.int32(8)):  # numpy's integers would overflow later
        assert type(Counts(number=value).number) is int
        assert Counts(number=value).number == 8
    for value in (1.5, float("inf"), float("nan"), True, "1e6"):
        with pytest.raises(ConfigError, match=r"number: got .*, allowed: an integer >= 1"):
            Counts(number=value)


def test_a_name_that_stands_in_a_table_is_offered_with_it():
    assert unknown_name("field", "low", ["high"], ["inner.low", "inner.high"]) == "a known field; did you mean inner.low?"


def test_a_missing_package_is_a_sentence_that_survives_pickling():
    error = pickle.loads(pickle.dumps(MissingPackageError.of("--wandb", "wandb", "wandb")))
    assert str(error) == '--wandb needs wandb, which is not installed: pip install "trpo-jax[wandb]"'
