import contextlib
import dataclasses
import logging
import os
import re
import signal
import threading
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes import Target
from trainings import SMALL
from trainings import one_device_train as train
from trpo_jax import ConfigError, TrustRegionConfig
from trpo_jax.execution import program
from trpo_jax.execution.runner import Runner
from trpo_jax.training import reporting
from trpo_jax.training.checkpoint import load_params
from trpo_jax.training.options import with_options
from trpo_jax.training.reporting import WINDOW, Pace, Reporter
from trpo_jax.training.store import Store


def test_training_returns_what_brax_returns_and_calls_back_at_every_evaluation(tmp_path):
    evaluations, iterations, policies = [], [], []
    make_policy, params, metrics = train(
        Target(),
        5 * 16 - 3,  # rounded up to whole iterations
        config=SMALL,
        num_evals=3,
        num_eval_envs=2,
        progress_fn=lambda step, metrics: evaluations.append((step, metrics)),
        iteration_fn=lambda step, metrics: iterations.append(step),
        policy_params_fn=lambda step, make_policy, params: policies.append((step, params)),
        save_checkpoint_path=tmp_path,
    )
    assert [step for step, _ in evaluations] == [step for step, _ in policies] == [0, 32, 80]
    # What a callback was given stays its own, though the iterations reuse their memory.
    assert [float(given.normalizer.count) for _, given in policies] == [0, 32, 80]
    assert iterations == [16, 32, 48, 64, 80]
    assert set(evaluations[0][1]) == {
        *("eval/episode_reward", "eval/episode_reward_std", "eval/avg_episode_length", "eval/std_episode_length"),
        *("eval/epoch_eval_time", "eval/sps", "eval/walltime"),
    }
    assert {"training/sps", "training/walltime", "training/kl", "eval/episode_reward"} <= set(metrics)
    assert metrics["eval/avg_episode_length"] == 5
    assert params.normalizer.count == 80
    action, _ = make_policy(params, deterministic=True)(jnp.zeros(2), jax.random.PRNGKey(0))
    assert action.shape == (2,)
    step, loaded = load_params(tmp_path, params)
    assert step == 80
    chex.assert_trees_all_equal(loaded, params)
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [0, 32, 80]


def test_progress_is_printed_on_request(capsys):
    calls = []
    options = {"config": SMALL, "num_evals": 2, "num_eval_envs": 2}
    train(Target(), 80, **options, progress=True, progress_fn=lambda step, _: calls.append(step))
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line.startswith("step")]
    assert [int(line.split()[1]) for line in told] == [0, 16, 32, 48, 64, 80, 80]
    assert "evaluation: return" in told[0]
    assert "evaluation: return" in told[-1]
    assert all("steps/s" in line for line in told[1:-1])
    assert all(line.startswith("compiled the ") for line in lines if line not in told)
    assert calls == [0, 80]
    train(Target(), 80, **options)
    assert capsys.readouterr().out == ""


def test_each_program_that_takes_time_to_compile_is_told_of(monkeypatch, capsys):
    monkeypatch.setattr(program, "TOLD_FROM", 0.0)
    train(Target(), 16, config=SMALL, num_eval_envs=2, progress=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("compiled")]
    found = [re.fullmatch(r"compiled the (.*) in \d+\.\d s", line)[1] for line in lines]
    names = ["environment reset", "initialization", "key splitting", "rollout", "policy step", "critic fit", "evaluation"]
    assert sorted(found) == sorted(names)
    told = []
    handler = logging.Handler()
    handler.emit = told.append
    monkeypatch.setattr(logging.root, "handlers", [handler])
    train(Target(), 16, config=SMALL, num_eval_envs=2)
    assert capsys.readouterr().out == ""
    assert [record for record in told if record.name == program.__name__] == []


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=60), st.sets(st.integers(0, 59)))
def test_speed_is_measured_over_iterations_that_nothing_disturbs(seconds, disturbed):
    pace, undisturbed = Pace(), []
    for number, elapsed in enumerate(seconds):
        if number in disturbed:
            pace.disturb()
        if not {number, number - 1} & disturbed:
            undisturbed.append(elapsed)
        assert pace.of(elapsed) == pytest.approx(np.mean(undisturbed[-WINDOW:]) if undisturbed else elapsed)


