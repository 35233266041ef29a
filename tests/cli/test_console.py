import math
import re
from pathlib import Path

import pytest
import rich.console

from trpo_jax.cli.console import PlainConsole, TerminalConsole
from trpo_jax.training.progress import describe, format_seconds
from trpo_jax.training.run_config import RunConfig

METRICS = {"training/episode_reward": 123.4, "training/kl": 0.01234, "training/sps": 20_000.0}


def test_durations():
    assert [format_seconds(s) for s in (0.4, 59.6, 61.0, 3600.0)] == ["0:00", "1:00", "1:01", "1:00:00"]


def test_an_iteration_in_words():
    assert describe(METRICS) == "return   123  KL 0.0123  20,000 steps/s"
    assert describe(METRICS | {"training/episode_reward": math.nan}).startswith("return     –  KL")


def test_plain_lines_come_about_twenty_times_a_run(capsys):
    console = PlainConsole(RunConfig(num_timesteps=1000))
    for step in range(1, 1001):
        console.iteration(step, METRICS)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 20
    assert re.fullmatch(r"step      1,000  return   123  KL 0.0123  20,000 steps/s  0:00 left", lines[-1])


def test_the_bar_shows_return_kl_speed_and_time_left():
    console = TerminalConsole(RunConfig(num_timesteps=1000))
    console.iteration(500, METRICS)
    screen = rich.console.Console(width=120)
    with screen.capture() as capture:
        screen.print(console._progress.get_renderable())
    text = capture.get()
    for part in ("ant", "50%", "return   123", "KL 0.0123", "20,000 steps/s"):
        assert part in text


@pytest.mark.parametrize(
    ("metrics", "end"),
    [({"eval/episode_reward": 1.0, "eval/episode_reward_std": 0.0}, "; this was only evaluated again\n"), ({}, "\n")],
)
def test_a_finished_run_says_it_was_evaluated_again_only_where_it_was(metrics, end, capsys):
    console = PlainConsole(RunConfig(num_timesteps=1000))
    console.start(Path("run"), resumed=True)
    console.finish(Path("run"), metrics)
    assert f"all 1,000 steps had been trained before{end}" in capsys.readouterr().out
