"""Finding runs by what a person types."""

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
    """The fields in which the settings of its sweep differ; empty for a run by itself."""
    result: dict[str, Any] | None
    """Its row of the table, if it is part of a sweep."""


def find_runs(path: Path | str) -> list[FoundRun]:
    """Return the runs that a path names: one in its own folder, all finished ones of a sweep's folder, or those of SWEEP/NAME.

    NAME is that of a run, without its hash or with the first digits of that, without its seed or with it: `hopper`,
    `hopper-seed0`, `hopper-83e`, `hopper-83e-seed0`.

    Raises:
        ConfigError: a sweep without such a run that is finished. Whether a folder outside of sweeps is that of a run is
            for `open_run_folder` to say.
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
        some = f"one of its {len(finished)} finished runs, such as {within / finished[0]}" if finished else ""
        raise ConfigError("run", str(path), some or f"a run of the sweep {within}, which has finished none yet")
    return [FoundRun(folder.run(each).path, planned[each]["swept"], found.result) for each, found in chosen.items()]


def best_run(path: Path | str) -> Path:
    """Return the folder of the run that a path names; of several, of the one with the highest return. Raises as `find_runs`."""
    return max(find_runs(path), key=_score).path


def _score(run: FoundRun) -> float:
    score = (run.result or {}).get("return")
    return -math.inf if score is None else score


def _is_sweep(path: Path) -> bool:
    return SweepFolder(path).plan.is_file()


def _is_named(name: str, typed: str) -> bool:
    """Tell whether a run is meant by what was typed for its name."""
    environment, digest, seed = name.rsplit("-", 2)
    parts = re.fullmatch(rf"{re.escape(environment)}(?:-([0-9a-f]+))?(?:-(seed[0-9]+))?", typed)
    return parts is not None and digest.startswith(parts[1] or "") and parts[2] in (None, seed)
