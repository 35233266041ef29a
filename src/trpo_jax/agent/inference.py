"""Policy and value functions, made from trained parameters."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from trpo_jax.agent.critic import CriticParams, ValueFn
from trpo_jax.agent.keys import as_typed_key
from trpo_jax.agent.rollout import to_environment_action
from trpo_jax.environments.protocol import Box, Discrete
from trpo_jax.policy.networks import Networks, policy_distribution
from trpo_jax.policy.normalization import NormalizerState, normalize

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
    action_space: Box | Discrete

    def __call__(self, params: Params, deterministic: bool = False) -> Policy:
        """Return policy(observation, key) -> (action, extras).

        The action is ready for the environment. The extras of a stochastic policy hold "raw_action", the sample before it is
        brought into the action box, and its "log_prob". A deterministic policy takes the distribution's mode, ignores the
        key and has no extras.
        """

        def policy(observation: Any, key: jax.Array | None = None) -> tuple[Any, dict[str, Any]]:
            distribution = policy_distribution(self.networks.policy, params[1], normalize(params[0], observation))
            if deterministic:
                return to_environment_action(self.action_space, distribution, distribution.mode()), {}
            action = distribution.sample(as_typed_key(key))
            extras = {"log_prob": distribution.log_prob(action), "raw_action": action}
            return to_environment_action(self.action_space, distribution, action), extras

        return policy

    def value_fn(self, params: Params) -> ValueFn:
        """Return the critic as a function observation `[..., *]` -> value `[...]`, in units of unscaled reward."""

        def value_fn(observation: Any) -> Float[Array, "..."]:
            normalizer, _, (critic, reward_scaling, *_) = params
            return self.networks.critic.apply(critic, normalize(normalizer, observation)) / reward_scaling

        return value_fn
