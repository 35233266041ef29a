"""Running iterations as fast as devices allow: stage by stage, spread over them, and one stage ahead of the host."""

import concurrent.futures
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from trpo_jax.config import ConfigError
from trpo_jax.training.iteration import Iteration
from trpo_jax.training.keys import as_typed_key
from trpo_jax.training.metrics import Metrics
from trpo_jax.training.stages import Stages, run_stages
from trpo_jax.training.state import TrainState

ENVIRONMENTS = "environments"
"""Name of the mesh axis that environments are spread over."""


class Pipeline:
    """An iteration's stages, compiled for a set of devices: environments are spread over them, all else is on each.

    The programs are those of the global batch, which the compiler partitions: where they run does not change what they
    compute. Calls return before the work is done. The critic fit of one iteration and the rollout of the next do not
    depend on each other, and may so run at once.
    """

    def __init__(self, iteration: Iteration, devices: Sequence[jax.Device] | None = None):
        devices = jax.devices() if devices is None else devices
        num_envs = iteration.config.num_envs
        if num_envs % len(devices):
            raise ConfigError("num_envs", num_envs, f"a multiple of {len(devices)}, the number of devices")
        self._mesh = jax.make_mesh((len(devices),), (ENVIRONMENTS,), axis_types=(AxisType.Auto,), devices=devices)
        everywhere, spread, by_time = self._sharding(), self._sharding(ENVIRONMENTS), self._sharding(None, ENVIRONMENTS)
        parts: dict[str, Any] = dict.fromkeys(TrainState._fields, everywhere) | {"rollout": spread}
        self.sharding = TrainState(**parts)
        """Where the parts of a training state lie."""
        self._init = iteration.init
        self._begin = jax.jit(iteration.begin, out_shardings=self.sharding)
        self._split = jax.jit(lambda data: tuple(jax.random.split(as_typed_key(data))), out_shardings=everywhere)
        self._fold_in = jax.jit(jax.random.fold_in, out_shardings=everywhere)
        self._restart = jax.jit(iteration.restart, out_shardings=spread)
        self._copy = jax.jit(functools.partial(jax.tree.map, jnp.copy), out_shardings=spread)
        next_keys, draw, collect, improve, fit = iteration.stages
        self._stages = Stages(
            next_keys=jax.jit(next_keys, out_shardings=everywhere),
            draw=jax.jit(draw, out_shardings=by_time),
            collect=jax.jit(collect, donate_argnums=1, out_shardings=(spread, by_time, everywhere)),
            improve=jax.jit(improve, out_shardings=(everywhere, by_time, everywhere)),
            fit=jax.jit(fit, out_shardings=everywhere),
        )
        if len(devices) == 1 and devices[0].platform == "cpu":
            self._stages = self._stages._replace(fit=_Aside(self._stages.fit))

    def init(self, key: jax.Array) -> TrainState:
        """Draw networks and environments, as `Iteration.init` does."""
        draw_key, key = self._split(np.asarray(jax.random.key_data(as_typed_key(key))))
        return self._begin(key, self._stages.draw(draw_key))

    def _sharding(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self._mesh, PartitionSpec(*axes))

    def update(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """Start one iteration; return the state and the metrics to be. `state.rollout` is used up."""
        return run_stages(self._stages, state)

    def snapshot(self, state: TrainState) -> TrainState:
        """Return a state that stays readable when the next iteration has started."""
        return state._replace(rollout=self._copy(state.rollout))

    def timed_update(self, state: TrainState) -> tuple[TrainState, Metrics, dict[str, float]]:
        """Do as `update`, but wait for each stage; return also each one's part of the time, as metrics."""
        stopwatch = _Stopwatch()
        stopwatch("keys", state)
        new, metrics = run_stages(self._stages, state, stopwatch)
        return new, metrics, stopwatch.shares()

    def place(self, host_state: TrainState) -> TrainState:
        """Put a state that `to_host` took back onto the devices."""
        sharding = jax.tree.broadcast(self.sharding, host_state, is_leaf=lambda x: isinstance(x, NamedSharding))
        placed = jax.tree.map(
            lambda leaf, where: jax.make_array_from_callback(leaf.shape, where, lambda index: leaf[index]), host_state, sharding
        )
        restore_keys = functools.partial(jax.tree.map, _as_key_like, self.state_like())
        return jax.jit(restore_keys, out_shardings=self.sharding)(placed)

    def state_like(self) -> TrainState:
        """Return a training state of `jax.ShapeDtypeStruct`."""
        return jax.eval_shape(self._init, jax.random.key(0))

    def reset(self, state: TrainState) -> TrainState:
        """Draw all environments afresh, by a key of their own that other draws do not notice."""
        draw_key = self._fold_in(state.key, state.iteration)
        return state._replace(rollout=self._restart(self._stages.draw(draw_key)))


def all_devices(max_devices_per_host: int | None = None) -> list[jax.Device]:
    """Return the devices of all processes, or so many of each. Raises ConfigError for a number below 1."""
    if max_devices_per_host is None:
        return jax.devices()
    if max_devices_per_host < 1:
        raise ConfigError("max_devices_per_host", max_devices_per_host, "an integer >= 1")
    hosts = range(jax.process_count())
    return [device for host in hosts for device in jax.local_devices(host)[:max_devices_per_host]]


def to_host(tree: Any) -> Any:
    """Copy a pytree into the host's memory: numpy arrays, keys as their data. All processes must call it together."""
    return jax.tree.map(_to_host, tree)


def _to_host(leaf: jax.Array) -> np.ndarray:
    data = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    if data.is_fully_replicated:
        return np.array(data.addressable_data(0))
    return np.array(data if data.is_fully_addressable else multihost_utils.process_allgather(data, tiled=True))


def host_like(tree: Any) -> Any:
    """Return what `to_host` makes of a pytree of `jax.ShapeDtypeStruct`, described."""
    return jax.eval_shape(functools.partial(jax.tree.map, lambda x: jax.random.key_data(x) if _is_key(x) else x), tree)


def _as_key_like(like: Any, data: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(data) if _is_key(like) else data


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


class _Aside:
    """Starts a program from a thread of its own: XLA runs in order what one thread starts on a CPU.

    Not for several devices, whose programs must wait for each other in one order everywhere. The program is compiled by
    the caller, whose thread is the one that JAX's settings (`with jax.default_matmul_precision(…)`) are made for.
    """

    def __init__(self, program: Any):
        self._program = program
        self._compiled: Callable[..., Any] | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1)

    def __call__(self, *arguments: Any) -> Any:
        if self._compiled is None:
            self._compiled = self._program.lower(*arguments).compile()
        return self._thread.submit(self._compiled, *arguments).result()


class _Stopwatch:
    """Waits for each result and takes the time since the last."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._last = 0.0

    def __call__(self, name: str, result: Any) -> Any:
        jax.block_until_ready(result)
        now = time.perf_counter()
        self._seconds[name], self._last = now - self._last, now
        return result

    def shares(self) -> dict[str, float]:
        seconds = {name: self._seconds[name] for name in ("rollout", "policy", "critic")}
        return {f"training/time_share_{name}": value / sum(seconds.values()) for name, value in seconds.items()}
