"""What a training carries from one iteration to the next."""

from typing import Any, NamedTuple

from jaxtyping import Array, Int, Key

from trpo_jax.agent.config import AgentConfig
from trpo_jax.agent.critic import CriticState
from trpo_jax.agent.inference import Params
from trpo_jax.agent.rollout import RolloutState
from trpo_jax.policy.normalization import NormalizerState


class Learner(NamedTuple):
    """What the policy step changes."""

    policy: Any
    update: Any
    """What the algorithm's policy update hands to its next one."""
    normalizer: NormalizerState | None


class TrainState(NamedTuple):
    """All that one iteration hands to the next."""

    learner: Learner
    critic: CriticState
    rollout: RolloutState
    hyperparameters: AgentConfig
    key: Key[Array, ""]
    iteration: Int[Array, ""]
    num_iterations: Int[Array, ""]
    """Iterations of the whole training, over which its schedule falls; 0 where it has no end."""


def inference_params(state: TrainState) -> Params:
    """Return the part of a training state that acts and predicts."""
    return Params(state.learner.normalizer, state.learner.policy, state.critic.critic)
