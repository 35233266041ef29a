"""Using what was trained: a policy that acts and a critic that predicts, from parameters."""

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
    """What acts and predicts, in Brax's order: arrays in tuples and in what the networks' own parameters are built of."""

    normalizer: NormalizerState | None
    policy: Any
    value: CriticParams


@dataclasses.dataclass(frozen=True)
class PolicyMaker:
    """Turns parameters into functions: called, into a policy, as in Brax; by `value_fn`, into a value function."""

    networks: Networks
    action_space: Box | Discrete

    def __call__(self, params: Params, deterministic: bool = False) -> Policy:
        """Return policy(observation, key) -> (action, extras).

        The action is what the environment takes. Extras of a stochastic policy hold "raw_action", before it is brought into
        the action box, and its "log_prob"; a deterministic one takes the distribution's mode, ignores the key, and has none.
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
        """Return observation `[..., *]` -> value `[...]`: the critic, in units of unscaled reward."""

        def value_fn(observation: Any) -> Float[Array, "..."]:
            normalizer, _, (critic, reward_scaling) = params
            return self.networks.critic.apply(critic, normalize(normalizer, observation)) / reward_scaling

        return value_fn
