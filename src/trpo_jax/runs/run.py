"""Train in a run folder, and load and evaluate the run later."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from trpo_jax.agent.agent import Agent
from trpo_jax.agent.evaluate import Episodes
from trpo_jax.agent.host import evaluator_for
from trpo_jax.agent.inference import Params, PolicyMaker
from trpo_jax.agent.state import inference_params
from trpo_jax.algorithms.registry import make_agent
from trpo_jax.environments.host import AnyEnvironment
from trpo_jax.environments.registry import as_environment, resolve_backend
from trpo_jax.execution.host_arrays import host_like
from trpo_jax.runs.loggers import Logger
from trpo_jax.runs.run_folder import RunFolder, open_run_folder, read_metrics
from trpo_jax.training.checkpoint import load_params
from trpo_jax.training.reporting import ProgressFn
from trpo_jax.training.run_config import RunConfig, program_of
from trpo_jax.training.train import train


def resolve(run_config: RunConfig) -> RunConfig:
    """Replace the backend "auto" by the one it stands for. Raises ConfigError for an unknown environment."""
    backend: Any = resolve_backend(run_config.environment, run_config.suite, run_config.backend)
    return dataclasses.replace(run_config, backend=backend)


def run_environment(run_config: RunConfig) -> AnyEnvironment:
    """Make the environment that a configuration names; raises ConfigError for an unknown one."""
    return as_environment(run_config.environment, suite=run_config.suite, backend=run_config.backend)


def run_training(
    run_config: RunConfig,
    folder: RunFolder,
    environment: AnyEnvironment,
    loggers: Sequence[Logger],
    *,
    resume: bool = False,
    max_devices_per_host: int | None = None,
    progress_fn: ProgressFn | None = None,
    iteration_fn: ProgressFn | None = None,
) -> dict[str, float]:
    """Train as configured; write checkpoints into the run's folder.

    Args:
        run_config: what to train.
        folder: made by `create_run_folder`.
        environment: the one that the config names, made by `run_environment`.
        loggers: receive the metrics of each iteration and evaluation, and are closed at the end.
        resume: resume from the folder's newest readable checkpoint.
        max_devices_per_host: use no more devices of each process than this.
        progress_fn: called as progress_fn(steps, metrics) after each evaluation.
        iteration_fn: called as iteration_fn(steps, metrics) after each iteration.

    Returns:
        The metrics of the last evaluation and iteration.

    Raises:
        ConfigError, CheckpointError: as `train`. KeyboardInterrupt and SystemExit pass through after everything is saved.
    """

    def on_iteration(step: int, metrics: dict[str, float]) -> None:
        for logger in loggers:
            logger.log(step, metrics)
        if iteration_fn:
            iteration_fn(step, metrics)

    def on_evaluation(step: int, metrics: dict[str, float]) -> None:
        evaluation = {name: value for name, value in metrics.items() if name.startswith("eval/")}
        for logger in loggers if evaluation else ():
            logger.log(step, evaluation)
        if progress_fn:
            progress_fn(step, metrics)

    with contextlib.ExitStack() as closing:
        for logger in loggers:
            closing.callback(logger.close)
        _, _, metrics = train(
            environment,
            run_config.num_timesteps,
            config=run_config.agent,
            seed=run_config.seed,
            num_evals=run_config.num_evals,
            num_eval_envs=run_config.num_eval_envs,
            deterministic_eval=run_config.deterministic_eval,
            progress_fn=on_evaluation,
            iteration_fn=on_iteration,
            save_checkpoint_path=folder.checkpoints,
            checkpoint_interval=run_config.checkpoint_interval,
            keep_checkpoints=run_config.keep_checkpoints,
            resume=resume,
            max_devices_per_host=max_devices_per_host,
        )
    return metrics


def load_policy(run_config: RunConfig, folder: RunFolder) -> tuple[Agent, int, Params]:
    """Load the policy of a run: (its agent, environment steps trained, parameters).

    Raises:
        ConfigError: an unknown environment.
        CheckpointError: no checkpoint, a damaged one, or one that does not fit the configuration.
    """
    agent = make_agent(run_environment(run_config), run_config.agent)
    return agent, *_load_params(agent, folder)


def _load_params(agent: Agent, folder: RunFolder) -> tuple[int, Params]:
    template = host_like(inference_params(jax.eval_shape(agent.init, jax.random.key(0))))
    return load_params(folder.checkpoints, template)


class LoadedRun(NamedTuple):
    """A run, loaded from its folder."""

    config: RunConfig
    """Every field, including those that the user did not set."""
    agent: Agent
    """Its algorithm, bound to its environment."""
    step: int
    """Environment steps that the parameters were trained for."""
    params: Params
    metrics: list[dict[str, Any]]
    """Records of metrics.jsonl, "step" and metrics by name, for iterations and evaluations in order."""

    @property
    def make_policy(self) -> PolicyMaker:
        """Function that makes policy(observation, key) -> (action, extras) from parameters, as `train` returns it."""
        return self.agent.make_policy


def load_run(path: str | Path) -> LoadedRun:
    """Load the run that `trpo-jax train` wrote into a folder, finished or not.

        run = trpo_jax.load_run("runs/ant")
        policy = run.make_policy(run.params, deterministic=True)

    Args:
        path: the run's folder.

    Returns:
        `LoadedRun`, with the parameters of the newest checkpoint that can be read.

    Raises:
        ConfigError: the folder holds no run or no metrics.jsonl, or the environment is unknown.
        CheckpointError: no checkpoint, a damaged one, or one that does not fit the configuration.
    """
    folder, run_config = open_run_folder(path)
    agent, step, params = load_policy(run_config, folder)
    return LoadedRun(run_config, agent, step, params, read_metrics(folder.metrics))


class EvaluatedRun(NamedTuple):
    """Episodes played with a run's newest policy."""

    config: RunConfig
    step: int
    """Environment steps that the policy was trained for."""
    episodes: Episodes


def evaluate_runs(
    runs: Sequence[tuple[RunFolder, RunConfig]], *, num_episodes: int, deterministic: bool, seed: int
) -> Iterator[EvaluatedRun]:
    """Play episodes with the newest policy of each run; `runs` holds results of `open_run_folder`.

    Runs with equal `program_of` share a compiled program. Raises as `load_policy`.
    """
    programs: dict[Any, tuple[Agent, Callable[[Params, Any], Episodes]]] = {}
    for folder, config in runs:
        kind = program_of(config)
        if kind not in programs:
            agent = make_agent(run_environment(config), config.agent)
            evaluate = evaluator_for(
                agent.environment, agent.make_policy, num_episodes=num_episodes, deterministic=deterministic
            )
            programs[kind] = agent, evaluate
        agent, evaluate = programs[kind]
        step, params = _load_params(agent, folder)
        yield EvaluatedRun(config, step, evaluate(params, jax.random.key(seed)))
