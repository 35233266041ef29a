"""Rollouts and evaluations of environments that Python steps: the policy acts in programs, the simulator does not."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from trpo_jax.agent.agent import Agent
from trpo_jax.agent.evaluate import Episodes, initial_carry_of, make_evaluator
from trpo_jax.agent.inference import PolicyMaker
from trpo_jax.agent.metrics import break_off, forget, record_step
from trpo_jax.agent.policy_update import Metrics
from trpo_jax.agent.rollout import RolloutState, Transition, to_environment_action
from trpo_jax.agent.stages import Stages, run_stages
from trpo_jax.agent.state import Learner, TrainState
from trpo_jax.environments.host import AnyEnvironment, HostEnvironment, HostStep, Simulator
from trpo_jax.environments.protocol import EnvironmentState
from trpo_jax.environments.wrappers import select
from trpo_jax.policy.memory import Memory, policy_step
from trpo_jax.policy.normalization import NormalizerState, normalize

Programs = Mapping[str, Callable[..., Any]]

AT_ONCE = 16
"""Most episodes of an evaluation that are played at once: each may be a process."""


@runtime_checkable
class HostStage(Protocol):
    """A stage of an iteration that runs on the host. It calls programs: pure functions that the placement compiles."""

    functions: Mapping[str, Callable[..., Any]]
    """The functions of the programs, by name."""

    def describe(self, programs: Programs, *arguments: Any) -> Any:
        """Return the results as `jax.ShapeDtypeStruct`s, given arguments of that kind and programs that do the same."""
        ...

    def run(self, programs: Programs, *arguments: Any) -> Any:
        """Run the stage. Arguments and results of R trainings have a leading axis."""
        ...

    def close(self) -> None:
        """Release what the stage holds on the host. It can run again afterwards."""
        ...


class HostCollect:
    """`Agent.collect` for an environment that Python steps.

    The training state does not hold the simulator. It counts rollouts instead: if count and observation are not those that this
    object has reached, as after a resume or a failure, all environments start new episodes.
    """

    def __init__(self, agent: "HostAgent"):
        self._agent, self._environment = agent, agent.environment
        self._simulator: Simulator | None = None
        self._observation: Any = None
        self._count: Any = None
        self.functions: Mapping[str, Callable[..., Any]] = {"act": self._act, "finish": self._finish}

    def describe(self, programs: Programs, learner: Learner, rollout: RolloutState, starts: Any, key: Any) -> Any:
        """Return the described results of `run`."""
        del starts
        now, memory = rollout.environments, rollout.memory
        outer = now.reward.shape[:-1]
        time = jax.ShapeDtypeStruct(outer, jnp.int32)
        _, action, log_prob, _ = programs["act"](learner.policy, learner.normalizer, now.observation, memory, key, time)
        step = self._transition(now.observation, action, log_prob, now, now.terminated, memory)
        length = self._agent.config.unroll_length

        def stacked(leaf: Any) -> Any:
            return jax.ShapeDtypeStruct((*outer, length, *leaf.shape[len(outer) :]), leaf.dtype)

        begun = jax.ShapeDtypeStruct(outer, jnp.bool_)
        return programs["finish"](rollout, jax.tree.map(stacked, step), now.observation, memory, begun)

    def run(self, programs: Programs, learner: Learner, rollout: RolloutState, starts: Any, key: Any) -> Any:
        """Let the policy act for `unroll_length` steps in every environment."""
        del starts
        like, outer, memory = rollout.environments, rollout.environments.reward.shape[:-1], rollout.memory
        count = np.asarray(like.simulator)
        begun = not self._goes_on(count, like.observation)
        self._count = None  # until all steps are taken
        if begun:
            self._begin(key, like)
            memory = None if memory is None else memory._replace(begins=jnp.ones_like(memory.begins))
        assert self._simulator is not None
        steps: Any = None
        for time in range(self._agent.config.unroll_length):
            observation, now = _shaped(self._observation, like.observation), np.full(outer, time, np.int32)
            inside, action, log_prob, carry = programs["act"](learner.policy, learner.normalizer, observation, memory, key, now)
            step, lost, ended = _advance(self._simulator, self._observation, inside, like)
            action, log_prob, before = _flat((action, log_prob, memory), like.reward.ndim)
            row = self._transition(self._observation, action, log_prob, step, lost, before)
            steps = self._buffers(row) if steps is None else steps
            for buffer, leaf in zip(jax.tree.leaves(steps), jax.tree.leaves(row), strict=True):
                buffer[time] = leaf
            restarted = self._simulator.restart(ended) if ended.any() else step.observation
            self._observation = _cast(restarted, like.observation)
            memory = None if memory is None else Memory(carry, ended.reshape(like.reward.shape))
        self._count = count + 1
        of_each = jax.tree.map(lambda leaf: _of_each(leaf, like.reward.shape), steps)
        return programs["finish"](rollout, of_each, _shaped(self._observation, like.observation), memory, np.full(outer, begun))

    def _goes_on(self, count: np.ndarray, observation: Any) -> bool:
        """Tell whether the simulator is where a state left it."""
        if self._simulator is None or self._count is None or not np.array_equal(count, self._count):
            return False
        mine, given = jax.tree.leaves(_shaped(self._observation, observation)), jax.tree.leaves(observation)
        return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(mine, given, strict=True))

    def close(self) -> None:
        """Release the simulator. The next rollout opens another one."""
        if self._simulator is not None:
            self._simulator.close()
        self._simulator = self._count = None

    def _begin(self, key: Any, like: EnvironmentState) -> None:
        """Start an episode in every environment."""
        if self._simulator is None:
            self._simulator = self._environment.open(int(np.prod(like.reward.shape)))
        self._observation = _cast(self._simulator.reset(seeds_from(key, like.reward.shape[-1])), like.observation)

    @staticmethod
    def _transition(observation: Any, action: Any, log_prob: Any, step: Any, fault: Any, memory: Any) -> Transition:
        """Return a step as `Agent.collect` records it; `step` is a `HostStep` or an `EnvironmentState`."""
        fields: dict[str, Any] = {"reward": step.reward, "next_observation": step.observation, "cost": step.cost}
        fields |= {"terminated": step.terminated, "truncated": step.truncated, "fault": fault, "memory": memory}
        return Transition(observation, action, log_prob, **fields)

    def _buffers(self, row: Transition) -> Any:
        length = self._agent.config.unroll_length
        return jax.tree.map(lambda leaf: np.empty((length, *np.shape(leaf)), np.asarray(leaf).dtype), row)

    def _act(
        self,
        policy: Any,
        normalizer: NormalizerState | None,
        observation: Any,
        memory: Memory | None,
        key: Key[Array, ""],
        time: Int[Array, ""],
    ) -> tuple[Any, Any, Float[Array, "N"], Any]:
        """Return actions for the environment, actions as drawn, their log-probabilities, and the policy's memory."""
        observation = normalize(normalizer, observation)
        carry, distribution = policy_step(self._agent.networks.policy, policy, memory, observation)
        action = distribution.sample(jax.random.fold_in(key, time))
        inside = to_environment_action(self._environment.action_space, distribution, action)
        return inside, action, distribution.log_prob(action), carry

    def _finish(
        self, rollout: RolloutState, steps: Transition, observation: Any, memory: Memory | None, begun: Bool[Array, ""]
    ) -> tuple[RolloutState, Transition, Metrics]:
        """Return what `Agent.collect` returns."""
        episodes = forget(rollout.episodes, self._agent.config.unroll_length)
        episodes = break_off(episodes, jnp.broadcast_to(begun, rollout.environments.reward.shape))
        nothing = jax.tree.map(jnp.zeros_like, steps)
        steps = select(steps.fault, nothing, steps)._replace(fault=steps.fault)

        def record(episodes: Any, step: Transition) -> tuple[Any, None]:
            done = step.terminated | step.truncated
            return record_step(episodes, step.reward, done, step.fault, jnp.zeros_like(done), step.cost), None

        episodes, _ = jax.lax.scan(record, episodes, steps)
        environments = rollout.environments._replace(simulator=rollout.environments.simulator + 1, observation=observation)
        return self._agent.summarized(RolloutState(environments, episodes, memory), steps)


