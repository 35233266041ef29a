"""MuJoCo Playground environments, an optional dependency. The only module that imports it."""

import logging
import subprocess
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from trpo_jax.config import unknown_name
from trpo_jax.environments.loading import loading, quiet_import
from trpo_jax.environments.protocol import EnvironmentState
from trpo_jax.environments.randomization import RandomizationFn
from trpo_jax.environments.vectorized import VectorizedEnvironment
from trpo_jax.errors import ConfigError

with quiet_import():
    import mujoco_playground
    from mujoco_playground import dm_control_suite, registry

BACKENDS = ("jax", "warp")
"""Playground's `impl`: "jax" is MJX written in JAX, for every device; "warp" is MJX written in Warp, for NVIDIA GPUs."""


class PlaygroundEnvironment(VectorizedEnvironment):
    """N copies of a Playground environment; randomization_fn receives its `mjx_model`.

    In Warp all copies share some buffers (contacts), and each step refills them before it reads them. They have no
    environment axis, so states are returned without them, and every step creates them again.
    """

    def __init__(self, environment: mujoco_playground.MjxEnv, randomization_fn: RandomizationFn | None = None):
        # The attribute behind the property mjx_model, which has no setter.
        super().__init__(environment, "_mjx_model", randomization_fn)
        self._shared: list[jax.ShapeDtypeStruct | None] | None = None
        if _implementation(environment) == "warp":
            self._shared = _shared_leaves(super().reset)

    def reset(self, keys: Key[Array, "N"]) -> EnvironmentState:
        """Draw N initial states."""
        return self._without_shared(super().reset(keys))

    def step(self, state: EnvironmentState, action: jax.Array) -> EnvironmentState:
        """Advance every environment by one action."""
        return self._without_shared(super().step(self._with_shared(state), action))

    def _without_shared(self, state: EnvironmentState) -> EnvironmentState:
        return self._replace_shared(state, lambda shape: None)

    def _with_shared(self, state: EnvironmentState) -> EnvironmentState:
        return self._replace_shared(state, lambda shape: jnp.zeros(shape.shape, shape.dtype))

    def _replace_shared(self, state: EnvironmentState, replace: Callable[[jax.ShapeDtypeStruct], Any]) -> EnvironmentState:
        if self._shared is None:
            return state
        leaves, treedef = _flatten(state.simulator)
        leaves = [leaf if shape is None else replace(shape) for leaf, shape in zip(leaves, self._shared, strict=True)]
        return state._replace(simulator=jax.tree.unflatten(treedef, leaves))


def _shared_leaves(reset: Callable[[jax.Array], EnvironmentState]) -> list[jax.ShapeDtypeStruct | None]:
    """Return one entry per leaf of a simulator's state: its shape if that does not depend on N, else None."""
    two, three = (_flatten(jax.eval_shape(reset, jax.random.split(jax.random.key(0), n)).simulator)[0] for n in (2, 3))
    return [leaf if leaf is not None and leaf.shape == other.shape else None for leaf, other in zip(two, three, strict=True)]


def _flatten(tree: Any) -> tuple[list[Any], Any]:
    """Flatten a tree in which None may stand for a leaf that was taken out."""
    return jax.tree.flatten(tree, is_leaf=lambda leaf: leaf is None)


def adapt(environment: mujoco_playground.MjxEnv, randomization_fn: RandomizationFn | None = None) -> PlaygroundEnvironment:
    """Put a Playground environment object behind the protocol.

    Raises:
        TypeError: a wrapped environment, or a randomization_fn that cannot be used.
    """
    if isinstance(environment, mujoco_playground.wrapper.Wrapper):
        raise TypeError(
            f"environment: got a Playground environment inside a {type(environment).__name__}, allowed: a bare one, as "
            "mujoco_playground.registry.load returns it; trpo_jax or a wrap_env_fn adds the time limit and resets"
        )
    return PlaygroundEnvironment(environment, randomization_fn)


def environment_names() -> list[str]:
    """Return the names of Playground's registered environments, without loading any."""
    return sorted(registry.dm_control_suite.ALL_ENVS + registry.locomotion.ALL_ENVS + registry.manipulation.ALL_ENVS)


def resolve_backend(name: str, backend: str = "auto") -> str:
    """Return the implementation to load an environment with. "auto" means "jax".

    Raises:
        ConfigError: an unknown name (with the nearest known ones) or backend.
    """
    if name not in environment_names():
        raise ConfigError("environment", name, unknown_name("Playground environment", name, environment_names()))
    if backend not in ("auto", *BACKENDS):
        raise ConfigError("backend", backend, "one of auto, " + ", ".join(BACKENDS))
    return BACKENDS[0] if backend == "auto" else backend


def load_environment(
    name: str, backend: str = "auto", randomization_fn: RandomizationFn | None = None
) -> PlaygroundEnvironment:
    """Return a registered Playground environment by name, with its default configuration.

    Playground clones the robot models (for every task outside the DeepMind Control Suite) when they are first needed.

    Args:
        name: such as "CartpoleBalance" or "Go1JoystickFlatTerrain".
        backend: "auto", "jax" or "warp".
        randomization_fn: see `RandomizationFn`; None randomizes nothing.

    Raises:
        ConfigError: as `resolve_backend`; robot models that cannot be cloned; a backend that the environment lacks.
        TypeError: a randomization_fn that cannot be used.
    """
    backend = resolve_backend(name, backend)
    if backend == "warp":
        _quiet_warp()
    environment = _load(name, backend)
    offered = _implementation(environment)
    if offered != backend:
        raise ConfigError("backend", backend, f"one that {name} offers: {offered}")
    return PlaygroundEnvironment(environment, randomization_fn)


def _load(name: str, backend: str) -> mujoco_playground.MjxEnv:
    """Load a Playground environment without its printed messages, and turn its failures into one-line ConfigErrors."""
    if name not in dm_control_suite.ALL_ENVS and not mujoco_playground._src.mjx_env.MENAGERIE_PATH.exists():
        logging.getLogger(__name__).warning("Cloning the robot models that %s needs, only once; this can take minutes.", name)
    try:
        with loading():
            # A few tasks have no such option and choose the implementation themselves; the caller checks which one.
            options = {"impl": backend} if "impl" in registry.get_default_config(name) else {}
            return registry.load(name, config_overrides=options)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        allowed = f"one whose robot models are installed; those of this one could not be cloned by git ({_one_line(error)})"
        raise ConfigError("environment", name, allowed) from None
    except NotImplementedError as error:
        raise ConfigError("backend", backend, f"one that can simulate {name}; this one cannot: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _implementation(environment: mujoco_playground.MjxEnv) -> str | None:
    """Return the MJX implementation that simulates an environment, or None if there is none."""
    implementation = getattr(environment.mjx_model, "impl", None)
    return getattr(implementation, "value", None)


def _quiet_warp() -> None:
    """Keep Warp from printing a line for every kernel that it loads."""
    import warp

    warp.config.log_level = warp.LOG_WARNING
