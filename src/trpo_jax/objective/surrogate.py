"""A batch of experience, the surrogate objective of a new policy, and the mean and largest KL(old ‖ new)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trpo_jax.policy.distributions import Distribution
from trpo_jax.weights import average


class Batch(NamedTuple):
    """Experience of one policy. All leaves share the leading axes `[...]` of `log_prob`, in any order of samples."""

    observation: Any
    """Pytree of `[..., *]`, as `policy_fn` takes it."""
    action: Any
    """Pytree of `[..., *]`, as the distribution's `log_prob` takes it."""
    log_prob: Float[Array, "..."]
    """log π_old(action | observation) under the policy that acted, nats. Needs matmul precision "highest", as in the update."""
    advantage: Float[Array, "..."]
    weight: Float[Array, "..."] | None = None
    """Non-negative sample weights of any scale; a sample of weight zero is ignored, whatever its values."""
    cost_advantage: Float[Array, "... K"] | None = None
    """Advantages in K costs, positive if an action costs more than the policy's mean; for `constrained_trust_region_update`."""


def check_batch(batch: Batch) -> None:
    """Raise ValueError or TypeError, naming the leaf, if a leaf has wrong leading axes or a wrong dtype."""
    axes = jnp.shape(batch.log_prob)
    if 0 in axes or not axes:
        raise ValueError(f"batch.log_prob: got shape {axes}, allowed: at least one batch axis, none of size 0")
    for name in ("advantage", "weight"):
        leaf = getattr(batch, name)
        if leaf is not None and jnp.shape(leaf) != axes:
            raise ValueError(f"batch.{name}: got shape {jnp.shape(leaf)}, allowed: {axes}, the shape of batch.log_prob")
    if batch.cost_advantage is not None and jnp.ndim(batch.cost_advantage) != len(axes) + 1:
        shape = jnp.shape(batch.cost_advantage)
        raise ValueError(f"batch.cost_advantage: got shape {shape}, allowed: {axes} and one more axis, that of the costs")
    for name in ("log_prob", "advantage", "weight", "cost_advantage"):
        leaf = getattr(batch, name)
        if leaf is not None and not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(f"batch.{name}: got dtype {jnp.result_type(leaf)}, allowed: a floating dtype")
    for name in ("observation", "action", "cost_advantage"):
        for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(batch, name)):
            if jnp.shape(leaf)[: len(axes)] != axes:
                where = f"batch.{name}{jax.tree_util.keystr(path)}"
                raise ValueError(f"{where}: got shape {jnp.shape(leaf)}, allowed: leading axes {axes}, as in batch.log_prob")


def mask_unweighted(batch: Batch) -> Batch:
    """Replace samples of weight zero by zeros, so that a NaN in them cannot reach a gradient (0 · NaN is NaN).

    If a batch has several axes, its observations may form sequences, in which later states follow from earlier ones. Then
    an observation of weight zero keeps its values, except those that are not finite or too large to be squared.
    """
    if batch.weight is None:
        return batch
    ignored = batch.weight <= 0

    def ignored_in(leaf: Array) -> Array:
        return jnp.broadcast_to(ignored.reshape(ignored.shape + (1,) * (leaf.ndim - ignored.ndim)), leaf.shape)

    def mask(leaf: Array) -> Array:
        return jnp.where(ignored_in(leaf), jnp.zeros_like(leaf), leaf)

    def mask_unbearable(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        bearable = jnp.abs(leaf) < float(jnp.finfo(leaf.dtype).max) ** 0.5
        return jnp.where(ignored_in(leaf) & ~bearable, jnp.zeros_like(leaf), leaf)

    return Batch(
        observation=jax.tree.map(mask if ignored.ndim == 1 else mask_unbearable, batch.observation),
        action=jax.tree.map(mask, batch.action),
        log_prob=mask(batch.log_prob),
        advantage=mask(batch.advantage),
        weight=batch.weight,
        cost_advantage=None if batch.cost_advantage is None else mask(batch.cost_advantage),
    )


def surrogate_objective(distribution: Distribution, batch: Batch) -> Float[Array, ""]:
    """Return the importance-sampled advantage L = mean of exp(log π(a|s) - log π_old(a|s)) · A, which is maximized.

    Args:
        distribution: the new policy at `batch.observation`.
        batch: experience of the old policy. Weights have a sum of 1 (`unit_weight`), or for a part of a batch its share of 1.

    Reference:
        Schulman et al. 2015 (arXiv 1502.05477), equation 14.
    """
    ratio = jnp.exp(distribution.log_prob(batch.action) - batch.log_prob)
    return average(ratio * batch.advantage, batch.weight)


def mean_and_max_kl(
    old: Distribution, new: Distribution, weight: Float[Array, "..."] | None = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the mean and the largest KL(old ‖ new) over the batch, in nats; states of weight zero do not count.

    Weights have a sum of 1 (`unit_weight`), or for a part of a batch its share of 1.
    """
    kl = old.kl(new)
    counted = kl if weight is None else jnp.where(weight > 0, kl, 0.0)
    return average(kl, weight), jnp.max(counted)
