"""How an agent's programs and arrays are placed on devices: for one training, or for many at once."""

import concurrent.futures
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from trpo_jax.agent.keys import as_typed_key
from trpo_jax.agent.state import TrainState
from trpo_jax.errors import ConfigError
from trpo_jax.execution.devices import are_cores_of_one_processor, compiler_options, put
from trpo_jax.execution.host_arrays import place
from trpo_jax.execution.memory import available_memory
from trpo_jax.execution.program import Program

NAMES = {
    "begin": "initialization",
    "advance": "key splitting",
    "draw": "environment reset",
    "collect": "rollout",
    "improve": "policy step",
    "fit": "critic fit",
    "evaluate": "evaluation",
}
"""What programs are called, for people."""

OLDER_EMITTERS = {"xla_cpu_use_fusion_emitters": False}
"""Of loops, on a CPU. The newer ones of jaxlib 0.10 work for many minutes on some that are left of Brax's swimmer when
shard_map has been partitioned; those of jaxlib 0.12 do not, and know no others. For what simulates only: learning is slower."""


@runtime_checkable  # for callers that check types as they run
class Placement(Protocol):
    """What a `Runner` asks: how to compile, and where arrays are to lie. Trees may be of arrays or of their descriptions."""

    @property
    def key_like(self) -> jax.ShapeDtypeStruct:
        """The keys that `split` returns, described."""
        ...

    def split(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return two keys for each training, where it begins."""
        ...

    def spread(self, tree: Any) -> Any:
        """Put what each training is given, such as hyperparameters, where it begins."""
        ...

    def program(self, stage: str, function: Callable[..., Any]) -> Program:
        """Return the program of a stage, a key of `NAMES`; it takes its arguments from wherever they lie."""
        ...

    def jit(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a small function of a state's parts jitted: "restart" or "fold_in"."""
        ...

    def settled(self, state: TrainState) -> TrainState:
        """Move a newly initialized state to the devices that its parts stay on."""
        ...

    def snapshot(self, state: TrainState) -> TrainState:
        """Return a state that stays readable when the next iteration has started."""
        ...

    def own(self, tree: Any) -> Any:
        """Return results without what was computed only for the sake of even shares."""
        ...

    def to_evaluate(self, params: Any, keys: Any) -> tuple[Any, Any]:
        """Put what an evaluation takes where it runs."""
        ...

    def place(self, host_state: TrainState, like: TrainState) -> TrainState:
        """Put a state that `to_host` took back onto the devices."""
        ...


class OneTraining:
    """Spreads the environments of one training over devices; all else is on each.

    The programs are those of the global batch, which the compiler partitions: where they run does not change what they
    compute.

    Devices that are cores of one processor share the rollout only. The policy step and the critic fit, whose many small
    sums over devices would take longer than the work does, are left to the first of them.
    """

    def __init__(self, num_envs: int, devices: Sequence[jax.Device] | None = None):
        devices = jax.devices() if devices is None else devices
        if num_envs % len(devices):
            raise ConfigError("num_envs", num_envs, f"a multiple of {len(devices)}, the number of devices")
        self._devices = devices
        mesh = jax.make_mesh((len(devices),), ("environments",), axis_types=(AxisType.Auto,), devices=devices)
        self.everywhere = NamedSharding(mesh, PartitionSpec())
        self.by_environment = NamedSharding(mesh, PartitionSpec("environments"))
        self.by_time = NamedSharding(mesh, PartitionSpec(None, "environments"))
        one_processor = are_cores_of_one_processor(devices)
        self.learns_apart = one_processor and len(devices) > 1
        self.learning: Any = SingleDeviceSharding(devices[0]) if self.learns_apart else self.everywhere
        # XLA runs in order what one thread starts on a CPU, so that beside a rollout runs what another thread starts. Only
        # programs of one device may: those of several wait for each other, and must start in one order everywhere.
        self._aside = concurrent.futures.ThreadPoolExecutor(1) if one_processor else None
        self._beforehand = concurrent.futures.ThreadPoolExecutor(1) if one_processor and not self.learns_apart else None
        self._copy = self.jit("copy", functools.partial(jax.tree.map, jnp.copy))

    def program(self, stage: str, function: Callable[..., Any]) -> Program:
        """Return the program of a stage."""
        if stage == "evaluate":  # by this process alone, on its first device
            jitted = jax.jit(function, compiler_options=compiler_options(jax.local_devices()))
            return Program(NAMES[stage], jitted)
        bring: dict[str, Callable[..., tuple[Any, ...]]] = {
            "collect": self._to_collect,
            "improve": self._to_improve,
            "fit": self._to_fit,
        }
        threads = {"advance": self._beforehand, "draw": self._beforehand, "fit": self._aside}
        return Program(
            NAMES[stage],
            jax.jit(
                function,
                donate_argnums=1 if stage == "collect" else (),  # the rollout's state
                out_shardings=self._results_of(stage),
                compiler_options=compiler_options(self._devices, for_fit=stage == "fit"),
            ),
            thread=threads.get(stage),
            bring=bring.get(stage) if self.learns_apart else None,
            available_memory=None if stage == "begin" else available_memory(self._devices[0]),
        )

    def _results_of(self, stage: str) -> Any:
        beginning = dict.fromkeys(TrainState._fields, self.everywhere) | {"rollout": self.by_environment}
        return {
            "begin": TrainState(**beginning),  # type: ignore[arg-type]
            "advance": self.everywhere,
            "draw": self.by_time,
            "collect": (self.by_environment, self.by_time, self.everywhere),
            "improve": (self.learning, self.learning if self.learns_apart else self.by_time, self.learning),
            "fit": self.learning,
        }[stage]

    def _to_collect(self, learner: Any, rollout: Any, starts: Any, key: Any) -> tuple[Any, ...]:
        return put(learner, self.everywhere), rollout, starts, key

    def _to_improve(
        self, learner: Any, critic: Any, transition: Any, hyperparameters: Any, key: Any, progress: Any
    ) -> tuple[Any, ...]:
        transition, key, progress = (put(each, self.learning) for each in (transition, key, progress))
        return learner, critic, transition, hyperparameters, key, progress

    def _to_fit(self, critic: Any, regression: Any, hyperparameters: Any, key: Any, progress: Any) -> tuple[Any, ...]:
        return critic, regression, hyperparameters, put(key, self.learning), put(progress, self.learning)

    def jit(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a small function jitted."""
        where = dict.fromkeys(("split", "fold_in"), self.everywhere) | dict.fromkeys(("restart", "copy"), self.by_environment)
        return jax.jit(function, out_shardings=where[name], compiler_options=compiler_options(self._devices))

    @property
    def key_like(self) -> jax.ShapeDtypeStruct:
        """A key on all devices, described."""
        return jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=self.everywhere)

    def split(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return two keys on all devices; the key of each process is the same."""
        split = self.jit("split", lambda data: tuple(jax.random.split(as_typed_key(data))))
        return split(np.asarray(jax.random.key_data(as_typed_key(keys))))

    def spread(self, tree: Any) -> Any:
        """Put something on all devices."""
        return put(tree, self.everywhere)

    def to_evaluate(self, params: Any, keys: Any) -> tuple[Any, Any]:
        """Put what an evaluation takes on this process's first device."""
        return put((params, keys), SingleDeviceSharding(jax.local_devices()[0]))

    def settled(self, state: TrainState) -> TrainState:
        """Move what learns to the devices that learn."""
        parts = zip(state, self._shardings, strict=True)
        return TrainState(*(put(part, where) for part, where in parts))

    @property
    def _shardings(self) -> Any:
        """Where the parts of a training state lie."""
        learns = dict.fromkeys(("learner", "critic", "hyperparameters"), self.learning)
        parts: dict[str, Any] = dict.fromkeys(TrainState._fields, self.everywhere) | learns | {"rollout": self.by_environment}
        return TrainState(**parts)

    def own(self, tree: Any) -> Any:
        """Return all of it."""
        return tree

    def snapshot(self, state: TrainState) -> TrainState:
        """Copy the part that the next iteration uses up."""
        return state._replace(rollout=self._copy(state.rollout))

    def place(self, host_state: TrainState, like: TrainState) -> TrainState:
        """Put a state that `to_host` took back onto the devices."""
        parts = zip(host_state, like, self._shardings, strict=True)
        return TrainState(*(place(part, part_like, where) for part, part_like, where in parts))


class ManyTrainings:
    """Runs R trainings side by side: every array has a leading axis of R, and each device has a share of it.

    A device works on its own trainings and never waits for others, whose conjugate gradients and line searches may take
    longer. Where their number does not divide R, the last one is run more than once, and what is saved holds it once: so
    they may go on with another number of devices.
    """

    def __init__(self, num_trainings: int, devices: Sequence[jax.Device]):
        mesh = jax.make_mesh((len(devices),), ("trainings",), axis_types=(AxisType.Auto,), devices=devices)
        self._sharding = NamedSharding(mesh, PartitionSpec("trainings"))
        self._devices = devices
        self._num_trainings, self._num_more = num_trainings, -num_trainings % len(devices)
        self._strip = jax.jit(functools.partial(jax.tree.map, lambda leaf: jnp.copy(leaf[:num_trainings])))

    def program(self, stage: str, function: Callable[..., Any]) -> Program:
        """Return a program that does for R trainings what a stage does for one."""
        return Program(NAMES[stage], self.jit(stage, function))

    def jit(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a jitted function that does for R trainings what `function` does for one."""
        simulates = name in ("draw", "collect", "evaluate")
        older = simulates and self._devices[0].platform == "cpu" and jax.__version_info__ < (0, 11)
        options = OLDER_EMITTERS if older else compiler_options(self._devices, for_fit=name == "fit")
        spec = self._sharding.spec
        mapped = jax.shard_map(jax.vmap(function), mesh=self._sharding.mesh, in_specs=spec, out_specs=spec, check_vma=False)
        return jax.jit(mapped, donate_argnums=1 if name == "collect" else (), compiler_options=options)

    @property
    def key_like(self) -> jax.ShapeDtypeStruct:
        """Keys of all trainings, described."""
        number = self._num_trainings + self._num_more
        return jax.ShapeDtypeStruct((number,), jax.random.key(0).dtype, sharding=self._sharding)

    def split(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return two keys for each of R."""
        return self.spread(tuple(jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)))

    def spread(self, tree: Any) -> Any:
        """Spread arrays of R trainings over the devices."""
        return jax.device_put(jax.tree.map(self._pad, tree), self._sharding)

    def to_evaluate(self, params: Any, keys: Any) -> tuple[Any, Any]:
        """Spread what an evaluation takes; parameters are those of a state, and so of as many as the devices run."""
        if isinstance(keys, jax.ShapeDtypeStruct):
            return put((params, keys), self._sharding)
        return jax.device_put(params, self._sharding), self.spread(keys)

    def settled(self, state: TrainState) -> TrainState:
        """Return the state, whose parts stay where they are; a description of it gets their sharding."""
        is_described = isinstance(jax.tree.leaves(state)[0], jax.ShapeDtypeStruct)
        return put(state, self._sharding) if is_described else state

    def own(self, tree: Any) -> Any:
        """Leave out what was computed for the sake of even shares."""
        if isinstance(jax.tree.leaves(tree)[0], jax.ShapeDtypeStruct):
            return jax.eval_shape(self._strip, tree)
        return self._strip(tree) if self._num_more else tree

    def snapshot(self, state: TrainState) -> TrainState:
        """Return the state of the R trainings, which stays readable when the next iteration has started."""
        return self._strip(state)

    def place(self, host_state: TrainState, like: TrainState) -> TrainState:
        """Put a state that `to_host` took back onto the devices."""
        return place(jax.tree.map(self._pad, host_state), like, self._sharding)

    def _pad(self, leaf: Any) -> Any:
        """Repeat the last training, so that every device has as many."""
        if not self._num_more:
            return leaf
        join = np.concatenate if isinstance(leaf, np.ndarray) else jnp.concatenate
        return join([leaf, *[leaf[-1:]] * self._num_more])
