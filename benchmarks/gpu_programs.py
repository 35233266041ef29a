"""Compile every program of a training for an H100, on a machine without one, and count the kernels that each will launch.

    pip install jax-cuda13-plugin jax-cuda13-pjrt    # of jax's version; about 420 MB, no driver
    python benchmarks/gpu_programs.py [--parts iteration simulator …] [--json FILE]

Small networks are bound by launches on a GPU, so kernels are what an iteration costs. The parts:

- iteration: the stages of one, and the evaluator.
- simulator: as many steps with random actions.
- update: the bare policy update, by size.
- ppo: one training step of Brax's PPO with its published settings.
- options: every option of the update and every distribution compiles.

Seconds are CPU seconds of all cores together. Autotuning, which needs the card, is left out.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import tyro

import gpu_target
import policy_update
import report
import trpo_jax
from brax_ppo import PUBLISHED, train_ppo
from throughput import random_unroll
from trpo_jax import Box, PolicyNetwork, TrustRegionConfig, make_trpo
from trpo_jax.agent.evaluate import make_evaluator
from trpo_jax.agent.state import inference_params
from trpo_jax.environments.brax import load_environment
from trpo_jax.environments.checked import strong
from trpo_jax.execution.devices import compiler_options
from trpo_jax.execution.placement import OneTraining
from trpo_jax.execution.runner import Runner
from trpo_jax.training.run_config import starting_config

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compile an accelerator's programs."""

    parts: tuple[str, ...] = ("iteration", "simulator", "update", "ppo", "options")
    """Which."""
    environment: str = "ant"
    """Brax environment (spring), with the settings that ship for an accelerator."""
    num_evaluation_episodes: int = 64
    """Episodes that the evaluator plays."""
    samples: tuple[int, ...] = (65_536, 1_048_576)
    """Batch sizes of the bare update."""
    json: str | None = None
    """Where to write the result."""


def main(arguments: Arguments) -> None:
    device = gpu_target.h100()
    rows: list[Row] = []
    with jax.default_matmul_precision("highest"):
        for part in arguments.parts:
            for row in PARTS[part](arguments, device):
                rows.append({"part": part} | row)
                print(rows[-1], flush=True)
                if arguments.json:
                    report.save(arguments.json, rows)
    for part in arguments.parts:
        report.show(part, [row for row in rows if row["part"] == part])


def compiled(name: str, device: jax.Device, function: Any, *arguments: Any) -> Row:
    """Trace and compile a jitted function for arguments like these."""
    start = time.process_time()
    lowered = function.lower(*gpu_target.described(arguments, device))
    trace = time.process_time() - start
    compile_fn = functools.partial(lowered.compile, compiler_options=compiler_options([device]))
    return described_row(name, gpu_target.measure(compile_fn), trace)


def described_row(name: str, measured: gpu_target.Measured, trace: float) -> Row:
    return {
        "program": name,
        "kernels": measured.kernels,
        "a trip of loops with an open end": ", ".join(map(str, measured.open_loops)),
        "temporary MB": measured.temporary_bytes / 1e6,
        "trace, s": trace,
        "compile, s": measured.compile_seconds,
    }


def iteration(arguments: Arguments, device: jax.Device) -> Iterator[Row]:
    """Compile what one training of the environment runs."""
    start = time.process_time()
    trpo, runner = agent_for(arguments, device)
    yield {"program": "environment and agent, nothing compiled", "trace, s": time.process_time() - start}
    recorder = gpu_target.Recorder()
    runner.compile(recorder)
    names = ("draw", "begin", "advance", "rollout", "policy step", "critic fit")
    for name, (measured, trace) in zip(names, recorder.measured, strict=True):
        yield described_row(name, measured, trace)
    evaluate = make_evaluator(
        trpo.environment, trpo.make_policy, num_episodes=arguments.num_evaluation_episodes, deterministic=True
    )
    yield compiled("evaluator", device, evaluate, inference_params(runner.state_like), runner.state_like.key)


def agent_for(arguments: Arguments, device: jax.Device) -> tuple[Any, Runner]:
    config = starting_config(arguments.environment, accelerator=True).agent
    trpo = make_trpo(load_environment(arguments.environment, "spring"), config)
    return trpo, Runner(trpo, OneTraining(config.num_envs, [device]))


def simulator(arguments: Arguments, device: jax.Device) -> Iterator[Row]:
    config = starting_config(arguments.environment, accelerator=True).agent
    environment = load_environment(arguments.environment, "spring")
    state = jax.eval_shape(lambda key: strong(environment.reset(jax.random.split(key, config.num_envs))), jax.random.key(0))
    yield compiled("simulator", device, random_unroll(environment, config), state, jax.eval_shape(jax.random.key, 0))


def update(arguments: Arguments, device: jax.Device) -> Iterator[Row]:
    for samples in arguments.samples:
        for size, fraction, parts in ((64, 1.0, 1), (256, 1.0, 1), (256, 0.1, 1), (256, 1.0, 16)):
            network = PolicyNetwork(Box(policy_update.ACTION_SIZE), (size, size))
            config = TrustRegionConfig(cg_tolerance=0.0, curvature_fraction=fraction, num_microbatches=parts)
            problem = jax.eval_shape(functools.partial(policy_update.make_problem, network, samples))
            function = jax.jit(functools.partial(trpo_jax.trust_region_update, network.apply, config=config))
            name = f"{samples:,} × {size}-{size}, curvature of {fraction:g}, {parts} microbatches"
            yield compiled(name, device, function, *problem)


