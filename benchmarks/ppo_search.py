"""Which one setting of Brax's PPO serves several environments: two grids, each around the best setting found before.

    python benchmarks/ppo_search.py [--folder runs/ppo_search] [--json FILE]

The counterpart of configs/sweeps/one_setting_search{,_2,_3}.toml, on the same environments, and with a learning rate that falls
as ours does; docs/benchmarks says how much work either search was. What the folder holds already is not trained again.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import tyro

import report
from brax_ppo import SMALL_SCALE, Settings
from ppo_runs import PPORun, train_all
from trpo_jax.sweep.report.scores import SweepScores, gather
from trpo_jax.sweep.report.statistics import mean
from trpo_jax.training.fields import setting_in_words

AROUND: Settings = {
    **SMALL_SCALE,
    "learning_rate": 1e-3,
    "discounting": 0.99,
    "reward_scaling": 1.0,
    "unroll_length": 20,
    "num_minibatches": 8,
    "num_updates_per_batch": 8,
    "gae_lambda": 0.95,
    "learning_rate_at_end": 0.1,
}
"""The best of an earlier search (twelve settings, see docs/benchmarks), now with a learning rate that falls."""


class Round(NamedTuple):
    """Trainings that are compared with each other."""

    num_timesteps: int
    """Environment steps of each."""
    num_evals: int
    """Evaluations of each, the first before training and the last after it."""
    seeds: tuple[int, ...]
    """Trainings of each setting."""
    grid: dict[str, list[float]]
    """Values of settings, in place of those of the best setting so far; all combinations are trained."""


ROUNDS = (
    Round(
        491_520, 4, (10, 11), {"learning_rate": [1e-3, 2e-3], "num_updates_per_batch": [8, 16], "entropy_cost": [1e-2, 1e-3]}
    ),
    Round(983_040, 2, (10, 11), {"discounting": [0.99, 0.995], "gae_lambda": [0.95, 0.97], "unroll_length": [10, 20]}),
)


def combinations(grid: dict[str, list[float]]) -> list[dict[str, float]]:
    """Return every choice of a value for each name."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Search PPO's settings."""

    environments: tuple[str, ...] = (
        "inverted_pendulum",
        "inverted_double_pendulum",
        "reacher",
        "hopper",
        "walker2d",
        "ant",
    )
    """Brax environments."""
    episodes: int = 64
    """Episodes an evaluation plays."""
    folder: str = "runs/ppo_search"
    """For what each training leaves, and for compiled programs."""
    json: str | None = None
    """Where to write the result."""


def main(arguments: Arguments) -> None:
    rows: list[dict[str, Any]] = []
    best = AROUND
    for number, one in enumerate(ROUNDS, 1):
        scores = gather(train_all(runs_of(one, best, arguments), Path(arguments.folder)))
        found = [{"round": number, "steps": one.num_timesteps} | row(scores, setting) for setting in scores.settings]
        found.sort(key=lambda row: -row["normalized"])
        rows += found
        best = {**best, **next(run.swept for run in scores.runs if run.setting == found[0]["setting"])}
    report.publish("Brax PPO", rows, arguments.json)


def runs_of(one: Round, best: Settings, arguments: Arguments) -> list[PPORun]:
    """Return the trainings of a round around a setting."""
    common = one.num_timesteps, one.num_evals, arguments.episodes
    return [
        PPORun(environment, setting_in_words(swept), swept, {**best, **swept}, seed, *common)
        for environment in arguments.environments
        for swept in combinations(one.grid)
        for seed in one.seeds
    ]


def row(scores: SweepScores, setting: str) -> dict[str, Any]:
    """Return what a setting's trainings returned, mean and each seed; normalized among those of `scores`."""
    returns = {
        name: f"{values.mean():.4g} ({', '.join(f'{value:.4g}' for value in values)})"
        for name, values in scores.of_setting(setting).items()
    }
    normalized = list(scores.of_setting(setting, normalized=True).values())
    return {"setting": setting, "normalized": float(mean(normalized)), **returns}


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
