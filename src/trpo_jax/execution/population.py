"""Many runs of one program: iterations and evaluations under vmap, each device with a share of the runs."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from trpo_jax.agent.evaluate import Episodes
from trpo_jax.agent.iteration import Iteration
from trpo_jax.agent.stages import Stages, run_stages, timed_stages
from trpo_jax.agent.state import TrainState, inference_params
from trpo_jax.agent.trpo_config import TRPOConfig
from trpo_jax.execution.devices import compiler_options, put
from trpo_jax.execution.pipeline import place
from trpo_jax.execution.program import Program, compile_stages, side_by_side

RUNS = "runs"
"""Name of the mesh axis that runs are spread over."""

OLDER_EMITTERS = {"xla_cpu_use_fusion_emitters": False}
"""Of loops, on a CPU. The newer ones of jaxlib 0.10 work for many minutes on some that are left of Brax's swimmer when
shard_map has been partitioned; those of jaxlib 0.12 do not, and know no others. For what simulates only: learning is slower."""


class Population:
    """Iterations of R runs at once, in place of the `Pipeline` of one run: every array has a leading axis of R.

    Each device works on its own runs and never waits for others, whose conjugate gradients and line searches may take
    longer. Where their number does not divide R, the last run is trained more than once, and what is saved holds it once:
    so it may go on with another number of devices.
    """

    def __init__(self, iteration: Iteration, keys: jax.Array, *, hyperparameters: TRPOConfig, devices: Sequence[jax.Device]):
        """Take what the runs begin with: typed keys `[R]`, and a TRPOConfig whose float fields are `[R]`."""
        mesh = jax.make_mesh((len(devices),), (RUNS,), axis_types=(AxisType.Auto,), devices=devices)
        self._sharding = NamedSharding(mesh, PartitionSpec(RUNS))
        self._num_runs, self._num_more = len(keys), -len(keys) % len(devices)
        self._are_cpus = devices[0].platform == "cpu"
        draw_keys, begin_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        self._draw_keys, self._begin_keys, self._hyperparameters = self._spread((draw_keys, begin_keys, hyperparameters))
        advance, draw, collect, improve, fit = iteration.stages
        self._stages: Any = Stages(
            advance=Program("key splitting", self._over_runs(advance)),
            draw=Program("environment reset", self._over_runs(draw, simulates=True)),
            collect=Program("rollout", self._over_runs(collect, donate=1, simulates=True)),
            improve=Program("policy step", self._over_runs(improve)),
            fit=Program("critic fit", self._over_runs(fit, for_fit=True)),
        )
        self._begin = Program("initialization", self._over_runs(iteration.begin))
        self._restart, self._fold_in = self._over_runs(iteration.restart), self._over_runs(jax.random.fold_in)
        self._strip = jax.jit(functools.partial(jax.tree.map, lambda leaf: jnp.copy(leaf[: self._num_runs])))
        self._evaluate: Program | None = None

    @functools.cached_property
    def state_like(self) -> TrainState:
        """A training state of R runs, of `jax.ShapeDtypeStruct`."""
        return jax.eval_shape(self._strip, self._padded_like)

    @functools.cached_property
    def _padded_like(self) -> TrainState:
        starts = self._stages.draw.describe(self._draw_keys)
        return put(self._begin.describe(self._begin_keys, starts, self._hyperparameters), self._sharding)

    def compile(self, *, to_init: bool) -> None:
        """Trace all programs, and begin to compile them side by side, those that `init` needs first, if it is to be called."""
        with side_by_side() as compilers:
            if to_init:
                starts = self._stages.draw.compile(compilers, self._draw_keys)
                self._begin.compile(compilers, self._begin_keys, starts, self._hyperparameters)
            if self._evaluate is not None:
                self._evaluate.compile(compilers, inference_params(self._padded_like), self._draw_keys)
            compile_stages(self._stages, compilers, self._padded_like)

    def init(self) -> TrainState:
        """Draw networks and environments of every run."""
        return self._begin(self._begin_keys, self._stages.draw(self._draw_keys), self._hyperparameters)

    def update(self, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Start one iteration; return the state and the metrics `[R]` to be. `state.rollout` is used up."""
        state, metrics = run_stages(self._stages, state)
        return state, self._own(metrics)

    def timed_update(self, state: TrainState) -> tuple[TrainState, dict[str, Any], dict[str, float]]:
        """Do as `update`, but wait for each stage; return also each one's part of the time, as metrics."""
        state, metrics, shares = timed_stages(self._stages, state)
        return state, self._own(metrics), shares

    def snapshot(self, state: TrainState) -> TrainState:
        """Return the state of the R runs, which stays readable when the next iteration has started."""
        return self._strip(state)

    def reset(self, state: TrainState) -> TrainState:
        """Draw all environments of every run afresh, by keys of their own that other draws do not notice."""
        starts = self._stages.draw(self._fold_in(state.key, state.iteration))
        return state._replace(rollout=self._restart(starts))

    def place(self, host_state: TrainState) -> TrainState:
        """Put a state that `to_host` took back onto the devices."""
        return place(jax.tree.map(self._pad, host_state), self._padded_like, self._sharding)

    def evaluator(self, evaluate: Callable[[Any, Any], Episodes]) -> Callable[[Any, Any], Episodes]:
        """Return a function that does for R runs what `evaluate` does for one: (params, keys) -> `Episodes` of `[R, E]`."""
        program = self._evaluate = Program("evaluation", self._over_runs(evaluate, simulates=True))
        return lambda params, keys: self._own(program(jax.device_put(params, self._sharding), self._spread(keys)))

    def _own(self, tree: Any) -> Any:
        """Leave out what was computed for the sake of even shares."""
        return self._strip(tree) if self._num_more else tree

    def _spread(self, tree: Any) -> Any:
        """Spread arrays of R runs over the devices."""
        return jax.device_put(jax.tree.map(self._pad, tree), self._sharding)

    def _pad(self, leaf: Any) -> Any:
        """Repeat the last run, so that every device has as many."""
        if not self._num_more:
            return leaf
        join = np.concatenate if isinstance(leaf, np.ndarray) else jnp.concatenate
        return join([leaf, *[leaf[-1:]] * self._num_more])

    def _over_runs(
        self,
        function: Callable[..., Any],
        *,
        donate: int | tuple[int, ...] = (),
        simulates: bool = False,
        for_fit: bool = False,
    ) -> Callable[..., Any]:
        """Return a jitted function that does for R runs what `function` does for one."""
        older = simulates and self._are_cpus and jax.__version_info__ < (0, 11)
        devices = self._sharding.mesh.devices.ravel().tolist()
        options = OLDER_EMITTERS if older else compiler_options(devices, for_fit=for_fit)
        spec = self._sharding.spec
        mapped = jax.shard_map(jax.vmap(function), mesh=self._sharding.mesh, in_specs=spec, out_specs=spec, check_vma=False)
        return jax.jit(mapped, donate_argnums=donate, compiler_options=options)
