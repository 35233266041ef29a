"""Gymnasium environments, an optional dependency, which Python or EnvPool steps on the host.

The only module that imports either.
"""

import contextlib
import copy
import functools
import importlib
import importlib.util
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from jaxtyping import Array, Bool, Int, Key

from trpo_jax.config import unknown_name
from trpo_jax.environments.host import Film, HostStep, Simulator
from trpo_jax.environments.protocol import EnvironmentState
from trpo_jax.environments.randomization import RandomizationFn, refuse_randomization
from trpo_jax.errors import ConfigError, MissingPackageError, SimulatorError
from trpo_jax.spaces import ActionSpace, Box, Composite, Discrete, MultiBinary, MultiDiscrete

BACKENDS = ("envpool", "async", "sync")
"""Who steps the environments: EnvPool's threads, a process for each environment, or this process one after another."""

SLOW = 2e-3
"""Seconds of a step from which "auto" gives each environment a process of its own; passing messages takes a tenth of that."""

NO_LIMIT = 2**30
"""Actions of an episode that nothing ends."""

FRAMES_PER_SECOND = 30
"""Of an animation, if an environment does not say how fast its own frames are."""


def environment_names() -> list[str]:
    """Return the names of Gymnasium's registered environments."""
    return sorted(name for name, spec in gymnasium.registry.items() if spec.entry_point is not None)


def resolve_backend(name: str, backend: str = "auto") -> str:
    """Return the backend to step an environment with.

    "auto" is EnvPool if it is installed and has the environment, else "async" if a step takes more than `SLOW`, else "sync".

    Raises:
        ConfigError: an unknown name (with the nearest known ones), or a backend that does not exist or is not offered.
        MissingPackageError: EnvPool is asked for and not installed.
    """
    _check_name(name)
    if backend not in ("auto", *BACKENDS):
        raise ConfigError("backend", backend, f"one of {name}: auto, " + ", ".join(BACKENDS))
    if backend == "envpool":
        if importlib.util.find_spec("envpool") is None:
            raise MissingPackageError.of("the backend envpool", "envpool", "envpool")
        if not _is_in_envpool(name):
            raise ConfigError("backend", backend, f"one of {name}: auto, async, sync")
    if backend != "auto":
        return backend
    if _is_in_envpool(name):
        return "envpool"
    return "async" if _seconds_of_a_step(name) > SLOW else "sync"


def load_environment(
    name: str, backend: str = "auto", randomization_fn: RandomizationFn | None = None
) -> "GymnasiumEnvironment":
    """Return a registered Gymnasium environment by name.

    Args:
        name: such as "HalfCheetah-v5", or "module:Name-v0" for an environment that a module registers.
        backend: "auto", "envpool", "async" or "sync".
        randomization_fn: must be None.

    Raises:
        ConfigError, MissingPackageError: as `resolve_backend`; spaces that cannot be used.
        SimulatorError: the environment cannot be made.
        TypeError: a randomization_fn.
    """
    backend = resolve_backend(name, backend)
    refuse_randomization(name, randomization_fn)
    return GymnasiumEnvironment(name, backend)


