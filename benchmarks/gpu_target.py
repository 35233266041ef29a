"""Compile jitted functions for a GPU on a machine without one, and count the kernels that they will launch.

Needs the CUDA plugin of JAX, but neither a driver nor CUDA's libraries. Autotuning is off, so how long programs take cannot be
told from here; kernels, memory and the seconds of compilation can.
"""

import concurrent.futures
import dataclasses
import functools
import importlib.util
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

H100 = Path(__file__).with_name("h100_target.txtpb")
NO_KERNEL = {
    *(
        "parameter",
        "get-tuple-element",
        "tuple",
        "bitcast",
        "constant",
        "after-all",
        "opt-barrier",
        "partition-id",
        "replica-id",
    ),
    *("fusion-done", "copy-done", "async-done", "call-done"),  # the ends of what another line starts
}


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop of a compiled program; `trips` is None where only the device knows."""

    trips: int | None
    kernels: int


@dataclasses.dataclass
class Measured:
    """What compiling a program told."""

    kernels: int
    """Loops of known length count with all their trips, others with one."""
    loops: list[Loop]
    temporary_bytes: int
    compile_seconds: float
    """Of all processors together."""

    @property
    def open_loops(self) -> list[int]:
        """Kernels a trip of each loop whose length only the device knows."""
        return [loop.kernels for loop in self.loops if loop.trips is None]


def h100() -> jax.Device:
    """Return a device to compile for; exits with one line where the CUDA plugin is missing."""
    jax.config.update("jax_platforms", "cpu")  # else JAX would look for a GPU, and complain
    version = jax.__version__
    if importlib.util.find_spec("jax_plugins") is None or importlib.util.find_spec("jax_plugins.xla_cuda13") is None:
        raise SystemExit(
            "gpu_programs needs JAX's CUDA plugin (420 MB, no driver): "
            f"pip install jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version}"
        )
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"
    topology = topologies.get_topology_desc(platform="cuda", target_config=H100.read_text(), topology="1x1x1")
    return topology.devices[0]


def described(tree: Any, device: jax.Device) -> Any:
    """Describe arrays, or descriptions of arrays, as lying on a device."""
    sharding = NamedSharding(Mesh([device], ("devices",)), PartitionSpec())
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def measure(compile_fn: Callable[[], Any]) -> Measured:
    """Call the `compile` of a lowered program, and look at what comes of it."""
    start = time.process_time()
    compiled = compile_fn()
    seconds = time.process_time() - start
    kernels, loops = count_kernels(compiled.as_text())
    return Measured(kernels, loops, compiled.memory_analysis().temp_size_in_bytes, seconds)


class Recorder(concurrent.futures.Executor):
    """Stands in for the threads that compile programs side by side: compiles each at once, and keeps what that told."""

    def __init__(self) -> None:
        self.measured: list[tuple[Measured, float]] = []
        """With the CPU seconds that went by before: of tracing."""
        self._last = time.process_time()

    def submit(self, compile_fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        trace = time.process_time() - self._last
        self.measured.append((measure(functools.partial(compile_fn, *args, **kwargs)), trace))
        self._last = time.process_time()
        return concurrent.futures.Future()


def count_kernels(text: str) -> tuple[int, list[Loop]]:
    """Count the kernels of an optimized program in HLO's text form, and those of each loop in it."""
    computations, entry = _computations(text)
    known: dict[str, int] = {}
    loops: list[Loop] = []

    def count(name: str) -> int:
        if name not in known:
            known[name] = sum(count_line(line) for line in computations[name])
        return known[name]

    def count_line(line: str) -> int:
        kind = _operation(line)
        if kind in NO_KERNEL:
            return 0
        if kind == "while":
            each = count(_named(line, "body"))
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            loops.append(Loop(int(trips[1]) if trips else None, each))
            return each * (int(trips[1]) if trips else 1)
        if kind == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", line)
            names = branches[1].split(",") if branches else re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", line)
            return max(count(name.strip().lstrip("%")) for name in names)
        return count(_named(line, "to_apply")) if kind == "call" else 1

    return count(entry), loops


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Return the instructions of each computation, and the name of the one that is called first."""
    computations: dict[str, list[str]] = {}
    name, entry = None, ""
    for line in text.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            name = head[2]
            computations[name] = []
            entry = name if head[1] else entry
        elif line.startswith("}"):
            name = None
        elif name and " = " in line:
            computations[name].append(line)
    return computations, entry


def _operation(line: str) -> str:
    found = re.search(r" = (?:\([^=]*?\)|\S+) ([a-z\-]+)\(", line) or re.search(r"\) ([a-z\-]+)\(", line)
    return found[1] if found else "?"


def _named(line: str, attribute: str) -> str:
    found = re.search(rf"{attribute}=%?([\w.\-]+)", line)
    assert found, line
    return found[1]
