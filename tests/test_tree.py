import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax.tree import add_scaled, all_finite, cast_like, check_floating, max_abs, pytree_dataclass, upcast, vdot


@pytree_dataclass
class Sum:
    a: jax.Array
    b: jax.Array
    times: int = dataclasses.field(default=1, metadata={"static": True})


@pytree_dataclass
class Difference:
    a: jax.Array
    b: jax.Array
    times: int = dataclasses.field(default=1, metadata={"static": True})


def test_classes_with_the_same_fields_have_structures_of_their_own():
    # Those that jax.tree_util.register_dataclass makes compare equal, and jit confuses them where their hashes come close.
    structures = [jax.tree.structure(kind(1.0, 2.0, times)) for kind in (Sum, Difference) for times in (1, 2)]
    assert structures == [jax.tree.structure(kind(3.0, 4.0, times)) for kind in (Sum, Difference) for times in (1, 2)]
    assert len(set(structures)) == 4
    assert all(a != b for i, a in enumerate(structures) for b in structures[:i])


def test_a_dataclass_is_mapped_by_field_and_its_leaves_are_named():
    mapped = jax.tree.map(lambda x: 2 * x, Sum(1.0, 2.0, times=3))
    assert mapped == Sum(2.0, 4.0, times=3)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(mapped)]
    assert paths == [".a", ".b"]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": jnp.ones(2), "b": [jnp.arange(2)]}, r"params\['b'\]\[0\]: got dtype int32, allowed: a floating dtype"),
        (jnp.ones(2, bool), "params: got dtype bool, allowed: a floating dtype"),
        (jnp.ones(2, jnp.complex64), "params: got dtype complex64"),
        ({"a": None}, "params: got an empty pytree, allowed: a pytree with at least one floating array"),
    ],
)
def test_a_leaf_that_is_not_floating_is_named(tree, message):
    with pytest.raises(TypeError, match=message):
        check_floating(tree, "params")


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
def test_floating_leaves_of_any_width_pass_and_are_cast_up_to_float32(kind):
    tree = {"a": jnp.ones(2, kind), "b": (jnp.ones((), "float32"),)}
    check_floating(tree, "params")
    assert {leaf.dtype for leaf in (upcast(tree)["a"], upcast(tree)["b"][0])} == {jnp.dtype("float32")}


def test_casting_up_leaves_float64_alone_and_casting_back_restores_each_leaf(x64):
    tree = {"a": jnp.ones(2, "bfloat16"), "b": jnp.ones(2, "float64")}
    assert upcast(tree)["b"].dtype == jnp.float64
    back = cast_like(upcast(tree), tree)
    assert (back["a"].dtype, back["b"].dtype) == (jnp.bfloat16, jnp.float64)


def test_the_inner_product_of_short_floats_accumulates_in_float32():
    # A bfloat16 sum of ones stops growing at 256.
    ones = {"a": jnp.ones(3000, "bfloat16"), "b": jnp.ones(3, "bfloat16")}
    assert vdot(ones, ones).dtype == jnp.float32
    assert vdot(ones, ones) == 3003


def test_vector_arithmetic_equals_numpy(dtype):
    rng = np.random.default_rng(0)
    a, b = ({"w": rng.normal(size=(3, 2)).astype(dtype), "b": rng.normal(size=4).astype(dtype)} for _ in range(2))
    as_jax = [{name: jnp.asarray(leaf) for name, leaf in tree.items()} for tree in (a, b)]
    tolerance = 10 * float(jnp.finfo(dtype).eps)
    expected = sum((a[name].astype("float64") * b[name]).sum() for name in a)
    np.testing.assert_allclose(vdot(*as_jax), expected, rtol=tolerance, atol=tolerance)
    result = add_scaled(as_jax[0], jnp.asarray(-0.5, "float32"), as_jax[1])
    for name in a:
        assert result[name].dtype == dtype
        np.testing.assert_allclose(result[name], a[name] - 0.5 * b[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("leaf", "largest", "finite"),
    [([1.0, -3.0], 3.0, True), ([0.0], 2.0, True), ([], 2.0, True), ([np.nan, 9.0], np.nan, False), ([-np.inf], np.inf, False)],
)
def test_the_largest_element_and_finiteness_see_every_leaf(leaf, largest, finite):
    tree = {"first": jnp.full((2, 2), -2.0), "second": jnp.asarray(leaf, "float32")}
    np.testing.assert_equal(np.asarray(max_abs(tree)), np.float32(largest))
    assert bool(all_finite(tree)) is finite
