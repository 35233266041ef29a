"""The runner compiles each of its programs once, whoever calls them."""

import jax
import pytest

from probes import Target
from trainings import SMALL, one_device_train
from trpo_jax import ConfigError, make_trpo
from trpo_jax.execution.host_arrays import to_host
from trpo_jax.execution.placement import OneTraining
from trpo_jax.execution.program import Program, side_by_side
from trpo_jax.execution.runner import Runner


@pytest.mark.parametrize("ahead", [True, False])
def test_each_stage_is_compiled_once(ahead):
    """For the first state and later ones, after a reset, and after a state was put back from the host."""
    compiled = []

    def listen(event, seconds, **details):
        if "backend_compile" in event and details.get("fun_name", "").removeprefix("jit(").rstrip(")") in stages:
            compiled.append(details["fun_name"])

    stages = ("draw", "begin", "collect", "improve", "fit")
    runner = Runner(make_trpo(Target(), SMALL), OneTraining(SMALL.num_envs, jax.devices()[:1]))
    assert all(leaf.sharding is not None for leaf in jax.tree.leaves(runner.state_like))
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        if ahead:
            with side_by_side() as compilers:
                runner.compile(compilers)
        state = runner.init(jax.random.key(0))
        for _ in range(2):
            state, _ = runner.update(state)
        state, _, _ = runner.timed_update(state)
        state, _ = runner.update(runner.reset(state))
        runner.update(runner.place(to_host(state)))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert sorted(compiled) == [f"jit({stage})" for stage in sorted(stages)]


def test_the_evaluator_is_compiled_once_and_begun_before_the_first_iteration(monkeypatch):
    begun, compile_program, update = [], Program.compile, Runner.update

    def compile_watched(program, compilers, *arguments):
        described = compile_program(program, compilers, *arguments)
        begun.append(jax.tree.structure(described).num_leaves == 2 and "evaluator")
        return described

    def update_watched(runner, state):
        begun.append("update")
        return update(runner, state)

    monkeypatch.setattr(Program, "compile", compile_watched)
    monkeypatch.setattr(Runner, "update", update_watched)
    one_device_train(Target(), 2 * 16, config=SMALL, num_evals=2, num_eval_envs=2)
    assert begun.count("evaluator") == 1
    assert begun.index("evaluator") < begun.index("update")


def test_a_program_that_needs_more_memory_than_its_device_has_does_not_start(monkeypatch):
    monkeypatch.setattr("trpo_jax.execution.placement.available_memory", lambda device: 1000)
    with pytest.raises(
        ConfigError, match=r"^num_envs and unroll_length: got .*, allowed: one that fits into the device.s 0.0 GB"
    ):
        one_device_train(Target(), 16, config=SMALL, num_eval_envs=0)


def test_a_training_of_no_steps_compiles_no_iteration(monkeypatch):
    monkeypatch.setattr(Runner, "compile", lambda *_, **__: pytest.fail("compiled"))
    _, _, metrics = one_device_train(Target(), 0, config=SMALL, num_eval_envs=2)
    assert metrics["eval/avg_episode_length"] == SMALL.episode_length


def test_an_iteration_is_reported_before_the_next_is_timed(monkeypatch):
    """Iteration 2 is timed, stage by stage: that must not count for the time of iteration 1."""
    timed_update, events, rows = Runner.timed_update, [], []

    def watched(runner, state):
        events.append("timed")
        return timed_update(runner, state)

    def report(step, metrics):
        events.append(step)
        rows.append(metrics)

    monkeypatch.setattr(Runner, "timed_update", watched)
    one_device_train(Target(), 4 * 16, config=SMALL, num_eval_envs=0, iteration_fn=report)
    assert events == [16, "timed", 32, 48, 64]
    assert ["training/time_share_rollout" in row for row in rows] == [False, True, True, True]
