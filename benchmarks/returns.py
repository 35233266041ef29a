"""Returns of the configurations that ship: every seed trained from start to end, then evaluated by its mean action.

    python benchmarks/returns.py [--environments ant hopper] [--seeds 0 1 2] [--json FILE]
    python benchmarks/returns.py --accelerator --num-timesteps 10_000_000 --algorithms trpo_jax ppo --jobs 2

`--accelerator` takes the settings for an accelerator, wherever this runs; on a CPU that takes longer and returns the same.
`ppo` is Brax's PPO with the settings that Brax publishes for an accelerator. FILE grows by a row for each run.
"""

import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
import os
import queue
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import tyro

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure returns."""

    environments: tuple[str, ...] = ("ant", "hopper", "inverted_double_pendulum", "inverted_pendulum")
    """Names of Brax environments (spring where they offer it)."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the trainings."""
    algorithms: tuple[Literal["trpo_jax", "ppo"], ...] = ("trpo_jax",)
    """Which to train."""
    accelerator: bool = False
    """Take the settings for an accelerator."""
    num_timesteps: int | None = None
    """Environment steps; None as configured."""
    num_evals: int = 2
    """Evaluations, evenly spread over the training, the first before it."""
    episodes: int = 128
    """Episodes an evaluation plays."""
    jobs: int = 1
    """Trainings at once, each with its share of the processor's cores."""
    json: str | None = None
    """Where to write the result."""
    resume: bool = False
    """Keep what that file holds, and run only what it lacks."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One training."""

    algorithm: str
    environment: str
    seed: int


def main(arguments: Arguments) -> None:
    rows = earlier_rows(arguments.json) if arguments.resume else []
    runs = [
        Run(algorithm, environment, seed)
        for environment in arguments.environments
        for algorithm in arguments.algorithms
        for seed in arguments.seeds
    ]
    check_published(runs)
    settings = {"accelerator": arguments.accelerator, "num_timesteps": arguments.num_timesteps, "episodes": arguments.episodes}
    done = [{name: row.get(name) for name in (*vars(runs[0]), *settings)} for row in rows]
    left = [run for run in runs if vars(run) | settings not in done]
    cores = share_of_cores(arguments.jobs)
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for future in concurrent.futures.as_completed([pool.submit(measure_apart, run, arguments, cores) for run in left]):
            rows.append(future.result() | settings)
            print({name: value for name, value in rows[-1].items() if name != "curve"}, flush=True)
            if arguments.json:
                import report

                report.save(arguments.json, rows)
    import report

    report.show("deterministic evaluation", summary([row for row in rows if "failed" not in row]))
    if failed := [row for row in rows if "failed" in row]:
        raise SystemExit(
            "failed: " + ", ".join(f"{row['algorithm']} on {row['environment']}, seed {row['seed']}" for row in failed)
        )


def earlier_rows(path: str | None) -> list[Row]:
    """Return what a file holds of runs that ended well."""
    rows = json.loads(Path(path).read_text(encoding="utf-8"))["rows"] if path and Path(path).exists() else []
    return [row for row in rows if "failed" not in row]


def check_published(runs: list[Run]) -> None:
    """Raise SystemExit for a run of PPO where Brax publishes no settings."""
    from brax_ppo import PUBLISHED

    for run in runs:
        if run.algorithm == "ppo" and run.environment not in PUBLISHED:
            raise SystemExit(
                f"ppo: got {run.environment!r}, allowed: {', '.join(PUBLISHED)}, for which Brax publishes settings"
            )


def summary(rows: list[Row]) -> list[Row]:
    """Return a row for each algorithm and environment."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        groups.setdefault((row["environment"], row["algorithm"]), []).append(row)
    return [
        {
            "environment": environment,
            "algorithm": algorithm,
            "steps": group[0]["steps"],
            "mean return": statistics.mean(row["return"] for row in group),
            "standard deviation": statistics.stdev([row["return"] for row in group]) if len(group) > 1 else 0.0,
            "each seed": ", ".join(f"{row['return']:.0f}" for row in group),
            "median seconds": statistics.median(row["seconds"] for row in group),
        }
        for (environment, algorithm), group in groups.items()
    ]


def share_of_cores(jobs: int) -> queue.Queue[tuple[int, ...]]:
    """Return what `jobs` runs at once take from in turn: cores that each has for itself."""
    cores = sorted(os.sched_getaffinity(0))
    shares: queue.Queue[tuple[int, ...]] = queue.Queue()
    for job in range(jobs):
        shares.put(tuple(cores[job::jobs]) or tuple(cores))
    return shares


def measure_apart(run: Run, arguments: Arguments, shares: "queue.Queue[tuple[int, ...]]") -> Row:
    """Measure in a process of its own: JAX shows one number of cores as devices for all of a process's life."""
    cores = shares.get()
    try:
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            return process.submit(measure, run, arguments, cores).result()
    except Exception as error:  # the other runs go on
        return dataclasses.asdict(run) | {"failed": f"{type(error).__name__}: {error}"[:500]}
    finally:
        shares.put(cores)


def measure(run: Run, arguments: Arguments, cores: tuple[int, ...]) -> Row:
    """Train and evaluate on some of the processor's cores."""
    os.sched_setaffinity(0, cores)

    import jax

    from trpo_jax import make_trpo, train
    from trpo_jax.agent.evaluate import make_evaluator
    from trpo_jax.cli.startup import configure_process
    from trpo_jax.environments.registry import as_environment
    from trpo_jax.execution.devices import show_cores_as_devices
    from trpo_jax.training.run_config import starting_config

    configure_process()
    config = starting_config(run.environment, accelerator=arguments.accelerator)
    show_cores_as_devices(config.agent.num_envs)
    environment = as_environment(run.environment)
    limited = make_trpo(environment, config.agent).environment
    num_timesteps = config.num_timesteps if arguments.num_timesteps is None else arguments.num_timesteps
    curve: list[tuple[int, float, float]] = []
    start = time.perf_counter()

    @functools.cache
    def evaluator(make_policy: Any) -> Any:
        return make_evaluator(limited, make_policy, num_episodes=arguments.episodes, deterministic=True)

    def visit(steps: int, make_policy: Any, params: Any) -> None:
        evaluate = evaluator(make_policy)
        mean = float(evaluate(params, jax.random.key(10_000 + run.seed)).episode_return.mean())
        curve.append((int(steps), round(time.perf_counter() - start, 1), round(mean, 2)))

    options: dict[str, Any] = {"seed": run.seed, "num_evals": arguments.num_evals, "policy_params_fn": visit}
    if run.algorithm == "ppo":
        from brax_ppo import PUBLISHED, train_ppo

        train_ppo(run.environment, num_timesteps, PUBLISHED[run.environment], **options)
    else:
        train(environment, num_timesteps, config=config.agent, num_eval_envs=0, **options)
    steps, seconds, mean = curve[-1]
    return {**dataclasses.asdict(run), "steps": steps, "return": mean, "seconds": seconds, "curve": curve}


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