def test_checkpoints_evaluations_and_timed_iterations_do_not_show_in_the_speed(monkeypatch, tmp_path):
    now = [0.0]

    def perf_counter():
        now[0] += 1e-9
        return now[0]

    monkeypatch.setattr(reporting, "time", types.SimpleNamespace(perf_counter=perf_counter))

    def take(seconds, owner, name):
        original = getattr(owner, name)

        def slow(*arguments):
            now[0] += seconds
            return original(*arguments)

        monkeypatch.setattr(owner, name, slow)

    take(0.5, reporting, "without_unknown")  # by which an iteration is waited for
    take(2.0, Runner, "timed_update")
    take(10.0, Store, "save")
    take(20.0, Reporter, "evaluation")
    speeds = []
    options = {"num_evals": 3, "num_eval_envs": 2, "save_checkpoint_path": tmp_path, "checkpoint_interval": 7}
    train(Target(), 16 * 40, config=SMALL, iteration_fn=lambda _, metrics: speeds.append(metrics["training/sps"]), **options)
    assert len(speeds) == 40
    assert speeds[5:] == pytest.approx([16 / 0.5] * 35)


def test_options_by_name_go_over_the_config():
    _, params, _ = train(Target(), 0, config=SMALL, num_eval_envs=0, normalize_observations=False)
    assert params[0] is None


def test_a_mapping_changes_what_it_names_and_a_config_takes_the_place_of_the_whole():
    changed = with_options(SMALL, {"num_envs": 4, "trust_region": {"max_kl": 0.05}, "critic": {"hidden_sizes": [8]}})
    assert changed.trust_region == dataclasses.replace(SMALL.trust_region, max_kl=0.05)
    assert (changed.num_envs, changed.critic) == (4, dataclasses.replace(SMALL.critic, hidden_sizes=(8,)))
    assert with_options(SMALL, {"trust_region": TrustRegionConfig(max_kl=0.05)}).trust_region == TrustRegionConfig(max_kl=0.05)


def test_no_timesteps_evaluate_the_initial_policy():
    seen = []
    _, _, metrics = train(Target(), 0, config=SMALL, num_eval_envs=2, progress_fn=lambda step, _: seen.append(step))
    assert seen == [0]
    assert np.isfinite(metrics["eval/episode_reward"])


