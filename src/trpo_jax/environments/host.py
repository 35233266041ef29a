"""What the rollout needs from environments that Python steps on the host."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from trpo_jax.environments.protocol import Environment, EnvironmentState
from trpo_jax.spaces import ActionSpace


class HostStep(NamedTuple):
    """What a step of N environments returns, before any of them restarts."""

    observation: Any
    """Pytree of `[N, ...]`."""
    reward: Float[np.ndarray, "N"]
    terminated: Bool[np.ndarray, "N"]
    truncated: Bool[np.ndarray, "N"]
    cost: Float[np.ndarray, "N K"] | None = None


class Film(NamedTuple):
    """An episode that was drawn."""

    frames: list[np.ndarray]
    """`[height, width, 3]`, bytes: of the initial state and after each step."""
    seconds_per_frame: float
    episode_return: float
    """Sum of unscaled rewards."""
    ended: bool
    """False if the episode was still running at the last frame."""


@runtime_checkable
class Simulator(Protocol):
    """N environments that are stepped together."""

    def reset(self, seeds: Int[np.ndarray, "N"]) -> Any:
        """Start an episode in every environment; return the observations, a pytree of `[N, ...]`."""
        ...

    def step(self, action: Any) -> HostStep:
        """Advance every environment by one action."""
        ...

    def restart(self, which: Bool[np.ndarray, "N"]) -> Any:
        """Start an episode in some environments; return the observations of all."""
        ...

    def close(self) -> None:
        """Release processes and memory."""
        ...


@runtime_checkable
class HostEnvironment(Protocol):
    """An environment that Python steps. It has a time limit of its own, and tells it from a termination."""

    @property
    def action_space(self) -> ActionSpace: ...

    def reset(self, keys: Key[Array, "N"]) -> EnvironmentState:
        """Return states of N environments that have not begun: their observations are zeros of the right shapes and dtypes."""
        ...

    def open(self, num_envs: int) -> Simulator:
        """Make N environments."""
        ...

    @property
    def most_actions(self) -> int:
        """Number of actions after which an episode is over, by the time limit."""
        ...

    def limited(self, episode_length: int) -> "HostEnvironment":
        """Return the environment with this time limit, unless it has one."""
        ...

    def film(self, act: Callable[[Any], Any], *, seed: int, max_steps: int) -> Film:
        """Play an episode and draw it; `act` maps observations `[1, *]` to actions `[1, *]`."""
        ...


AnyEnvironment = Environment | HostEnvironment
