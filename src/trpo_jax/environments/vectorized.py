"""N copies of an environment by vmap, behind the protocol. Uses the interface of Brax and Playground, but imports neither."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from trpo_jax.environments.protocol import EnvironmentState
from trpo_jax.environments.randomization import Randomization, RandomizationFn, Randomized
from trpo_jax.spaces import Box
from trpo_jax.tree import upcast


class VectorizedEnvironment:
    """N copies of an environment with Brax's interface. Its `done` is a termination; its library's wrappers are not used.

    If `info` of its states has an entry "cost", a number or a vector of K numbers, that is the cost of the step.

    Args:
        environment: reset(raw key) and step(state, action) return a state with `obs`, `reward` and `done`.
        model_name: name of the environment's attribute that randomization_fn receives.
        randomization_fn: draws a model for every environment at every reset; see `RandomizationFn`. None: all share one.

    Raises:
        TypeError: a randomization_fn that cannot be used.
    """

    def __init__(self, environment: Any, model_name: str, randomization_fn: RandomizationFn | None = None):
        self.environment = environment
        self.action_space = Box(environment.action_size)
        self.randomization: Randomization | None = None
        if randomization_fn is not None:
            self.randomization = Randomization(environment, model_name, randomization_fn)

    def reset(self, keys: Key[Array, "N"]) -> EnvironmentState:
        """Draw N initial states and, with randomization, N models."""
        if self.randomization is None:
            return _from_simulator(jax.vmap(self.environment.reset)(jax.random.key_data(keys)))
        model_keys, reset_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        parameters = self.randomization.draw(model_keys)
        state = self.randomization.vmap(self.environment.reset, parameters, jax.random.key_data(reset_keys))
        return _from_simulator(state)._replace(simulator=Randomized(parameters, state))

    def step(self, state: EnvironmentState, action: jax.Array) -> EnvironmentState:
        """Advance every environment by one action, under its own model if models are randomized."""
        if self.randomization is None:
            return _from_simulator(jax.vmap(self.environment.step)(state.simulator, action))
        parameters, inner = state.simulator
        inner = self.randomization.vmap(self.environment.step, parameters, inner, action)
        return _from_simulator(inner)._replace(simulator=Randomized(parameters, inner))


def _from_simulator(state: Any) -> EnvironmentState:
    terminated = state.done > 0
    return EnvironmentState(state, state.obs, upcast(state.reward), terminated, jnp.zeros_like(terminated), cost_of(state.info))


def cost_of(info: Any) -> Float[Array, "N K"] | None:
    """Return the costs that the states of N environments have in their `info`; None if they have none."""
    cost = info.get("cost") if isinstance(info, Mapping) else None
    if cost is None:
        return None
    if not jax.tree_util.all_leaves([cost]) or jnp.ndim(cost) not in (1, 2):
        got = jax.tree.map(lambda leaf: jnp.shape(leaf)[1:], cost)
        raise TypeError(f'info["cost"]: got {got} in the states of the environment, allowed: a number, or a vector of numbers')
    cost = upcast(cost)
    return cost[:, None] if cost.ndim == 1 else cost
