"""A distribution over a dict or tuple of actions."""

from typing import Any

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from trpo_jax.policy.distributions.base import Action, Distribution, sum_of
from trpo_jax.tree import pytree_dataclass


@pytree_dataclass
class Joint:
    """Independent distributions over the parts of an action: {"move": DiagonalGaussian(…), "fire": Bernoulli(…)}.

    `parts` is a dict or tuple, possibly nested, of distributions with the same batch axes. Actions have the same
    structure.
    """

    parts: Any

    def log_prob(self, action: Action) -> Float[Array, "..."]:
        """Return the sum of the parts' log-probabilities.

        Raises:
            ValueError: the action's structure is not that of the parts.
        """
        return sum_of(part.log_prob(each) for part, each in zip(self._list(), self._aligned(action, "action"), strict=True))

    def kl(self, other: "Joint") -> Float[Array, "..."]:
        """Return the sum of the parts' KL(self ‖ other)."""
        return sum_of(p.kl(q) for p, q in zip(self._list(), self._aligned(other.parts, "other"), strict=True))

    def entropy(self) -> Float[Array, "..."]:
        """Return the sum of the parts' entropies."""
        return sum_of(part.entropy() for part in self._list())

    def sample(self, key: PRNGKeyArray) -> Action:
        """Draw every part, each with its own key."""
        parts = self._list()
        keys = jax.random.split(key, len(parts))
        return jax.tree.unflatten(self._structure(), [part.sample(key) for part, key in zip(parts, keys, strict=True)])

    def mode(self) -> Action:
        """Return the mode of every part."""
        return jax.tree.unflatten(self._structure(), [part.mode() for part in self._list()])

    def _list(self) -> list[Distribution]:
        return jax.tree.leaves(self.parts, is_leaf=_is_distribution)

    def _structure(self) -> Any:
        return jax.tree.structure(self.parts, is_leaf=_is_distribution)

    def _aligned(self, tree: Any, name: str) -> list[Any]:
        """Return the entries of `tree`, one for each part."""
        try:
            return self._structure().flatten_up_to(tree)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{name}: got {jax.tree.structure(tree)}, allowed: the same structure as the parts ({error})"
            ) from None


def _is_distribution(x: Any) -> bool:
    return isinstance(x, Distribution)
