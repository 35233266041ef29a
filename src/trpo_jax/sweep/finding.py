"""Finding runs by the path or name that a user types."""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from trpo_jax.errors import ConfigError
from trpo_jax.runs.run_folder import RunFolder
from trpo_jax.sweep.folder import SweepFolder


class FoundRun(NamedTuple):
    """A run that a path names."""

    path: Path
    """Its folder."""
    swept: dict[str, Any]
    """Its values of the fields that its sweep varies; empty for a run outside a sweep."""
    result: dict[str, Any] | None
    """Its row of the results table, if it is part of a sweep."""


def find_runs(path: Path | str) -> list[FoundRun]:
    """Return the runs that a path names: a run's folder, a sweep's folder (all its finished runs), or SWEEP/NAME.

    NAME is an environment, and optionally the first digits of the run's hash and its seed: `hopper`, `hopper-seed0`,
    `hopper-83e`, `hopper-83e-seed0`.

    Raises:
        ConfigError: the sweep has no finished run of that name. Paths outside sweeps are not checked here, but by
            `open_run_folder`.
    """
    path = Path(path)
    if RunFolder(path).config.is_file():
        return [FoundRun(path, {}, None)]
    within, name = (path, "") if _is_sweep(path) else (path.parent, path.name)
    if not _is_sweep(within):
        return [FoundRun(path, {}, None)]
    folder = SweepFolder(within)
    planned = folder.planned()
    named = [each for each in planned if not name or _is_named(each, name)]
    chosen = {each: found for each in named if (found := folder.finished(each)) is not None}
    if not chosen:
        finished = [each for each in planned if folder.finished(each) is not None]
        some = f"one of the sweep's {len(finished)} finished runs, such as {within / finished[0]}" if finished else ""
        raise ConfigError("run", str(path), some or f"a finished run; the sweep {within} has none yet")
    return [FoundRun(folder.run(each).path, planned[each]["swept"], found.result) for each, found in chosen.items()]


def best_run(path: Path | str) -> Path:
    """Return the folder of the run that a path names; of several, the one with the highest return. Raises as `find_runs`."""
    return max(find_runs(path), key=_score).path


def _score(run: FoundRun) -> float:
    score = (run.result or {}).get("return")
    return -math.inf if score is None else score


def _is_sweep(path: Path) -> bool:
    return SweepFolder(path).plan.is_file()


def _is_named(name: str, typed: str) -> bool:
    """Tell whether the typed text matches a run's name."""
    environment, digest, seed = name.rsplit("-", 2)
    parts = re.fullmatch(rf"{re.escape(environment)}(?:-([0-9a-f]+))?(?:-(seed[0-9]+))?", typed)
    return parts is not None and digest.startswith(parts[1] or "") and parts[2] in (None, seed)