class GymnasiumEnvironment:
    """An environment that Gymnasium makes.

    Numbers that it observes become vectors of float32, those that can only be 0 or 1 flags, discrete ones one-hot vectors;
    images stay as they are. Actions in a bounded box are scaled to [-1, 1]. If the environment's info has an entry "cost", that
    is its cost.

    Args:
        name: as it is registered.
        backend: one of `BACKENDS`.
    """

    def __init__(self, name: str, backend: str):
        self.name, self._backend = name, backend
        self._episode_length: int | None = None
        with _failures_of(name):
            environment = _make(name)
            self._observations, self._actions = environment.observation_space, environment.action_space
            self._own_limit = None if environment.spec is None else environment.spec.max_episode_steps
            self.action_space = _action_space(self._actions, name)
            _check_observations(self._observations, name)
            observation, _ = environment.reset(seed=0)
            self._actions.seed(0)
            self._has_cost = "cost" in environment.step(self._actions.sample())[4]
            environment.close()
        self._like = _converted(self._observations, jax.tree.map(lambda leaf: np.asarray(leaf)[None], observation))

    def limited(self, episode_length: int) -> "GymnasiumEnvironment":
        """Return the environment with this time limit, unless it has one."""
        if self._own_limit is not None:
            return self
        limited = copy.copy(self)
        limited._episode_length = episode_length
        return limited

    @property
    def most_actions(self) -> int:
        """Number of actions after which an episode is over, by the time limit."""
        return self._own_limit or self._episode_length or NO_LIMIT

    def reset(self, keys: Key[Array, "N"]) -> EnvironmentState:
        """Return states of N environments that have not begun."""
        (number,) = keys.shape
        observation = jax.tree.map(lambda leaf: jnp.zeros((number, *leaf.shape[1:]), leaf.dtype), self._like)
        nothing, no = jnp.zeros(number, jnp.float32), jnp.zeros(number, bool)
        cost = jnp.zeros((number, 1), jnp.float32) if self._has_cost else None
        return EnvironmentState(jnp.zeros(number, jnp.int32), observation, nothing, no, no, cost)

    def open(self, num_envs: int) -> Simulator:
        """Make N environments."""
        make = functools.partial(_make, _spec(self.name))
        vector: Callable[[list[int]], Any]
        if self._backend == "envpool":
            vector = functools.partial(_pool, self.name, num_envs, self.most_actions)
        elif self._backend == "async":
            vector = functools.partial(_processes, [make] * num_envs)
        else:
            vector = functools.partial(_one_after_another, [make] * num_envs)
        return self._simulator(vector)

    def film(self, act: Callable[[Any], Any], *, seed: int, max_steps: int) -> Film:
        """Play an episode and draw it.

        Args:
            act: observations `[1, *]` -> actions `[1, *]`.
            seed: of the initial state.
            max_steps: actions after which to stop.

        Raises:
            ConfigError: an environment that does not draw.
            SimulatorError: one that fails.
        """
        with _failures_of(self.name):
            environment = _make(self.name, render_mode="rgb_array")
            alone = [lambda: environment]
            simulator = self._simulator(lambda _: SyncVectorEnv(alone, autoreset_mode=AutoresetMode.DISABLED))
            observation = simulator.reset(np.asarray([seed]))
            frames: list[Any] = [environment.render()]
            total, ended = 0.0, False
            if not isinstance(frames[0], np.ndarray):
                raise ConfigError("run", self.name, "an environment that draws itself (render mode rgb_array)")
            while len(frames) <= max_steps and not ended:
                step = simulator.step(act(observation))
                observation, total = step.observation, total + float(step.reward[0])
                ended = bool(step.terminated[0] | step.truncated[0])
                frames.append(environment.render())
            simulator.close()
        return Film(frames, 1.0 / environment.metadata.get("render_fps", FRAMES_PER_SECOND), total, ended)

    def _simulator(self, make: Callable[[list[int]], Any]) -> Simulator:
        has_cost, most_actions = self._has_cost, self.most_actions
        return _Vector(self.name, make, self._observations, self._actions, has_cost=has_cost, most_actions=most_actions)