class HostEvaluate:
    """A function (params, key) -> `Episodes`, as from `make_evaluator`, for an environment that Python steps."""

    def __init__(self, environment: HostEnvironment, make_policy: PolicyMaker, *, num_episodes: int, deterministic: bool):
        self._environment, self._num_episodes = environment, num_episodes
        self._make_policy, self._deterministic = make_policy, deterministic
        self._simulator: Simulator | None = None
        self._width = -(-num_episodes // -(-num_episodes // AT_ONCE))
        self.functions: Mapping[str, Callable[..., Any]] = {"act": self._act}

    def describe(self, programs: Programs, params: Any, key: Any) -> Episodes:
        """Return the described results of `run`."""
        at_once = (*key.shape, self._width)
        like, time = self._like(at_once), jax.ShapeDtypeStruct(key.shape, jnp.int32)
        carry = jax.eval_shape(lambda: initial_carry_of(self._make_policy, at_once))
        programs["act"](params, like.observation, carry, key, time)
        shape = (*key.shape, self._num_episodes)
        cost = None if like.cost is None else _described((*shape, like.cost.shape[-1]), jnp.float32)
        return Episodes(_described(shape, jnp.float32), _described(shape, jnp.int32), cost)

    def run(self, programs: Programs, params: Any, key: Any) -> Episodes:
        """Play each episode to its end, some at a time."""
        shape = (*np.shape(key), self._width)
        rounds = -(-self._num_episodes // self._width)
        seeds = seeds_from(key, rounds * self._width).reshape(-1, rounds, self._width)
        act, played, time = functools.partial(programs["act"], params), [], 0
        for i in range(rounds):
            episodes, time = self._play(act, key, seeds[:, i].ravel(), shape, time)
            played.append(episodes)

        def joined(*leaves: np.ndarray) -> jax.Array:
            return jnp.asarray(np.take(np.concatenate(leaves, len(shape) - 1), range(self._num_episodes), len(shape) - 1))

        return jax.tree.map(joined, *played)

    def _play(self, act: Callable[..., Any], key: Any, seeds: np.ndarray, shape: tuple[int, ...], time: int) -> tuple[Any, int]:
        """Play the first episode of every environment to its end; `time` counts the steps of all rounds."""
        like, number = self._like(shape), len(seeds)
        self._simulator = self._simulator or self._environment.open(number)
        observation = self._simulator.reset(seeds)
        carry = initial_carry_of(self._make_policy, shape)
        active, total, length = np.ones(number, bool), np.zeros(number, np.float32), np.zeros(number, np.int32)
        costs = np.zeros((number, 0 if like.cost is None else like.cost.shape[-1]), np.float32)
        while active.any():
            observation = _cast(observation, like.observation)
            inside, carry = act(_shaped(observation, like.observation), carry, key, np.full(shape[:-1], time, np.int32))
            step, lost, ended = _advance(self._simulator, observation, inside, like)
            active &= ~lost
            total[active] += step.reward[active]
            length[active] += 1
            if step.cost is not None:
                costs[active] += step.cost[active]
            active &= ~ended
            observation = self._simulator.restart(ended) if ended.any() and active.any() else step.observation
            time += 1
        cost = None if like.cost is None else costs.reshape(*shape, -1)
        return Episodes(total.reshape(shape), length.reshape(shape), cost), time  # type: ignore[arg-type]  # numpy

    def close(self) -> None:
        """Release the simulator."""
        if self._simulator is not None:
            self._simulator.close()
        self._simulator = None

    def __call__(self, params: Any, key: Any) -> Episodes:
        """Play with the parameters of one training."""
        return self.run(_jitted(self), params, key)

    def _act(self, params: Any, observation: Any, carry: Any, key: Key[Array, ""], time: Int[Array, ""]) -> tuple[Any, Any]:
        policy = self._make_policy(params, self._deterministic)
        action, extras = policy(observation, jax.random.fold_in(key, time), carry)
        return action, extras.get("carry")

    def _like(self, shape: tuple[int, ...]) -> EnvironmentState:
        """Return a description of the states of `shape` environments."""
        one = jax.eval_shape(self._environment.reset, jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1)))
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*shape, *leaf.shape[1:]), leaf.dtype), one)


