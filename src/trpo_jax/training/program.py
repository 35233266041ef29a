"""A program that is compiled ahead of its first call, beside others."""

import concurrent.futures
from collections.abc import Mapping
from typing import Any

import jax

from trpo_jax.training.devices import put


class Program:
    """A jitted function that `compile` must see before its first call.

    Args:
        function: jitted.
        thread: that starts it; None for the caller's. What one thread starts on a CPU, XLA runs in order.
        move: positions of arguments, and where those arguments are to be put.
    """

    def __init__(
        self,
        function: Any,
        thread: concurrent.futures.Executor | None = None,
        move: Mapping[int, jax.sharding.Sharding] | None = None,
    ):
        self._function, self._thread, self._move = function, thread, move or {}
        self._compiled: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def compile(self, compilers: concurrent.futures.Executor, *arguments: Any) -> Any:
        """Trace it, and let one of the compilers go on; return what it will return, as `jax.ShapeDtypeStruct`.

        The caller's thread traces, since that is the one that JAX's settings are made for, such as
        `with jax.default_matmul_precision(…)`.
        """
        lowered = self._function.lower(*self._moved(arguments))
        self._compiled = compilers.submit(lowered.compile)
        return lowered.out_info

    def __call__(self, *arguments: Any) -> Any:
        """Start it, once it is compiled."""
        compiled, arguments = self._compiled.result(), self._moved(arguments)
        if self._thread is None:
            return compiled(*arguments)
        return self._thread.submit(compiled, *arguments).result()

    def _moved(self, arguments: tuple[Any, ...]) -> list[Any]:
        return [put(each, self._move[i]) if i in self._move else each for i, each in enumerate(arguments)]
