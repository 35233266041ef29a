"""What checkpoints cost: the run time of iterations with one saved every ten, against none.

    python benchmarks/checkpointing.py [--environments hopper ant] [--rounds 10] [--json FILE]

Both run the loop of `train` on programs compiled once, in turns. A round ends when all is written.
"""

import dataclasses
import statistics
import tempfile
from pathlib import Path

import jax
import tyro

import report
from trpo_jax import make_trpo
from trpo_jax.execution.placement import OneTraining
from trpo_jax.execution.runner import Runner
from trpo_jax.training.loop import run_loop
from trpo_jax.training.milestones import Milestones
from trpo_jax.training.reporting import Callbacks, Reporter
from trpo_jax.training.run_config import starting_config
from trpo_jax.training.store import Progress, Store


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure run time with checkpoints over run time without."""

    environments: tuple[str, ...] = ("hopper", "ant")
    """Brax environments, with the settings that ship for them."""
    rounds: int = 10
    """Timed rounds of both."""
    iterations: int = 30
    """Iterations a round."""
    interval: int = 10
    """Iterations between checkpoints."""
    json: str | None = None
    """Where to write the result."""


def main(arguments: Arguments) -> None:
    rows = [measure(name, arguments) for name in arguments.environments]
    report.publish(f"a checkpoint every {arguments.interval} iterations", rows, arguments.json)


def measure(name: str, arguments: Arguments) -> dict:
    trpo = make_trpo(name, starting_config(name).agent)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), resume=False, keep=3, origin={})
        runs = {
            "without": Run(trpo, arguments.iterations, 0, None),
            "with": Run(trpo, arguments.iterations, arguments.interval, store),
        }
        seconds = report.alternate(runs, rounds=arguments.rounds)
        store.wait()
        size = sum(path.stat().st_size for path in max(Path(folder).iterdir()).rglob("*") if path.is_file())
    return {
        "environment": name,
        "checkpoint, MB": size / 1e6,
        "iteration, ms": statistics.median(seconds["without"]) / arguments.iterations * 1e3,
        **report.ratio_columns(seconds["with"], seconds["without"]),
    }


class Run:
    """Iterations from where the last call stopped."""

    def __init__(self, trpo, iterations: int, interval: int, store: Store | None):
        self.trpo, self.iterations, self.interval, self.store = trpo, iterations, interval, store
        self.runner = Runner(trpo, OneTraining(trpo.config.num_envs, jax.devices()[:1]))
        self.state, self.progress = self.runner.init(jax.random.key(0)), Progress(iteration=self.iterations)

    def __call__(self):
        end = self.progress.iteration + self.iterations
        milestones = Milestones(end, (), checkpoint_interval=self.interval)
        reporter = Reporter(self.trpo, self.progress, Callbacks())
        self.state = run_loop(self.runner, self.state, milestones, reporter, self.store)
        self.progress = self.progress._replace(iteration=end)
        return reporter.metrics["training/kl"]


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
