"""What the training loop needs from an environment: reset and step on batches."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float, Key


class Box(NamedTuple):
    """Continuous actions: a vector of `size` components, each meant to lie in [low, high]."""

    size: int
    low: float = -1.0
    high: float = 1.0


class Discrete(NamedTuple):
    """Discrete actions: each is one of the integers 0 … num_actions-1."""

    num_actions: int


class EnvironmentState(NamedTuple):
    """N environments side by side, after a reset or a step. Every leaf has the leading axis N."""

    simulator: Any
    """The simulator's own state; opaque to all other code."""
    observation: Any
    """Pytree of `[N, ...]`."""
    reward: Float[Array, "N"]
    """Reward of the step that led here; zero after a reset."""
    terminated: Bool[Array, "N"]
    """The episode ended here in a terminal state: no reward follows."""
    truncated: Bool[Array, "N"]
    """The episode was cut off here although it could have continued (a time limit)."""
    cost: Float[Array, "N K"] | None = None
    """K costs of the step that led here, zero after a reset. None, always, if the environment has no costs."""


@runtime_checkable
class Environment(Protocol):
    """N environments behind two pure functions. The module `wrappers` adds time limit and resets.

    An environment that already has both is a `SelfResettingEnvironment` and sets the attribute `resets_itself` to True.
    All others lack the attribute or set it to False, and never reset themselves.
    """

    @property
    def action_space(self) -> Box | Discrete: ...

    def reset(self, keys: Key[Array, "N"]) -> EnvironmentState:
        """Draw N initial states, one per key."""
        ...

    def step(self, state: EnvironmentState, action: jax.Array) -> EnvironmentState:
        """Advance all N environments by one action each. Actions are `[N, A]`, or `[N]` if they are discrete."""
        ...


@runtime_checkable
class SelfResettingEnvironment(Environment, Protocol):
    """N environments, each of which starts a new episode in the very step that ends one.

    `terminated` and `truncated` describe the episode that ended; `observation` is the first of the next episode.
    """

    resets_itself: bool
    """Always True."""
    keeps_final_observation: bool
    """Whether `final_observation` returns the observation that an episode ended with."""

    def final_observation(self, state: EnvironmentState) -> Any:
        """Return the observations after the step and before any reset, a pytree of `[N, ...]`.

        If an episode ended and `keeps_final_observation` is False, it is the first observation of the next episode.
        """
        ...
