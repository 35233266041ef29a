"""Policy and value functions, made from trained parameters."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from trpo_jax.agent.critic import CriticParams, ValueFn
from trpo_jax.agent.keys import as_typed_key
from trpo_jax.agent.rollout import to_environment_action
from trpo_jax.policy.distributions import Distribution
from trpo_jax.policy.memory import RecurrentNetwork, Sequence, initial_carry, step_distribution
from trpo_jax.policy.networks import Networks
from trpo_jax.policy.normalization import NormalizerState, normalize
from trpo_jax.spaces import ActionSpace

Policy = Callable[..., tuple[Any, dict[str, Any]]]
"""policy(observation, key) -> (action, extras)."""


class Params(NamedTuple):
    """Parameters for acting and predicting, in Brax's order: arrays in tuples and in the networks' own containers."""

    normalizer: NormalizerState | None
    policy: Any
    value: CriticParams


@dataclasses.dataclass(frozen=True)
class PolicyMaker:
    """Turns parameters into functions: a call makes a policy, as in Brax; `value_fn` makes a value function."""

    networks: Networks
    action_space: ActionSpace

    def __call__(self, params: Params, deterministic: bool = False) -> Policy:
        """Return policy(observation, key) -> (action, extras).

        The action is ready for the environment. The extras of a stochastic policy hold "raw_action", the sample before it is
        brought into the action box, and its "log_prob". A deterministic policy takes the distribution's mode, ignores the
        key and has no such extras.

        A recurrent policy takes its memory as a third argument: at the beginning of an episode `initial_carry`, then the entry
        "carry" of the last step's extras.
        """

        def policy(observation: Any, key: jax.Array | None = None, carry: Any = None) -> tuple[Any, dict[str, Any]]:
            carry, distribution = self._act(params, observation, carry)
            extras = {} if carry is None else {"carry": carry}
            if deterministic:
                return to_environment_action(self.action_space, distribution, distribution.mode()), extras
            action = distribution.sample(as_typed_key(key))
            extras |= {"log_prob": distribution.log_prob(action), "raw_action": action}
            return to_environment_action(self.action_space, distribution, action), extras

        return policy

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> Any:
        """Return the policy's memory at the beginning of episodes, `[*batch_shape, *]`; None for a policy without memory."""
        return initial_carry(self.networks.policy, batch_shape)

    def _act(self, params: Params, observation: Any, carry: Any) -> tuple[Any, Distribution]:
        """Return the memory after a step, and the distribution of the actions."""
        network, observation = self.networks.policy, normalize(params[0], observation)
        if not isinstance(network, RecurrentNetwork):
            carry = None
        elif carry is None:
            allowed = "make_policy.initial_carry(batch_shape) at the beginning of an episode, then the last extras' entry"
            raise TypeError(f"carry: got None, allowed: {allowed}")
        return step_distribution(network, params[1], carry, observation)

    def value_fn(self, params: Params) -> ValueFn:
        """Return the critic as a function observation `[..., *]` -> value `[...]`, in units of unscaled reward.

        A recurrent critic takes a `Sequence` `[T, N, *]` instead.
        """

        def value_fn(observation: Any) -> Float[Array, "..."]:
            normalizer, _, (critic, reward_scaling, *_) = params
            if isinstance(observation, Sequence):
                observation = observation._replace(observation=normalize(normalizer, observation.observation))
            else:
                observation = normalize(normalizer, observation)
            return self.networks.critic.apply(critic, observation) / reward_scaling

        return value_fn
