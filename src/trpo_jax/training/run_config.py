"""A run's whole configuration, and how it is read from and written to TOML."""

import dataclasses
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tomli_w
import tyro

from trpo_jax.agent.config import AgentConfig
from trpo_jax.algorithms.registry import ALGORITHMS, DEFAULT, algorithm_name, default_config
from trpo_jax.config import LARGEST_SEED, config, flatten, from_mapping, setting, to_mapping, unknown_name
from trpo_jax.environments.suites import ON_HOST, SUITES, Suite
from trpo_jax.errors import ConfigError, errors_in
from trpo_jax.execution.devices import is_accelerated
from trpo_jax.files import write_whole


@config
class RunConfig:
    """What `trpo-jax train` needs to know: an environment, a budget, evaluations, and how an algorithm learns."""

    environment: str = setting(default="ant")
    """Name of an environment of the suite."""
    suite: Suite = setting(default="brax")
    """Brax, the environments with costs, or an extra: MuJoCo Playground, Gymnasium, gymnax."""
    backend: Literal["auto", "spring", "positional", "generalized", "mjx", "jax", "warp", "envpool", "async", "sync"] = setting(
        default="auto"
    )
    """Who simulates. In Brax, spring to mjx, and auto is the first that the environment offers; in Playground, jax (auto) or
    warp; in Gymnasium, envpool, async (processes) or sync (in turn), and auto is the fastest; in gymnax, jax (auto)."""
    num_timesteps: int = setting(default=1_000_000, at_least=0)
    """Environment steps to train for, rounded up to whole iterations."""
    seed: int = setting(default=0, at_least=0, at_most=LARGEST_SEED)
    """Seed of everything random."""
    num_evals: int = setting(default=1, at_least=0)
    """Number of evaluations, evenly spread; if several, the first is before training and the last after it."""
    num_eval_envs: int = setting(default=64, at_least=0)
    """Episodes per evaluation; 0 evaluates nothing."""
    deterministic_eval: bool = setting(default=True)
    """Evaluate the policy's mean action instead of samples."""
    checkpoint_interval: int = setting(default=10, at_least=0)
    """Iterations between checkpoints; 0 saves only at the start, at evaluations and at the end."""
    keep_checkpoints: int = setting(default=3, at_least=1)
    """Number of newest checkpoints to keep."""
    agent: Annotated[AgentConfig, tyro.conf.arg(name="")] = default_config()  # its options get no prefix
    """How the agent learns; its type selects the algorithm."""

    @property
    def algorithm(self) -> str:
        """Name of the algorithm."""
        return algorithm_name(self.agent)

    @property
    def evaluates(self) -> bool:
        """Whether any episodes are played for evaluation."""
        return self.num_evals > 0 and self.num_eval_envs > 0


BESIDE_TRAINING = ("num_evals", "num_eval_envs", "deterministic_eval", "checkpoint_interval", "keep_checkpoints")
"""Fields that do not change what is trained."""

ACCELERATOR = "accelerator"
"""Name of a configuration file's table that overrides the rest of the file if JAX's default device is not a CPU, and of
the file in configs/ that does the same for every environment given by name."""


def read_run_config(path: Path | str, algorithm: str | None = None, *, accelerator: bool = False) -> RunConfig:
    """Read a TOML file of `RunConfig` fields, with those of its `agent` at the top level.

    A table named after an algorithm overrides the rest if that algorithm is used. What the file lacks is taken from the
    `default.toml` of the suite that it names, if there is one.

    Args:
        path: the file.
        algorithm: algorithm to learn by; None takes the file's, or TRPO.
        accelerator: let the file's table `[accelerator]`, if there is one, override the rest.

    Raises:
        ConfigError: no such file, not TOML, an unknown key, a wrong type, or a value out of range.
    """
    own = read_toml(path, "config file")
    layers = [*_of_suite(own.get("suite")), (path, own)]
    run_config = _layered(RunConfig(), layers, None, algorithm, accelerator=accelerator)
    if "environment" not in own:
        raise ConfigError(f"{path}: environment", None, 'the name of an environment, as in environment = "ant"')
    return run_config


def read_toml(path: Path | str, name: str) -> dict[str, Any]:
    """Parse a TOML file. Raises a ConfigError of field `name` if the file is missing or not TOML."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(name, str(path), f"a readable TOML file ({getattr(error, 'strerror', error)})") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(name, str(path), f"valid TOML ({error})") from None


def run_config_from_mapping(mapping: dict[str, Any], defaults: RunConfig = RunConfig()) -> RunConfig:  # noqa: B008
    """Build a `RunConfig` from a mapping of fields; missing fields are taken from `defaults`.

    If the mapping's "algorithm" differs from that of `defaults`, missing agent fields take the algorithm's own defaults.
    """
    mapping = dict(mapping)
    defaults = with_algorithm(defaults, mapping.pop("algorithm", defaults.algorithm))
    known = [name for part in (defaults, defaults.agent) for name in to_mapping(part) if name != "agent"]
    for name, value in mapping.items():
        if name not in known:
            others = [other for other in ALGORITHMS if name in to_mapping(default_config(other))]
            if others:
                allowed = f"a field of {defaults.algorithm}; this one belongs to {', '.join(others)}"
                raise ConfigError(name, value, allowed)
            raise ConfigError(name, value, unknown_name("field", name, known, list(flatten(to_mapping(defaults.agent)))))
    agent = {name: value for name, value in mapping.items() if name in to_mapping(defaults.agent)}
    run = {name: value for name, value in mapping.items() if name not in agent}
    return dataclasses.replace(from_mapping(defaults, run), agent=from_mapping(defaults.agent, agent))


def program_of(run_config: RunConfig) -> Any:
    """Return a key, equal for configurations that can share a compiled program: all but the seed and the pytree's leaves."""
    return jax.tree.structure(dataclasses.replace(run_config, seed=0))


