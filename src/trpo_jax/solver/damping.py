"""Damping shaped by the size of recent gradients."""

import jax.numpy as jnp
from jaxtyping import Array, Float

FLOOR = 1e-4
"""Added to the shape, whose mean is 1: parameters without a gradient keep a little damping."""


def average_squares(average: Float[Array, "P"], gradient: Float[Array, "P"], decay: float | Array) -> Float[Array, "P"]:
    """Return v = decay·v + (1 - decay)·g²; the old average where that is not finite anywhere.

    A bias correction, as Adam has it, is not needed: `damping_shape` does not depend on the scale of v.
    """
    new = decay * average + (1.0 - decay) * gradient**2
    return jnp.where(jnp.isfinite(new).all(), new, average).astype(average.dtype)


def damping_shape(average: Float[Array, "P"]) -> Float[Array, "P"]:
    """Return the diagonal of D = √v / mean(√v) + `FLOOR`; ones while v is zero.

    Reference:
        Marquardt 1963 scales Levenberg's damping so; Kohler, Adolphs and Lucchi 2019 (arXiv 1905.09201) show that methods
        with adaptive gradients have such ellipsoidal trust regions. √v is the divisor of Adam (arXiv 1412.6980).
    """
    root = jnp.sqrt(average)
    mean = jnp.mean(root)
    return jnp.where(mean > 0, root / jnp.where(mean > 0, mean, 1.0), 1.0) + FLOOR
