"""Which one setting of Brax's PPO serves several environments: a grid around `SMALL_SCALE`, one around its best, a seed each.

    python benchmarks/ppo_search.py [--folder runs/ppo_search] [--json FILE]

The counterpart of configs/sweeps/one_setting_search.toml and one_setting_search_2.toml: as many settings, on the same
environments, with the same seed and steps. What the folder holds already is not trained again.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import tyro

import report
from brax_ppo import SMALL_SCALE
from ppo_runs import PPORun, train_all
from trpo_jax.sweep.report.scores import gather, setting_in_words
from trpo_jax.sweep.report.statistics import mean

GRIDS: tuple[dict[str, list[float]], ...] = (
    {"learning_rate": [1e-3, 2e-3], "discounting": [0.97, 0.99], "reward_scaling": [1.0, 10.0]},
    {
        "learning_rate": [1e-3],
        "discounting": [0.99],
        "reward_scaling": [1.0],
        "unroll_length": [20],
        "num_minibatches": [8],  # as many samples in all of them
        "num_updates_per_batch": [4, 8],
        "gae_lambda": [0.9, 0.95],
    },
)
"""Two rounds; the second begins where the first arrived."""


def searched() -> list[dict[str, float]]:
    """Return in what each setting that is tried differs from `SMALL_SCALE`."""
    return [dict(zip(grid, values, strict=True)) for grid in GRIDS for values in itertools.product(*grid.values())]


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
        "swimmer",
    )
    """Brax environments."""
    seed: int = 10
    """Of each training."""
    num_timesteps: int = 491_520
    """Environment steps of each training."""
    num_evals: int = 7
    """Evaluations of each training."""
    episodes: int = 64
    """Episodes an evaluation plays."""
    folder: str = "runs/ppo_search"
    """For what each training leaves, and for compiled programs."""
    json: str | None = None
    """Where to write the result."""


def main(arguments: Arguments) -> None:
    common = arguments.seed, arguments.num_timesteps, arguments.num_evals, arguments.episodes
    runs = [
        PPORun(environment, setting_in_words(swept), swept, {**SMALL_SCALE, **swept}, *common)
        for environment in arguments.environments
        for swept in searched()
    ]
    scores = gather(train_all(runs, Path(arguments.folder)))
    rows: list[dict[str, Any]] = []
    for setting in scores.settings:
        returns = {name: float(values.mean()) for name, values in scores.of_setting(setting).items()}
        normalized = list(scores.of_setting(setting, normalized=True).values())
        rows.append({"setting": setting, "normalized": float(mean(normalized)), **returns})
    rows.sort(key=lambda row: row["normalized"], reverse=True)
    report.publish(f"Brax PPO, {arguments.num_timesteps:,} steps", rows, arguments.json)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