def write_run_config(path: Path | str, run_config: RunConfig) -> None:
    """Write a configuration as TOML, completely or not at all. `read_run_config` reads back an equal one."""
    write_whole(path, tomli_w.dumps(file_fields(run_config)))


def file_fields(run_config: RunConfig) -> dict[str, Any]:
    """Return the fields of a configuration as in its file, with those of its `agent` beside the others."""
    mapping = to_mapping(run_config)
    agent = mapping.pop("agent")
    return {"algorithm": run_config.algorithm} | mapping | agent


def with_algorithm(run_config: RunConfig, name: Any) -> RunConfig:
    """Switch to an algorithm's defaults, unless it is used already. Raises ConfigError for an unknown name."""
    if name == run_config.algorithm:
        return run_config
    return dataclasses.replace(run_config, agent=default_config(name))


def starting_config(target: str, suite: str = "brax", algorithm: str | None = None, *, accelerator: bool = False) -> RunConfig:
    """Return the configuration that a target stands for: a TOML file, or an environment with its shipped settings.

    Args:
        target: path of a TOML file, or name of an environment.
        suite: a suite, for a name. The settings of its file `default.toml`, if it has one, are overridden by those of the
            environment's own file.
        algorithm: algorithm to learn by; None takes the TOML file's, or TRPO.
        accelerator: take the settings for an accelerator. A TOML file has them in its table `[accelerator]`. For a name
            they are those that all environments share, unless they are stepped on the host, overridden by that table of the
            suite's and the environment's files.

    Raises:
        ConfigError: the file cannot be used.
    """
    if target.endswith(".toml"):
        return read_run_config(target, algorithm, accelerator=accelerator)
    common = _configs() / f"{ACCELERATOR}.toml" if accelerator and suite not in ON_HOST else None
    file = shipped_config_file(target, suite)
    layers = [*_of_suite(suite), *([] if file is None else [(file, read_toml(file, "config file"))])]
    config = _layered(RunConfig(environment=target), layers, common, algorithm, accelerator=accelerator)
    return dataclasses.replace(config, environment=target)


def _of_suite(suite: Any) -> list[tuple[Path | str, dict[str, Any]]]:
    """Return the settings that all environments of a suite have, if there are any, with their file."""
    file = _configs() / suite / "default.toml" if suite in SUITES else None
    return [(file, read_toml(file, "config file"))] if file is not None and file.is_file() else []


def _layered(
    config: RunConfig,
    layers: Sequence[tuple[Path | str, dict[str, Any]]],
    common: Path | None,
    algorithm: str | None,
    *,
    accelerator: bool,
) -> RunConfig:
    """Override a configuration by files, one after the other, then the common file, then their tables [accelerator]."""
    for path, own in layers:
        with errors_in(path):
            config = with_algorithm(config, own.get("algorithm", config.algorithm))
    if algorithm is not None:
        config = with_algorithm(config, algorithm)
    for path, own in layers:
        with errors_in(path):
            rest = {name: value for name, value in own.items() if name not in (ACCELERATOR, "algorithm")}
            config = _applied(rest, config)
    accelerated = config
    if common is not None:
        with errors_in(common):
            accelerated = _applied(read_toml(common, "config file"), config)
    for path, own in layers:
        table = own.get(ACCELERATOR, {})
        with errors_in(path):
            if not isinstance(table, dict):
                raise ConfigError(ACCELERATOR, table, "a table")
            try:
                accelerated = _applied(table, accelerated)  # checked even on a CPU
            except ConfigError as error:
                raise error.within(ACCELERATOR) from None
    return accelerated if accelerator else config


def _applied(mapping: dict[str, Any], config: RunConfig) -> RunConfig:
    """Override fields of a configuration, then those in the table named after its algorithm."""
    if "algorithm" in mapping:
        raise ConfigError("algorithm", mapping["algorithm"], "none here; it may only stand at the top of a configuration file")
    tables = {name: value for name, value in mapping.items() if name in ALGORITHMS}
    config = run_config_from_mapping({name: value for name, value in mapping.items() if name not in tables}, config)
    chosen = config
    for name, table in tables.items():
        if not isinstance(table, dict) or "algorithm" in table:
            raise ConfigError(name, table, "a table of fields of that algorithm")
        try:
            applied = run_config_from_mapping(table, with_algorithm(config, name))  # every table is checked
        except ConfigError as error:
            raise error.within(name) from None
        chosen = applied if name == config.algorithm else chosen
    return chosen


def shipped_config(
    environment: str, *, suite: str = "brax", algorithm: str = DEFAULT, accelerator: bool | None = None
) -> RunConfig:
    """Return the settings that ship for an environment, as `trpo-jax train` uses them, or the defaults if none ship.

    Args:
        environment: name, such as "ant".
        suite: as `RunConfig.suite`.
        algorithm: algorithm to learn by, such as "ppo".
        accelerator: whether to take the settings for an accelerator; None does if JAX's default device is not a CPU.

    Returns:
        `RunConfig`; its field `agent` is the algorithm's configuration, such as a TRPOConfig.
    """
    if accelerator is None:
        accelerator = is_accelerated()
    return starting_config(environment, suite, algorithm, accelerator=accelerator)


def shipped_config_file(environment: str, suite: str = "brax") -> Path | None:
    """Return the configuration file that comes with the package for an environment, if there is one."""
    path = _configs() / suite / f"{environment}.toml"
    return path if environment in {each.stem for each in path.parent.glob("*.toml")} else None


def _configs() -> Path:
    """Return the folder of configurations: that of an installed wheel, or of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parents[1] / "configs"
