"""Training from start to end, with Brax's conventions."""

import contextlib
import dataclasses
import functools
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trpo_jax.agent.agent import Agent, with_time_limit
from trpo_jax.agent.config import AgentConfig
from trpo_jax.agent.evaluate import make_evaluator
from trpo_jax.agent.inference import Params, Policy, PolicyMaker
from trpo_jax.agent.state import TrainState, inference_params
from trpo_jax.algorithms.registry import DEFAULT, algorithm_name, default_config, make_agent
from trpo_jax.config import LARGEST_SEED, Allowed, as_integers, flatten, from_mapping, to_mapping, unknown_name
from trpo_jax.environments.protocol import Box, Environment
from trpo_jax.environments.registry import as_environment, wrapped_environment
from trpo_jax.errors import ConfigError
from trpo_jax.execution.devices import all_devices
from trpo_jax.execution.host_arrays import to_host
from trpo_jax.execution.memory import check_training
from trpo_jax.execution.placement import OneTraining
from trpo_jax.execution.program import side_by_side
from trpo_jax.execution.runner import Runner
from trpo_jax.policy.networks import Networks
from trpo_jax.training.brax_names import networks_from_brax, translate
from trpo_jax.training.checkpoint import load_params
from trpo_jax.training.loop import Callbacks, Loop, Milestones, ProgressFn, local_params
from trpo_jax.training.progress import ProgressLines, compilations_told
from trpo_jax.training.run_config import RunConfig, shipped_config
from trpo_jax.training.store import Progress, Store


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
        environment: a name ("hopper"), a Brax or MuJoCo Playground environment, or an object behind the `Environment`
            protocol.
        num_timesteps: environment steps (simulator steps, before action repeat) to train for, rounded up to whole
            iterations; 0 only evaluates the initial policy. A whole number, which may be written as 1e6, as all integers.
        suite: "brax" or "playground" (MuJoCo Playground), for an environment given by name.
        backend: its physics, likewise; see `as_environment`.
        config: how to learn; its type says by which algorithm (`TRPOConfig`, `PPOConfig`, …). None takes the settings that
            ship for an environment given by name, on an accelerator those for one (`shipped_config`), and the defaults
            for any other.
        algorithm: to train by: "trpo", "ppo", "natural_gradient", "penalty", "penalty_adam" or "policy_gradient". None takes
            that of the config, or TRPO.
        networks: policy and critic; None makes those that the config describes.
        network_factory: makes them instead, as `brax.training.agents.ppo.networks.make_ppo_networks` does.
        max_devices_per_host: use no more devices of each process than this. They must divide num_envs.
        wrap_env: False says that the environment is vectorized, time-limited and self-resetting already.
        wrap_env_fn: wraps the environment instead of the time limit and resets built in; see `wrapped_environment`.
        randomization_fn: (sys, keys) -> (sys, in_axes), as Brax has it: physical parameters for each environment, drawn
            anew with every initial state.
        num_resets_per_eval: how often, between two evaluations, all environments are drawn afresh in mid-episode.
        seed: of everything random.
        num_evals: evaluations, evenly spread; with more than one the first comes before training, the last after it.
        eval_env: an environment for evaluations only.
        num_eval_envs: episodes an evaluation plays; 0 evaluates nothing.
        deterministic_eval: evaluate the distribution's mode, not samples.
        run_evals: False evaluates nothing, but calls back all the same.
        log_training_metrics: call progress_fn also with training metrics, every `training_metrics_steps`.
        training_metrics_steps: environment steps between such calls; None for each iteration.
        progress: print a line for every program that is compiled, every evaluation, and about twenty iterations.
        progress_fn: called as progress_fn(steps, metrics) after each evaluation.
        iteration_fn: called likewise after each iteration, with training metrics only; it comes while the next one runs.
        policy_params_fn: called as policy_params_fn(steps, make_policy, params) after each evaluation.
        save_checkpoint_path: folder for checkpoints, written at the start, every `checkpoint_interval` iterations,
            before each evaluation, after the last iteration, and when Ctrl-C or SIGTERM ends the training early (at the
            end of the running iteration; a second one only for what is being written).
        checkpoint_interval: iterations; 0 for none but the others.
        keep_checkpoints: so many of the newest stay.
        resume: go on from the newest readable checkpoint in save_checkpoint_path, as if nothing had happened.
        restore_checkpoint_path: start from the parameters of the newest checkpoint in this folder.
        restore_params: start from these (normalizer, policy, value), as `train` returns them; go over
            restore_checkpoint_path.
        restore_value_fn: False leaves the value function as drawn.
        **options: any field of the configuration by name (num_envs, discounting, …), put over `config`. A mapping such as
            `trust_region={"max_kl": 0.05}` changes what it names; a `TrustRegionConfig` takes the place of the whole. And
            the keywords of Brax's PPO, of which those without meaning here are named in a warning.

    Returns:
        (make_policy, params, metrics): make_policy(params, deterministic=False)(observation, key) -> (action, extras),
        and make_policy.value_fn(params)(observation) -> value, in units of reward; params = (normalizer, policy, value);
        metrics of the last evaluation and iteration.

    Raises:
        ConfigError: an unknown environment, an unknown option, a value out of range, or a checkpoint of another config.
        MissingPackageError: a suite of environments that is not installed.
        TypeError, ValueError: an environment that does not keep the protocol.
        CheckpointError: checkpoints that cannot be read or written.
        KeyboardInterrupt, SystemExit: Ctrl-C, SIGTERM; pass through once a checkpoint is written.

    Reference:
        Schulman et al. 2015 (arXiv 1502.05477). Keywords and metrics follow `brax.training.agents.ppo.train`.
    """
    num_timesteps = _count("num_timesteps", num_timesteps)
    num_evals, num_eval_envs = _count("num_evals", num_evals), _count("num_eval_envs", num_eval_envs)
    num_resets_per_eval = _count("num_resets_per_eval", num_resets_per_eval)
    checkpoint_interval = _count("checkpoint_interval", checkpoint_interval)
    keep_checkpoints = _count("keep_checkpoints", keep_checkpoints, at_least=1)
    seed = _count("seed", seed, at_most=LARGEST_SEED)
    if max_devices_per_host is not None:
        max_devices_per_host = _count("max_devices_per_host", max_devices_per_host, at_least=1)
    if training_metrics_steps is not None:
        training_metrics_steps = _count("training_metrics_steps", training_metrics_steps)
    if resume and save_checkpoint_path is None:
        raise ConfigError("save_checkpoint_path", None, "the folder to resume from, which resume=True needs")
    if config is None:
        name = DEFAULT if algorithm is None else algorithm
        shipped = shipped_config(environment, suite=suite, algorithm=name) if isinstance(environment, str) else None
        config = default_config(name) if shipped is None else shipped.agent
    elif algorithm not in (None, algorithm_name(config)):
        raise ConfigError("algorithm", algorithm, f"{algorithm_name(config)}, which the config is for")
    options = translate(options, algorithm_name(config))
    config = with_options(config, options, beside=tuple(inspect.signature(train).parameters)[:-1])
    named = {"suite": suite, "backend": backend}
    limited = functools.partial(
        _limited,
        config=config,
        named=named,
        wrap_env=wrap_env,
        wrap_env_fn=wrap_env_fn,
        randomization_fn=randomization_fn,
        seed=seed,
    )
    training_environment = limited(environment, config.num_envs)
    if network_factory is not None:
        networks = _networks_by(network_factory, training_environment, config.num_envs)
    agent = make_agent(training_environment, config, networks)
    milestones = make_milestones(agent, num_timesteps, num_evals, num_resets_per_eval, checkpoint_interval)
    evaluate = None
    if run_evals and num_eval_envs and milestones.evaluations:
        evaluate = make_evaluator(
            agent.environment if eval_env is None else limited(eval_env, num_eval_envs),
            agent.make_policy,
            num_episodes=num_eval_envs,
            deterministic=deterministic_eval,
        )
    if log_training_metrics:
        interval = training_metrics_steps or agent.steps_per_iteration
        iteration_fn = _both(iteration_fn, functools.partial(_every, interval, agent.steps_per_iteration, progress_fn))
    telling: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if progress and jax.process_index() == 0:
        lines = ProgressLines(num_timesteps)
        iteration_fn, progress_fn = _both(iteration_fn, lines.iteration), _both(progress_fn, lines.evaluation)
        telling = compilations_told(lines.say)
    devices = all_devices(max_devices_per_host)
    runner = Runner(agent, OneTraining(config.num_envs, devices), evaluate=evaluate)
    check_training(config, runner.state_like, devices)
    store = None
    if save_checkpoint_path is not None:
        origin = {"algorithm": algorithm_name(config), "config": to_mapping(config), "seed": int(seed)}
        store = Store(save_checkpoint_path, resume=resume, keep=keep_checkpoints, origin=origin)
    state_key, eval_key = jax.random.split(jax.random.key(seed))
    earlier = store if store is not None and store.goes_on else None
    with store or contextlib.nullcontext(), telling:
        if earlier is not None:
            state, counted = earlier.load(runner)
            if counted.iteration > milestones.num_iterations:
                allowed = f"at least {counted.iteration * agent.steps_per_iteration}, which {save_checkpoint_path} has trained"
                raise ConfigError("num_timesteps", num_timesteps, allowed)
        else:
            counted = Progress()
        if counted.iteration < milestones.num_iterations:
            with side_by_side() as compilers:
                runner.compile(compilers, to_init=earlier is None)
        if earlier is None:
            state = runner.init(state_key)
            state = _restored(runner, state, restore_checkpoint_path, restore_params, restore_value_fn)
        loop = Loop(
            agent,
            runner,
            milestones,
            Callbacks(iteration_fn, progress_fn, policy_params_fn),
            store=store,
            evaluator=runner.evaluate if evaluate else None,
            eval_key=eval_key,
        )
        state = loop.run(state, counted)
    return agent.make_policy, local_params(state), loop.metrics


def _limited(
    environment: Any,
    num_envs: int,
    *,
    config: AgentConfig,
    named: dict[str, str],
    wrap_env: bool,
    wrap_env_fn: Any,
    randomization_fn: Any,
    seed: int,
) -> Environment:
    """Return an environment with a time limit: the one built in, or that of a wrapper."""
    if wrap_env and wrap_env_fn is None:
        return with_time_limit(as_environment(environment, randomization_fn=randomization_fn, **named), config)
    return wrapped_environment(
        environment,
        wrap_env_fn if wrap_env else None,
        episode_length=config.episode_length,
        action_repeat=config.action_repeat,
        randomization_fn=randomization_fn,
        seed=seed,
        num_envs=num_envs,
        **named,
    )


def _networks_by(network_factory: Callable[..., Any], environment: Environment, num_envs: int) -> Networks:
    state = jax.eval_shape(environment.reset, jax.eval_shape(lambda: jax.random.split(jax.random.key(0), num_envs)))
    if not isinstance(environment.action_space, Box):
        raise ConfigError("network_factory", network_factory, "none where actions are discrete")
    observation = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), state.observation)
    return networks_from_brax(network_factory, observation, int(environment.action_space.size))


def _restored(
    runner: Runner,
    state: TrainState,
    path: str | Path | None,
    params: Params | None,
    restore_value_fn: bool,
) -> TrainState:
    """Put parameters from elsewhere into a fresh state."""
    if params is None and path is None:
        return state
    host_state = to_host(state)
    fresh = inference_params(host_state)
    params = Params(*(load_params(str(path), fresh)[1] if params is None else params))
    value = params.value if restore_value_fn else fresh.value
    _check_fits("normalizer", params.normalizer, fresh.normalizer)
    _check_fits("policy", params.policy, fresh.policy)
    _check_fits("value", value.params, fresh.value.params)
    scaling, wanted = float(value.reward_scaling), float(fresh.value.reward_scaling)
    if scaling != wanted:
        allowed = f"{scaling}, with which the restored value function was trained, unless restore_value_fn is false"
        raise ConfigError("reward_scaling", wanted, allowed)
    normalizer, policy, value_params = to_host(jax.tree.map(jnp.asarray, (params.normalizer, params.policy, value.params)))
    learner = host_state.learner._replace(normalizer=normalizer, policy=policy)
    critic = host_state.critic._replace(critic=fresh.value._replace(params=value_params))
    return runner.place(host_state._replace(learner=learner, critic=critic))


def _check_fits(name: str, params: Any, like: Any) -> None:
    given, wanted = (jax.tree.map(np.shape, tree) for tree in (params, like))
    if given != wanted:
        raise ConfigError("restore_params", given, f"{name} of shapes {wanted}, those of this training")
    for (path, leaf), other in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(like), strict=True):
        if getattr(leaf, "dtype", other.dtype) != other.dtype:
            allowed = f"{other.dtype}, the dtype of {name}{jax.tree_util.keystr(path)} in this training; astype converts"
            raise ConfigError("restore_params", str(leaf.dtype), allowed)


def make_milestones(
    agent: Agent, num_timesteps: int, num_evals: int, num_resets_per_eval: int = 0, checkpoint_interval: int = 0
) -> Milestones:
    """Return what happens after which iterations, evaluations and resets evenly spread."""
    num_iterations = -(-num_timesteps // agent.steps_per_iteration)
    if num_iterations >= 2**31:
        allowed = f"fewer than 2^31 iterations of {agent.steps_per_iteration:,} steps"
        raise ConfigError("num_timesteps", num_timesteps, allowed)
    evaluations = _evaluations(num_iterations, num_evals)
    parts = num_resets_per_eval * max(num_evals - 1, 1)
    resets = {round(k * num_iterations / parts) for k in range(1, parts)} if num_resets_per_eval else set()
    return Milestones(num_iterations, evaluations, resets, checkpoint_interval)


def _evaluations(num_iterations: int, num_evals: int) -> set[int]:
    """Return the iterations after which to evaluate; 0 is before the first."""
    if num_evals == 0:
        return set()
    if num_evals == 1 or num_iterations == 0:
        return {num_iterations}
    return {round(k * num_iterations / (num_evals - 1)) for k in range(num_evals)}


def _both(*callbacks: ProgressFn | None) -> ProgressFn:
    """Return a callback that calls those which there are, in turn."""
    return functools.partial(_call_all, [callback for callback in callbacks if callback])


def _call_all(callbacks: Sequence[ProgressFn], steps: int, metrics: dict[str, float]) -> None:
    for callback in callbacks:
        callback(steps, metrics)


def _every(interval: int, stride: int, callback: ProgressFn | None, steps: int, metrics: dict[str, float]) -> None:
    """Call back after an iteration of `stride` steps that passes a multiple of `interval`."""
    if callback and steps // interval > (steps - stride) // interval:
        callback(steps, metrics)


def with_options(config: AgentConfig, options: dict[str, Any], *, beside: Sequence[str] = ()) -> AgentConfig:
    """Put options by name over a config, a mapping over a part of it.

    Raises:
        ConfigError: an unknown name; the message has the nearest ones, also of what may stand `beside` the fields.
    """
    algorithm_name(config)  # raises TypeError
    known, deeper = [field.name for field in dataclasses.fields(config)], list(flatten(to_mapping(config)))
    for name, value in options.items():
        if name not in known:
            names = [*known, *beside]
            raise ConfigError(
                name, value, unknown_name(f"option of train or field of {type(config).__name__}", name, names, deeper)
            )
    whole = {name: value for name, value in options.items() if not isinstance(value, Mapping)}
    parts = {name: value for name, value in options.items() if name not in whole}
    return from_mapping(dataclasses.replace(config, **whole), parts)


def _count(name: str, value: Any, *, at_least: int = 0, at_most: int | None = None) -> int:
    """Return a whole number as an integer; raise ConfigError for anything else."""
    try:
        number = operator.index(as_integers(value))
    except TypeError:
        number = at_least - 1
    if isinstance(value, bool) or number < at_least or (at_most is not None and number > at_most):
        raise ConfigError(name, value, Allowed(at_least=at_least, at_most=at_most).describe("an integer"))
    return number
