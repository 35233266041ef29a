"""Applying networks, with a memory or without: step by step, and to whole sequences."""

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool

from trpo_jax.policy.distributions import Distribution
from trpo_jax.policy.layers import orthogonal


class Sequence(NamedTuple):
    """T steps of N environments, as a network with memory sees them."""

    observation: Any
    """Pytree of `[T, N, *]`."""
    begins: Bool[Array, "T N"]
    """Whether an episode begins with this observation."""
    carry: Any
    """Pytree of `[T, N, *]`: the memory before each step. Only that before the first step counts: a network computes the others
    from it."""


@runtime_checkable
class RecurrentNetwork(Protocol):
    """A network that carries a memory from step to step. `apply` takes a `Sequence` and returns its outputs, `[T, N, *]`."""

    def init(self, key: Any, observation: Any, /) -> Any:
        """Draw parameters for observations like this one."""
        ...

    def initial_carry(self, batch_shape: tuple[int, ...]) -> Any:
        """Return the memory at the beginning of an episode, a pytree of `[*batch_shape, *]`."""
        ...

    def step(self, params: Any, carry: Any, observation: Any) -> tuple[Any, Any]:
        """Return the memory after one step, and the output for its observation."""
        ...

    def unroll(self, params: Any, sequence: Sequence) -> tuple[Any, Any]:
        """Return the memory after each step of a sequence, `[T, N, *]`, and the outputs."""
        ...

    def apply(self, params: Any, sequence: Sequence, /) -> Any:
        """Return the outputs for all steps of a sequence."""
        ...


class Memory(NamedTuple):
    """What a rollout remembers for networks with memory."""

    carry: Any
    """The policy's memory before the step, `[..., *]`; None if only the critic has one."""
    begins: Bool[Array, "..."]
    """Whether an episode begins with the step, so that the memory counts no longer."""


def policy_step(network: Any, params: Any, memory: Memory | None, observation: Any) -> tuple[Any, Distribution]:
    """Return a policy's memory after a step of N environments, None if it has none, and the distribution of its actions."""
    if memory is None or memory.carry is None:
        return step_distribution(network, params, None, observation)
    carry = restarted(memory.carry, memory.begins, network.initial_carry(memory.begins.shape))
    return step_distribution(network, params, carry, observation)


def step_distribution(network: Any, params: Any, carry: Any, observation: Any) -> tuple[Any, Distribution]:
    """Return a policy's memory after a step, and the distribution of its actions; the memory is None for one without."""
    if carry is None:
        return None, policy_distribution(network, params, observation)
    with jax.default_matmul_precision("highest"):
        return network.step(params, carry, observation)


def policy_distribution(network: Any, params: Any, observation: Any) -> Distribution:
    """Apply a policy in full matmul precision, so that every program computes the same probabilities from the same weights."""
    with jax.default_matmul_precision("highest"):
        return network.apply(params, observation)


def initial_carry(network: Any, batch_shape: tuple[int, ...]) -> Any:
    """Return a network's memory at the beginning of an episode; None if it has none."""
    return network.initial_carry(batch_shape) if isinstance(network, RecurrentNetwork) else None


def restarted(carry: Any, begins: Bool[Array, "N"], fresh: Any) -> Any:
    """Return the memory `[N, *]` of each environment, or a fresh one where an episode begins."""

    def choose(old: Array, new: Array) -> Array:
        return jnp.where(begins.reshape(begins.shape + (1,) * (old.ndim - begins.ndim)), new, old)

    return jax.tree.map(choose, carry, fresh)


@dataclasses.dataclass(frozen=True)
class Recurrent:
    """A recurrent cell between an encoder and a head, all of them flax modules.

    Args:
        encoder: observation `[..., *]` -> features `[..., F]`.
        cell: (memory, features) -> (memory, features).
        head: features `[..., F]` -> output.
    """

    encoder: nn.Module
    cell: nn.RNNCellBase
    head: nn.Module

    def init(self, key: Any, observation: Any) -> Any:
        """Draw parameters for observations like this one."""
        keys = jax.random.split(key, 3)
        features, encoder = self.encoder.init_with_output(keys[0], observation)
        carry = self.initial_carry(features.shape[:-1])
        (_, features), cell = self.cell.init_with_output(keys[1], carry, features)
        return {"encoder": encoder, "cell": cell, "head": self.head.init(keys[2], features)}

    def initial_carry(self, batch_shape: tuple[int, ...]) -> Any:
        """Return zeros."""
        return self.cell.initialize_carry(jax.random.key(0), (*batch_shape, 1))

    def step(self, params: Any, carry: Any, observation: Any) -> tuple[Any, Any]:
        """Return the memory after one step, and the output."""
        carry, features = self.cell.apply(params["cell"], carry, self.encoder.apply(params["encoder"], observation))
        return carry, self.head.apply(params["head"], features)

    def apply(self, params: Any, sequence: Sequence) -> Any:
        """Return the outputs for all steps. Encoder and head see all of them at once, only the cell one after the other."""
        return self.unroll(params, sequence)[1]

    def unroll(self, params: Any, sequence: Sequence) -> tuple[Any, Any]:
        """Return the memory after each step, `[T, N, *]`, and the outputs."""
        inputs = self.encoder.apply(params["encoder"], sequence.observation)
        fresh = self.initial_carry(sequence.begins.shape[1:])

        def step(carry: Any, now: tuple[Any, Any]) -> tuple[Any, tuple[Any, Any]]:
            features, begins = now
            carry, outputs = self.cell.apply(params["cell"], restarted(carry, begins, fresh), features)
            return carry, (carry, outputs)

        first = jax.tree.map(lambda leaf: leaf[0], sequence.carry)
        _, (after, outputs) = jax.lax.scan(step, first, (inputs, sequence.begins))
        return after, self.head.apply(params["head"], outputs)


def gated_recurrent_unit(size: int) -> nn.RNNCellBase:
    """Return a GRU cell (Cho et al. 2014, arXiv 1406.1078)."""
    return nn.GRUCell(size, recurrent_kernel_init=orthogonal(1.0))


def long_short_term_memory(size: int) -> nn.RNNCellBase:
    """Return an LSTM cell (Hochreiter and Schmidhuber 1997)."""
    return nn.OptimizedLSTMCell(size, recurrent_kernel_init=orthogonal(1.0))


CELLS = {"gru": gated_recurrent_unit, "lstm": long_short_term_memory}
