"""Running iterations as fast as devices allow: stage by stage, spread over them, and one stage ahead of the host."""

import concurrent.futures
import functools
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from trpo_jax.agent.iteration import Iteration
from trpo_jax.agent.keys import as_typed_key
from trpo_jax.agent.metrics import Metrics
from trpo_jax.agent.stages import Stages, run_stages, timed_stages
from trpo_jax.agent.state import TrainState
from trpo_jax.errors import ConfigError
from trpo_jax.execution.devices import are_cores_of_one_processor, compiler_options, put
from trpo_jax.execution.memory import available_memory
from trpo_jax.execution.program import Program, compile_stages

ENVIRONMENTS = "environments"
"""Name of the mesh axis that environments are spread over."""


@runtime_checkable  # for callers that check types as they run
class Iterations(Protocol):
    """What loop and store need of whatever runs iterations: `Pipeline`, or one for many trainings at once."""

    @property
    def state_like(self) -> TrainState: ...

    def update(self, state: TrainState) -> tuple[TrainState, Metrics]: ...

    def timed_update(self, state: TrainState) -> tuple[TrainState, Metrics, dict[str, float]]: ...

    def snapshot(self, state: TrainState) -> TrainState: ...

    def place(self, host_state: TrainState) -> TrainState: ...

    def reset(self, state: TrainState) -> TrainState: ...


class Pipeline:
    """An iteration's stages, compiled for a set of devices: environments are spread over them, all else is on each.

    The programs are those of the global batch, which the compiler partitions: where they run does not change what they
    compute. Calls return before the work is done: the critic fit of one iteration may run beside the next rollout, and so may
    the initial states of the iteration after that be drawn.

    Devices that are cores of one processor share the rollout only. The policy step and the critic fit, whose many small
    sums over devices would take longer than the work does, are left to the first of them.
    """

    def __init__(self, iteration: Iteration, devices: Sequence[jax.Device] | None = None):
        devices = jax.devices() if devices is None else devices
        num_envs = iteration.config.num_envs
        if num_envs % len(devices):
            raise ConfigError("num_envs", num_envs, f"a multiple of {len(devices)}, the number of devices")
        self._mesh = jax.make_mesh((len(devices),), (ENVIRONMENTS,), axis_types=(AxisType.Auto,), devices=devices)
        everywhere, spread, by_time = self._sharding(), self._sharding(ENVIRONMENTS), self._sharding(None, ENVIRONMENTS)
        one_processor = are_cores_of_one_processor(devices)
        apart = one_processor and len(devices) > 1
        learning = SingleDeviceSharding(devices[0]) if apart else everywhere
        learns = dict.fromkeys(("learner", "critic", "hyperparameters"), learning)
        beginning: dict[str, Any] = dict.fromkeys(TrainState._fields, everywhere) | {"rollout": spread}
        parts: dict[str, Any] = beginning | learns
        self.sharding = TrainState(**parts)
        """Where the parts of a training state lie."""
        jit = functools.partial(jax.jit, compiler_options=compiler_options(devices))
        self._split = jit(lambda data: tuple(jax.random.split(as_typed_key(data))), out_shardings=everywhere)
        self._fold_in = jit(jax.random.fold_in, out_shardings=everywhere)
        self._restart = jit(iteration.restart, out_shardings=spread)
        self._copy = jit(functools.partial(jax.tree.map, jnp.copy), out_shardings=spread)
        self._begin = Program("initialization", jit(iteration.begin, out_shardings=TrainState(**beginning)))
        # XLA runs in order what one thread starts on a CPU, so that beside a rollout runs what another thread starts. Only
        # programs of one device may: those of several wait for each other, and must start in one order everywhere.
        aside = concurrent.futures.ThreadPoolExecutor(1) if one_processor else None
        beforehand = concurrent.futures.ThreadPoolExecutor(1) if one_processor and not apart else None
        advance, draw, collect, improve, fit = iteration.stages
        program = functools.partial(Program, available_memory=available_memory(devices[0]))
        self.stages: Any = Stages(
            advance=program("key splitting", jit(advance, out_shardings=everywhere), thread=beforehand),
            draw=program("environment reset", jit(draw, out_shardings=by_time), thread=beforehand),
            collect=program(
                "rollout",
                jit(collect, donate_argnums=1, out_shardings=(spread, by_time, everywhere)),
                move={0: everywhere} if apart else {},
            ),
            improve=program(
                "policy step",
                jit(improve, out_shardings=(learning, learning if apart else by_time, learning)),
                move={2: learning, 4: learning, 5: learning} if apart else {},
            ),
            fit=program(
                "critic fit",
                jit(fit, out_shardings=learning, compiler_options=compiler_options(devices, for_fit=True)),
                move={3: learning, 4: learning} if apart else {},
                thread=aside,
            ),
        )

    @functools.cached_property
    def state_like(self) -> TrainState:
        """A training state of `jax.ShapeDtypeStruct`."""
        key = self._key_like
        return self._settled(self._begin.describe(key, self.stages.draw.describe(key)))

    @property
    def _key_like(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=self._sharding())

    def compile(self, compilers: concurrent.futures.Executor, *, to_init: bool = True) -> None:
        """Trace all programs of an iteration, and begin to compile them side by side. Without it each waits for its first call.

        Args:
            compilers: of `side_by_side`.
            to_init: whether `init` is to be called, whose program comes first then.
        """
        if to_init:
            key = self._key_like
            self._begin.compile(compilers, key, self.stages.draw.compile(compilers, key))
        compile_stages(self.stages, compilers, self.state_like)

    def init(self, key: jax.Array) -> TrainState:
        """Draw networks and environments, as `Iteration.init` does."""
        draw_key, key = self._split(np.asarray(jax.random.key_data(as_typed_key(key))))
        return self._settled(self._begin(key, self.stages.draw(draw_key)))

    def _settled(self, state: TrainState) -> TrainState:
        shardings: Any = self.sharding
        return TrainState(*(put(part, where) for part, where in zip(state, shardings, strict=True)))

    def _sharding(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self._mesh, PartitionSpec(*axes))

    def update(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """Start one iteration; return the state and the metrics to be. `state.rollout` is used up."""
        return run_stages(self.stages, state)

    def snapshot(self, state: TrainState) -> TrainState:
        """Return a state that stays readable when the next iteration has started."""
        return state._replace(rollout=self._copy(state.rollout))

    def timed_update(self, state: TrainState) -> tuple[TrainState, Metrics, dict[str, float]]:
        """Do as `update`, but wait for each stage; return also each one's part of the time, as metrics."""
        return timed_stages(self.stages, state)

    def place(self, host_state: TrainState) -> TrainState:
        """Put a state that `to_host` took back onto the devices."""
        shardings: Any = self.sharding
        parts = zip(host_state, self.state_like, shardings, strict=True)
        return TrainState(*(place(part, like, where) for part, like, where in parts))

    def reset(self, state: TrainState) -> TrainState:
        """Draw all environments afresh, by a key of their own that other draws do not notice."""
        draw_key = self._fold_in(state.key, state.iteration)
        return state._replace(rollout=self._restart(self.stages.draw(draw_key)))


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


def place(host_tree: Any, like: Any, sharding: jax.sharding.Sharding) -> Any:
    """Put what `to_host` took back onto devices; `like` describes it as it was there."""
    placed = jax.tree.map(lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index]), host_tree)
    return jax.jit(functools.partial(jax.tree.map, _as_key_like, like), out_shardings=sharding)(placed)


def _as_key_like(like: Any, data: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(data) if _is_key(like) else data


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
