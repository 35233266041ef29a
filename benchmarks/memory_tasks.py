"""What memory buys: perceptrons against recurrent policies and critics where an observation does not tell the state.

    python benchmarks/memory_tasks.py [--json FILE] [--figure FILE]

gymnax's MemoryChain asks after five steps for what its first observation showed. CartPole shows only positions and Pendulum
only the angle, so that velocities must be remembered. All settings are those that ship for gymnax. Runs that the folder holds
are not repeated.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import tyro

import report
import trpo_jax
from paper_ablations import rows_of
from ppo_runs import known
from trpo_jax import CriticConfig, EnvironmentState, PolicyConfig
from trpo_jax.environments.gymnax import GymnaxEnvironment, load_environment
from trpo_jax.sweep.report.figures import curves
from trpo_jax.sweep.report.scores import ScoredRun, gather
from trpo_jax.training.fields import SETTING
from trpo_jax.training.run_config import shipped_config

TASKS: dict[str, tuple[str, tuple[int, ...] | None]] = {
    "MemoryChain": ("MemoryChain-bsuite", None),
    "CartPole, positions": ("CartPole-v1", (0, 2)),
    "Pendulum, angle": ("Pendulum-v1", (0, 1)),
}
"""gymnax's environment, and the numbers of its observation that are shown; None shows all."""

NETWORKS = ("mlp", "gru", "lstm")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Train on tasks that need a memory."""

    seeds: tuple[int, ...] = (0, 1, 2)
    tasks: tuple[str, ...] = tuple(TASKS)
    steps: int = 500_000
    """Environment steps of each run."""
    num_evals: int = 21
    folder: str = "runs/memory_tasks"
    """For the curves of all runs."""
    json: str | None = None
    """Where to write the result."""
    figure: str | None = None
    """Where to draw the learning curves."""


class Shown:
    """An environment of which only some numbers of the observation are shown."""

    def __init__(self, environment: GymnaxEnvironment, shown: tuple[int, ...]):
        self.environment, self.action_space = environment, environment.action_space
        self.time_limit = environment.time_limit
        self._shown = list(shown)

    def reset(self, keys: Any) -> EnvironmentState:
        return self._hidden(self.environment.reset(keys))

    def step(self, state: EnvironmentState, action: Any) -> EnvironmentState:
        return self._hidden(self.environment.step(state, action))

    def _hidden(self, state: EnvironmentState) -> EnvironmentState:
        return state._replace(observation=state.observation[:, self._shown])


def main(arguments: Arguments) -> None:
    folder = Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    runs = [
        scored(task, network, seed, arguments, folder)
        for task in arguments.tasks
        for network in NETWORKS
        for seed in arguments.seeds
    ]
    scores = gather(runs)
    report.publish("return of the last evaluation", rows_of(scores), arguments.json)
    if arguments.figure:
        curves(scores).savefig(arguments.figure)


def scored(task: str, network: str, seed: int, arguments: Arguments, folder: Path) -> ScoredRun:
    """Return a run's learning curve, from the folder if it holds it."""
    label = f"{task.replace(', ', '_')}-{network}-seed{seed}"
    run = functools.partial(curve_of, task, network, seed, arguments.steps, arguments.num_evals)
    found = known(folder, label, (arguments.steps, arguments.num_evals), run)
    curve = tuple((int(steps), float(value)) for steps, value in found)
    return ScoredRun(label, task, network, {SETTING: network}, seed, curve[-1][1], curve)


def curve_of(task: str, network: str, seed: int, steps: int, num_evals: int) -> list[tuple[int, float]]:
    """Train; return (environment steps, return) of each evaluation."""
    name, shown = TASKS[task]
    environment = load_environment(name)
    agent = shipped_config(name, suite="gymnax", accelerator=False).agent
    config = dataclasses.replace(agent, policy=with_network(agent.policy, network), critic=with_network(agent.critic, network))
    curve: list[tuple[int, float]] = []
    trpo_jax.train(
        environment if shown is None else Shown(environment, shown),
        steps,
        config=config,
        seed=seed,
        num_evals=num_evals,
        progress_fn=lambda step, metrics: curve.append((int(step), float(metrics["eval/episode_reward"]))),
    )
    print(f"{task}, {network}, seed {seed}: {curve[-1][1]:.1f}", flush=True)
    return curve


def with_network(part: PolicyConfig | CriticConfig, network: str) -> Any:
    """Return the part of a configuration with another kind of network."""
    return dataclasses.replace(part, network=network)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
