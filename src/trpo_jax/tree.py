"""Arithmetic on parameter pytrees that accumulates in at least float32."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, dataclass_transform, no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from trpo_jax.config import register_fields

Params = PyTree[Float[Array, "..."]]
"""Any pytree of floating arrays."""

MatVec = Callable[[Params], Params]
"""A symmetric linear map on parameter space. Vectors have the structure of the parameters."""


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def pytree_dataclass(cls: type) -> type:
    """Make a class a frozen dataclass and a pytree. Fields with metadata {"static": True} are not leaves."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    no_type_check(vars(cls)["__init__"])  # fields may also hold numpy arrays or `jax.ShapeDtypeStruct`s
    static = [field.name for field in dataclasses.fields(cls) if field.metadata.get("static")]
    register_fields(cls, [field.name for field in dataclasses.fields(cls) if field.name not in static], static)
    return cls


def check_floating(tree: Any, name: str) -> None:
    """Raise TypeError if the pytree is empty or a leaf is not a floating array, naming the leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise TypeError(f"{name}: got an empty pytree, allowed: a pytree with at least one floating array")
    for path, leaf in leaves:
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            where = name + jax.tree_util.keystr(path)
            raise TypeError(f"{where}: got dtype {dtype}, allowed: a floating dtype; close over non-floating leaves")


def upcast(tree: Any) -> Any:
    """Cast integers, and floats narrower than float32, to float32. Leave wider floats unchanged."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32)), tree)


def cast_like(tree: Params, reference: Params) -> Params:
    """Cast each leaf to the dtype of its counterpart in `reference`."""
    return jax.tree.map(lambda x, like: jnp.asarray(x, jnp.result_type(like)), tree, reference)


def vdot(a: Params, b: Params) -> Float[Array, ""]:
    """Return the inner product of two pytrees, accumulated in at least float32."""
    products = jax.tree.map(
        lambda x, y: jnp.vdot(x, y, precision="highest", preferred_element_type=jnp.promote_types(x.dtype, jnp.float32)), a, b
    )
    return functools.reduce(jnp.add, jax.tree.leaves(products))


def add_scaled(a: Params, scale: Float[Array, ""], b: Params) -> Params:
    """Return a + scale·b."""
    return jax.tree.map(lambda x, y: x + scale.astype(y.dtype) * y, a, b)


def scaled(scale: Float[Array, ""], tree: Params) -> Params:
    """Return scale·tree."""
    return jax.tree.map(lambda x: scale.astype(x.dtype) * x, tree)


def max_abs(tree: Params) -> Float[Array, ""]:
    """Return the largest absolute value of any element, or NaN if any element is NaN."""
    return jnp.stack([jnp.max(jnp.abs(x), initial=0.0) for x in jax.tree.leaves(upcast(tree))]).max()


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Tell whether every element of every leaf is finite."""
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def where_finite(new: Any, old: Any) -> Any:
    """Return `new` if all of its elements are finite, else all of `old`. Both have the same structure, shapes and dtypes."""
    finite = all_finite(new)
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)


def structure_and_shapes(tree: Any) -> tuple[Any, list[tuple[int, ...]]]:
    """Return the structure and the leaves' shapes of a pytree. Vectors of the same space have both in common."""
    return jax.tree.structure(tree), [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
