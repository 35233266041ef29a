"""The training state, which is carried from one iteration to the next."""

from typing import Any, NamedTuple

from jaxtyping import Array, Int, Key

from trpo_jax.agent.config import AgentConfig
from trpo_jax.agent.critic import CriticState
from trpo_jax.agent.inference import Params
from trpo_jax.agent.rollout import RolloutState
from trpo_jax.policy.normalization import NormalizerState


class Learner(NamedTuple):
    """The part of the training state that the policy step changes."""

    policy: Any
    update: Any
    """State of the algorithm's policy update."""
    normalizer: NormalizerState | None


class TrainState(NamedTuple):
    """Everything that one iteration passes to the next."""

    learner: Learner
    critic: CriticState
    rollout: RolloutState
    hyperparameters: AgentConfig
    key: Key[Array, ""]
    iteration: Int[Array, ""]
    num_iterations: Int[Array, ""]
    """Iterations of the whole training, over which scheduled values decay; 0 if it has no end."""


def inference_params(state: TrainState) -> Params:
    """Return the parameters in a training state that act and predict."""
    return Params(state.learner.normalizer, state.learner.policy, state.critic.critic)
