"""Running an agent's iterations as fast as devices allow: stage by stage, and one stage ahead of the host."""

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
from trpo_jax.execution.placement import Placement
from trpo_jax.execution.program import compile_stages


class Runner:
    """The programs of an agent, for one training or for many at once, as the placement says.

    Calls return before the work is done: the critic fit of one iteration may run beside the next rollout, and so may the
    initial states of the iteration after that be drawn.

    Args:
        agent: whose iterations.
        placement: `OneTraining`, or `ManyTrainings`, for which states, keys and metrics have a leading axis.
        hyperparameters: what the trainings begin with, where that is not the agent's configuration.
        evaluate: of `make_evaluator`, for `evaluate`.
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
        """A training state of `jax.ShapeDtypeStruct`, as it is saved."""
        return self._placement.own(self._whole_state_like)

    @functools.cached_property
    def _whole_state_like(self) -> TrainState:
        key = self._placement.key_like
        return self._placement.settled(self._begin.describe(key, self.stages.draw.describe(key), *self._given))

    def compile(self, compilers: concurrent.futures.Executor, *, to_init: bool = True) -> None:
        """Trace all programs, and begin to compile them side by side. Without it each waits for its first call.

        The evaluation's is last, and mostly compiled while the first iterations run.

        Args:
            compilers: of `side_by_side`.
            to_init: whether `init` is to be called, whose program comes first then.
        """
        key = self._placement.key_like
        if to_init:
            self._begin.compile(compilers, key, self.stages.draw.compile(compilers, key), *self._given)
        compile_stages(self.stages, compilers, self._whole_state_like)
        if self._evaluate is not None and jax.process_index() == 0:  # the others do not evaluate
            params = inference_params(self._whole_state_like)
            self._evaluate.compile(compilers, *self._placement.to_evaluate(params, key))

    def init(self, keys: jax.Array) -> TrainState:
        """Draw networks and environments, as `Agent.init` does."""
        draw_key, key = self._placement.split(keys)
        return self._placement.settled(self._begin(key, self.stages.draw(draw_key), *self._given))

    def update(self, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Start one iteration; return the state and the metrics to be. `state.rollout` is used up."""
        state, metrics = run_stages(self.stages, state)
        return state, self._placement.own(metrics)

    def timed_update(self, state: TrainState) -> tuple[TrainState, dict[str, Any], dict[str, float]]:
        """Do as `update`, but wait for each stage; return also each one's part of the time, as metrics."""
        state, metrics, shares = timed_stages(self.stages, state)
        return state, self._placement.own(metrics), shares

    def snapshot(self, state: TrainState) -> TrainState:
        """Return a state, as it is saved, that stays readable when the next iteration has started."""
        return self._placement.snapshot(state)

    def place(self, host_state: TrainState) -> TrainState:
        """Put a state that `to_host` took back onto the devices."""
        return self._placement.place(host_state, self._whole_state_like)

    def reset(self, state: TrainState) -> TrainState:
        """Draw all environments afresh, by a key of their own that other draws do not notice."""
        draw_key = self._fold_in(state.key, state.iteration)
        return state._replace(rollout=self._restart(self.stages.draw(draw_key)))

    def evaluate(self, params: Any, keys: Any) -> Episodes:
        """Play episodes with the parameters of a state."""
        assert self._evaluate is not None, "made without an evaluation"
        return self._placement.own(self._evaluate(*self._placement.to_evaluate(params, keys)))
