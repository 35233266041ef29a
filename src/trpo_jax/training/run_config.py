"""A run's whole configuration, and how it is read from and written to TOML."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tomli_w
import tyro

from trpo_jax.agent.trpo_config import TRPOConfig
from trpo_jax.config import LARGEST_SEED, config, flatten, from_mapping, setting, to_mapping, unknown_name
from trpo_jax.errors import ConfigError, errors_in
from trpo_jax.execution.devices import is_accelerated
from trpo_jax.files import write_whole


@config
class RunConfig:
    """What `trpo-jax train` needs to know: an environment, a budget, evaluations, and how TRPO learns."""

    environment: str = setting(default="ant")
    """Name of an environment of the suite."""
    suite: Literal["brax", "playground"] = setting(default="brax")
    """Brax, or MuJoCo Playground (an extra to install)."""
    backend: Literal["auto", "spring", "positional", "generalized", "mjx", "jax", "warp"] = setting(default="auto")
    """Physics: jax or warp in Playground, the others in Brax; auto is the first that Brax offers, or jax."""
    num_timesteps: int = setting(default=1_000_000, at_least=0)
    """Environment steps to train for, rounded up to whole iterations."""
    seed: int = setting(default=0, at_least=0, at_most=LARGEST_SEED)
    """Seed of everything random."""
    num_evals: int = setting(default=1, at_least=0)
    """Evaluations, evenly spread; with more than one the first comes before training, the last after it."""
    num_eval_envs: int = setting(default=64, at_least=1)
    """Episodes an evaluation plays."""
    deterministic_eval: bool = setting(default=True)
    """Evaluate the policy's mean action instead of samples."""
    checkpoint_interval: int = setting(default=10, at_least=0)
    """Iterations between checkpoints; 0 saves only at evaluations and at the end."""
    keep_checkpoints: int = setting(default=3, at_least=1)
    """So many of the newest checkpoints stay."""
    trpo: Annotated[TRPOConfig, tyro.conf.arg(name="")] = TRPOConfig()  # its fields stand beside the others


BESIDE_TRAINING = ("num_evals", "num_eval_envs", "deterministic_eval", "checkpoint_interval", "keep_checkpoints")
"""Fields that do not change what is trained."""

ACCELERATOR = "accelerator"
"""Table of a configuration file that is put over the rest of it where JAX's default device is no CPU, and the file in
configs/ that does the same for every environment given by name."""


def read_run_config(path: Path | str, *, accelerator: bool = False) -> RunConfig:
    """Read a TOML file whose tables and keys are the fields of `RunConfig`, those of its `trpo` at the top level.

    Args:
        path: of the file.
        accelerator: put the file's table `[accelerator]`, if there is one, over the rest.

    Raises:
        ConfigError: no such file, not TOML, an unknown key, a wrong type, or a value out of range.
    """
    own = read_toml(path, "config file")
    run_config = _layered(RunConfig(), own, path, None, accelerator=accelerator)
    if "environment" not in own:
        raise ConfigError(f"{path}: environment", None, 'the name of one, as in environment = "ant"')
    return run_config


def read_toml(path: Path | str, name: str) -> dict[str, Any]:
    """Parse a TOML file, which errors call by a name; raises ConfigError where it is missing or no TOML."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(name, str(path), f"a readable TOML file ({getattr(error, 'strerror', error)})") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(name, str(path), f"valid TOML ({error})") from None


def run_config_from_mapping(mapping: dict[str, Any], defaults: RunConfig = RunConfig()) -> RunConfig:  # noqa: B008
    """Build a `RunConfig` from a parsed TOML file; what it leaves out is that of `defaults`."""
    known = [name for part in (defaults, defaults.trpo) for name in to_mapping(part) if name != "trpo"]
    for name, value in mapping.items():
        if name not in known:
            raise ConfigError(name, value, unknown_name("field", name, known, list(flatten(to_mapping(defaults.trpo)))))
    trpo = {name: value for name, value in mapping.items() if name in to_mapping(defaults.trpo)}
    run = {name: value for name, value in mapping.items() if name not in trpo}
    return dataclasses.replace(from_mapping(defaults, run), trpo=from_mapping(defaults.trpo, trpo))


def program_of(run_config: RunConfig) -> Any:
    """Return what two configurations share if one compiled program serves both: all but the seed and the pytree's leaves."""
    return jax.tree.structure(dataclasses.replace(run_config, seed=0))


def write_run_config(path: Path | str, run_config: RunConfig) -> None:
    """Write a configuration as TOML that `read_run_config` reads back to an equal one, whole or not at all."""
    mapping = to_mapping(run_config)
    trpo = mapping.pop("trpo")
    write_whole(path, tomli_w.dumps(mapping | trpo))


def starting_config(target: str, suite: str = "brax", *, accelerator: bool = False) -> RunConfig:
    """Return the configuration that a target stands for: a TOML file, or an environment with the settings that ship for it.

    Args:
        target: path of a TOML file, or name of an environment.
        suite: "brax" or "playground", for a name.
        accelerator: take the settings for an accelerator. For a name they are those that all environments share, with
            the table `[accelerator]` of the environment's own file over them; a TOML file's are its own table.

    Raises:
        ConfigError: the file cannot be used.
    """
    if target.endswith(".toml"):
        return read_run_config(target, accelerator=accelerator)
    common = _configs() / f"{ACCELERATOR}.toml" if accelerator else None
    file = shipped_config_file(target, suite)
    own = {} if file is None else read_toml(file, "config file")
    config = _layered(RunConfig(environment=target), own, file, common, accelerator=accelerator)
    return dataclasses.replace(config, environment=target)


def _layered(
    config: RunConfig, own: dict[str, Any], path: Path | str | None, common: Path | None, *, accelerator: bool
) -> RunConfig:
    """Apply to a configuration what the file at `path` holds, then the common file, then its own [accelerator] table."""
    table = own.get(ACCELERATOR, {})
    with errors_in(path or ""):
        config = run_config_from_mapping({name: value for name, value in own.items() if name != ACCELERATOR}, config)
    if common is not None:
        with errors_in(common):
            config = run_config_from_mapping(read_toml(common, "config file"), config)
    with errors_in(path or ""):
        if not isinstance(table, dict):
            raise ConfigError(ACCELERATOR, table, "a table")
        try:
            accelerated = run_config_from_mapping(table, config)  # checked on a CPU, too
        except ConfigError as error:
            raise error.within(ACCELERATOR) from None
    return accelerated if accelerator else config


def shipped_config(environment: str, *, suite: str = "brax", accelerator: bool | None = None) -> RunConfig:
    """Return the settings that ship for an environment, as `trpo-jax train` uses them; the defaults where none do.

    Args:
        environment: name, such as "ant".
        suite: "brax" or "playground".
        accelerator: whether to take the settings for an accelerator; None where JAX's default device is no CPU.

    Returns:
        `RunConfig`; its field `trpo` is the TRPOConfig.
    """
    if accelerator is None:
        accelerator = is_accelerated()
    return starting_config(environment, suite, accelerator=accelerator)


def shipped_config_file(environment: str, suite: str = "brax") -> Path | None:
    """Return the configuration file that comes with the package for an environment, if there is one."""
    path = _configs() / suite / f"{environment}.toml"
    return path if environment in {each.stem for each in path.parent.glob("*.toml")} else None


def _configs() -> Path:
    """Return the folder of configurations: that of an installed wheel, or of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parents[1] / "configs"