class _Vector:
    """N environments behind Gymnasium's interface for vectors."""

    def __init__(
        self,
        name: str,
        make: Callable[[list[int]], Any],
        observations: spaces.Space,
        actions: spaces.Space,
        *,
        has_cost: bool,
        most_actions: int,
    ):
        self._name, self._make, self._observations, self._actions, self._has_cost = name, make, observations, actions, has_cost
        self._vector: Any = None
        self._observation: Any = None
        self._most_actions = most_actions
        self._taken = np.zeros(0, np.int64)
        """Actions of each environment's episode, for the limit: not every environment has one, and not all of EnvPool's keep
        to the one that they are given."""

    def reset(self, seeds: Int[np.ndarray, "N"]) -> Any:
        """Start an episode in every environment."""
        wanted = [int(seed) for seed in seeds]
        with self._guarded(), warnings.catch_warnings(action="ignore"):  # about the precision of bounds
            if self._vector is None or _is_seeded_when_made(self._vector):  # not made yet, or lost to a failure
                self.close()
                self._vector = self._make(wanted)
            seeded = {} if _is_seeded_when_made(self._vector) else {"seed": wanted}
            self._observation = _converted(self._observations, self._vector.reset(**seeded)[0])
        self._taken = np.zeros(len(wanted), np.int64)
        return self._observation

    def step(self, action: Any) -> HostStep:
        """Advance every environment by one action."""
        with self._guarded():
            observation, reward, terminated, truncated, info = self._vector.step(_for_environment(self._actions, action))
            nothing = np.zeros(len(reward))
            self._taken += 1
            self._observation = _converted(self._observations, observation)
            return HostStep(
                self._observation,
                np.asarray(reward, np.float32),
                np.asarray(terminated, bool),
                (np.asarray(truncated, bool) | (self._taken >= self._most_actions)) & ~np.asarray(terminated, bool),
                np.asarray(info.get("cost", nothing), np.float32).reshape(-1, 1) if self._has_cost else None,
            )

    def restart(self, which: Bool[np.ndarray, "N"]) -> Any:
        """Start an episode in some environments; return the observations of all."""
        with self._guarded():
            fresh = _converted(self._observations, self._vector.reset(options={"reset_mask": which})[0])
        self._taken[which] = 0

        def merged(old: np.ndarray, new: np.ndarray) -> np.ndarray:
            if len(new) == len(old):
                return new
            whole = old.copy()
            whole[which] = new
            return whole

        self._observation = jax.tree.map(merged, self._observation, fresh)
        return self._observation

    def close(self) -> None:
        """Release processes and memory."""
        if self._vector is not None:
            self._vector.close()
            self._vector = None

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn what the environments raise into one sentence, and end their processes."""
        try:
            with _failures_of(self._name):
                yield
        except SimulatorError:
            if isinstance(self._vector, AsyncVectorEnv):
                _end_processes(self._vector)
            self._vector = None
            raise


@contextlib.contextmanager
def _failures_of(name: str) -> Iterator[None]:
    """Turn whatever an environment raises into one sentence."""
    try:
        yield
    except (ConfigError, MissingPackageError, SimulatorError):
        raise
    except Exception as error:
        died = isinstance(error, (EOFError, ConnectionError))
        text = "one of its processes has ended" if died else f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise SimulatorError(f"{name} failed: {text.removesuffix(': ')}") from error


class _OnlyCost(gymnasium.Wrapper):
    """Drops what the environment tells besides, except a cost: vectors gather it at a cost per entry and step."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(**kwargs)[0], {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        told = {"cost": float(info["cost"])} if "cost" in info else {}
        return observation, reward, terminated, truncated, told


def _make(name: str | EnvSpec, **kwargs: Any) -> gymnasium.Env:
    """Make an environment; by its specification where another process may not know the name."""
    with warnings.catch_warnings(action="ignore"):  # newer versions of an environment, its render modes
        environment = gymnasium.make(name, disable_env_checker=True, **kwargs)
    return _OnlyCost(environment)


def _one_after_another(make: list[Callable[[], Any]], seeds: list[int]) -> Any:
    del seeds
    return SyncVectorEnv(make, autoreset_mode=AutoresetMode.DISABLED)


def _processes(make: list[Callable[[], Any]], seeds: list[int]) -> Any:
    """Return environments in processes of their own. JAX's threads do not survive a fork, so they are forked from a server."""
    del seeds
    multiprocessing.set_forkserver_preload([__name__])
    return AsyncVectorEnv(make, context="forkserver", autoreset_mode=AutoresetMode.DISABLED)


def _end_processes(vector: AsyncVectorEnv) -> None:
    """End the processes of environments, one of which has failed: their own `close` would wait for its answer."""
    for process in vector.processes:
        process.terminate()
    for process in vector.processes:
        process.join()
    vector.closed = True


def _pool(name: str, num_envs: int, most_actions: int, seeds: list[int]) -> Any:
    import envpool

    return envpool.make_gymnasium(name, num_envs=num_envs, seed=seeds, max_episode_steps=most_actions)


def _is_seeded_when_made(vector: Any) -> bool:
    return not isinstance(vector, (AsyncVectorEnv, SyncVectorEnv))


def _is_in_envpool(name: str) -> bool:
    if importlib.util.find_spec("envpool") is None:
        return False
    import envpool

    return name in envpool.list_all_envs()


def _seconds_of_a_step(name: str) -> float:
    """Return how long one of 20 steps takes, with resets where episodes end."""
    with _failures_of(name):
        environment = _make(name)
        environment.reset(seed=0)
        environment.action_space.seed(0)
        start = time.perf_counter()
        for _ in range(20):
            if any(environment.step(environment.action_space.sample())[2:4]):
                environment.reset()
        taken = time.perf_counter() - start
        environment.close()
    return taken / 20


