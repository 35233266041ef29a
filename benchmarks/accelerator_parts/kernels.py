"""What JAX's profiler saw a GPU do, within stretches of time that the host has named."""

import gzip
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Event = dict[str, Any]


def trace_file(folder: Path) -> Path:
    """Return the trace that `jax.profiler.trace(folder)` has written."""
    return max(folder.glob("plugins/profile/*/*.trace.json.gz"))


def by_stage(trace: Path, stages: Sequence[str], *, longest: int = 5) -> dict[str, dict[str, Any]]:
    """Return what ran in each stage, per time that it was run.

    Args:
        trace: of `trace_file`.
        stages: names of annotations of the host, within which the device was waited for.
        longest: how many kinds of kernels to name.

    Returns:
        By stage: its milliseconds "ms", "kernels", their milliseconds "kernel ms", and the "longest kernels" as
        [name, number, milliseconds].
    """
    with gzip.open(trace) as file:
        events = json.load(file)["traceEvents"]
    kernels = kernels_of(events)
    return {stage: _summary([e for e in events if is_span(e) and e["name"] == stage], kernels, longest) for stage in stages}


def is_span(event: Event) -> bool:
    return event.get("ph") == "X" and "dur" in event


def kernels_of(events: Sequence[Event]) -> list[Event]:
    """Return what ran on streams of devices; where there are none, as on a CPU, operations of compiled programs.

    A device's other lines say the same again, by module and by operation.
    """
    named: dict[str, dict[Any, str]] = {"process_name": {}, "thread_name": {}}
    for event in events:
        if event.get("name") in named:
            named[event["name"]][event["pid"], event.get("tid")] = event["args"]["name"]
    devices = {pid for (pid, _), name in named["process_name"].items() if name.startswith("/device:")}
    streams = {line for line, name in named["thread_name"].items() if line[0] in devices and name.startswith("Stream")}
    if streams:
        return [event for event in events if is_span(event) and (event["pid"], event["tid"]) in streams]
    return [event for event in events if is_span(event) and "hlo_op" in event.get("args", {})]


def _summary(spans: Sequence[Event], kernels: Sequence[Event], longest: int) -> dict[str, Any]:
    inside = [e for span in spans for e in kernels if span["ts"] <= e["ts"] < span["ts"] + span["dur"]]
    kinds: dict[str, list[float]] = defaultdict(list)
    for kernel in inside:
        kinds[kernel["name"]].append(kernel["dur"])
    runs = 1000 * max(1, len(spans))  # and µs to ms
    order = sorted(kinds, key=lambda name: -sum(kinds[name]))[:longest]
    return {
        "ms": sum(span["dur"] for span in spans) / runs,
        "kernels": round(1000 * len(inside) / runs),
        "kernel ms": sum(kernel["dur"] for kernel in inside) / runs,
        "longest kernels": [[name[:80], round(1000 * len(kinds[name]) / runs), sum(kinds[name]) / runs] for name in order],
    }
