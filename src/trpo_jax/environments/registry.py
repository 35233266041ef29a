"""Load environments by name, and adapt environment objects to the protocol."""

import importlib
import sys
from types import ModuleType
from typing import Any

from trpo_jax.environments.host import HostEnvironment
from trpo_jax.environments.protocol import Environment
from trpo_jax.environments.randomization import RandomizationFn, refuse_randomization
from trpo_jax.environments.suites import SUITES
from trpo_jax.environments.vectorized import VectorizedEnvironment
from trpo_jax.environments.wrapped import WrapEnvFn, WrappedEnvironment, wrap_environment
from trpo_jax.errors import ConfigError, MissingPackageError
from trpo_jax.spaces import check_action_space


def as_environment(
    environment: Any,
    *,
    suite: str = "brax",
    backend: str = "auto",
    randomization_fn: RandomizationFn | None = None,
) -> Any:
    """Return an environment behind the protocol, an `Environment` or a `HostEnvironment`.

    Args:
        environment: the name of an environment of the suite ("hopper"); a Brax `Env` or Playground `MjxEnv` object,
            neither vectorized nor time-limited; or an object that satisfies `Environment` already.
        suite: "brax", "playground" (MuJoCo Playground), "safety" (environments with costs), "gymnasium" or "gymnax", for an
            environment given by name.
        backend: who steps an environment given by name: "spring", "positional", "generalized" or "mjx" for Brax,
            "jax" or "warp" for Playground, "envpool", "async" or "sync" for Gymnasium. For "auto" see `resolve_backend`.
        randomization_fn: draws physical parameters for each environment at every reset. It has Brax's signature,
            (sys, raw keys `[N, 2]`) -> (sys with N values in some leaves, in_axes); for Playground the model is the
            `mjx_model`. None: all environments share the same parameters, at no cost.

    Raises:
        ConfigError: an unknown name, suite or backend.
        MissingPackageError: a suite that is not installed.
        TypeError: an object of another kind, a wrapped environment, or a randomization_fn that cannot be used.
        ValueError: an action space without actions.
    """
    if isinstance(environment, str):
        return _suite(suite).load_environment(environment, backend, randomization_fn)
    adapter = _adapter_of(environment)
    if adapter is not None:
        return adapter.adapt(environment, randomization_fn)
    if not isinstance(environment, (Environment, HostEnvironment)):
        raise _wrong_kind(environment)
    check_action_space(environment.action_space)
    if randomization_fn is not None and isinstance(environment, VectorizedEnvironment):
        return as_environment(environment.environment, randomization_fn=randomization_fn)
    refuse_randomization(f"a {type(environment).__name__}", randomization_fn)
    return environment


def resolve_backend(environment: str, suite: str = "brax", backend: str = "auto") -> str:
    """Return the backend to load a named environment with, replacing "auto" by the backend that it stands for.

    In Brax, "auto" is the first of spring, positional, generalized and mjx that the environment offers; in Gymnasium EnvPool if
    it is installed and has the environment, else processes if steps are slow; elsewhere "jax".

    Raises:
        ConfigError: as `as_environment`.
    """
    return _suite(suite).resolve_backend(environment, backend)


def environment_names(suite: str = "brax") -> list[str]:
    """Return the names of a suite's environments, sorted.

    Raises:
        ConfigError: an unknown suite.
        MissingPackageError: a suite that is not installed.
    """
    return _suite(suite).environment_names()


def wrapped_environment(
    environment: Any,
    wrap_env_fn: WrapEnvFn | None,
    *,
    episode_length: int,
    action_repeat: int = 1,
    randomization_fn: RandomizationFn | None = None,
    seed: int = 0,
    num_envs: int = 1,
) -> WrappedEnvironment:
    """Return an environment that a wrapper of another library vectorizes, time-limits and resets.

    Args:
        environment: the result of `as_environment`, a Brax `Env` or a Playground `MjxEnv`. Without a wrap_env_fn, an object
            that is already wrapped.
        wrap_env_fn: called as wrap_env_fn(environment, episode_length=…, action_repeat=…, randomization_fn=…), as in
            `brax.training.agents.ppo.train`; an example is `brax.envs.training.wrap`. None: the environment is already
            wrapped, and episode_length, action_repeat and randomization_fn are ignored.
        episode_length: time limit, in simulator steps.
        action_repeat: simulator steps for which each action is held.
        randomization_fn: as in `as_environment`. The wrapper receives it with the keys of N environments bound, so it
            draws once for each N, not at every reset.
        seed: seed of the draws of randomization_fn.
        num_envs: number of environments in use; it matters only for a wrapper made for a fixed number.

    Returns:
        `WrappedEnvironment`, for which `resets_itself` is True. Warns if the wrapper hides final observations.

    Raises:
        TypeError: an object of another kind, or a wrapper that does not tell time limits from terminations.
    """
    if wrap_env_fn is None:
        for name in ("reset", "step", "action_size"):
            if not hasattr(environment, name):
                raise TypeError(
                    f"environment: got a {type(environment).__name__}, allowed: one with reset, step and action_size"
                )
        return WrappedEnvironment(lambda _: environment, num_envs=num_envs)
    if isinstance(environment, VectorizedEnvironment):
        if environment.randomization is not None:
            raise TypeError("environment: got a randomized one, allowed: a bare one; pass its randomization_fn as an argument")
        environment = environment.environment
    if _adapter_of(environment) is None:
        raise _wrong_kind(environment)
    return wrap_environment(
        environment,
        wrap_env_fn,
        episode_length=episode_length,
        action_repeat=action_repeat,
        randomization_fn=randomization_fn,
        seed=seed,
        num_envs=num_envs,
    )


def _suite(suite: str) -> ModuleType:
    """Import the adapter of a suite."""
    if suite not in SUITES:
        raise ConfigError("suite", suite, "one of " + ", ".join(SUITES))
    if suite == "brax":
        from trpo_jax.environments import brax

        return brax
    if suite == "safety":
        from trpo_jax.environments import safety

        return safety
    package = {"playground": "mujoco_playground"}.get(suite, suite)
    try:
        return importlib.import_module(f"trpo_jax.environments.{suite}")
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingPackageError.of(f"the suite {suite}", package, suite) from None


def _adapter_of(environment: Any) -> ModuleType | None:
    """Return the adapter for an environment object. A library that is not imported cannot have made the object."""
    for module, kind, suite in (("brax.envs", "Env", "brax"), ("mujoco_playground", "MjxEnv", "playground")):
        library = sys.modules.get(module)
        if library is not None and isinstance(environment, getattr(library, kind)):
            return _suite(suite)
    return None


def _wrong_kind(environment: Any) -> TypeError:
    kind = type(environment).__name__
    return TypeError(
        f"environment: got a {kind}, allowed: a name, a Brax Env, a Playground MjxEnv, "
        "or an object with action_space, reset and step"
    )
