import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trpo_jax.weights import average, power_of_two, unit_weight, variance, weighted_mean


def test_the_weighted_mean_leaves_out_what_weighs_nothing_and_accumulates_in_float32():
    values = jnp.asarray([1.0, jnp.nan, 4.0])
    assert weighted_mean(values, jnp.asarray([2.0, 0.0, 1.0])) == 2.0
    assert weighted_mean(values[:1], jnp.zeros(1)) == 0.0  # nothing counts: zero, not 0/0
    short = weighted_mean(jnp.ones(3000, "bfloat16"), jnp.ones(3000, "bfloat16"))
    assert short.dtype == jnp.float32
    assert short == 1.0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_unit_weights_add_up_to_one_whatever_their_dtype(dtype):
    unit = unit_weight(jnp.ones(140_000, dtype))
    assert unit.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(unit, np.float64).sum(), 1.0, rtol=1e-5)


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32", "float64"])
def test_weights_of_any_scale_that_their_dtype_has_count_alike(precision):
    with jax.enable_x64(precision == "float64"):
        dtype = jnp.dtype(precision)
        for size in (jnp.finfo(dtype).tiny, 1.0, jnp.finfo(dtype).max):
            weight = jnp.asarray(size, dtype) * jnp.asarray([1.0, 0.0, 1.0], dtype)
            np.testing.assert_array_equal(jax.jit(unit_weight)(weight), [0.5, 0.0, 0.5])


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_power_of_two_is_near_and_can_be_divided_by(precision):
    with jax.enable_x64(precision == "float64"):
        limits = jnp.finfo(precision)
        for size in (limits.tiny, 0.75, 3.0, limits.max):
            power = jax.jit(power_of_two)(jnp.asarray(size, precision))
            assert np.frexp(power)[0] == 0.5
            assert 0.25 <= jnp.asarray(size, precision) / power <= 4
            assert 1 / power > 0
        assert power_of_two(jnp.zeros((), precision)) == 1


def test_a_positive_weight_never_becomes_zero():
    unit = unit_weight(jnp.ones(1000).at[3].set(1e-37).at[4].set(0.0))
    assert unit[3] > 0
    assert unit[4] == 0


@given(st.integers(0, 2**32 - 1), st.floats(-30, 30))
@settings(max_examples=40)
def test_mean_and_variance_are_those_of_numpy_at_any_scale_of_the_weights(x64, seed, exponent):
    rng = np.random.default_rng(seed)
    values, weight = rng.normal(size=(3, 7)), rng.random((3, 7)) * 10.0**exponent
    mean = np.average(values, weights=weight)
    np.testing.assert_allclose(weighted_mean(jnp.asarray(values), jnp.asarray(weight)), mean, rtol=1e-10)
    unit = unit_weight(jnp.asarray(weight))
    np.testing.assert_allclose(average(jnp.asarray(values), unit), mean, rtol=1e-10)
    expected = np.average((values - mean) ** 2, weights=weight)
    np.testing.assert_allclose(variance(jnp.asarray(values), unit), expected, rtol=1e-10)


def test_the_sum_is_one_along_some_axes_or_over_a_named_one():
    weight = jnp.asarray([[1.0, 3.0], [0.0, 4.0]])
    np.testing.assert_allclose(unit_weight(weight, (1,)), [[0.25, 0.75], [0.0, 1.0]])
    over_rows = jax.vmap(lambda row: unit_weight(row, axis_name="rows"), axis_name="rows")(weight)
    np.testing.assert_allclose(over_rows, weight / 8)
