"""Settings that all algorithms share: the batch, the estimates, the critic, the networks."""

import dataclasses
from typing import Any, Literal, TypeVar

from jaxtyping import Array, Float

from trpo_jax.agent.critic import CriticConfig
from trpo_jax.agent.schedule import ScheduleConfig, share_left
from trpo_jax.agent.vine import VineConfig, num_branch_steps
from trpo_jax.config import config, setting
from trpo_jax.errors import ConfigError
from trpo_jax.policy.networks import PolicyConfig

ConfigT = TypeVar("ConfigT", bound="AgentConfig")


@config
class AgentConfig:
    """Settings that all algorithms share. Each algorithm has a subclass that adds the settings of its policy update."""

    num_envs: int = setting(default=128, at_least=1)
    """Environments simulated side by side (N)."""
    unroll_length: int = setting(default=40, at_least=1)
    """Environment steps each environment takes in an iteration (T); a batch holds N times T samples."""
    sampler: Literal["path", "vine"] = setting(default="path")
    """What the policy learns from: the actions of the rollout itself, or those of branches that start from its states."""
    vine: VineConfig = VineConfig()
    episode_length: int = setting(default=1000, at_least=1, at_most=2**30)
    """Time limit of an episode, in simulator steps (before action repeat)."""
    action_repeat: int = setting(default=1, at_least=1, at_most=2**30)
    """Simulator steps for which each action is held."""
    frame_stack: int = setting(default=1, at_least=1)
    """Observations that are put side by side: the present one and those of the steps before."""
    observe_last_step: bool = setting(default=False)
    """Add the last action and reward to the observation."""
    discounting: float = setting(default=0.995, at_least=0.0, at_most=1.0)
    """Discount factor per step (γ)."""
    gae_lambda: float = setting(default=0.99, at_least=0.0, at_most=1.0)
    """Decay of generalized advantage estimation (λ): 0 trusts the critic, 1 the returns."""
    reward_scaling: float = setting(default=1.0, above=0.0)
    """Rewards are multiplied by this before learning; reported returns are not."""
    normalize_rewards: bool = setting(default=False)
    """Divide rewards before learning by the running standard deviation of λ-returns, from the second iteration on."""
    normalize_observations: bool = setting(default=True)
    """Subtract the running mean from observations and divide by their running standard deviation."""
    normalize_advantages: bool = setting(default=True)
    """Shift and scale the advantages of a batch to mean 0 and standard deviation 1."""
    critic: CriticConfig = CriticConfig()
    policy: PolicyConfig = PolicyConfig()
    schedule: ScheduleConfig = ScheduleConfig()

    @property
    def actions_per_iteration(self) -> int:
        """Number of actions in an iteration, those of branches included."""
        return self.batch_size + (num_branch_steps(self.num_envs, self.vine) if self.sampler == "vine" else 0)

    @property
    def most_actions(self) -> int:
        """Number of actions after which the time limit ends an episode."""
        return -(-self.episode_length // self.action_repeat)

    @property
    def batch_size(self) -> int:
        """Number of samples in a rollout."""
        return self.num_envs * self.unroll_length

    def at(self: ConfigT, progress: Float[Array, ""]) -> ConfigT:
        """Return the configuration with its scheduled values at this progress (0 to 1)."""
        rate = self.rate_at(self.critic.learning_rate, progress)
        return dataclasses.replace(self, critic=dataclasses.replace(self.critic, learning_rate=rate))

    def rate_at(self, learning_rate: Any, progress: Float[Array, ""]) -> Any:
        """Return the scheduled value of a learning rate at this progress (0 to 1)."""
        return learning_rate * share_left(self.schedule.learning_rate_at_end, progress)

    def check_batch(self) -> None:
        """Raise ConfigError if the batch size does not fit the other settings."""
        if self.actions_per_iteration >= 2**31:
            got = f"{self.actions_per_iteration:,} samples per iteration"
            raise ConfigError("num_envs and unroll_length", got, "fewer than 2^31")
        self.check_minibatches("critic.num_minibatches", self.critic.num_minibatches)
        if self.sampler == "vine" and self.unroll_length % self.vine.num_states:
            raise ConfigError("vine.num_states", self.vine.num_states, f"a divisor of unroll_length = {self.unroll_length}")

    def check_minibatches(self, field: str, num_minibatches: int) -> None:
        """Raise ConfigError if a field asks for more minibatches than there are samples."""
        if num_minibatches > self.batch_size:
            raise ConfigError(field, num_minibatches, f"at most num_envs·unroll_length = {self.batch_size}")
