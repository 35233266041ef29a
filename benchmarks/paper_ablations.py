"""The comparison of Schulman et al. 2015 (figures 3 and 4): forms of the update, samplers, and evolution strategies.

    python benchmarks/paper_ablations.py [--folder runs/paper_ablations] [--json FILE] [--figures FOLDER]

The updates and samplers are configs/sweeps/paper_ablations.toml. The evolution strategies are evosax's SimpleES, which is the
cross-entropy method but for the spread, taken about the old mean, and Sep_CMA_ES (the full covariance of thousands of weights
does not pay). They search for the parameters of the same policy network, which acts with its mode on observations that are not
normalized; a candidate's score is its return in one episode. All take the same number of simulator steps. Runs that the folder
holds are not repeated.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import report
from ppo_runs import known
from suite import run_sweep
from trpo_jax import make_agent
from trpo_jax.agent.evaluate import make_evaluator
from trpo_jax.agent.inference import Params
from trpo_jax.execution.devices import show_cpu_devices
from trpo_jax.runs.run import run_environment
from trpo_jax.sweep.plan import Run, plan_file
from trpo_jax.sweep.report.figures import curves
from trpo_jax.sweep.report.scores import ScoredRun, SweepScores, gather
from trpo_jax.sweep.report.statistics import estimate, mean
from trpo_jax.sweep.report.tables import show
from trpo_jax.training.fields import SETTING
from trpo_jax.training.run_config import RunConfig

SWEEP = Path(__file__).parents[1] / "configs" / "sweeps" / "paper_ablations.toml"
POPULATION = 64
"""Candidates in a generation."""
ELITE = 0.1
"""Share of a generation that the elite strategy fits its Gaussian to."""
FIGURES = {
    "samplers": ("single path", "vine"),
    "updates": ("single path", "bound on the largest KL", "empirical Fisher", "natural gradient", "fixed penalty"),
    "evolution": ("single path", "elite Gaussian", "CMA-ES"),
}
"""Figures, and the settings whose curves they show: few, so that each can be told from the others."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compare the paper's forms of the update."""

    sweep: str = str(SWEEP)
    """Sweep file of the updates and samplers."""
    folder: str = "runs/paper_ablations"
    """For the sweep and for the curves of evolution strategies."""
    json: str | None = None
    """Where to write the result."""
    figures: str | None = None
    """Folder for the learning curves, one file for each of `FIGURES`."""


def main(arguments: Arguments) -> None:
    folder = Path(arguments.folder)
    (folder / "evolution").mkdir(parents=True, exist_ok=True)
    ours = run_sweep(arguments.sweep, folder / "sweep")
    first = {(run.config.environment, run.config.seed): run for run in reversed(plan_file(arguments.sweep))}
    theirs = [scored(run, name, folder / "evolution") for run in reversed(first.values()) for name in STRATEGIES]
    scores = gather([*ours, *theirs])
    report.publish("forms of the update", rows_of(scores), arguments.json)
    if arguments.figures:
        Path(arguments.figures).mkdir(parents=True, exist_ok=True)
        for name, settings in FIGURES.items():
            shown = gather([run for run in scores.runs if run.setting in settings])
            curves(shown).savefig(Path(arguments.figures) / f"paper_{name}.svg")


def elite(candidate: Any) -> tuple[Any, Any]:
    """Return the strategy that takes the mean of the best candidates and their spread, and its settings."""
    from evosax.algorithms import SimpleES

    method = SimpleES(population_size=POPULATION, solution=candidate)
    method.elite_ratio = ELITE
    return method, method.default_params.replace(std_init=0.1, c_std=1.0)


def cma(candidate: Any) -> tuple[Any, Any]:
    """Return CMA-ES with a diagonal covariance, and its settings."""
    from evosax.algorithms import Sep_CMA_ES

    method = Sep_CMA_ES(population_size=POPULATION, solution=candidate)
    return method, method.default_params.replace(std_init=0.1)


STRATEGIES: dict[str, Callable[[Any], tuple[Any, Any]]] = {"elite Gaussian": elite, "CMA-ES": cma}


def scored(run: Run, name: str, folder: Path) -> ScoredRun:
    """Return an evolution strategy's result in the place of a run of ours, from the folder if it holds it."""
    config = run.config
    label = f"{config.environment}-{name.replace(' ', '_')}-seed{config.seed}"
    decides = dataclasses.replace(config, seed=0), POPULATION, ELITE
    found = known(folder, label, decides, lambda: evolve(run, name))
    curve = tuple((int(steps), float(value)) for steps, value in found)
    return ScoredRun(label, config.environment, name, {SETTING: name}, config.seed, curve[-1][1], curve)


def evolve(run: Run, name: str) -> list[tuple[int, float]]:
    """Return (planned steps, return of the strategy's mean): before the generation that reaches each tenth, and at the end."""
    config = run.config
    play, judge, candidate = programs(dataclasses.replace(config, seed=0))
    method, settings = STRATEGIES[name](candidate)
    key, start_key = jax.random.split(jax.random.key(config.seed))
    state = method.init(start_key, candidate, settings)
    steps, curve = 0, []
    while steps < config.num_timesteps:
        key, ask_key, play_key, tell_key, judge_key = jax.random.split(key, 5)
        if steps >= len(curve) * config.num_timesteps / 10:
            curve.append((len(curve) * config.num_timesteps // 10, judged(judge, method, state, judge_key)))
        population, state = method.ask(ask_key, state, settings)
        episodes = play(population, play_key)
        state, _ = method.tell(tell_key, population, -episodes.episode_return, state, settings)
        steps += int(jnp.sum(episodes.episode_length))
    return [*curve[:10], (config.num_timesteps, judged(judge, method, state, jax.random.key(config.seed)))]


@functools.lru_cache(maxsize=1)
def programs(config: RunConfig) -> tuple[Any, Any, Any]:
    """Return what plays an episode with each candidate, what plays many with one, and a candidate."""
    agent = make_agent(run_environment(config), config.agent)
    state = agent.init(jax.random.key(0))

    def one_each(population: Any, deterministic: bool) -> Any:
        act = jax.vmap(lambda policy, observation: agent.make_policy(Params(None, policy, None), deterministic)(observation)[0])
        return lambda observation, key: (act(population, observation), {})

    def of_one(policy: Any, deterministic: bool) -> Any:
        return agent.make_policy(Params(None, policy, None), deterministic)

    play = make_evaluator(agent.environment, one_each, num_episodes=POPULATION, deterministic=True)
    judge = make_evaluator(agent.environment, of_one, num_episodes=config.num_eval_envs, deterministic=True)
    return play, judge, state.learner.policy


def judged(judge: Any, method: Any, state: Any, key: Any) -> float:
    """Return the mean return of the strategy's mean."""
    return float(np.mean(judge(method.get_mean(state), key).episode_return))


def rows_of(scores: SweepScores) -> list[dict[str, Any]]:
    """Return a row for each setting: its mean return in each environment, with its interval."""
    rows = []
    for setting in scores.settings:
        returns = scores.of_setting(setting)
        means = {name: show(estimate({name: returns[name]}, mean)) for name in scores.environments if name in returns}
        normalized = show(estimate(scores.of_setting(setting, normalized=True), mean))
        rows.append({"setting": setting, **means, "all, normalized": normalized})
    return rows


if __name__ == "__main__":
    parsed = tyro.cli(Arguments, description=__doc__)
    show_cpu_devices(os.cpu_count() or 1)
    main(parsed)