def test_training_is_reproducible_from_its_seed():
    runs = [train(Target(), 32, config=SMALL, num_eval_envs=0, seed=seed)[1] for seed in (1, 1, 2)]
    chex.assert_trees_all_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0].normalizer.mean, runs[2].normalizer.mean)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_env": 4}, r"num_env: got 4, allowed: .*did you mean num_envs"),
        ({"num_eval": 4}, r"num_eval: got 4, allowed: .*did you mean num_evals"),
        ({"checkpoint_intervals": 4}, r"checkpoint_intervals: got 4, allowed: .*did you mean checkpoint_interval"),
        ({"seed": 2**32}, r"seed: got 4294967296, allowed: an integer >= 0 and <= 4294967295"),
        ({"seed": 2**64}, r"seed: got .*, allowed: an integer >= 0 and <= 4294967295"),
        ({"num_evals": -1}, "num_evals: got -1, allowed: an integer >= 0"),
        ({"num_eval_envs": True}, "num_eval_envs: got True, allowed: an integer >= 0"),
        ({"discounting": 1.5}, "discounting: got 1.5, allowed: a number >= 0 and <= 1"),
        ({"num_envs": 0}, "num_envs: got 0, allowed: an integer >= 1"),
        ({"trust_region": {"max_k": 1.0}}, r"trust_region.max_k: got 1.0, allowed: .*did you mean max_kl"),
        ({"num_envs": {"a": 1}}, "num_envs: got {'a': 1}, allowed: a single value, not a table"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(ConfigError, match=message):
        train(Target(), 16, config=SMALL, **options)


def test_ctrl_c_saves_all_at_the_end_of_the_iteration(tmp_path):
    iterations = []

    def interrupt(step, metrics):
        iterations.append(step)
        if step == 48:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(Target(), 10**6, config=SMALL, num_eval_envs=0, iteration_fn=interrupt, save_checkpoint_path=tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    template = train(Target(), 0, config=SMALL, num_eval_envs=0)[1]
    step, params = load_params(tmp_path, template)
    assert step == params.normalizer.count == iterations[-1]
    assert step in (48, 64)  # 48 was told of while the next one ran


@pytest.mark.parametrize(("number", "exception"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_whose_exception_gets_lost_ends_the_training_all_the_same(number, exception, tmp_path):
    """Python drops exceptions in destructors and in callbacks of its garbage collection, of which compilers have some."""

    def lose(step, metrics):
        with contextlib.suppress(exception):
            os.kill(os.getpid(), number)

    with pytest.raises(exception):  # the evaluation before training, when nothing is guarded yet, is where it comes
        train(Target(), 10**6, config=SMALL, num_eval_envs=2, num_evals=3, progress_fn=lose, save_checkpoint_path=tmp_path)
    assert load_params(tmp_path, train(Target(), 0, config=SMALL, num_eval_envs=0)[1])[0] == 16


def test_a_second_ctrl_c_does_not_wait():
    def interrupt_twice(step, metrics):
        if step == 48:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the second interrupt did not arrive")

    with pytest.raises(KeyboardInterrupt):
        train(Target(), 10**6, config=SMALL, num_eval_envs=0, iteration_fn=interrupt_twice)


def test_training_works_outside_the_main_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(train(Target(), 16, config=SMALL, num_eval_envs=0)))
    thread.start()
    thread.join()
    assert results[0][1].normalizer.count == 16


def test_a_run_traces_its_iteration_once():
    class Counted(Target):
        traces = 0

        def step(self, state, action):
            Counted.traces += 1
            return super().step(state, action)

    train(Counted(), 5 * 16, config=SMALL, num_eval_envs=0)
    assert Counted.traces == 1


def test_ctrl_c_in_the_last_evaluation_keeps_the_trained_policy(tmp_path):
    def interrupt(step, metrics):
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(Target(), 48, config=SMALL, num_eval_envs=2, progress_fn=interrupt, save_checkpoint_path=tmp_path)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [0, 48]


def test_sigterm_saves_and_exits_with_its_own_code(tmp_path):
    def terminate(step, metrics):
        if step == 48:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as stop:
        train(Target(), 10**6, config=SMALL, num_eval_envs=0, iteration_fn=terminate, save_checkpoint_path=tmp_path)
    assert stop.value.code == 143
    assert max(int(path.name) for path in tmp_path.iterdir()) in (48, 64)


def test_an_ignored_ctrl_c_stays_ignored():
    def interrupt(step, metrics):
        os.kill(os.getpid(), signal.SIGINT)

    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup and shells do for jobs in the background
    try:
        _, params, _ = train(Target(), 48, config=SMALL, num_eval_envs=0, iteration_fn=interrupt)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert params.normalizer.count == 48


def test_checkpoints_of_another_run_are_not_mixed_with_new_ones(tmp_path):
    train(Target(), 16, config=SMALL, num_eval_envs=0, save_checkpoint_path=tmp_path)
    with pytest.raises(
        ConfigError, match=r"save_checkpoint_path: got .*allowed: a folder that holds no checkpoints yet, unless resume"
    ):
        train(Target(), 16, config=SMALL, num_eval_envs=0, save_checkpoint_path=tmp_path)
