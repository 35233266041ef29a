"""Units that train: policies are kept on the way, and evaluated together when the training has ended."""

import contextlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelerator_parts.speed import our_config
from accelerator_parts.unit import Context, LeftOut
from brax_ppo import PUBLISHED, Stopwatch, steady_stretch, train_ppo
from trpo_jax import make_trpo, train
from trpo_jax.agent.evaluate import make_evaluator
from trpo_jax.environments.brax import load_environment, resolve_backend
from trpo_jax.execution.devices import compiler_options
from trpo_jax.execution.placement import ManyTrainings
from trpo_jax.execution.runner import Runner
from trpo_jax.training.loop import train_to_end
from trpo_jax.training.milestones import make_milestones
from trpo_jax.training.reporting import Callbacks

GOALS = (3000, 4000, 5000, 6000, 7000, 8000)

Row = dict[str, Any]


class OutOfTime(Exception):
    """Ends a training from within its callback."""


class Keeper(Stopwatch):
    """A stopwatch that keeps a copy of every policy it is shown, and ends the training when its time is up.

    Args:
        stop_at: `time.monotonic()` after which the next policy is the last.
    """

    def __init__(self, stop_at: float) -> None:
        super().__init__()
        self.stop_at, self.began = stop_at, self._resumed
        self.steps: list[int] = []
        self.policies: list[Any] = []
        self.make_policy: Any = None
        self.first_iteration: float | None = None
        """Seconds to its end, visits left out."""
        self.was_stopped = False

    def visit(self, steps: int, make_policy: Any, params: Any) -> None:
        self.make_policy = make_policy
        self.steps.append(steps)
        self.policies.append(jax.tree.map(np.array, params))
        if time.monotonic() > self.stop_at:
            self.was_stopped = True
            raise OutOfTime

    def iteration(self, steps: int, metrics: Any) -> None:
        """Notice the end of the first iteration; called after each."""
        if self.first_iteration is None:
            self.first_iteration = sum(self.stretches) + time.perf_counter() - self._resumed


def ours(
    context: Context, *, environment: str, seed: int, num_timesteps: int, num_evals: int, episodes: int, **settings: Any
) -> Row:
    """Train with the settings that ship for an accelerator, some of them changed."""
    keeper = Keeper(context.stop_at)
    trpo = make_trpo(load_environment(environment), our_config(environment, **settings))
    made = time.perf_counter() - keeper.began
    options = {"num_evals": num_evals, "policy_params_fn": keeper, "iteration_fn": keeper.iteration, "seed": seed}
    with contextlib.suppress(OutOfTime):
        train(trpo.environment, num_timesteps, config=trpo.config, num_eval_envs=0, max_devices_per_host=1, **options)
    row = {"algorithm": "trpo_jax", "environment": environment, "seed": seed, "settings": settings}
    return row | summary(keeper, trpo.environment, context, episodes=episodes, made=made)


def ppo(
    context: Context,
    *,
    environment: str,
    published: str,
    seed: int,
    num_timesteps: int,
    num_evals: int,
    episodes: int,
) -> Row:
    """Train by Brax's PPO with the settings that Brax publishes for an environment, this one or another."""
    settings, name = PUBLISHED[published], "Brax PPO, published" + (f" for {published}" if published != environment else "")
    if context.small:
        settings, name = {**settings, "num_envs": 64, "batch_size": 32, "num_minibatches": 4}, "Brax PPO, small"
    keeper = Keeper(context.stop_at)
    with contextlib.suppress(OutOfTime):
        options = {"num_evals": num_evals, "policy_params_fn": keeper, "seed": seed}
        train_ppo(environment, num_timesteps, settings, backend=resolve_backend(environment), **options)
    batch = settings["batch_size"] * settings["num_minibatches"] * settings["unroll_length"]
    limited = make_trpo(load_environment(environment)).environment
    row = {"algorithm": name, "environment": environment, "seed": seed}
    return row | summary(keeper, limited, context, episodes=episodes, batch=batch)


