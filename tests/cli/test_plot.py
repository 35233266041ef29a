import pytest

from trpo_jax.cli import main
from trpo_jax.runs.run_folder import create_run_folder
from trpo_jax.training.run_config import RunConfig


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "configure_process", lambda: None)  # it changes this process's jax.config
    for name in ("a", "b"):
        metrics = create_run_folder(tmp_path / name, RunConfig()).metrics
        metrics.write_text('{"step": 10, "training/episode_reward": 3.0}\n')
    return tmp_path


@pytest.mark.parametrize(
    ("command", "picture"),
    [
        ("plot a", "a/plot.png"),
        ("plot a b", "plot.png"),
        ("plot a b --out both.svg", "both.svg"),
        ("plot a --out c.png", "c.png"),
    ],
)
def test_plot_writes_a_picture_and_says_where(command, picture, runs, capsys):
    assert main.run(command.split()) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"wrote {picture}\n", "")
    assert (runs / picture).stat().st_size > 10_000


def test_a_run_without_metrics_is_reported_and_nothing_is_written(runs, capsys):
    (runs / "b" / "metrics.jsonl").write_text("")
    assert main.run(["plot", "a", "b"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("trpo-jax plot: error: metrics: got 'b/metrics.jsonl', allowed: a file with at least one complete")
    assert not (runs / "plot.png").exists()
