"""Distributions over integers: one choice, several choices, independent bits."""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from trpo_jax.policy.distributions.base import expm1_minus_identity, sum_of
from trpo_jax.tree import pytree_dataclass, upcast


@pytree_dataclass
class Categorical:
    """A distribution over the integers 0 … K-1, with probabilities softmax(logits) over the allowed ones.

    Actions whose `mask` is False or whose logit is -inf have probability zero and are never sampled; KL, entropy and
    gradients stay finite. Each batch entry must allow at least one action: if it allows none, all count as equally likely.
    """

    logits: Float[Array, "*batch K"]
    mask: Bool[Array, "*batch K"] | None = None

    def log_prob(self, action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Return log softmax(logits)[action]; a hugely negative number for a masked action."""
        log_p = jax.nn.log_softmax(self._allowed_logits())
        return jnp.take_along_axis(log_p, jnp.asarray(action, jnp.int32)[..., None], axis=-1)[..., 0]

    def kl(self, other: "Categorical") -> Float[Array, "*batch"]:
        """Return KL(self ‖ other) = log Σ_k p_k e^s_k = log(1 + Σ_k p_k (e^s_k - 1 - s_k)).

        Here s = d - Σ p d, and d is the other's logits minus these. Since Σ p s = 0, all terms are >= 0 and nothing cancels.
        """
        logits, other_logits = self._allowed_logits(), other._allowed_logits()
        p = jax.nn.softmax(logits)
        difference = other_logits - logits
        mean_difference = jnp.sum(p * difference, axis=-1, keepdims=True)
        shift = difference - mean_difference
        near = jnp.max(shift, axis=-1) < 60.0  # beyond, e^s may overflow, and the KL is not small
        near_shift = jnp.where(near[..., None], shift, 0.0)
        near_kl = jnp.log1p(jnp.sum(p * expm1_minus_identity(near_shift), axis=-1))
        # This is log p + s, in which these logits cancel. Where only the other distribution allows an action, these logits are
        # hugely negative: to add and subtract one would lose the other's logit to rounding.
        log_terms = other_logits - (jax.nn.logsumexp(logits, axis=-1, keepdims=True) + mean_difference)
        far_kl = jnp.maximum(jax.nn.logsumexp(log_terms, axis=-1), 0.0)
        return jnp.where(near, near_kl, far_kl)

    def entropy(self) -> Float[Array, "*batch"]:
        """Return -Σ_k p_k log p_k."""
        log_p = jax.nn.log_softmax(self._allowed_logits())
        return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    def sample(self, key: PRNGKeyArray) -> Int[Array, "*batch"]:
        """Draw one integer per batch entry."""
        # Normalize first: if all logits are large, the noise added to them would be lost to rounding.
        return jax.random.categorical(key, jax.nn.log_softmax(self._allowed_logits()), axis=-1)

    def mode(self) -> Int[Array, "*batch"]:
        """Return the most probable integer."""
        return jnp.argmax(self._allowed_logits(), axis=-1)

    def _allowed_logits(self) -> Float[Array, "*batch K"]:
        """Return the logits, with a finite constant far below all others for actions that are not allowed."""
        logits = upcast(self.logits)
        allowed = logits != -jnp.inf
        if self.mask is not None:
            allowed &= self.mask
        return jnp.where(allowed, logits, 0.5 * jnp.finfo(logits.dtype).min)


@pytree_dataclass
class MultiCategorical:
    """Several independent choices: action[..., f] is an integer 0 … sizes[f]-1, with its own softmax over its logits."""

    logits: Float[Array, "*batch K"]
    """The logits of all choices side by side, K = Σ sizes."""
    sizes: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    """Number of actions of each choice; integers of any kind, in any sequence."""
    mask: Bool[Array, "*batch K"] | None = None
    """False for actions that are not allowed, as in `Categorical`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(operator.index(size) for size in self.sizes))
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"sizes: got {self.sizes}, allowed: integers >= 1, at least one")

    @property
    def _groups(self) -> list[Categorical]:
        """One `Categorical` `[*batch, F', M]` for each group of choices of similar size, padded with impossible actions."""
        if self.logits.shape[-1] != sum(self.sizes):
            raise ValueError(
                f"logits: got {self.logits.shape[-1]} in the last axis, allowed: {sum(self.sizes)}, the sum of sizes"
            )
        return [self._padded(place, is_there) for _, place, is_there in _grouped(self.sizes)]

    def _padded(self, place: np.ndarray, is_there: np.ndarray) -> Categorical:
        logits = upcast(self.logits)[..., place]
        exists = jnp.broadcast_to(is_there, logits.shape)
        allowed = (logits != -jnp.inf) & exists
        if self.mask is not None:
            allowed &= self.mask[..., place]
        any_allowed = jnp.any(allowed, axis=-1, keepdims=True)
        return Categorical(jnp.where(any_allowed, logits, 0.0), jnp.where(any_allowed, allowed, exists))

    def log_prob(self, action: Int[Array, "*batch F"]) -> Float[Array, "*batch"]:
        """Return the sum of the choices' log-probabilities."""
        groups = zip(self._groups, _grouped(self.sizes), strict=True)
        return sum_of(jnp.sum(group.log_prob(action[..., which]), axis=-1) for group, (which, _, _) in groups)

    def kl(self, other: "MultiCategorical") -> Float[Array, "*batch"]:
        """Return the sum of the choices' KL(self ‖ other)."""
        return sum_of(jnp.sum(p.kl(q), axis=-1) for p, q in zip(self._groups, other._groups, strict=True))

    def entropy(self) -> Float[Array, "*batch"]:
        """Return the sum of the choices' entropies."""
        return sum_of(jnp.sum(group.entropy(), axis=-1) for group in self._groups)

    def sample(self, key: PRNGKeyArray) -> Int[Array, "*batch F"]:
        """Draw one integer per choice."""
        keys = jax.random.split(key, len(self._groups))
        return self._in_order([group.sample(key) for group, key in zip(self._groups, keys, strict=True)])

    def mode(self) -> Int[Array, "*batch F"]:
        """Return the most probable integer of each choice."""
        return self._in_order([group.mode() for group in self._groups])

    def _in_order(self, of_groups: list[Array]) -> Int[Array, "*batch F"]:
        """Put the results of the groups into the order of `sizes`."""
        order = np.argsort(np.concatenate([which for which, _, _ in _grouped(self.sizes)]))
        return jnp.concatenate(of_groups, axis=-1)[..., order]