def together(
    context: Context,
    *,
    environment: str,
    rules: tuple[Row, ...],
    seeds: tuple[int, ...],
    num_timesteps: int,
    num_evals: int,
    episodes: int,
    **settings: Any,
) -> Row:
    """Train several seeds under several rules, settings that a program may hold side by side, all in one program.

    A policy stands for all runs, the seeds of the first rule first. Seconds mean nothing, and are left out.
    """
    keeper = Keeper(context.stop_at)
    trpo = make_trpo(load_environment(environment), our_config(environment, **settings))
    keys = jnp.stack([jax.random.key(seed) for _ in rules for seed in seeds])
    configs = [our_config(environment, **settings, **rule) for rule in rules]
    hyperparameters = jax.tree.map(lambda *values: np.repeat(np.array(values, np.float32), len(seeds)), *configs)
    runner = Runner(trpo, ManyTrainings(len(keys), jax.devices()[:1]), hyperparameters=hyperparameters)
    milestones = make_milestones(trpo, num_timesteps, num_evals)
    callbacks = Callbacks(iteration_fn=keeper.iteration, policy_params_fn=keeper)
    with contextlib.suppress(OutOfTime):
        train_to_end(trpo, runner, milestones, callbacks, earlier=None, begin_fn=lambda: runner.init(keys))
    row = {"algorithm": "trpo_jax", "environment": environment, "seeds": seeds, "rules": rules, "settings": settings}
    row |= summary(keeper, trpo.environment, context, episodes=episodes, together=True)
    each = np.reshape(row["each run"], (len(rules), len(seeds)))
    return row | {"final": each.mean(axis=1).tolist(), "each run": each.tolist()}


def summary(
    keeper: Keeper,
    environment: Any,
    context: Context,
    *,
    episodes: int,
    made: float | None = None,
    batch: int | None = None,
    together: bool = False,
) -> Row:
    """Evaluate what was kept, and say how far the training came and, where nothing else ran meanwhile, how long it took.

    Args:
        keeper: after the training.
        environment: with a time limit, without resets.
        context: of the unit.
        episodes: played an evaluation.
        made: seconds that environment and agent took, at the beginning of the training, where that is known.
        batch: environment steps of an iteration, for a training that does not tell when the first one ends.
        together: each policy stands for several runs.
    """
    if len(keeper.steps) < 2:
        raise LeftOut("no time: the training was stopped before its second evaluation")
    began = time.perf_counter()
    returns = evaluate(keeper, environment, episodes=episodes, together=together)
    evaluation = time.perf_counter() - began
    row: Row = {"steps": keeper.steps[-1]} | ({"stopped": "no time for more steps"} if keeper.was_stopped else {})
    if together:
        return row | {"each run": returns[-1].tolist(), "curve": list(zip(keeper.steps, returns.tolist(), strict=True))}
    means = returns[:, 0]
    row |= {"final": float(means[-1]), "best": float(means.max())}
    if context.at_once:
        return row | {"curve": list(zip(keeper.steps, means.tolist(), strict=True))}
    steady, steps = steady_stretch(keeper.stretches), keeper.steps[-1] / (len(keeper.steps) - 1)
    first = keeper.first_iteration
    if first is None:
        first = sum(keeper.stretches[:2]) - steady * (1 - (batch or steps) / steps)
    seconds = np.cumsum(keeper.stretches).tolist()
    curve = list(zip(keeper.steps, seconds, [steady * i for i in range(len(seconds))], means.tolist(), strict=True))
    row |= {
        "seconds": seconds[-1],
        "seconds without compilation": curve[-1][2],
        "steps/s": steps / steady,
        "imports and device": context.imports,
        **({} if made is None else {"environment and agent": made}),
        "trace, compile, start": first - (made or 0.0),
        "time to first step": context.imports + first,
        "evaluation": evaluation,
    }
    return row | {f"to_{goal}": reached(curve, goal) for goal in GOALS} | {"curve": curve}


def reached(curve: list[tuple[int, float, float, float]], goal: float) -> list[float] | None:
    """Return steps, and seconds with and without compilation, at the first evaluation that reaches a return."""
    return next(([steps, with_it, without] for steps, with_it, without, mean in curve if mean >= goal), None)


def evaluate(keeper: Keeper, environment: Any, *, episodes: int, together: bool) -> np.ndarray:
    """Return the mean return of each of V policies `[V, 1]`, or where each stands for R runs, `[V, R]`."""
    play = make_evaluator(environment, keeper.make_policy, num_episodes=episodes, deterministic=True)
    play = jax.vmap(play, (0, None))
    if together:
        play = jax.vmap(play, (0, None))
    play = jax.jit(play, compiler_options=compiler_options(jax.local_devices()))
    policies = jax.tree.map(lambda *leaves: np.stack(leaves), *keeper.policies)
    mean = np.asarray(play(policies, jax.random.key(0)).episode_return).mean(axis=-1)
    return mean if together else mean[:, None]
