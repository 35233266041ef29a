"""Print a training's progress as lines of text."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator

from trpo_jax.execution.program import COMPILATIONS

LINES_A_RUN = 20
"""Approximate number of iterations that are printed in a training."""


class ProgressLines:
    """Prints the progress of a training.

    Args:
        num_timesteps: environment steps of the whole training.
    """

    def __init__(self, num_timesteps: int):
        self.total = max(num_timesteps, 1)
        self._printed = 0
        self._started = time.perf_counter()
        self._first: tuple[int, float] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether an iteration was reported."""
        return self._first is not None

    @property
    def elapsed(self) -> float:
        """Seconds since this object was made."""
        return time.perf_counter() - self._started

    def iteration(self, step: int, metrics: dict[str, float]) -> None:
        """Report an iteration."""
        self._first = self._first or (step, time.perf_counter())
        self.show(step, metrics)

    def show(self, step: int, metrics: dict[str, float]) -> None:
        """Print an iteration if a line is due."""
        if step * LINES_A_RUN // self.total > self._printed or step >= self.total:
            self._printed = step * LINES_A_RUN // self.total
            self.say(f"step {step:>10,}  {describe(metrics)}{self._left(step)}")

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Report an evaluation."""
        if "eval/episode_reward" in metrics:
            self.say(f"step {step:>10,}  evaluation: return {describe_evaluation(metrics)}")

    def say(self, line: str) -> None:
        """Print a line."""
        print(line, flush=True)

    def _left(self, step: int) -> str:
        """Estimate the time left from the pace after the first iteration, which is not counted because it compiled."""
        first_step, first_time = self._first or (step, self._started)
        if step == first_step:
            return ""
        seconds = (time.perf_counter() - first_time) / (step - first_step) * max(self.total - step, 0)
        return f"  {format_seconds(seconds)} left"


@contextlib.contextmanager
def compilations_told(say: Callable[[str], None]) -> Iterator[None]:
    """Call `say` with a line for each program once it is compiled."""

    class Teller(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(record.getMessage())

    teller, before = Teller(logging.INFO), (COMPILATIONS.level, COMPILATIONS.propagate)
    COMPILATIONS.addHandler(teller)
    COMPILATIONS.setLevel(logging.INFO)
    COMPILATIONS.propagate = False  # otherwise another handler may print it too
    try:
        yield
    finally:
        COMPILATIONS.removeHandler(teller)
        COMPILATIONS.setLevel(before[0])
        COMPILATIONS.propagate = before[1]


def describe(metrics: dict[str, float]) -> str:
    """Summarize the metrics of an iteration in a short line."""
    episode_return = metrics["training/episode_reward"]
    shown = "    –" if math.isnan(episode_return) else f"{episode_return:5.0f}"
    cost = metrics.get("training/episode_cost", math.nan)
    also = "" if math.isnan(cost) else f"  cost {cost:.1f}"
    return f"return {shown}{also}  KL {metrics['training/kl']:.4f}  {metrics['training/sps']:,.0f} steps/s"


def describe_evaluation(metrics: dict[str, float]) -> str:
    """Write an evaluation's return as mean ± standard deviation."""
    told = f"{metrics['eval/episode_reward']:.0f} ± {metrics['eval/episode_reward_std']:.0f}"
    if "eval/episode_cost" in metrics:
        told += f", cost {metrics['eval/episode_cost']:.1f} ± {metrics['eval/episode_cost_std']:.1f}"
    return told


def format_seconds(seconds: float) -> str:
    """Write a duration as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