def evaluator_for(
    environment: AnyEnvironment, make_policy: PolicyMaker, *, num_episodes: int, deterministic: bool
) -> Callable[[Any, Any], Episodes]:
    """Return a function (params, key) -> `Episodes`, whoever steps the environment; see `make_evaluator`."""
    kind: Any = HostEvaluate if isinstance(environment, HostEnvironment) else make_evaluator
    return kind(environment, make_policy, num_episodes=num_episodes, deterministic=deterministic)


@dataclasses.dataclass(frozen=True)
class HostAgent(Agent):
    """An agent whose environment Python steps. `update` is no single program, and cannot be traced."""

    environment: Any

    @functools.cached_property
    def stages(self) -> Stages:
        """The stages of `update`; its `collect` is a `HostStage`."""
        collect: Any = HostCollect(self)
        return super().stages._replace(collect=collect)

    @functools.cached_property
    def update(self) -> Callable[[TrainState], tuple[TrainState, Metrics]]:
        """Run one iteration: `update(state) -> (state, metrics)`."""
        collect = self.stages.collect
        assert isinstance(collect, HostCollect)
        programs = {name: jax.jit(stage) for name, stage in self.stages._asdict().items() if name != "collect"}
        on_host = functools.partial(collect.run, _jitted(collect))
        return functools.partial(run_stages, Stages(collect=on_host, **programs))


