"""What the training loop needs of an environment: reset and step on batches."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float, Key


class Box(NamedTuple):
    """Continuous actions: a vector of `size` components, each meant to lie in [low, high]."""

    size: int
    low: float = -1.0
    high: float = 1.0


class Discrete(NamedTuple):
    """One of the integers 0 … num_actions-1."""

    num_actions: int


class EnvironmentState(NamedTuple):
    """N environments side by side, after a reset or a step. Every leaf has the leading axis N."""

    simulator: Any
    """What the simulator carries; opaque to everyone else."""
    observation: Any
    """Pytree of `[N, ...]`."""
    reward: Float[Array, "N"]
    """Reward of the step that led here; zero after a reset."""
    terminated: Bool[Array, "N"]
    """The episode ended here in a terminal state: no reward follows."""
    truncated: Bool[Array, "N"]
    """The episode was cut off here though it could have gone on (a time limit)."""


@runtime_checkable
class Environment(Protocol):
    """N environments behind two pure functions. An environment never resets itself; `wrappers.FreshAutoReset` does."""

    @property
    def action_space(self) -> Box | Discrete: ...

    def reset(self, keys: Key[Array, "N"]) -> EnvironmentState:
        """Draw N initial states, one a key."""
        ...

    def step(self, state: EnvironmentState, action: jax.Array) -> EnvironmentState:
        """Advance all N environments by one action each, `[N, A]` or, for discrete actions, `[N]`."""
        ...
