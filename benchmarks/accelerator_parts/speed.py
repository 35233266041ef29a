"""Units that time iterations: beside the simulator alone, in a profile, and with the critic's fit compiled otherwise."""

import functools
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax

import report
from accelerator_parts import kernels
from accelerator_parts.unit import Context
from throughput import Simulator, Training
from trpo_jax import TRPOConfig, make_trpo
from trpo_jax.agent.stages import Stages, run_stages
from trpo_jax.environments.registry import as_environment
from trpo_jax.execution import placement
from trpo_jax.execution.program import side_by_side
from trpo_jax.execution.runner import Runner
from trpo_jax.training.fields import with_fields
from trpo_jax.training.run_config import starting_config

Row = dict[str, Any]

LARGEST_TRACE = 15_000_000
"""Bytes of a profile that is kept beside the result."""


def our_config(environment: str, *, suite: str = "brax", **changed: Any) -> TRPOConfig:
    """Return the settings that ship for an accelerator, some of them changed: fields by their dotted names."""
    return with_fields(starting_config(environment, suite, accelerator=True), changed).agent


class Started(Training):
    """A training whose programs were compiled side by side, as `train` does it, and that has finished one iteration.

    Args:
        environment: without a time limit.
        config: of the training.
        iterations: of a call.
        options: of XLA for the critic's fit, besides those that the package sets.
    """

    def __init__(self, environment: Any, config: TRPOConfig, *, iterations: int, options: Mapping[str, Any] | None = None):
        shipped = placement.compiler_options  # not through super(), which compiles the programs one after another
        choose = functools.partial(options_for, shipped, options or {})
        with mock.patch.object(placement, "compiler_options", choose):
            self.trpo = make_trpo(environment, config)
            self.runner = Runner(self.trpo, placement.OneTraining(config.num_envs, jax.devices()[:1]))
        self.iterations = iterations
        began = time.perf_counter()
        with side_by_side() as compilers:
            self.runner.compile(compilers)
        self.state, metrics = self.runner.update(self.runner.init(jax.random.key(0)))
        jax.block_until_ready(metrics)
        self.seconds = time.perf_counter() - began
        """From the first program's trace to the end of the first iteration."""

    @property
    def steps(self) -> int:
        """Environment steps of a call."""
        return self.trpo.steps_per_iteration * self.iterations

    def stages(self, rounds: int) -> "dict[str, Stage]":
        """Run some iterations, waiting for each stage."""
        stages = [Stage(name, stage) for name, stage in self.runner.stages._asdict().items()]
        for _ in range(rounds):
            self.state, _ = run_stages(Stages(*stages), self.state)
        return {stage.name: stage for stage in stages}

    def milliseconds(self, rounds: int) -> dict[str, float]:
        """Return the median milliseconds of each stage, by itself."""
        return {f"{name} ms": 1e3 * statistics.median(stage.seconds) for name, stage in self.stages(rounds).items()}


def options_for(
    shipped: Callable[..., dict[str, Any]],
    changed: Mapping[str, Any],
    devices: Sequence[jax.Device],
    *,
    for_fit: bool = False,
) -> dict[str, Any]:
    """Return a program's options of XLA: for the critic's fit some are changed."""
    return {**shipped(devices, for_fit=for_fit), **(changed if for_fit else {})}


class Stage:
    """A stage of an iteration that is waited for; keeps its seconds, and shows them in a profile."""

    def __init__(self, name: str, stage: Any) -> None:
        self.name, self.stage = name, stage
        self.seconds: list[float] = []

    def __call__(self, *arguments: Any) -> Any:
        jax.block_until_ready(arguments)
        with jax.profiler.TraceAnnotation(self.name):
            began = time.perf_counter()
            result = jax.block_until_ready(self.stage(*arguments))
            self.seconds.append(time.perf_counter() - began)
        return result


def speed(
    context: Context,
    *,
    environment: str,
    num_envs: int,
    unroll_length: int,
    rounds: int,
    iterations: int,
    suite: str = "brax",
    backend: str = "auto",
) -> Row:
    """Time a start, and then in turns training and the simulator alone."""
    began = time.perf_counter()
    simulated = as_environment(environment, suite=suite, backend=backend)
    config = our_config(environment, suite=suite, num_envs=num_envs, unroll_length=unroll_length)
    made = time.perf_counter() - began
    training = Started(simulated, config, iterations=iterations)
    first = time.perf_counter() - began
    simulator = Simulator(simulated, config, iterations)
    seconds = report.alternate({"training": training, "simulator": simulator}, rounds=rounds)
    ratio = report.ratio(seconds["simulator"], seconds["training"])
    return {
        "environment": environment,
        "batch": f"{num_envs} × {unroll_length}",
        "imports and device": context.imports,
        "environment and agent": made,
        "trace, compile, start": first - made,
        "time to first step": context.imports + first,
        "training steps/s": training.steps / statistics.median(seconds["training"]),
        "simulator steps/s": training.steps / statistics.median(seconds["simulator"]),
        "training ÷ simulator": ratio["median"],
        "min": ratio["min"],
        "max": ratio["max"],
        **training.milliseconds(rounds),
    }


def profile(context: Context, *, environment: str, num_envs: int, unroll_length: int, iterations: int) -> Row:
    """Profile iterations whose stages are waited for; the trace stays beside the result."""
    config = our_config(environment, num_envs=num_envs, unroll_length=unroll_length)
    training = Started(as_environment(environment), config, iterations=iterations)
    training.stages(2)
    quiet = jax.profiler.ProfileOptions()
    quiet.python_tracer_level = 0  # its events are many, and a trace holds a million at most
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=quiet):
            training.stages(iterations)
        trace = kernels.trace_file(Path(folder))
        if trace.stat().st_size <= LARGEST_TRACE:
            shutil.copy(trace, context.path.with_suffix(".trace.json.gz"))
        found = kernels.by_stage(trace, Stages._fields)
    longest = {stage: summary.pop("longest kernels") for stage, summary in found.items()}
    figures = {f"{stage}: {name}": value for stage, summary in found.items() for name, value in summary.items()}
    return {"environment": environment, "iterations": iterations, **figures, "longest kernels": longest}


def fit_compiled(
    context: Context,
    *,
    environment: str,
    options: Mapping[str, Any],
    num_envs: int,
    unroll_length: int,
    rounds: int,
    iterations: int,
) -> Row:
    """Compile the critic's fit with other options of XLA, before what ships, and take turns with that."""
    config = our_config(environment, num_envs=num_envs, unroll_length=unroll_length)
    changed = Started(as_environment(environment), config, iterations=iterations, options=options)
    shipped = Started(as_environment(environment), config, iterations=iterations)
    seconds = report.alternate({"shipped": shipped, "changed": changed}, rounds=rounds)
    ratio = report.ratio(seconds["shipped"], seconds["changed"])
    return {
        "options": dict(options),
        "compile seconds": changed.seconds,
        "steps/s": changed.steps / statistics.median(seconds["changed"]),
        "steps/s ÷ shipped": ratio["median"],
        "min": ratio["min"],
        "max": ratio["max"],
        **changed.milliseconds(rounds),
    }