def _jitted(stage: HostStage) -> Programs:
    return {name: jax.jit(function) for name, function in stage.functions.items()}


def _described(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def seeds_from(key: Any, number: int) -> np.ndarray:
    """Return `number` seeds for each key, in a row."""
    data = np.asarray(jax.random.key_data(key))
    rows = data.reshape(-1, data.shape[-1])
    return np.concatenate([np.random.default_rng(row).integers(2**31, size=number) for row in rows])


def _flat(tree: Any, ndim: int) -> Any:
    """Turn arrays `[N, ...]`, or `[R, N, ...]` if `ndim` is 2, into numpy arrays `[R·N, ...]`."""
    return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[ndim:]), tree)


def _of_each(leaf: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Turn `[T, R·N, ...]` into `[R, T, N, ...]`; without several trainings leave `[T, N, ...]`."""
    apart = leaf.reshape(leaf.shape[0], *shape, *leaf.shape[2:])
    return apart if len(shape) == 1 else np.moveaxis(apart, 1, 0)


def _shaped(tree: Any, like: Any) -> Any:
    """Turn numpy arrays `[R·N, ...]` into the shapes of others."""
    return jax.tree.map(lambda leaf, other: leaf.reshape(other.shape), tree, like)


def _cast(tree: Any, like: Any) -> Any:
    """Give numpy arrays the dtypes of others."""
    return jax.tree.map(lambda leaf, other: np.asarray(leaf, other.dtype), tree, like)


def _advance(simulator: Simulator, observation: Any, action: Any, like: EnvironmentState) -> tuple[HostStep, Any, Any]:
    """Take a step; also tell in which environments something before or after it is not finite, and whose episodes have ended.

    The step's arrays get the dtypes of `like`, which describes the environments' states.
    """
    step = simulator.step(_flat(action, like.reward.ndim))
    reward, cost = _cast((step.reward, step.cost), (like.reward, like.cost))
    step = step._replace(observation=_cast(step.observation, like.observation), reward=reward, cost=cost)
    lost = ~_finite((observation, step.observation, step.reward, step.cost))
    return step, lost, step.terminated | step.truncated | lost


def _finite(tree: Any) -> Bool[np.ndarray, "N"]:
    """Tell for which environments all numbers are finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if np.issubdtype(leaf.dtype, np.floating)]
    return functools.reduce(np.logical_and, [np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in leaves])
