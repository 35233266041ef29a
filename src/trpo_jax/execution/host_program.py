"""A stage that runs on the host, with the programs that it calls."""

import concurrent.futures
import functools
from collections.abc import Callable, Mapping
from typing import Any

from trpo_jax.agent.host import HostStage
from trpo_jax.execution.program import Program


class HostProgram:
    """Looks like a `Program`, and calls programs of its own.

    Args:
        stage: what to run.
        programs: its functions, compiled by the placement.
    """

    def __init__(self, stage: HostStage, programs: Mapping[str, Program]):
        self._stage, self._programs = stage, programs

    def compile(self, compilers: concurrent.futures.Executor, *arguments: Any) -> Any:
        """Trace the programs and let compilers finish; return the results as `jax.ShapeDtypeStruct`s."""
        compiled = {name: functools.partial(program.compile, compilers) for name, program in self._programs.items()}
        return self._stage.describe(compiled, *arguments)

    def describe(self, *arguments: Any) -> Any:
        """Return the results as `jax.ShapeDtypeStruct`s."""
        described: dict[str, Callable[..., Any]] = {name: program.describe for name, program in self._programs.items()}
        return self._stage.describe(described, *arguments)

    def __call__(self, *arguments: Any) -> Any:
        """Run the stage."""
        return self._stage.run(self._programs, *arguments)

    def close(self) -> None:
        """Release what the stage holds on the host."""
        self._stage.close()
