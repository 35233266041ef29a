"""What a network sees of observations that are a dict, and the actions that such an observation allows."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from trpo_jax.errors import ConfigError
from trpo_jax.policy.distributions import Categorical, Distribution, Joint, MultiCategorical
from trpo_jax.policy.memory import Sequence
from trpo_jax.tree import upcast

DEFAULT = "state"
"""The entry that stands for all of them, if there is none of this name."""


@dataclasses.dataclass(frozen=True)
class OfEntries:
    """A network that sees only some entries of a dict observation. Any other observation it sees whole."""

    network: Any
    names: str
    """An entry, or several with commas between them. "state" stands for all entries if there is none of this name."""
    field: str
    """The configuration's field that holds `names`, for errors."""
    mask: str = ""
    """Entry with the actions that are allowed, for a policy. It does not count among all entries."""

    def init(self, key: Any, observation: Any) -> Any:
        """Draw parameters for observations like this one."""
        return self.network.init(key, self.seen(observation))

    def apply(self, params: Any, observation: Any) -> Any:
        """Apply the network to the entries, or to the whole observation; a `Sequence` has them inside."""
        if not isinstance(observation, Sequence):
            return self._masked(self.network.apply(params, self.seen(observation)), observation)
        whole = observation.observation
        return self._masked(self.network.apply(params, observation._replace(observation=self.seen(whole))), whole)

    def seen(self, observation: Any) -> Any:
        """Return the entries side by side, of a pytree of `[..., *]`.

        Raises:
            ConfigError: no such entry, or several that are not vectors.
        """
        if not isinstance(observation, Mapping):
            return observation
        wanted = [name.strip() for name in self.names.split(",")]
        if wanted == [DEFAULT] and DEFAULT not in observation:
            wanted = sorted(observation.keys() - {self.mask})
        if not wanted or not set(wanted) <= observation.keys():
            allowed = "an entry of the observation, or several with commas between them: " + ", ".join(sorted(observation))
            raise ConfigError(self.field, self.names, allowed)
        parts = [observation[name] for name in wanted]
        if len(parts) == 1:
            return parts[0]
        if any(isinstance(part, Mapping) for part in parts) or len({jnp.shape(part)[:-1] for part in parts}) > 1:
            raise ConfigError(self.field, self.names, "one entry, or several that are vectors")
        return jnp.concatenate([upcast(part) for part in parts], axis=-1)

    def _masked(self, output: Any, observation: Any) -> Any:
        has_mask = isinstance(observation, Mapping) and self.mask in observation and isinstance(output, Distribution)
        return masked(output, observation[self.mask]) if has_mask else output


@dataclasses.dataclass(frozen=True)
class RecurrentOfEntries(OfEntries):
    """The same for a network with memory."""

    def initial_carry(self, batch_shape: tuple[int, ...]) -> Any:
        """Return the network's memory at the beginning of an episode."""
        return self.network.initial_carry(batch_shape)

    def step(self, params: Any, carry: Any, observation: Any) -> tuple[Any, Any]:
        """Return the memory after one step, and the output."""
        carry, output = self.network.step(params, carry, self.seen(observation))
        return carry, self._masked(output, observation)

    def unroll(self, params: Any, sequence: Sequence) -> tuple[Any, Any]:
        """Return the memory after each step, and the outputs."""
        carry, output = self.network.unroll(params, sequence._replace(observation=self.seen(sequence.observation)))
        return carry, self._masked(output, sequence.observation)


def masked(distribution: Distribution, mask: Any) -> Distribution:
    """Return a distribution over the allowed actions.

    Args:
        distribution: a `Categorical`, a `MultiCategorical`, or a `Joint` of such and others.
        mask: bools of the shape of the logits; for a `Joint` a dict with the masks of some of its parts.

    Raises:
        ConfigError: a mask of another kind or size, or a distribution that cannot be masked.
    """
    if isinstance(distribution, Joint) and isinstance(mask, Mapping) and isinstance(distribution.parts, Mapping):
        unknown = mask.keys() - distribution.parts.keys()
        if not unknown:
            parts = {name: masked(part, mask[name]) if name in mask else part for name, part in distribution.parts.items()}
            return Joint(parts)
    elif isinstance(distribution, (Categorical, MultiCategorical)) and not isinstance(mask, Mapping):  # noqa: SIM102
        if (jnp.shape(mask), jnp.result_type(mask)) == (distribution.logits.shape, jnp.bool_):
            return dataclasses.replace(distribution, mask=mask)
    raise ConfigError(
        "policy.action_mask_key",
        f"a mask {_describe(mask)} for actions with {type(distribution).__name__} probabilities",
        "bools, one for each discrete action; a dict of these for a dict of actions",
    )


def _describe(mask: Any) -> str:
    if isinstance(mask, Mapping):
        return "with the entries " + ", ".join(sorted(mask))
    return f"of {jnp.result_type(mask)}{list(jnp.shape(mask))}"
