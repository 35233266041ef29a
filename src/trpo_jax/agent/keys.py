"""PRNG keys at the package's boundary."""

from typing import Any

import jax
import jax.numpy as jnp


def as_typed_key(key: Any) -> jax.Array:
    """Accept a typed key (`jax.random.key`) or a raw one (`jax.random.PRNGKey`)."""
    key = jnp.asarray(key)
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
