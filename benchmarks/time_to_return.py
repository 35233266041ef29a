"""Time of training until a return is reached: ours against Brax's PPO, on the same environment.

    python benchmarks/time_to_return.py [--environment ant] [--target 3500] [--seeds 0 1 2] [--json FILE]

Seeds alternate: ours 0, PPO 0, ours 1, PPO 1, …. Both stop for a deterministic evaluation at the same environment steps, by
the same evaluator, and end at the first mean return that reaches the target. The clock stands still during evaluations.
"seconds" runs from the call of `train` on, all compilation included. "without compile" is the number of stretches between
evaluations times the median time of one, the first three left out, since they compile. A run that ends
without the return counts with its whole time, a lower bound: a ratio with it is marked "at least" (PPO did not arrive) or
"at most" (ours did not).
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import tyro

import report
from brax_ppo import SMALL_SCALE, Settings, Stopwatch, steady_stretch, train_ppo
from trpo_jax import AgentConfig, make_agent, train
from trpo_jax.agent.evaluate import make_evaluator
from trpo_jax.environments.brax import load_environment
from trpo_jax.execution.devices import num_cores_to_use, show_cpu_devices
from trpo_jax.training.run_config import starting_config

OURS, PPO = "trpo_jax", "Brax PPO"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure the time to a return."""

    environment: str = "ant"
    """Brax environment (spring), with the settings that ship for it."""
    target: float = 3500.0
    """Mean return of the evaluation that ends a run."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the trainings."""
    stretch: int = 40_960
    """Environment steps between evaluations; whole iterations of both."""
    num_stretches: int = 50
    """Stretches after which a run ends in any case."""
    episodes: int = 64
    """Episodes an evaluation plays."""
    devices: int = num_cores_to_use(SMALL_SCALE["num_envs"], os.cpu_count() or 1)
    """Cores of the processor that both train on."""
    json: str | None = None
    """Where to write the result."""


class Ended(Exception):
    """Ends a training from within its callback."""


class Course(Stopwatch):
    """A stopwatch that evaluates the policy, and ends the training by raising `Ended`.

    Args:
        environment: with a time limit, without resets.
        target: mean return that ends the training.
        episodes: played an evaluation.
        time_limit: seconds of training and evaluations after which the training ends too.
        eval_seed: of the evaluations' episodes.
    """

    def __init__(self, environment: Any, *, target: float, episodes: int, time_limit: float = float("inf"), eval_seed: int = 0):
        super().__init__()
        self.environment, self.target, self.episodes = environment, target, episodes
        self.points: list[dict[str, float]] = []
        self._evaluate: Any = None
        self._eval_key = jax.random.key(eval_seed)
        self._deadline = time.perf_counter() + time_limit

    def visit(self, steps: int, make_policy: Any, params: Any) -> None:
        if self._evaluate is None:
            self._evaluate = make_evaluator(self.environment, make_policy, num_episodes=self.episodes, deterministic=True)
        mean_return = float(self._evaluate(params, self._eval_key).episode_return.mean())
        self.points.append({"steps": steps, "seconds": sum(self.stretches), "return": mean_return})
        if steps and (self.arrived or time.perf_counter() > self._deadline):
            raise Ended

    @property
    def arrived(self) -> bool:
        """Whether the last evaluation reached the target."""
        return self.points[-1]["return"] >= self.target

    def summary(self) -> dict[str, Any]:
        """Return how far the training came and how long it took."""
        stretch = steady_stretch(self.stretches)
        return {
            "arrived": self.arrived,
            "return": self.points[-1]["return"],
            "steps": self.points[-1]["steps"],
            "seconds": self.points[-1]["seconds"],
            "without compile": stretch * (len(self.stretches) - 1),
            "steps/s": self.points[1]["steps"] / stretch,
        }


def main(arguments: Arguments) -> None:
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for name in (OURS, PPO):
            course = run(name, arguments, seed)
            rows.append({"algorithm": name, "seed": seed} | course.summary() | {"curve": course.points})
            print({key: value for key, value in rows[-1].items() if key != "curve"}, flush=True)
            if arguments.json:  # after every run, since a run takes minutes
                report.save(arguments.json, rows)
    ratios = [compare(rows, measure) for measure in ("seconds", "without compile")]
    title = f"{arguments.environment}: time to a return of {arguments.target:g}"
    report.show(title, [{key: value for key, value in row.items() if key != "curve"} for row in rows])
    report.show(f"{title}, PPO's ÷ ours", ratios)
    if arguments.json:
        report.save(arguments.json, [*rows, *ratios])


def run(name: str, arguments: Arguments, seed: int) -> Course:
    """Train once, from the start to the target or the end."""
    config = starting_config(arguments.environment).agent
    environment = make_agent(arguments.environment, config).environment
    course = Course(environment, target=arguments.target, episodes=arguments.episodes)
    num_timesteps = arguments.stretch * arguments.num_stretches
    how = SMALL_SCALE if name == PPO else config
    options = {"num_evals": arguments.num_stretches + 1, "seed": seed, "backend": "spring", "num_devices": arguments.devices}
    take(course, arguments.environment, num_timesteps, how, **options)
    return course


def take(course: Stopwatch, environment: str, num_timesteps: int, how: AgentConfig | Settings, **options: Any) -> None:
    """Send a training along a course: ours for a configuration, Brax's PPO for its settings.

    Args:
        course: sees the policy every so often, and may end the training.
        environment: name of a Brax environment.
        num_timesteps: environment steps.
        how: what decides how the algorithm learns.
        **options: backend, num_devices, num_evals and seed, and for ours keywords of `trpo_jax.train`.
    """
    train_fn = train_ours if isinstance(how, AgentConfig) else train_ppo
    with contextlib.suppress(Ended):
        train_fn(environment, num_timesteps, how, policy_params_fn=course, **options)  # type: ignore[operator]


def train_ours(
    environment: str, num_timesteps: int, config: AgentConfig, *, backend: str, num_devices: int, **options: Any
) -> None:
    """Train without evaluations of its own, as `train_ppo` does."""
    loaded = load_environment(environment, backend)
    train(loaded, num_timesteps, config=config, num_eval_envs=0, max_devices_per_host=num_devices, **options)


def compare(rows: Sequence[Mapping[str, Any]], measure: str) -> dict[str, Any]:
    """Return PPO's seconds over ours, seed by seed: median, least and greatest, and whether they are bounds."""
    ours, ppo = ([row for row in rows if row["algorithm"] == name] for name in (OURS, PPO))
    ratio = report.ratio([row[measure] for row in ppo], [row[measure] for row in ours])
    return {"measure": measure, **ratio, "bound": bound(all_arrived(ours), all_arrived(ppo))}


def all_arrived(rows: Sequence[Mapping[str, Any]]) -> bool:
    return all(row["arrived"] for row in rows)


def bound(ours_arrived: bool, ppo_arrived: bool) -> str:
    """Say what a ratio PPO ÷ ours means where a time is only a lower bound."""
    words = {(True, True): "exact", (True, False): "at least", (False, True): "at most", (False, False): "unknown"}
    return words[ours_arrived, ppo_arrived]


if __name__ == "__main__":
    parsed = tyro.cli(Arguments, description=__doc__)
    show_cpu_devices(parsed.devices)
    jax.config.update("jax_compilation_cache_dir", None)  # each run pays for what it compiles
    main(parsed)