@functools.cache
def _grouped(sizes: tuple[int, ...]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Group choices whose sizes round up to the same power of two.

    Each group is a tuple: the indices of its choices, `[F']`; the positions of their logits among all logits, `[F', M]`; and
    a mask of the positions that exist, `[F', M]`. So few programs serve many choices, and padding at most doubles their
    memory.
    """
    groups = []
    firsts = np.cumsum(sizes) - sizes
    powers = np.asarray([(size - 1).bit_length() for size in sizes])
    for power in np.unique(powers):
        which = np.flatnonzero(powers == power)
        of_group = np.asarray(sizes)[which, None]
        within = np.arange(of_group.max())
        is_there = within < of_group
        place = np.where(is_there, firsts[which, None] + within, 0)
        groups.append((which.astype(np.int32), place.astype(np.int32), is_there))
    return groups


@pytree_dataclass
class Bernoulli:
    """Independent bits (multi-binary actions): bit a is 1 with probability sigmoid(logits_a)."""

    logits: Float[Array, "*batch A"]

    @property
    def _bits(self) -> Categorical:
        """Each bit as a choice between 0 and 1."""
        logits = upcast(self.logits)
        return Categorical(jnp.stack([jnp.zeros_like(logits), logits], axis=-1))

    def log_prob(self, action: Int[Array, "*batch A"] | Bool[Array, "*batch A"]) -> Float[Array, "*batch"]:
        """Return Σ_a log sigmoid(±logits_a), + if the bit is 1."""
        return jnp.sum(self._bits.log_prob(jnp.asarray(action, jnp.int32)), axis=-1)

    def kl(self, other: "Bernoulli") -> Float[Array, "*batch"]:
        """Return the sum of the bits' KL(self ‖ other)."""
        return jnp.sum(self._bits.kl(other._bits), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Return the sum of the bits' entropies."""
        return jnp.sum(self._bits.entropy(), axis=-1)

    def sample(self, key: PRNGKeyArray) -> Int[Array, "*batch A"]:
        """Draw the bits of one action per batch entry."""
        return self._bits.sample(key)

    def mode(self) -> Int[Array, "*batch A"]:
        """Return the more probable value of each bit; 0 if both are equally probable."""
        return self._bits.mode()
