"""Many runs of one program: iterations and evaluations under vmap, each device with a share of the runs."""

import concurrent.futures
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from trpo_jax.training.devices import put
from trpo_jax.training.evaluate import Episodes
from trpo_jax.training.iteration import Iteration
from trpo_jax.training.pipeline import place
from trpo_jax.training.program import Program
from trpo_jax.training.state import TrainState, inference_params
from trpo_jax.training.trpo_config import TRPOConfig

RUNS = "runs"
"""Name of the mesh axis that runs are spread over."""


class Population:
    """An iteration of R runs as one program, in place of the `Pipeline` of one run: every array has a leading axis of R.

    Each device works on its own runs and never waits for others, whose conjugate gradients and line searches may take
    longer. Where their number does not divide R, the last run is trained more than once, and what is saved holds it once:
    so it may go on with another number of devices.
    """

    def __init__(self, iteration: Iteration, keys: jax.Array, hyperparameters: TRPOConfig, devices: Sequence[jax.Device]):
        """Take what the runs begin with: keys `[R]`, and a TRPOConfig whose float fields are `[R]`."""
        mesh = jax.make_mesh((len(devices),), (RUNS,), axis_types=(AxisType.Auto,), devices=devices)
        self._sharding = NamedSharding(mesh, PartitionSpec(RUNS))
        self._num_runs, self._num_more = len(keys), -len(keys) % len(devices)
        self._beginning = self._spread((keys, hyperparameters))
        self._init = Program(self._over_runs(iteration.init))
        self._update = Program(self._over_runs(iteration.update, donate=0))
        self._reset = self._over_runs(iteration.reset)
        self._strip = jax.jit(functools.partial(jax.tree.map, lambda leaf: jnp.copy(leaf[: self._num_runs])))
        self._evaluate: Program | None = None
        self._iteration = iteration

    @functools.cached_property
    def state_like(self) -> TrainState:
        """A training state of R runs, of `jax.ShapeDtypeStruct`."""
        return jax.eval_shape(self._strip, self._padded_like)

    @functools.cached_property
    def _padded_like(self) -> TrainState:
        return put(jax.eval_shape(jax.vmap(self._iteration.init), *self._beginning), self._sharding)

    def compile(self, *, to_init: bool) -> None:
        """Trace all programs, and begin to compile them side by side; that of `init` only where it is to be called."""
        compilers = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
        if to_init:
            self._init.compile(compilers, *self._beginning)
        self._update.compile(compilers, self._padded_like)
        if self._evaluate is not None:
            self._evaluate.compile(compilers, inference_params(self._padded_like), self._beginning[0])
        compilers.shutdown(wait=False)

    def init(self) -> TrainState:
        """Draw networks and environments of every run."""
        return self._init(*self._beginning)

    def update(self, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Start one iteration; return the state and the metrics `[R]` to be. The old state is used up."""
        return self._update(state)

    def timed_update(self, state: TrainState) -> tuple[TrainState, dict[str, Any], dict[str, float]]:
        """Do as `update`: there are no stages to time."""
        return *self._update(state), {}

    def snapshot(self, state: TrainState) -> TrainState:
        """Return the state of the R runs, which stays readable when the next iteration has started."""
        return self._strip(state)

    def reset(self, state: TrainState) -> TrainState:
        """Draw all environments of every run afresh, by keys of their own that other draws do not notice."""
        return self._reset(state)

    def place(self, host_state: TrainState) -> TrainState:
        """Put a state that `to_host` took back onto the devices."""
        return place(jax.tree.map(self._pad, host_state), self._padded_like, self._sharding)

    def evaluator(self, evaluate: Callable[[Any, Any], Episodes]) -> Callable[[Any, Any], Episodes]:
        """Return a function that does for R runs what `evaluate` does for one: (params, keys) -> `Episodes` of `[R, E]`."""
        program = self._evaluate = Program(self._over_runs(evaluate))
        return lambda params, keys: program(jax.device_put(params, self._sharding), self._spread(keys))

    def _spread(self, tree: Any) -> Any:
        """Spread arrays of R runs over the devices."""
        return jax.device_put(jax.tree.map(self._pad, tree), self._sharding)

    def _pad(self, leaf: Any) -> Any:
        """Repeat the last run, so that every device has as many."""
        if not self._num_more:
            return leaf
        join = np.concatenate if isinstance(leaf, np.ndarray) else jnp.concatenate
        return join([leaf, *[leaf[-1:]] * self._num_more])

    def _over_runs(self, function: Callable[..., Any], donate: int | tuple[int, ...] = ()) -> Callable[..., Any]:
        """Return a jitted function that does for R runs what `function` does for one."""
        spec = self._sharding.spec
        mapped = jax.shard_map(jax.vmap(function), mesh=self._sharding.mesh, in_specs=spec, out_specs=spec, check_vma=False)
        return jax.jit(mapped, donate_argnums=donate)
