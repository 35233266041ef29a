"""Brax environments."""

import importlib.util

import jax.numpy as jnp

from trpo_jax.config import unknown_name
from trpo_jax.environments.loading import loading, quiet_import
from trpo_jax.environments.randomization import RandomizationFn
from trpo_jax.environments.vectorized import VectorizedEnvironment
from trpo_jax.errors import ConfigError

with quiet_import():
    import brax.envs
    import brax.fluid

BACKENDS = ("spring", "positional", "generalized", "mjx")
"""Brax's physics backends, in the order in which "auto" tries them."""


class _NumpyWithOldClip:
    """`jax.numpy` with a clip that still takes a_min and a_max: Brax 0.14.2's fluid forces (swimmer) pass these names."""

    def __getattr__(self, name):
        return getattr(jnp, name)

    @staticmethod
    def clip(x, a_min=None, a_max=None):
        return jnp.clip(x, a_min, a_max)


brax.fluid.jp = _NumpyWithOldClip()


class BraxEnvironment(VectorizedEnvironment):
    """N copies of a Brax environment; randomization_fn receives its `sys`."""

    observes_vectors = True
    """Never images, so that networks can be made without a trace of the simulator."""

    def __init__(self, environment: brax.envs.Env, randomization_fn: RandomizationFn | None = None):
        super().__init__(environment, "sys", randomization_fn)


def adapt(environment: brax.envs.Env, randomization_fn: RandomizationFn | None = None) -> BraxEnvironment:
    """Put a Brax environment object behind the protocol.

    Raises:
        TypeError: an environment inside one of Brax's wrappers for training, or a randomization_fn that cannot be used.
    """
    inner: object = environment
    while isinstance(inner, brax.envs.Wrapper):
        if type(inner).__module__ == brax.envs.training.__name__:
            raise TypeError(
                f"environment: got a Brax environment inside a {type(inner).__name__}, allowed: a bare one, as "
                "brax.envs.get_environment returns it; trpo_jax or a wrap_env_fn adds the time limit and resets"
            )
        inner = inner.env
    return BraxEnvironment(environment, randomization_fn)


def environment_names() -> list[str]:
    """Return the names of Brax's registered environments."""
    return sorted(brax.envs._envs)


def resolve_backend(name: str, backend: str = "auto") -> str:
    """Return the backend to load an environment with. "auto" means the first of `BACKENDS` that the environment offers.

    Raises:
        ConfigError: an unknown name (with the nearest known ones), or a backend that does not exist or is not offered.
    """
    return _load(name, backend)[0]


def load_environment(name: str, backend: str = "auto", randomization_fn: RandomizationFn | None = None) -> BraxEnvironment:
    """Return a registered Brax environment by name.

    Args:
        name: such as "ant" or "hopper".
        backend: "auto", "spring", "positional", "generalized" or "mjx".
        randomization_fn: see `RandomizationFn`; None randomizes nothing.

    Raises:
        ConfigError: as `resolve_backend`.
        TypeError: a randomization_fn that cannot be used.
    """
    return BraxEnvironment(_load(name, backend)[1], randomization_fn)


def _playground_hint(name: str) -> str | None:
    """Return a hint if MuJoCo Playground is installed and has an environment of this name, else None."""
    if importlib.util.find_spec("mujoco_playground") is None:
        return None
    from trpo_jax.environments import playground

    return (
        "a Brax environment; this one belongs to the suite playground (--suite playground)"
        if name in playground.environment_names()
        else None
    )


def _load(name: str, backend: str) -> tuple[str, brax.envs.Env]:
    """Return the backend that `backend` stands for, and the environment loaded with it."""
    if name not in environment_names():
        allowed = _playground_hint(name) or unknown_name("Brax environment", name, environment_names())
        raise ConfigError("environment", name, allowed)
    if backend not in ("auto", *BACKENDS):
        raise ConfigError("backend", backend, "one of auto, " + ", ".join(BACKENDS))
    for candidate in BACKENDS if backend == "auto" else (backend,):
        environment = _try_to_load(name, candidate)
        if environment is not None:
            return candidate, environment
    offered = [other for other in BACKENDS if _try_to_load(name, other) is not None]
    raise ConfigError("backend", backend, f"one that {name} offers: {', '.join(offered)}")


def _try_to_load(name: str, backend: str) -> brax.envs.Env | None:
    """Return a Brax environment, or None if it does not offer the backend."""
    with loading():
        try:
            return brax.envs.get_environment(name, backend=backend)
        except ValueError:
            return None
