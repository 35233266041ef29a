"""Returns that the shipped configurations reach: training and deterministic evaluation over several seeds.

python benchmarks/returns.py [--environments ant hopper inverted_double_pendulum] [--seeds 0 1 2] [--json FILE]
"""

import dataclasses
import statistics
import time

import jax
import tyro

import report
from trpo_jax.cli.startup import configure_process
from trpo_jax.training.devices import show_cores_as_devices
from trpo_jax.training.evaluate import make_evaluator
from trpo_jax.training.run_config import starting_config
from trpo_jax.training.train import train
from trpo_jax.training.trpo import make_trpo


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Train shipped configurations and evaluate them."""

    environments: tuple[str, ...] = ("ant", "hopper", "inverted_double_pendulum")
    """Names of shipped configurations."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the trainings."""
    episodes: int = 128
    """Episodes that evaluate each trained policy."""
    json: str | None = None
    """Where to write the result."""


def main(arguments: Arguments) -> None:
    configure_process()
    show_cores_as_devices(
        min(read_run_config(path).trpo.num_envs for path in map(shipped_config, arguments.environments) if path)
    )
    rows = [measure(name, arguments) for name in arguments.environments]
    report.publish("deterministic evaluation", rows, arguments.json)


def measure(name: str, arguments: Arguments) -> dict:
    path = shipped_config(name)
    if path is None:
        raise SystemExit(f"environments: got {name!r}, allowed: a name with a file in configs/brax")
    config = read_run_config(path)
    trpo = make_trpo(name, config.trpo)
    evaluate = make_evaluator(trpo.environment, trpo.make_policy, num_episodes=arguments.episodes, deterministic=True)
    returns, walltimes = [], []
    for seed in arguments.seeds:
        start = time.perf_counter()
        _, params, _ = train(name, config.num_timesteps, config=config.trpo, seed=seed, num_eval_envs=0)
        walltimes.append(time.perf_counter() - start)
        returns.append(float(evaluate(params, jax.random.key(10_000 + seed)).episode_return.mean()))
        print(f"{name} seed {seed}: {returns[-1]:.0f} after {walltimes[-1]:.0f} s", flush=True)
    return {
        "environment": name,
        "steps": config.num_timesteps,
        "mean return": statistics.mean(returns),
        "standard deviation": statistics.stdev(returns) if len(returns) > 1 else 0.0,
        "each seed": ", ".join(f"{value:.0f}" for value in returns),
        "median seconds": statistics.median(walltimes),
    }


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
