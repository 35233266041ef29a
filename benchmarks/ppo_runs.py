"""Trainings of Brax's PPO side by side, a process and a processor's core each, and what they leave behind."""

import concurrent.futures
import hashlib
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from brax_ppo import Settings, train_ppo
from time_to_return import Course
from trpo_jax import make_trpo
from trpo_jax.environments.brax import resolve_backend
from trpo_jax.files import write_whole
from trpo_jax.sweep.report.scores import ScoredRun


class PPORun(NamedTuple):
    """One training."""

    environment: str
    setting: str
    """What tables call its settings."""
    swept: dict[str, Any]
    """In what they differ from those of other runs."""
    settings: Settings
    seed: int
    num_timesteps: int
    num_evals: int
    """Deterministic evaluations, the first before training and the last after it."""
    episodes: int
    """An evaluation."""

    @property
    def name(self) -> str:
        """Name it, by a hash of all that decides how it ends."""
        rest = sorted(self.settings.items()), self.num_timesteps, self.num_evals, self.episodes
        return f"{self.environment}-{hashlib.sha256(json.dumps(rest).encode()).hexdigest()[:12]}-seed{self.seed}"


def known(folder: Path, name: str, decides: Any, measure: Callable[[], Any]) -> Any:
    """Return what a folder holds under a name and a hash of what decides about the result, or measure it and keep it there."""
    file = folder / f"{name}-{hashlib.sha256(repr(decides).encode()).hexdigest()[:12]}.json"
    if not file.is_file():
        write_whole(file, json.dumps(measure()) + "\n")
    return json.loads(file.read_text(encoding="utf-8"))


def train_all(runs: Sequence[PPORun], folder: Path) -> list[ScoredRun]:
    """Train runs, as many at once as there are cores; those of which the folder holds a curve are not trained again."""
    folder.mkdir(parents=True, exist_ok=True)
    left = [run for run in runs if not _curve_file(folder, run).is_file()]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), mp_context=context) as workers:
        tasks = {workers.submit(_train, run, folder): run for run in left}
        for number, task in enumerate(concurrent.futures.as_completed(tasks), 1):
            print(f"PPO {number}/{len(left)}: {tasks[task].name}, {tasks[task].setting}: {task.result():.4g}", flush=True)
    return [_scored(run, folder) for run in runs]


def _train(run: PPORun, folder: Path) -> float:
    """Train and evaluate in this process; write the curve, and return its end."""
    jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
    environment = make_trpo(run.environment).environment
    course = Course(environment, target=math.inf, episodes=run.episodes, eval_seed=run.seed)
    train_ppo(
        run.environment,
        run.num_timesteps,
        run.settings,
        seed=run.seed,
        num_evals=run.num_evals,
        policy_params_fn=course,
        backend=resolve_backend(run.environment),
    )
    curve = [(point["steps"], point["return"]) for point in course.points]
    write_whole(_curve_file(folder, run), json.dumps(curve) + "\n")
    jax.clear_caches()  # Brax jits its functions anew for every training; after dozens they would fill the memory
    return curve[-1][1]


def _scored(run: PPORun, folder: Path) -> ScoredRun:
    curve = [(int(steps), float(value)) for steps, value in json.loads(_curve_file(folder, run).read_text(encoding="utf-8"))]
    return ScoredRun(run.name, run.environment, run.setting, run.swept, run.seed, curve[-1][1], tuple(curve))


def _curve_file(folder: Path, run: PPORun) -> Path:
    return folder / f"{run.name}.json"
