"""One setting beside PPO's: what is compared with what, at the same steps and at the same time."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import brax_ppo
import ppo_runs
import ppo_search
import suite
from trpo_jax import ConfigError, TRPOConfig
from trpo_jax.sweep.plan import plan_file
from trpo_jax.sweep.report.scores import ScoredRun
from trpo_jax.training.fields import setting_in_words

SWEEPS = Path(__file__).parents[2] / "configs" / "sweeps"
RESULTS = Path(__file__).parents[2] / "docs" / "benchmarks"
SPEEDS = {suite.OURS: 2000.0, suite.PPO: 1000.0}


def scored(setting, seed, curve):
    return ScoredRun(f"hopper-{seed}", "hopper", setting, {}, seed, curve[-1][1], curve)


def test_a_row_compares_ours_with_ppo_after_the_same_steps_and_after_the_same_time():
    ours = [scored(suite.OURS, seed, ((0, 0.0), (400, 100.0 + seed))) for seed in range(3)]
    alike = [scored(suite.SAME_STEPS, seed, ((0, 0.0), (400, 80.0 + 30 * seed))) for seed in range(3)]
    shorter = [scored(suite.SAME_TIME, seed, ((0, 0.0), (200, 20.0))) for seed in range(3)]
    row = suite.compare([*ours, *alike, *shorter], 400, SPEEDS)
    assert row["trpo_jax, each seed"] == "100, 101, 102"
    assert row["Brax PPO, same steps, each seed"] == "80, 110, 140"
    assert row["Brax PPO, same time, each seed"] == "20, 20, 20"
    assert (row["steps"], row["steps, Brax PPO, same time"]) == (400, 200)
    assert row["trpo_jax"].startswith("101 (100")
    assert row["Brax PPO, same time"] == "20 (20 to 20)"
    assert row["P(trpo_jax > Brax PPO, same steps)"].startswith("0.33")
    assert row["P(trpo_jax > Brax PPO, same time)"] == "1 (1 to 1)"


def test_the_last_row_is_the_mean_over_environments_from_the_lowest_point_of_a_curve_to_the_best_algorithm():
    ends = {suite.OURS: (100.0, 5.0), suite.SAME_STEPS: (50.0, 9.0), suite.SAME_TIME: (25.0, 1.0)}
    runs = [
        ScoredRun("", environment, name, {}, seed, end, ((0, 0.0), (10, end)))
        for name, both in ends.items()
        for environment, end in zip(("hopper", "reacher"), both, strict=True)
        for seed in range(2)
    ]
    row = suite.overall(runs)
    assert [float(row[name].split()[0]) for name in ends] == pytest.approx(
        [(1 + 5 / 9) / 2, (0.5 + 1) / 2, (0.25 + 1 / 9) / 2], abs=5e-4
    )


@pytest.mark.parametrize(("speed", "updates"), [(0.5, 96), (1.5, 288), (1e-9, 1)])
def test_in_the_same_time_ppo_does_whole_updates_by_its_speed(speed, updates):
    run = plan_file(SWEEPS / "one_setting.toml")[0]
    alike = suite.ppo_run(run, brax_ppo.ONE_SETTING)
    other = suite.ppo_run(run, brax_ppo.ONE_SETTING, {suite.OURS: 1.0, suite.PPO: speed})
    assert (alike.num_timesteps, alike.num_evals) == (run.config.num_timesteps, run.config.num_evals) == (192 * 5120, 7)
    assert other.num_timesteps == updates * 5120


def test_our_one_setting_is_the_defaults_whatever_an_environment_ships_with():
    runs = plan_file(SWEEPS / "one_setting.toml")
    assert len({run.config.environment for run in runs}) == 7
    assert {run.config.seed for run in runs} == set(range(20, 30))
    assert {repr(run.config.agent) for run in runs} == {repr(TRPOConfig())}
    assert all(run.config.num_timesteps <= 1_000_000 for run in runs)


def test_both_were_searched_on_the_same_environments():
    ours = [run.config for number in ("", "_2", "_3") for run in plan_file(SWEEPS / f"one_setting_search{number}.toml")]
    assert set(ppo_search.Arguments().environments) == {run.environment for run in ours}
    assert {seed for one in ppo_search.ROUNDS for seed in one.seeds} <= {run.seed for run in ours}
    assert any(run.agent == TRPOConfig() for run in ours)


def test_ppos_one_setting_is_the_best_of_its_search():
    rows = json.loads((RESULTS / "ppo_search_cpu.json").read_text(encoding="utf-8"))["rows"]
    best = {row["round"]: row["setting"] for row in reversed(rows)}  # rows of a round stand best first
    setting = dict(ppo_search.AROUND)
    for number, one in enumerate(ppo_search.ROUNDS, 1):
        setting |= next(swept for swept in ppo_search.combinations(one.grid) if setting_in_words(swept) == best[number])
    assert setting == brax_ppo.ONE_SETTING


def test_a_round_goes_on_from_the_best_of_the_last(monkeypatch, tmp_path):
    trained = []

    def train_all(runs, folder):
        trained.append(runs)
        return [ScoredRun(run.name, run.environment, run.setting, run.swept, run.seed, score(run), ((0, 0.0),)) for run in runs]

    def score(run):  # the last setting of the first round is the best
        return run.settings["learning_rate"] + run.settings["num_updates_per_batch"] - run.settings["entropy_cost"]

    monkeypatch.setattr(ppo_search, "train_all", train_all)
    ppo_search.main(ppo_search.Arguments(environments=("hopper", "ant"), folder=str(tmp_path)))
    assert len(trained) == len(ppo_search.ROUNDS)
    assert len(trained[1]) == 2 * 8 * 2
    best = {"learning_rate": 2e-3, "num_updates_per_batch": 16, "entropy_cost": 1e-3}
    assert all(best.items() <= run.settings.items() for run in trained[1])


def test_what_cannot_be_compared_is_refused():
    suite.check_comparable(plan_file(SWEEPS / "one_setting.toml"))
    with pytest.raises(ConfigError, match=r"sweep: got .84 settings of 6 environments., allowed: one of each"):
        suite.check_comparable([run for number in ("", "_2") for run in plan_file(SWEEPS / f"one_setting_search{number}.toml")])
    run, same, *_ = plan_file(SWEEPS / "one_setting.toml")
    with pytest.raises(ConfigError, match="num_timesteps: got 'several', allowed: one an environment"):
        suite.check_comparable([run, same._replace(config=dataclasses.replace(run.config, num_timesteps=100))])
    short = dataclasses.replace(run.config.agent, episode_length=500)
    for change, message in (
        ({"backend": "generalized"}, "backend: got 'generalized', allowed: spring, with which PPO trains"),
        ({"deterministic_eval": False}, "deterministic_eval: got False, allowed: True, with which PPO"),
        ({"agent": short}, "episode_length: got 500, allowed: 1000, with which PPO"),
    ):
        with pytest.raises(ConfigError, match=message):
            suite.check_comparable([run._replace(config=dataclasses.replace(run.config, **change))])


def test_speeds_are_measured_once(tmp_path, monkeypatch):
    run = plan_file(SWEEPS / "one_setting.toml")[0]
    monkeypatch.setattr(suite, "measure_speeds", lambda *_: SPEEDS)
    assert suite.known_speeds(tmp_path, run, brax_ppo.ONE_SETTING, 1) == SPEEDS
    monkeypatch.delattr(suite, "measure_speeds")
    assert suite.known_speeds(tmp_path, run, brax_ppo.ONE_SETTING, 1) == SPEEDS
    with pytest.raises(NameError, match="measure_speeds"):
        suite.known_speeds(tmp_path, run, brax_ppo.SMALL_SCALE, 1)


@pytest.mark.slow
@pytest.mark.brax
def test_ppo_is_trained_by_seeds_and_what_is_done_is_not_done_again(tmp_path, capsys):
    small = {"num_envs": 16, "batch_size": 16, "num_minibatches": 1, "unroll_length": 8}
    settings = {**brax_ppo.SMALL_SCALE, **small}
    runs = [ppo_runs.PPORun("fast", "PPO", {}, settings, seed, 512, 3, 2) for seed in (0, 1)]
    first = ppo_runs.train_all(runs, tmp_path)
    assert [[step for step, _ in run.curve] for run in first] == [[0, 256, 512]] * 2
    assert [(run.environment, run.seed, run.score) for run in first] == [
        ("fast", seed, first[seed].curve[-1][1]) for seed in (0, 1)
    ]
    assert capsys.readouterr().out.count("PPO") >= 2
    assert ppo_runs.train_all(runs, tmp_path) == first
    assert capsys.readouterr().out == ""
    np.testing.assert_array_equal(json.loads((tmp_path / f"{runs[0].name}.json").read_text()), first[0].curve)
