"""Damping shaped by the size of recent gradients."""

import jax.numpy as jnp
from jaxtyping import Array, Float

FLOOR = 1e-4
"""Added to the diagonal, whose mean is 1: parameters without a gradient keep a little damping."""


def average_squares(average: Float[Array, "P"], gradient: Float[Array, "P"], decay: float | Array) -> Float[Array, "P"]:
    """Return decay·v + (1 - decay)·g².

    Adam's bias correction is not needed, since `damping_diagonal` does not depend on the scale of v.
    """
    return (decay * average + (1.0 - decay) * gradient**2).astype(average.dtype)


def damping_diagonal(average: Float[Array, "P"]) -> Float[Array, "P"]:
    """Return the diagonal of D = √v / mean(√v) + `FLOOR`; every element is 1 + `FLOOR` while v is zero.

    Reference:
        A diagonal scaling of the damping, like that of Marquardt 1963. √v is the divisor of RMSProp and Adam. Kohler,
        Adolphs and Lucchi 2019 (arXiv 1905.09201) interpret it as an ellipsoidal trust region.
    """
    positive = average > 0
    root = jnp.where(positive, jnp.sqrt(jnp.where(positive, average, 1.0)), 0.0)  # with a finite derivative at 0
    mean = jnp.mean(root)
    return jnp.where(mean > 0, root / jnp.where(mean > 0, mean, 1.0), 1.0) + FLOOR
