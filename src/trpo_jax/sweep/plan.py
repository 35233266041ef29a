"""Which runs a sweep consists of, and which of them one compiled program can train together."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trpo_jax.algorithms.registry import DEFAULT, default_config
from trpo_jax.config import to_mapping
from trpo_jax.errors import ConfigError, errors_in
from trpo_jax.policy.networks import ImageConfig
from trpo_jax.runs.run import resolve
from trpo_jax.sweep.spec import Sweep, read_sweep
from trpo_jax.training.fields import fields_of, setting_in_words, with_fields
from trpo_jax.training.run_config import RunConfig, program_of, starting_config, with_algorithm

ADDED_LATER: dict[str, Any] = {"algorithm": DEFAULT, "sampler": "path", "trust_region.fisher": "analytic"}
ADDED_LATER |= {"normalize_rewards": False, "frame_stack": 1, "observe_last_step": False}
ADDED_LATER |= {"policy.action_mask_key": "action_mask"}
for _network in ("policy", "critic"):
    ADDED_LATER |= {f"{_network}.network": "mlp"}
    ADDED_LATER |= {f"{_network}.image.{name}": value for name, value in to_mapping(ImageConfig()).items()}
"""Fields that are younger than the names of runs, with values that leave a run as it was: names do not cover them."""


class Run(NamedTuple):
    """One training of a sweep."""

    name: str
    """ENVIRONMENT-HASH-seedN; the hash covers the whole configuration except the seed."""
    source: str
    """The environment as the sweep file gives it: a name or a configuration file."""
    swept: dict[str, Any]
    """The fields in which the sweep's settings differ, with this run's values."""
    config: RunConfig


class Cell(NamedTuple):
    """Runs that differ in traced values only, so that one compiled program can train any number of them."""

    runs: tuple[Run, ...]

    @property
    def config(self) -> RunConfig:
        """The configuration of the first run."""
        return self.runs[0].config


def make_plan(sweep: Sweep) -> tuple[Run, ...]:
    """Return the runs of a sweep, in the order of the sweep file.

    Raises:
        ConfigError: an unknown environment, a missing configuration file, a value that is not allowed, or two equal
            settings.
    """
    runs: dict[str, Run] = {}
    bases: dict[tuple[str, str], RunConfig] = {}
    suite = with_fields(RunConfig(), {name: value for name, value in sweep.config.items() if name == "suite"}).suite
    for source in sweep.environments:
        for setting in sweep.settings:
            chosen = sweep.config | setting.fields
            algorithm: Any = chosen["algorithm"] if "algorithm" in chosen else starting_config(source, suite).algorithm
            default_config(algorithm)  # raises ConfigError for an unknown name
            if (source, algorithm) not in bases:
                common = sweep.config | {"algorithm": algorithm} | sweep.of_algorithm.get(algorithm, {})
                bases[source, algorithm] = resolve(with_fields(starting_config(source, suite, algorithm), common))
            config = with_fields(bases[source, algorithm], setting.fields)
            config = resolve(config) if "backend" in setting.fields else config
            for seed in sweep.seeds:
                run = _run(source, setting.swept, dataclasses.replace(config, seed=seed))
                if run.name in runs:
                    alike = [setting_in_words(each.swept) or each.source for each in (runs[run.name], run)]
                    raise ConfigError(
                        "sweep", f"{' and '.join(alike)}, for {source}", "settings that give different configurations"
                    )
                runs[run.name] = run
    return tuple(runs.values())


def plan_file(path: Path | str) -> tuple[Run, ...]:
    """Read a sweep file and return its runs. Raises ConfigError, with the file's name, as `read_sweep` and `make_plan`."""
    sweep = read_sweep(path)
    with errors_in(path):
        return make_plan(sweep)


def cells_of(runs: Sequence[Run]) -> tuple[Cell, ...]:
    """Group runs that one program can train together."""
    cells: dict[Any, list[Run]] = {}
    for run in runs:
        cells.setdefault(program_of(run.config), []).append(run)
    return tuple(Cell(tuple(each)) for each in cells.values())


def _run(source: str, swept: dict[str, Any], config: RunConfig) -> Run:
    kinds = fields_of(with_algorithm(RunConfig(), config.algorithm))
    fields = {name: float(value) if isinstance(kinds[name], float) else value for name, value in fields_of(config).items()}
    seed = fields.pop("seed")
    if fields.get("sampler") == "path":  # these have no effect
        fields = {name: value for name, value in fields.items() if not name.startswith("vine.")}
    fields = {name: value for name, value in fields.items() if name not in ADDED_LATER or value != ADDED_LATER[name]}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    return Run(f"{config.environment}-{digest[:12]}-seed{seed}", source, swept, config)
