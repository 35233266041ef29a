"""Which one setting of Brax's PPO serves several environments: three grids around the best of an earlier search.

    python benchmarks/ppo_search.py [--folder runs/ppo_search] [--json FILE]

The counterpart of configs/sweeps/one_setting_search{,_2,_3}.toml: as many settings, on the same environments, with the same
seeds and steps, and with a learning rate that falls as ours does. What the folder holds already is not trained again.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import tyro

import report
from brax_ppo import ONE_SETTING, Settings
from ppo_runs import PPORun, train_all
from trpo_jax.sweep.report.scores import SweepScores, gather
from trpo_jax.sweep.report.statistics import mean
from trpo_jax.training.fields import setting_in_words

AROUND: Settings = {**ONE_SETTING, "learning_rate_at_end": 0.1}
"""The best of an earlier search, now with a schedule."""


class Round(NamedTuple):
    """Trainings that are compared with each other."""

    num_timesteps: int
    """Environment steps of each."""
    seeds: tuple[int, ...]
    """Trainings of each setting."""
    grid: dict[str, list[float]]
    """Values of settings, each in place of that of `AROUND`; all combinations are trained."""


ROUNDS = (
    Round(491_520, (10, 11), {"learning_rate": [1e-3, 2e-3], "num_updates_per_batch": [8, 16], "entropy_cost": [1e-2, 1e-3]}),
    Round(983_040, (10, 11), {"unroll_length": [10, 20], "num_minibatches": [8, 16], "clipping_epsilon": [0.2, 0.3]}),
    Round(983_040, (10, 11, 12), {"discounting": [0.99, 0.995], "gae_lambda": [0.95, 0.97, 0.99]}),
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
    num_evals: int = 4
    """Evaluations of each training."""
    episodes: int = 64
    """Episodes an evaluation plays."""
    folder: str = "runs/ppo_search"
    """For what each training leaves, and for compiled programs."""
    json: str | None = None
    """Where to write the result."""


def main(arguments: Arguments) -> None:
    rows: list[dict[str, Any]] = []
    for number, (steps, seeds, grid) in enumerate(ROUNDS, 1):
        common = steps, arguments.num_evals, arguments.episodes
        runs = [
            PPORun(environment, setting_in_words(swept), swept, {**AROUND, **swept}, seed, *common)
            for environment in arguments.environments
            for swept in combinations(grid)
            for seed in seeds
        ]
        scores = gather(train_all(runs, Path(arguments.folder)))
        found = [{"round": number, "steps": steps} | row(scores, setting) for setting in scores.settings]
        rows += sorted(found, key=lambda row: -row["normalized"])
    report.publish("Brax PPO", rows, arguments.json)


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
