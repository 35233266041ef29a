"""Everything that decides how TRPO learns."""

import dataclasses
from typing import Any

from jaxtyping import Array, Float

from trpo_jax.agent.critic import CriticConfig
from trpo_jax.agent.schedule import ScheduleConfig, share_left
from trpo_jax.config import config, setting
from trpo_jax.policy.networks import PolicyConfig
from trpo_jax.solver.trust_region_config import TrustRegionConfig


@config
class TRPOConfig:
    """Everything that decides how TRPO learns."""

    num_envs: int = setting(default=128, at_least=1)
    """Environments simulated side by side (N)."""
    unroll_length: int = setting(default=40, at_least=1)
    """Environment steps each environment takes in an iteration (T); a batch holds N times T samples."""
    episode_length: int = setting(default=1000, at_least=1, at_most=2**30)
    """Time limit of an episode, in simulator steps (before action repeat)."""
    action_repeat: int = setting(default=1, at_least=1, at_most=2**30)
    """Simulator steps for which each action is held."""
    discounting: float = setting(default=0.995, at_least=0.0, at_most=1.0)
    """Discount a step (γ)."""
    gae_lambda: float = setting(default=0.99, at_least=0.0, at_most=1.0)
    """Decay of generalized advantage estimation (λ): 0 trusts the critic, 1 the returns."""
    reward_scaling: float = setting(default=1.0, above=0.0)
    """Rewards are multiplied by this before learning; reported returns are not."""
    normalize_observations: bool = setting(default=True)
    """Subtract the running mean from observations and divide by their running standard deviation."""
    normalize_advantages: bool = setting(default=True)
    """Shift and scale the advantages of a batch to mean 0 and standard deviation 1."""
    trust_region: TrustRegionConfig = TrustRegionConfig(
        max_kl=0.1, damping=1.0, damping_shape="gradient", curvature_fraction=0.1
    )
    critic: CriticConfig = CriticConfig()
    policy: PolicyConfig = PolicyConfig()
    schedule: ScheduleConfig = ScheduleConfig()


def scheduled(hyperparameters: TRPOConfig, progress: Float[Array, ""]) -> TRPOConfig:
    """Return the hyperparameters with their scheduled values at this progress (0 to 1)."""
    schedule, trust_region, critic = hyperparameters.schedule, hyperparameters.trust_region, hyperparameters.critic
    max_kl: Any = trust_region.max_kl * share_left(schedule.max_kl_at_end, progress)
    learning_rate: Any = critic.learning_rate * share_left(schedule.learning_rate_at_end, progress)
    return dataclasses.replace(
        hyperparameters,
        trust_region=dataclasses.replace(trust_region, max_kl=max_kl),
        critic=dataclasses.replace(critic, learning_rate=learning_rate),
    )