def _spec(name: str) -> EnvSpec:
    """Return how an environment is made; for "module:Name-v0" after the module is imported, which registers it."""
    module, _, registered = name.rpartition(":")
    if module:
        importlib.import_module(module)
    return gymnasium.spec(registered)


def _check_name(name: str) -> None:
    """Raise ConfigError for a name that is not registered, or a module that does not exist."""
    try:
        _spec(name)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) or ":" in name:
            raise ConfigError("environment", name, f"a registered Gymnasium environment: {error}") from None
        raise ConfigError("environment", name, unknown_name("Gymnasium environment", name, environment_names())) from None


def _action_space(space: spaces.Space, name: str) -> ActionSpace:
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return MultiDiscrete(tuple(int(size) for size in space.nvec.ravel()))
    if isinstance(space, spaces.MultiBinary):
        return MultiBinary(int(np.prod(space.shape)))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return Box(int(np.prod(space.shape)), *((-1.0, 1.0) if space.is_bounded() else (-np.inf, np.inf)))
    if isinstance(space, spaces.Dict):
        return Composite({key: _action_space(part, name) for key, part in space.spaces.items()})
    if isinstance(space, spaces.Tuple):
        return Composite(tuple(_action_space(part, name) for part in space.spaces))
    kinds = "Box of floats, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple"
    raise ConfigError("environment", name, f"one with actions in a space that is a {kinds}; its space is {space}")


def _for_environment(space: spaces.Space, action: Any) -> Any:
    """Turn N actions into those of the environment."""
    if isinstance(space, spaces.Dict):
        return {key: _for_environment(part, action[key]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_for_environment(part, each) for part, each in zip(space.spaces, action, strict=True))
    action = np.asarray(action)
    if isinstance(space, spaces.Discrete):
        return action.astype(space.dtype) + space.start
    action = action.reshape(-1, *space.shape)  # type: ignore[misc]  # all others have a shape
    if isinstance(space, spaces.MultiDiscrete):
        return action.astype(space.dtype) + space.start
    if not isinstance(space, spaces.Box) or not space.is_bounded():
        return action.astype(space.dtype)
    low, high = (np.asarray(bound, np.float64) for bound in (space.low, space.high))
    return (low + 0.5 * (high - low) * (action + 1.0)).astype(space.dtype)


def _check_observations(space: spaces.Space, name: str) -> None:
    """Raise ConfigError for observations that cannot become arrays of fixed shape."""
    for part in _parts(space):
        if not isinstance(part, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
            kinds = "Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these"
            raise ConfigError("environment", name, f"one with observations in a space that is a {kinds}; its space is {part}")


def _parts(space: spaces.Space) -> list[spaces.Space]:
    """Return the spaces that have no parts."""
    if isinstance(space, spaces.Dict):
        return [leaf for part in space.spaces.values() for leaf in _parts(part)]
    if isinstance(space, spaces.Tuple):
        return [leaf for part in space.spaces for leaf in _parts(part)]
    return [space]


def _converted(space: spaces.Space, observation: Any) -> Any:
    """Turn N observations into a pytree of `[N, ...]`."""
    if isinstance(space, spaces.Dict):
        return {key: _converted(part, observation[key]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return {str(i): _converted(part, observation[i]) for i, part in enumerate(space.spaces)}
    if isinstance(space, spaces.Discrete):
        return np.eye(int(space.n), dtype=np.float32)[np.asarray(observation) - int(space.start)]
    leaf = np.asarray(observation)
    if isinstance(space, spaces.MultiDiscrete):
        numbers = (leaf - space.start).reshape(len(leaf), -1)
        columns = zip(numbers.T, space.nvec.ravel(), strict=True)
        return np.concatenate([np.eye(int(count), dtype=np.float32)[column] for column, count in columns], axis=1)
    if leaf.ndim == 4:  # images
        return leaf if leaf.dtype in (np.uint8, bool) else leaf.astype(np.float32)
    flat = leaf.reshape(len(leaf), -1)
    return flat.astype(bool) if _is_flag(space) else flat.astype(np.float32)


def _is_flag(space: spaces.Space) -> bool:
    """Tell whether a space's numbers can only be 0 or 1."""
    whole = isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.integer)
    return isinstance(space, spaces.MultiBinary) or bool(whole and np.all(space.low == 0) and np.all(space.high == 1))  # type: ignore[attr-defined]
