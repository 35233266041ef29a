"""How an agent's programs and arrays are placed on devices: for one training, or for many at once."""

import concurrent.futures
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from trpo_jax.agent.host import HostStage
from trpo_jax.agent.keys import as_typed_key
from trpo_jax.agent.state import TrainState
from trpo_jax.errors import ConfigError
from trpo_jax.execution.devices import are_cores_of_one_processor, compiler_options, put
from trpo_jax.execution.host_arrays import place
from trpo_jax.execution.host_program import HostProgram
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
    "act": "policy",
    "finish": "end of the rollout",
}
"""Human-readable names of the programs."""

OLDER_EMITTERS = {"xla_cpu_use_fusion_emitters": False}
"""Compile loops on a CPU with XLA's older emitters. With the newer ones, jaxlib 0.10 takes many minutes for some loops of
Brax's swimmer under a partitioned shard_map; jaxlib 0.12 does not, and has no older ones. Only for programs that simulate:
learning is slower."""


@runtime_checkable  # for callers that check types at run time
class Placement(Protocol):
    """How a `Runner` compiles programs, and where it puts arrays. Trees hold arrays or `jax.ShapeDtypeStruct`s."""

    @property
    def key_like(self) -> jax.ShapeDtypeStruct:
        """`jax.ShapeDtypeStruct` of the keys that `split` returns."""
        ...

    def split(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return two keys for each training, on the devices where it begins."""
        ...

    def spread(self, tree: Any) -> Any:
        """Put each training's inputs, such as hyperparameters, on the devices where it begins."""
        ...

    def program(self, stage: str, function: Callable[..., Any] | HostStage) -> Program | HostProgram:
        """Return the program of a stage, a key of `NAMES`. Its arguments may lie on any devices."""
        ...

    def jit(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a small jitted function of parts of a state; `name` is "restart" or "fold_in"."""
        ...

    def settled(self, state: TrainState) -> TrainState:
        """Move a newly initialized state to the devices that its parts stay on."""
        ...

    def snapshot(self, state: TrainState) -> TrainState:
        """Return a state that stays readable when the next iteration has started."""
        ...

    def own(self, tree: Any) -> Any:
        """Return results without the padding that gives every device an equal share."""
        ...

    def to_evaluate(self, params: Any, keys: Any) -> tuple[Any, Any]:
        """Put the arguments of an evaluation on the devices where it runs."""
        ...

    def place(self, host_state: TrainState, like: TrainState) -> TrainState:
        """Move a state that `to_host` has copied back to the devices."""
        ...


class OneTraining:
    """Spreads the environments of one training over devices; everything else is on each device.

    Programs are written for the global batch and the compiler partitions them: the devices do not change what is computed.

    CPU cores used as devices share only the rollout. The first core does the policy step and the critic fit, because their
    many small sums over devices would take longer than the work itself.
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
        # On a CPU, XLA runs the programs that one thread starts in order. To run beside a rollout, a program must be started
        # by another thread. Only single-device programs may: others wait for each other, and need the same order everywhere.
        self._aside = concurrent.futures.ThreadPoolExecutor(1) if one_processor else None
        self._beforehand = concurrent.futures.ThreadPoolExecutor(1) if one_processor and not self.learns_apart else None
        self._copy = self.jit("copy", functools.partial(jax.tree.map, jnp.copy))

    def program(self, stage: str, function: Callable[..., Any] | HostStage) -> Program | HostProgram:
        """Return the program of a stage."""
        if isinstance(function, HostStage):
            options = compiler_options(self._devices)
            programs = {
                name: Program(NAMES[name], jax.jit(each, compiler_options=options)) for name, each in function.functions.items()
            }
            return HostProgram(function, programs)
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
        """Return the function, jitted."""
        where = dict.fromkeys(("split", "fold_in"), self.everywhere) | dict.fromkeys(("restart", "copy"), self.by_environment)
        return jax.jit(function, out_shardings=where[name], compiler_options=compiler_options(self._devices))

    @property
    def key_like(self) -> jax.ShapeDtypeStruct:
        """`jax.ShapeDtypeStruct` of a key on all devices."""
        return jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=self.everywhere)

    def split(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return two keys on all devices. Every process passes the same key."""
        split = self.jit("split", lambda data: tuple(jax.random.split(as_typed_key(data))))
        return split(np.asarray(jax.random.key_data(as_typed_key(keys))))

    def spread(self, tree: Any) -> Any:
        """Put a tree on all devices."""
        return put(tree, self.everywhere)

    def to_evaluate(self, params: Any, keys: Any) -> tuple[Any, Any]:
        """Put the arguments of an evaluation on this process's first device."""
        return put((params, keys), SingleDeviceSharding(jax.local_devices()[0]))

    def settled(self, state: TrainState) -> TrainState:
        """Move learner, critic and hyperparameters to the devices that learn."""
        parts = zip(state, self._shardings, strict=True)
        return TrainState(*(put(part, where) for part, where in parts))

    @property
    def _shardings(self) -> Any:
        """Sharding of each part of a training state."""
        learns = dict.fromkeys(("learner", "critic", "hyperparameters"), self.learning)
        parts: dict[str, Any] = dict.fromkeys(TrainState._fields, self.everywhere) | learns | {"rollout": self.by_environment}
        return TrainState(**parts)

    def own(self, tree: Any) -> Any:
        """Return the tree as it is: it has no padding."""
        return tree

    def snapshot(self, state: TrainState) -> TrainState:
        """Copy the rollout state, whose buffers the next iteration reuses."""
        return state._replace(rollout=self._copy(state.rollout))

    def place(self, host_state: TrainState, like: TrainState) -> TrainState:
        """Move a state that `to_host` has copied back to the devices."""
        parts = zip(host_state, like, self._shardings, strict=True)
        return TrainState(*(place(part, part_like, where) for part, part_like, where in parts))


class ManyTrainings:
    """Runs R trainings side by side: every array has a leading axis of R, and each device has a share of it.

    A device never waits for the others, whose conjugate gradients and line searches may take longer. If the number of devices
    does not divide R, copies of the last training pad the axis. Saved states have no padding, so trainings can resume on
    another number of devices.
    """

    def __init__(self, num_trainings: int, devices: Sequence[jax.Device]):
        mesh = jax.make_mesh((len(devices),), ("trainings",), axis_types=(AxisType.Auto,), devices=devices)
        self._sharding = NamedSharding(mesh, PartitionSpec("trainings"))
        self._devices = devices
        self._num_trainings, self._num_more = num_trainings, -num_trainings % len(devices)
        self._strip = jax.jit(functools.partial(jax.tree.map, lambda leaf: jnp.copy(leaf[:num_trainings])))

    def program(self, stage: str, function: Callable[..., Any] | HostStage) -> Program | HostProgram:
        """Return a program that runs a stage for R trainings."""
        if isinstance(function, HostStage):
            programs = {name: Program(NAMES[name], self.jit(name, each)) for name, each in function.functions.items()}
            return HostProgram(function, programs)
        return Program(NAMES[stage], self.jit(stage, function))

    def jit(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a jitted function that applies `function` to each of R trainings."""
        simulates = name in ("draw", "collect", "evaluate")
        older = simulates and self._devices[0].platform == "cpu" and jax.__version_info__ < (0, 11)
        options = OLDER_EMITTERS if older else compiler_options(self._devices, for_fit=name == "fit")
        spec = self._sharding.spec
        mapped = jax.shard_map(jax.vmap(function), mesh=self._sharding.mesh, in_specs=spec, out_specs=spec, check_vma=False)
        return jax.jit(mapped, donate_argnums=1 if name == "collect" else (), compiler_options=options)

    @property
    def key_like(self) -> jax.ShapeDtypeStruct:
        """`jax.ShapeDtypeStruct` of the keys of all trainings, with padding."""
        number = self._num_trainings + self._num_more
        return jax.ShapeDtypeStruct((number,), jax.random.key(0).dtype, sharding=self._sharding)

    def split(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return two keys for each of R trainings."""
        return self.spread(tuple(jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)))

    def spread(self, tree: Any) -> Any:
        """Spread arrays of R trainings over the devices."""
        return jax.device_put(jax.tree.map(self._pad, tree), self._sharding)

    def to_evaluate(self, params: Any, keys: Any) -> tuple[Any, Any]:
        """Spread the arguments of an evaluation. Parameters come from a state, and so are padded already."""
        if isinstance(keys, jax.ShapeDtypeStruct):
            return put((params, keys), self._sharding)
        return jax.device_put(params, self._sharding), self.spread(keys)

    def settled(self, state: TrainState) -> TrainState:
        """Return the state unchanged; only a description of it gets the sharding."""
        is_described = isinstance(jax.tree.leaves(state)[0], jax.ShapeDtypeStruct)
        return put(state, self._sharding) if is_described else state

    def own(self, tree: Any) -> Any:
        """Return results without the padding."""
        if isinstance(jax.tree.leaves(tree)[0], jax.ShapeDtypeStruct):
            return jax.eval_shape(self._strip, tree)
        return self._strip(tree) if self._num_more else tree

    def snapshot(self, state: TrainState) -> TrainState:
        """Return a copy of the R trainings' state that stays readable when the next iteration has started."""
        return self._strip(state)

    def place(self, host_state: TrainState, like: TrainState) -> TrainState:
        """Move a state that `to_host` has copied back to the devices."""
        return place(jax.tree.map(self._pad, host_state), like, self._sharding)

    def _pad(self, leaf: Any) -> Any:
        """Repeat the last training, so that every device has an equal share."""
        if not self._num_more:
            return leaf
        join = np.concatenate if isinstance(leaf, np.ndarray) else jnp.concatenate
        return join([leaf, *[leaf[-1:]] * self._num_more])
