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
    """N environments behind two pure functions. Time limit and resets are added by `wrappers`.

    An environment that has both already is a `SelfResettingEnvironment`, and says so by an attribute `resets_itself`
    that is True. All others lack the attribute or have it False, and never reset themselves.
    """

    @property
    def action_space(self) -> Box | Discrete: ...

    def reset(self, keys: Key[Array, "N"]) -> EnvironmentState:
        """Draw N initial states, one a key."""
        ...

    def step(self, state: EnvironmentState, action: jax.Array) -> EnvironmentState:
        """Advance all N environments by one action each, `[N, A]` or, for discrete actions, `[N]`."""
        ...


@runtime_checkable
class SelfResettingEnvironment(Environment, Protocol):
    """N environments, each of which starts a new episode in the very step that ends one.

    `terminated` and `truncated` tell of the episode that ended; `observation` is the first of the next.
    """

    resets_itself: bool
    """True."""
    keeps_final_observation: bool
    """Whether `final_observation` tells what an episode that ended here had come to."""

    def final_observation(self, state: EnvironmentState) -> Any:
        """Return what each step led to before any reset, pytree of `[N, ...]`.

        Where an episode ended and `keeps_final_observation` is False it is the first observation of the next episode.
        """
        ...
