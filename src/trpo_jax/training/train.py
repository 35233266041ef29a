"""Training from start to end, with Brax's conventions."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trpo_jax.config import ConfigError, unknown_name
from trpo_jax.policy.networks import Networks
from trpo_jax.training.checkpoint import has_checkpoints, save_params
from trpo_jax.training.evaluate import make_evaluator, summarize
from trpo_jax.training.inference import Params, Policy
from trpo_jax.training.interrupts import deferred_interrupts
from trpo_jax.training.trpo import TRPO, TRPOConfig, inference_params, make_trpo

ProgressFn = Callable[[int, dict[str, float]], None]
"""(environment steps so far, metrics) -> None."""


def train(
    environment: Any,
    num_timesteps: int,
    *,
    config: TRPOConfig | None = None,
    networks: Networks | None = None,
    seed: int = 0,
    num_evals: int = 1,
    num_eval_envs: int = 128,
    deterministic_eval: bool = False,
    progress_fn: ProgressFn | None = None,
    iteration_fn: ProgressFn | None = None,
    policy_params_fn: Callable[[int, Callable[..., Policy], Params], None] | None = None,
    save_checkpoint_path: str | Path | None = None,
    **options: Any,
) -> tuple[Callable[..., Policy], Params, dict[str, float]]:
    """Train a policy by TRPO.

    Args:
        environment: a name ("hopper"), a Brax environment, or an object behind the `Environment` protocol.
        num_timesteps: environment steps (simulator steps, before action repeat) to train for, rounded up to whole
            iterations; 0 only evaluates the initial policy.
        config: `TRPOConfig`; None takes its defaults.
        networks: policy and critic; None makes those that the config describes.
        seed: of everything random.
        num_evals: evaluations, evenly spread; with more than one the first comes before training, the last after it.
        num_eval_envs: episodes an evaluation plays; 0 evaluates nothing.
        deterministic_eval: evaluate the distribution's mode instead of samples.
        progress_fn: called as progress_fn(steps, metrics) after each evaluation.
        iteration_fn: called likewise after each iteration, with training metrics only.
        policy_params_fn: called as policy_params_fn(steps, make_policy, params) after each evaluation.
        save_checkpoint_path: folder without checkpoints, in which the parameters are saved at the start, before each
            evaluation, after the last iteration, and when Ctrl-C ends the training early (at the end of the running
            iteration; a second Ctrl-C does not wait).
        **options: any field of `TRPOConfig` by name (num_envs, discounting, …), put over `config`.

    Returns:
        (make_policy, params, metrics): make_policy(params, deterministic=False)(observation, key) -> (action, extras);
        params = (normalizer, policy, value); metrics of the last evaluation and iteration.

    Raises:
        ConfigError: an unknown environment, an unknown option, or a value out of range. KeyboardInterrupt passes
        through once the parameters are saved.

    Reference:
        Schulman et al. 2015 (arXiv 1502.05477). Keywords and metrics follow `brax.training.agents.ppo.train`.
    """
    _check_counts(num_timesteps=num_timesteps, num_evals=num_evals, num_eval_envs=num_eval_envs)
    if save_checkpoint_path is not None and has_checkpoints(save_checkpoint_path):
        raise ConfigError("save_checkpoint_path", str(save_checkpoint_path), "a folder that holds no checkpoints yet")
    trpo = make_trpo(environment, with_options(TRPOConfig() if config is None else config, options), networks)
    run = _Run(trpo, num_eval_envs, deterministic_eval, progress_fn, iteration_fn, policy_params_fn, save_checkpoint_path)
    return run(seed, num_timesteps, num_evals)


def with_options(config: TRPOConfig, options: dict[str, Any]) -> TRPOConfig:
    """Put options by name over a config; an unknown one raises ConfigError with the nearest known names."""
    if not isinstance(config, TRPOConfig):
        raise TypeError(f"config: got a {type(config).__name__}, allowed: a TRPOConfig")
    known = [field.name for field in dataclasses.fields(config)]
    for name, value in options.items():
        if name not in known:
            raise ConfigError(name, value, unknown_name("option of train or field of TRPOConfig", name, known))
    return dataclasses.replace(config, **options)


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
            raise ConfigError(name, value, "an integer >= 0")


class _Run:
    """One training: the loop and what it calls."""

    def __init__(self, trpo: TRPO, num_eval_envs, deterministic_eval, progress_fn, iteration_fn, policy_params_fn, path):
        self.trpo = trpo
        self.progress_fn, self.iteration_fn, self.policy_params_fn = progress_fn, iteration_fn, policy_params_fn
        self.path = path
        self.update = jax.jit(trpo.update, donate_argnums=0)
        self.evaluator = None
        if num_eval_envs:
            self.evaluator = make_evaluator(
                trpo.environment, trpo.make_policy, num_episodes=num_eval_envs, deterministic=deterministic_eval
            )
        self.steps = 0
        self.saved_steps: int | None = None
        self.walltime = 0.0
        self.metrics: dict[str, float] = {}

    def __call__(self, seed: int, num_timesteps: int, num_evals: int):
        state_key, self.eval_key = jax.random.split(jax.random.key(seed))
        state = self.trpo.init(state_key)
        num_iterations = math.ceil(num_timesteps / self.trpo.steps_per_iteration)
        evaluated = _evaluation_schedule(num_iterations, num_evals)
        self.save(state)
        with deferred_interrupts() as interrupts:
            if 0 in evaluated:
                self.evaluate(state)
            for iteration in range(1, num_iterations + 1):
                state = self.iterate(state)
                interrupts.guarded = True
                if interrupts.pending or iteration == num_iterations:
                    self.save(state)
                interrupts.check()
                if iteration in evaluated:
                    self.evaluate(state)
                    interrupts.check()
        return self.trpo.make_policy, inference_params(state), self.metrics

    def iterate(self, state):
        start = time.perf_counter()
        state, metrics = self.update(state)
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        elapsed = time.perf_counter() - start
        self.walltime += elapsed
        self.steps += self.trpo.steps_per_iteration
        metrics |= {"training/sps": self.trpo.steps_per_iteration / elapsed, "training/walltime": self.walltime}
        self.metrics |= metrics
        if self.iteration_fn:
            self.iteration_fn(self.steps, metrics)
        return state

    def evaluate(self, state) -> None:
        self.save(state)
        # A copy, since the next iteration reuses the state's memory and callers keep what they are given.
        params = jax.tree.map(jnp.copy, inference_params(state))
        if self.evaluator:
            start = time.perf_counter()
            episodes = jax.block_until_ready(self.evaluator(params, self.eval_key))
            elapsed = time.perf_counter() - start
            played = float(episodes.episode_length.sum()) * self.trpo.config.action_repeat
            self.metrics |= summarize(episodes, self.trpo.config.action_repeat)
            self.metrics |= {"eval/epoch_eval_time": elapsed, "eval/sps": played / elapsed}
            self.metrics["eval/walltime"] = self.metrics.get("eval/walltime", 0.0) + elapsed
        if self.policy_params_fn:
            self.policy_params_fn(self.steps, self.trpo.make_policy, params)
        if self.progress_fn:
            self.progress_fn(self.steps, dict(self.metrics))

    def save(self, state) -> None:
        if self.path is not None and self.saved_steps != self.steps:
            save_params(self.path, self.steps, inference_params(state))
            self.saved_steps = self.steps


def _evaluation_schedule(num_iterations: int, num_evals: int) -> set[int]:
    """Return the iterations after which to evaluate; 0 is before the first."""
    if num_evals == 0:
        return set()
    if num_evals == 1 or num_iterations == 0:
        return {num_iterations}
    return {round(k * num_iterations / (num_evals - 1)) for k in range(num_evals)}
