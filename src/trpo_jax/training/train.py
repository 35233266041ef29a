"""Training from start to end, with Brax's conventions."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from trpo_jax.agent.agent import Agent
from trpo_jax.agent.binding import with_time_limit
from trpo_jax.agent.config import AgentConfig
from trpo_jax.agent.evaluate import Episodes
from trpo_jax.agent.host import evaluator_for
from trpo_jax.agent.inference import Params, Policy, PolicyMaker
from trpo_jax.agent.state import TrainState
from trpo_jax.algorithms.registry import make_agent
from trpo_jax.config import to_mapping
from trpo_jax.environments.host import AnyEnvironment, HostEnvironment
from trpo_jax.environments.registry import as_environment, wrapped_environment
from trpo_jax.errors import ConfigError
from trpo_jax.execution.devices import all_devices
from trpo_jax.execution.memory import check_training
from trpo_jax.execution.placement import OneTraining
from trpo_jax.execution.runner import Runner
from trpo_jax.policy.networks import Networks
from trpo_jax.spaces import Box
from trpo_jax.training.brax_keywords import networks_from_brax
from trpo_jax.training.loop import train_to_end
from trpo_jax.training.milestones import Milestones, make_milestones
from trpo_jax.training.options import agent_config, whole_number, whole_number_or_none
from trpo_jax.training.progress import ProgressLines, compilations_told
from trpo_jax.training.reporting import Callbacks, ProgressFn, local_params
from trpo_jax.training.restoring import ParamsSource, restored
from trpo_jax.training.run_config import RunConfig
from trpo_jax.training.store import Store


def train(
    environment: Any,
    num_timesteps: int | float,
    *,
    suite: str = RunConfig.suite,
    backend: str = RunConfig.backend,
    config: AgentConfig | None = None,
    algorithm: str | None = None,
    networks: Networks | None = None,
    network_factory: Callable[..., Any] | None = None,
    max_devices_per_host: int | None = None,
    wrap_env: bool = True,
    wrap_env_fn: Callable[..., Any] | None = None,
    randomization_fn: Callable[..., Any] | None = None,
    num_resets_per_eval: int = 0,
    seed: int = RunConfig.seed,
    num_evals: int = RunConfig.num_evals,
    eval_env: Any = None,
    num_eval_envs: int = RunConfig.num_eval_envs,
    deterministic_eval: bool = RunConfig.deterministic_eval,
    run_evals: bool = True,
    log_training_metrics: bool = False,
    training_metrics_steps: int | None = None,
    progress: bool = False,
    progress_fn: ProgressFn | None = None,
    iteration_fn: ProgressFn | None = None,
    policy_params_fn: Callable[[int, Callable[..., Policy], Params], None] | None = None,
    save_checkpoint_path: str | Path | None = None,
    checkpoint_interval: int = RunConfig.checkpoint_interval,
    keep_checkpoints: int = RunConfig.keep_checkpoints,
    resume: bool = False,
    restore_checkpoint_path: str | Path | None = None,
    restore_params: Params | None = None,
    restore_value_fn: bool = True,
    **options: Any,
) -> tuple[PolicyMaker, Params, dict[str, float]]:
    """Train a policy, on all devices that JAX sees.

    Args:
        environment: a name ("hopper"), a Brax or MuJoCo Playground environment, or an object behind the `Environment` or
            the `HostEnvironment` protocol.
        num_timesteps: environment steps (simulator steps, before action repeat) to train for, rounded up to whole
            iterations; 0 only evaluates the initial policy. All integer arguments may be written like 1e6.
        suite: "brax", "playground" (MuJoCo Playground), "safety" (with costs), "gymnasium" or "gymnax", for an environment
            given by name.
        backend: who simulates an environment given by name; see `RunConfig.backend`.
        config: how to learn; its type selects the algorithm (`TRPOConfig`, `PPOConfig`, …). None takes the settings that
            ship for an environment given by name (`shipped_config`; on an accelerator, the settings for one), and the
            defaults for any other environment.
        algorithm: "trpo", "ppo", "natural_gradient", "penalty", "penalty_adam" or "policy_gradient". None takes the
            config's, or TRPO.
        networks: policy and critic; None makes those that the config describes.
        network_factory: makes the networks instead, as `brax.training.agents.ppo.networks.make_ppo_networks` does.
        max_devices_per_host: use no more devices of each process than this. They must divide num_envs. An environment that
            Python steps takes one.
        wrap_env: False if the environment is already vectorized, time-limited and self-resetting.
        wrap_env_fn: wraps the environment and replaces the built-in time limit and resets; see `wrapped_environment`.
        randomization_fn: (sys, keys) -> (sys, in_axes), as in Brax: draws new physical parameters for each environment
            with every initial state.
        num_resets_per_eval: how often, between two evaluations, all environments are reset in mid-episode.
        seed: seed of everything random.
        num_evals: number of evaluations, evenly spread; if several, the first is before training and the last after it.
        eval_env: an environment for evaluations only.
        num_eval_envs: episodes per evaluation; 0 evaluates nothing.
        deterministic_eval: evaluate the distribution's mode, not samples.
        run_evals: False evaluates nothing, but the callbacks are still called.
        log_training_metrics: call progress_fn also with training metrics, every `training_metrics_steps`.
        training_metrics_steps: environment steps between these calls; None calls after each iteration.
        progress: print a line for every program that is compiled, every evaluation, and about twenty iterations.
        progress_fn: called as progress_fn(steps, metrics) after each evaluation.
        iteration_fn: called as iteration_fn(steps, metrics) after each iteration, with training metrics only, while the
            next iteration runs.
        policy_params_fn: called as policy_params_fn(steps, make_policy, params) after each evaluation.
        save_checkpoint_path: folder for checkpoints, written at the start, every `checkpoint_interval` iterations,
            before each evaluation, after the last iteration, and when Ctrl-C or SIGTERM ends the training early (at the
            end of the running iteration; a second signal only waits for the checkpoint being written).
        checkpoint_interval: iterations between checkpoints; 0 saves only at the other times.
        keep_checkpoints: number of newest checkpoints to keep.
        resume: resume from the newest readable checkpoint in save_checkpoint_path, as if never interrupted.
        restore_checkpoint_path: start from the parameters of the newest checkpoint in this folder.
        restore_params: start from these (normalizer, policy, value), as `train` returns them; they override
            restore_checkpoint_path.
        restore_value_fn: False keeps the value function as drawn.
        **options: any field of the configuration by name (num_envs, discounting, …); it overrides `config`. A mapping such
            as `trust_region={"max_kl": 0.05}` changes only the fields it names; a `TrustRegionConfig` replaces the whole
            part. Keywords of Brax's PPO are accepted too; a warning names those that have no effect here.

    Returns:
        (make_policy, params, metrics): make_policy(params, deterministic=False)(observation, key) -> (action, extras),
        and make_policy.value_fn(params)(observation) -> value, in units of reward; params = (normalizer, policy, value);
        metrics of the last evaluation and iteration.

    Raises:
        ConfigError: an unknown environment, an unknown option, a value out of range, or a checkpoint of another config.
        MissingPackageError: a suite of environments that is not installed.
        TypeError, ValueError: an environment that violates the protocol.
        CheckpointError: checkpoints that cannot be read or written.
        SimulatorError: an environment that Python steps has failed; the training can be resumed.
        KeyboardInterrupt, SystemExit: Ctrl-C, SIGTERM; pass through after a checkpoint is written.

    Reference:
        Schulman et al. 2015 (arXiv 1502.05477). Keywords and metrics follow `brax.training.agents.ppo.train`.
    """
    config = agent_config(environment, config, options, suite=suite, algorithm=algorithm, beside=KEYWORDS)
    run = RunConfig(  # environment, suite and backend are not set: the environment may be an object
        num_timesteps=num_timesteps,  # type: ignore[arg-type]  # 1e6 is a whole number, too
        seed=seed,
        num_evals=num_evals,
        num_eval_envs=num_eval_envs,
        deterministic_eval=deterministic_eval,
        checkpoint_interval=checkpoint_interval,
        keep_checkpoints=keep_checkpoints,
        agent=config,
    )
    num_resets_per_eval = whole_number("num_resets_per_eval", num_resets_per_eval)
    max_devices_per_host = whole_number_or_none("max_devices_per_host", max_devices_per_host, at_least=1)
    training_metrics_steps = whole_number_or_none("training_metrics_steps", training_metrics_steps)
    if resume and save_checkpoint_path is None:
        raise ConfigError("save_checkpoint_path", None, "the folder to resume from, which resume=True needs")
    maker = _EnvironmentMaker(suite, backend, wrap_env, wrap_env_fn, randomization_fn)
    training_environment = maker.environment(environment, run, config.num_envs)
    made = None if network_factory is None else _networks_by(network_factory, training_environment, config.num_envs)
    agent = make_agent(training_environment, config, made or networks)
    milestones = make_milestones(agent, run.num_timesteps, run.num_evals, num_resets_per_eval, run.checkpoint_interval)
    if isinstance(agent.environment, HostEnvironment) and jax.process_count() > 1:
        raise ConfigError("environment", environment, "one on the device, for a training in several processes")
    evaluates = run_evals and run.evaluates
    eval_environment = maker.environment(eval_env, run, run.num_eval_envs) if evaluates and eval_env is not None else None
    if log_training_metrics:
        iteration_fn = _all_of(iteration_fn, _every(training_metrics_steps, agent, progress_fn))
    lines = ProgressLines(run.num_timesteps) if progress and jax.process_index() == 0 else None
    if lines is not None:
        iteration_fn, progress_fn = _all_of(iteration_fn, lines.iteration), _all_of(progress_fn, lines.evaluation)
    with compilations_told(lines.say) if lines else contextlib.nullcontext():
        state, metrics = _train_agent(
            agent,
            run,
            milestones,
            Callbacks(iteration_fn, progress_fn, policy_params_fn),
            evaluate_fn=run_evaluator(agent, run, eval_environment) if evaluates else None,
            devices=all_devices(1 if isinstance(agent.environment, HostEnvironment) else max_devices_per_host),
            checkpoints=None if save_checkpoint_path is None else (save_checkpoint_path, resume),
            restored_from=ParamsSource(restore_checkpoint_path, restore_params, restore_value_fn),
        )
    return agent.make_policy, local_params(state), metrics


KEYWORDS = tuple(inspect.signature(train).parameters)[:-1]
"""Arguments of `train` that are not fields of a configuration."""


class _EnvironmentMaker(NamedTuple):
    """How `train` makes environments."""

    suite: str
    backend: str
    wrap_env: bool
    wrap_env_fn: Any
    randomization_fn: Any

    def environment(self, environment: Any, run: RunConfig, num_envs: int) -> AnyEnvironment:
        """Return an environment with a time limit, either the built-in one or a wrapper's."""
        config = run.agent
        named: dict[str, Any] = {"suite": self.suite, "backend": self.backend}
        if not self.wrap_env and self.randomization_fn is not None:
            raise ConfigError("randomization_fn", self.randomization_fn, "None with wrap_env=False, which adds nothing")
        if self.wrap_env and self.wrap_env_fn is None:
            return with_time_limit(as_environment(environment, randomization_fn=self.randomization_fn, **named), config)
        if self.wrap_env and isinstance(environment, str):
            environment = as_environment(environment, **named)
        return wrapped_environment(
            environment,
            self.wrap_env_fn if self.wrap_env else None,
            episode_length=config.episode_length,
            action_repeat=config.action_repeat,
            randomization_fn=self.randomization_fn,
            seed=run.seed,
            num_envs=num_envs,
        )


