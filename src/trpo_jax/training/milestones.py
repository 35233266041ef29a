"""When a training evaluates, saves, resets its environments, and ends."""

from collections.abc import Collection
from typing import NamedTuple

from trpo_jax.agent.agent import Agent
from trpo_jax.errors import ConfigError


class Milestones(NamedTuple):
    """The iterations after which something happens; 0 is before the first."""

    num_iterations: int
    evaluations: Collection[int]
    resets: Collection[int] = ()
    checkpoint_interval: int = 0
    """0 saves only at the start, before evaluations and at the end."""

    def saves_after(self, iteration: int) -> bool:
        """Tell whether a checkpoint is due."""
        due = self.checkpoint_interval and iteration % self.checkpoint_interval == 0
        return bool(due) or iteration in self.evaluations or iteration == self.num_iterations


def make_milestones(
    agent: Agent, num_timesteps: int, num_evals: int, num_resets_per_eval: int = 0, checkpoint_interval: int = 0
) -> Milestones:
    """Return the milestones of a training, with evaluations and resets evenly spread."""
    num_iterations = -(-num_timesteps // agent.steps_per_iteration)
    if num_iterations >= 2**31:
        allowed = f"fewer than 2^31 iterations of {agent.steps_per_iteration:,} steps"
        raise ConfigError("num_timesteps", num_timesteps, allowed)
    evaluations = _evaluations(num_iterations, num_evals)
    parts = num_resets_per_eval * max(num_evals - 1, 1)
    resets = {round(k * num_iterations / parts) for k in range(1, parts)} if num_resets_per_eval else set()
    return Milestones(num_iterations, evaluations, resets, checkpoint_interval)


def _evaluations(num_iterations: int, num_evals: int) -> set[int]:
    """Return the iterations after which to evaluate; 0 is before the first."""
    if num_evals == 0:
        return set()
    if num_evals == 1 or num_iterations == 0:
        return {num_iterations}
    return {round(k * num_iterations / (num_evals - 1)) for k in range(num_evals)}
