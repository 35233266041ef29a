"""An estimate of the Fisher matrix's diagonal, to precondition conjugate gradients with."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from trpo_jax.objective.partition import local
from trpo_jax.objective.surrogate import Batch
from trpo_jax.solver.tree import MatVec, Params, upcast
from trpo_jax.weights import AxisName, unit_weight

NUM_SAMPLES = 256
"""Samples of the batch that the estimate is taken from; each costs a gradient of its own."""
CHUNK = 32
"""Gradients held in memory at once."""
EXPONENT = 0.75
"""Power of the diagonal that preconditions: below 1, since the estimate is noisy and the matrix is not diagonal."""


def fisher_diagonal(
    policy_fn: Callable[[Params, Any], Any], params: Params, batch: Batch, *, axis_name: AxisName | None = None
) -> Params:
    """Estimate diag(F) by the mean square of scores: d ≈ Σ_i w_i (∂ log π(a_i|s_i)/∂params)² / Σ_i w_i.

    The actions of the batch are samples of the policy, so that the mean is the Fisher matrix's diagonal and not the
    empirical one of labels. At most `NUM_SAMPLES` entries of the last batch axis take part; of a sequence `[T, N]` it is
    the square of the summed scores over time, which has the same mean.

    Args:
        policy_fn: (params, observation `[..., *]`) -> Distribution with batch axes `[...]`.
        params: pytree of floating arrays.
        batch: the samples; weights count.
        axis_name: named axes over which the batch is split.

    Returns:
        A pytree like `params`, non-negative, in at least float32.

    Reference:
        Martens 2010, "Deep learning via Hessian-free optimization", section 4.7.
    """
    axes = batch.log_prob.shape
    count = min(NUM_SAMPLES, axes[-1])
    chunk = max(size for size in range(1, min(CHUNK, count) + 1) if count % size == 0)
    indices = jnp.asarray(np.arange(count) * axes[-1] // count).reshape(-1, chunk)
    weight = jnp.ones(axes, jnp.float32) if batch.weight is None else unit_weight(batch.weight, axis_name=axis_name)

    def squared_score(index: Array) -> tuple[Params, Float[Array, ""]]:
        one = jax.tree.map(lambda leaf: jnp.take(leaf, index[None], len(axes) - 1), batch._replace(weight=weight))

        def weighted_log_prob(params: Params) -> Float[Array, ""]:
            return jnp.sum(jnp.sqrt(one.weight) * policy_fn(params, one.observation).log_prob(one.action))

        score = upcast(jax.grad(weighted_log_prob)(params))
        return jax.tree.map(jnp.square, score), jnp.sum(one.weight)

    def accumulate(total: Any, indices: Array) -> tuple[Any, None]:
        squares = jax.vmap(squared_score)(indices)
        return jax.tree.map(lambda total, each: total + jnp.sum(each, axis=0), total, squares), None

    zeros = local(jax.tree.map(jnp.zeros_like, jax.eval_shape(squared_score, indices[0, 0])), axis_name)
    (squares, total), _ = jax.lax.scan(accumulate, zeros, indices)
    if axis_name is not None:
        squares, total = jax.lax.psum((squares, total), axis_name)
    return jax.tree.map(lambda leaf: leaf / jnp.where(total > 0, total, 1.0), squares)


def diagonal_preconditioner(diagonal: Params, damping: Float[Array, ""]) -> MatVec:
    """Return the map r -> (d + damping)^-0.75 · r; an entry that is no positive number does not scale."""

    def precondition(residual: Params) -> Params:
        def scale(d: Array, r: Array) -> Array:
            power = (d.astype(r.dtype) + damping.astype(r.dtype)) ** EXPONENT
            return r / jnp.where(jnp.isfinite(power) & (power > 0), power, 1.0)

        return jax.tree.map(scale, diagonal, residual)

    return precondition