def _networks_by(network_factory: Callable[..., Any], environment: AnyEnvironment, num_envs: int) -> Networks:
    state = jax.eval_shape(environment.reset, jax.eval_shape(lambda: jax.random.split(jax.random.key(0), num_envs)))
    if not isinstance(environment.action_space, Box):
        raise ConfigError("network_factory", network_factory, "None if actions are discrete")
    observation = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), state.observation)
    return networks_from_brax(network_factory, observation, int(environment.action_space.size))


def run_evaluator(agent: Agent, run: RunConfig, environment: AnyEnvironment | None = None) -> Callable[[Any, Any], Episodes]:
    """Return a function (params, key) -> episodes for a configuration.

    Args:
        agent: the agent that plays.
        run: sets the number of episodes, and whether to act by the mode.
        environment: the environment to play in; None takes the one that the agent trains in.
    """
    environment = agent.environment if environment is None else environment
    return evaluator_for(environment, agent.make_policy, num_episodes=run.num_eval_envs, deterministic=run.deterministic_eval)


def _train_agent(
    agent: Agent,
    run: RunConfig,
    milestones: Milestones,
    callbacks: Callbacks,
    *,
    evaluate_fn: Callable[[Any, Any], Episodes] | None,
    devices: Sequence[jax.Device],
    checkpoints: tuple[str | Path, bool] | None,
    restored_from: ParamsSource,
) -> tuple[TrainState, dict[str, Any]]:
    """Train from the beginning, or resume; `checkpoints` is (folder, whether to resume from it)."""
    runner = Runner(agent, OneTraining(agent.config.num_envs, devices), evaluate=evaluate_fn)
    check_training(agent.config, runner.state_like, devices)
    store = None
    if checkpoints is not None:
        folder, resume = checkpoints
        origin = {"algorithm": run.algorithm, "config": to_mapping(run.agent), "seed": int(run.seed)}
        store = Store(folder, resume=resume, keep=run.keep_checkpoints, origin=origin)
    state_key, eval_key = jax.random.split(jax.random.key(run.seed))
    with contextlib.closing(runner), store or contextlib.nullcontext():
        earlier = store.load(runner) if store is not None and store.goes_on else None
        if store is not None and earlier is not None and earlier[1].iteration > milestones.num_iterations:
            allowed = f"at least {earlier[1].iteration * agent.steps_per_iteration}, already trained in {store.directory}"
            raise ConfigError("num_timesteps", run.num_timesteps, allowed)
        return train_to_end(
            agent,
            runner,
            milestones,
            callbacks,
            earlier=earlier,
            begin_fn=lambda: restored(runner, runner.init(state_key), restored_from),
            evaluate_fn=None if evaluate_fn is None else functools.partial(runner.evaluate, keys=eval_key),
            store=store,
        )


def _all_of(*callbacks: ProgressFn | None) -> ProgressFn | None:
    """Return a callback that calls those that are not None, in turn."""
    given = [callback for callback in callbacks if callback]
    return functools.partial(_call_all, given) if given else None


def _call_all(callbacks: Sequence[ProgressFn], steps: int, metrics: dict[str, float]) -> None:
    for callback in callbacks:
        callback(steps, metrics)


def _every(interval: int | None, agent: Agent, callback: ProgressFn | None) -> ProgressFn | None:
    """Return a function that calls back when an iteration passes a multiple of `interval` steps; None: after each one."""
    if callback is None:
        return None
    stride = agent.steps_per_iteration
    return functools.partial(_call_every, interval or stride, stride, callback)


def _call_every(interval: int, stride: int, callback: ProgressFn, steps: int, metrics: dict[str, float]) -> None:
    if steps // interval > (steps - stride) // interval:
        callback(steps, metrics)
