"""A program that is compiled before its first call, in parallel with others."""

import concurrent.futures
import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from trpo_jax.agent.stages import Stages, run_stages
from trpo_jax.agent.state import TrainState
from trpo_jax.execution.memory import check_program

COMPILATIONS = logging.getLogger(__name__)
"""Logs, at level INFO, every program that was compiled ahead of its first call and took TOLD_FROM seconds or more."""

TOLD_FROM = 0.5


class Program:
    """A jitted function that can be compiled ahead of its first call.

    Args:
        name: human-readable name.
        function: the jitted function.
        thread: the thread that starts the program; None for the caller's.
        bring: moves the arguments, or their descriptions, to the devices that the function expects.
        available_memory: bytes that the program may use on each device; None for no limit.
    """

    def __init__(
        self,
        name: str,
        function: Any,
        thread: concurrent.futures.Executor | None = None,
        bring: Callable[..., tuple[Any, ...]] | None = None,
        available_memory: int | None = None,
    ):
        self._name, self._function, self._thread, self._bring = name, function, thread, bring
        self._available_memory = available_memory
        self._compiled: concurrent.futures.Future[Any] | None = None
        self._described: Any = None

    def compile(self, compilers: concurrent.futures.Executor, *arguments: Any) -> Any:
        """Trace the function once and let a compiler thread finish; return its results as `jax.ShapeDtypeStruct`s.

        The caller's thread traces, because JAX's settings, such as `with jax.default_matmul_precision(…)`, apply to that
        thread. Under `jax.disable_jit` nothing is compiled.
        """
        if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            return self.describe(*arguments)
        if self._compiled is None:
            started = time.perf_counter()
            lowered = self._function.lower(*self._brought(arguments))
            tracing = time.perf_counter() - started
            self._compiled, self._described = compilers.submit(self._finish, lowered, tracing), lowered.out_info
        return self._described

    def _finish(self, lowered: Any, tracing: float) -> Any:
        """Compile the traced program, and log how long tracing and compiling took."""
        started = time.perf_counter()
        compiled = lowered.compile()
        took = tracing + time.perf_counter() - started
        if took >= TOLD_FROM:
            COMPILATIONS.info("compiled the %s in %.1f s", self._name, took)
        return compiled

    def describe(self, *arguments: Any) -> Any:
        """Return the function's results as `jax.ShapeDtypeStruct`s, without compiling it."""
        return jax.eval_shape(self._function, *self._brought(arguments))

    def __call__(self, *arguments: Any) -> Any:
        """Start the program. Raises ConfigError if it was compiled ahead and needs more memory than there is."""
        arguments = self._brought(arguments)
        run = self._function if self._compiled is None else self._compiled.result()
        if self._compiled is not None and self._available_memory is not None:
            check_program(_needed_memory(run), self._available_memory)
            self._available_memory = None  # checked once
        if self._thread is None:
            return run(*arguments)
        return self._thread.submit(run, *arguments).result()

    def _brought(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return arguments if self._bring is None else self._bring(*arguments)


def _needed_memory(compiled: Any) -> int:
    """Return the bytes that a compiled program needs on each device, including arguments and results."""
    memory = compiled.memory_analysis()
    arrays = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return arrays + memory.temp_size_in_bytes


def compile_stages(stages: Any, compilers: concurrent.futures.Executor, state_like: TrainState) -> None:
    """Trace an iteration's stages, each a `Program`, and let compilers finish; `state_like` describes the state before it."""
    run_stages(Stages(*(functools.partial(stage.compile, compilers) for stage in stages)), state_like)


@contextlib.contextmanager
def side_by_side() -> Iterator[concurrent.futures.Executor]:
    """Provide one compiler thread per CPU, and do not wait for them at the end. Python does when it exits."""
    compilers = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    yield compilers
    compilers.shutdown(wait=False)
