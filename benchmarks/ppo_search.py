"""Which one setting of Brax's PPO serves several environments: a grid around `SMALL_SCALE`, a seed each.

    python benchmarks/ppo_search.py [--folder runs/ppo_search] [--json FILE]

The counterpart of configs/sweeps/one_setting_search.toml: as many settings, on the same environments, with the same seed and
steps. What the folder holds already is not trained again.
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

GRID = {"learning_rate": [1e-3, 2e-3], "discounting": [0.97, 0.99], "reward_scaling": [1.0, 10.0]}


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
    settings = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    common = arguments.seed, arguments.num_timesteps, arguments.num_evals, arguments.episodes
    runs = [
        PPORun(environment, setting_in_words(swept), swept, {**SMALL_SCALE, **swept}, *common)
        for environment in arguments.environments
        for swept in settings
    ]
    scores = gather(train_all(runs, Path(arguments.folder)))
    rows: list[dict[str, Any]] = []
    for setting in scores.ranking():
        returns = {name: float(values.mean()) for name, values in scores.of_setting(setting).items()}
        normalized = list(scores.of_setting(setting, normalized=True).values())
        rows.append({"setting": setting, "normalized": float(mean(normalized)), **returns})
    report.publish(f"Brax PPO, {arguments.num_timesteps:,} steps", rows, arguments.json)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
