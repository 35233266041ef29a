"""What the training loop needs from an environment: reset and step on batches."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Key

from trpo_jax.spaces import ActionSpace


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
    def action_space(self) -> ActionSpace: ...

    def reset(self, keys: Key[Array, "N"]) -> EnvironmentState:
        """Draw N initial states, one per key."""
        ...

    def step(self, state: EnvironmentState, action: Any) -> EnvironmentState:
        """Advance all N environments by one action each.

        Actions are `[N, A]`, `[N]` for `Discrete`, or a dict or tuple of these for `Composite`.
        """
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