class _Captured(Exception):
    """Carries the function that PPO maps over devices, and what it calls it with."""


def ppo(arguments: Arguments, device: jax.Device) -> Iterator[Row]:
    def pmap(function: Callable[..., Any], axis_name: str, **_: Any) -> Callable[..., Any]:
        mapped = jax.vmap(function, axis_name=axis_name)  # over one device
        if function.__name__ != "training_epoch":
            return jax.jit(mapped)

        def capture(*arguments: Any) -> Any:
            raise _Captured(jax.jit(mapped, donate_argnums=(0, 1)), arguments)

        return capture

    if arguments.environment not in PUBLISHED:
        yield {"program": "Brax PPO", "left out": f"no settings are published for {arguments.environment}"}
        return
    try:
        with mock.patch.object(jax, "pmap", pmap):
            settings = PUBLISHED[arguments.environment]
            steps = settings["batch_size"] * settings["num_minibatches"] * settings["unroll_length"]
            train_ppo(arguments.environment, steps, settings, seed=0, num_evals=2, policy_params_fn=lambda *_: None)
    except _Captured as captured:
        function, given = captured.args
    yield compiled(f"Brax PPO, one training step of {steps:,} environment steps", device, function, *given)


def options(arguments: Arguments, device: jax.Device) -> Iterator[Row]:
    """Compile an update with each option, and with each distribution, in float64 too."""
    changes: list[dict[str, Any]] = [
        {},
        {"num_microbatches": 4},
        {"kl_constraint": "max"},
        {"line_search": False},
        {"curvature_fraction": 0.25},
        {"curvature_fraction": 0.25, "curvature_sampling": "random"},
        {"num_microbatches": 4, "kl_constraint": "max", "damping_shape": "gradient"},
        {"damping_shape": "gradient"},
    ]
    for dtype in ("float32", "float64", "bfloat16"):
        with jax.enable_x64(dtype == "float64"):
            for change in changes:
                yield option_row(f"{change or 'defaults'}, {dtype}", "DiagonalGaussian", dtype, change, device)
            for kind in POLICIES:
                yield option_row(f"{kind}, {dtype}", kind, dtype, {}, device)


def option_row(name: str, kind: str, dtype: str, change: dict[str, Any], device: jax.Device) -> Row:
    config = TrustRegionConfig(**change)
    policy_fn = POLICIES[kind]
    params = {"weight": jax.ShapeDtypeStruct((5, NUM_OUTPUTS), dtype)}
    observation = jax.ShapeDtypeStruct((256, 5), dtype)

    def problem(params: Any, observation: Any) -> Any:
        distribution = policy_fn(params, observation)
        action = distribution.sample(jax.random.key(0))
        log_prob = distribution.log_prob(action)
        return trpo_jax.Batch(observation, action, log_prob, log_prob, jnp.ones_like(log_prob))

    def run(params: Any, batch: Any, state: Any) -> Any:
        return trpo_jax.stateful_trust_region_update(policy_fn, params, batch, state, config, key=jax.random.key(1))

    batch = jax.eval_shape(problem, params, observation)
    state = jax.eval_shape(lambda params: trpo_jax.init_trust_region_state(params, config), params)
    return compiled(name, device, jax.jit(run), params, batch, state)


NUM_OUTPUTS = 12


def _outputs(params: Any, observation: Any) -> Any:
    return observation @ params["weight"]


def _scale_tril(raw: Any) -> Any:
    """Make lower triangular matrices `[..., 3, 3]` of outputs `[..., 9]`."""
    return jnp.eye(3, dtype=raw.dtype) + 0.1 * jnp.tril(raw.reshape(*raw.shape[:-1], 3, 3))


def _multivariate(params: Any, observation: Any) -> Any:
    raw = _outputs(params, observation)
    return trpo_jax.MultivariateGaussian(raw[..., :3], _scale_tril(raw[..., 3:]))


def _joint(params: Any, observation: Any) -> Any:
    raw = _outputs(params, observation)
    return trpo_jax.Joint(
        {"move": trpo_jax.DiagonalGaussian(raw[..., :3], raw[..., 3:6]), "shoot": trpo_jax.Bernoulli(raw[..., 6:])}
    )


POLICIES: dict[str, Callable[[Any, Any], Any]] = {
    "DiagonalGaussian": lambda p, o: trpo_jax.DiagonalGaussian(*jnp.split(_outputs(p, o), 2, -1)),
    "TanhGaussian": lambda p, o: trpo_jax.TanhGaussian(*jnp.split(_outputs(p, o), 2, -1)),
    "MultivariateGaussian": _multivariate,
    "Categorical": lambda p, o: trpo_jax.Categorical(_outputs(p, o)),
    "MultiCategorical": lambda p, o: trpo_jax.MultiCategorical(_outputs(p, o), (3, 4, 5)),
    "Bernoulli": lambda p, o: trpo_jax.Bernoulli(_outputs(p, o)),
    "Joint": _joint,
}

PARTS: dict[str, Callable[[Arguments, jax.Device], Iterator[Row]]] = {
    "iteration": iteration,
    "simulator": simulator,
    "update": update,
    "ppo": ppo,
    "options": options,
}


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
