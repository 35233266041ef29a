"""Runs an agent's iterations as fast as devices allow: one program per stage, and stages may overlap."""

import concurrent.futures
import functools
from collections.abc import Callable
from typing import Any

import jax

from trpo_jax.agent.agent import Agent
from trpo_jax.agent.config import AgentConfig
from trpo_jax.agent.evaluate import Episodes
from trpo_jax.agent.stages import Stages, run_stages, timed_stages
from trpo_jax.agent.state import TrainState, inference_params
from trpo_jax.execution.host_program import HostProgram
from trpo_jax.execution.placement import Placement
from trpo_jax.execution.program import compile_stages


class Runner:
    """The programs of an agent, for one training or for many at once; the placement decides which.

    Calls return before the work is done. The critic fit of one iteration may run beside the next rollout, and so may the
    draw of initial states for the iteration after that.

    Args:
        agent: the agent to run.
        placement: `OneTraining`, or `ManyTrainings`, for which states, keys and metrics have a leading axis.
        hyperparameters: initial hyperparameters; None takes the agent's configuration.
        evaluate: a function from `make_evaluator`, which `Runner.evaluate` calls.
    """

    def __init__(
        self,
        agent: Agent,
        placement: Placement,
        *,
        hyperparameters: AgentConfig | None = None,
        evaluate: Callable[[Any, Any], Episodes] | None = None,
    ):
        self._placement = placement
        stages = agent.stages._asdict()
        self.stages: Any = Stages(**{name: placement.program(name, stage) for name, stage in stages.items()})
        self._begin = placement.program("begin", agent.begin)
        self._given = () if hyperparameters is None else (placement.spread(hyperparameters),)
        self._fold_in = placement.jit("fold_in", jax.random.fold_in)
        self._restart = placement.jit("restart", agent.restart)
        self._evaluate = None if evaluate is None else placement.program("evaluate", evaluate)

    @functools.cached_property
    def state_like(self) -> TrainState:
        """Description of a training state as it is saved, in `jax.ShapeDtypeStruct`s."""
        return self._placement.own(self._whole_state_like)

    @functools.cached_property
    def _whole_state_like(self) -> TrainState:
        key = self._placement.key_like
        return self._placement.settled(self._begin.describe(key, self.stages.draw.describe(key), *self._given))

    def compile(self, compilers: concurrent.futures.Executor, *, to_init: bool = True) -> None:
        """Trace all programs, and start to compile them in parallel. Otherwise each is compiled at its first call.

        The evaluation comes last, and is mostly compiled while the first iterations run.

        Args:
            compilers: from `side_by_side`.
            to_init: whether `init` will be called; its program is then compiled first.
        """
        key = self._placement.key_like
        if to_init:
            self._begin.compile(compilers, key, self.stages.draw.compile(compilers, key), *self._given)
        compile_stages(self.stages, compilers, self._whole_state_like)
        if self._evaluate is not None and jax.process_index() == 0:  # the others do not evaluate
            params = inference_params(self._whole_state_like)
            self._evaluate.compile(compilers, *self._placement.to_evaluate(params, key))

    def close(self) -> None:
        """Release what stages hold on the host."""
        for program in (self.stages.collect, self._evaluate):
            if isinstance(program, HostProgram):
                program.close()

    def init(self, keys: jax.Array) -> TrainState:
        """Initialize networks and environments, as `Agent.init` does."""
        draw_key, key = self._placement.split(keys)
        return self._placement.settled(self._begin(key, self.stages.draw(draw_key), *self._given))

    def update(self, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Start one iteration; return the future state and metrics. `state.rollout` is donated: do not use it again."""
        state, metrics = run_stages(self.stages, state)
        return state, self._placement.own(metrics)

    def timed_update(self, state: TrainState) -> tuple[TrainState, dict[str, Any], dict[str, float]]:
        """Run `update`, but wait for each stage; also return each stage's share of the time, as metrics."""
        state, metrics, shares = timed_stages(self.stages, state)
        return state, self._placement.own(metrics), shares

    def snapshot(self, state: TrainState) -> TrainState:
        """Return the state in its saved form, which stays readable when the next iteration has started."""
        return self._placement.snapshot(state)

    def place(self, host_state: TrainState) -> TrainState:
        """Move a state that `to_host` has copied back to the devices."""
        return self._placement.place(host_state, self._whole_state_like)

    def reset(self, state: TrainState) -> TrainState:
        """Restart all environments from new initial states. Their key is derived separately, so other draws do not change."""
        draw_key = self._fold_in(state.key, state.iteration)
        return state._replace(rollout=self._restart(self.stages.draw(draw_key)))

    def evaluate(self, params: Any, keys: Any) -> Episodes:
        """Play episodes with the parameters of a state."""
        assert self._evaluate is not None, "this Runner was made without `evaluate`"
        return self._placement.own(self._evaluate(*self._placement.to_evaluate(params, keys)))
