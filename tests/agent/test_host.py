"""Environments that Python steps: what they give is what the probe on the device gives, and they survive a resume."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import trpo_jax
from host_probes import HostCounter
from probes import Counter
from trainings import SMALL, without_clocks
from trpo_jax import ConfigError, CPOConfig, TRPOConfig, inference_params, make_agent, make_trpo
from trpo_jax.agent.host import HostAgent, evaluator_for, seeds_from
from trpo_jax.errors import SimulatorError

train = functools.partial(trpo_jax.train, num_eval_envs=3)
FLAT = {"schedule": {"max_kl_at_end": 1.0, "learning_rate_at_end": 1.0}}
"""Nothing falls, so that a run may be lengthened."""


def collected(agent, state):
    """The rollout of one iteration."""
    collect = agent.stages.collect
    programs = {name: jax.jit(function) for name, function in collect.functions.items()}
    return collect.run(programs, state.learner, state.rollout, None, jax.random.key(1))


def config(**fields):
    return dataclasses.replace(SMALL, **{"num_envs": 3, "unroll_length": 8} | fields)


def test_a_rollout_holds_what_the_simulator_gave():
    environment = HostCounter(lifetime=5)
    agent = make_trpo(environment, config(episode_length=50))
    assert isinstance(agent, HostAgent)
    rollout, transition, metrics = collected(agent, agent.init(jax.random.key(0)))
    np.testing.assert_array_equal(transition.observation[:, 0, 1], [0, 1, 2, 3, 4, 0, 1, 2])
    np.testing.assert_array_equal(transition.next_observation[:, 0, 1], [1, 2, 3, 4, 5, 1, 2, 3])
    np.testing.assert_array_equal(transition.reward[:, 1], [1, 2, 3, 4, 5, 1, 2, 3])
    np.testing.assert_array_equal(transition.terminated[:, 2], [False] * 4 + [True] + [False] * 3)
    assert not np.any(transition.truncated | transition.fault)
    np.testing.assert_array_equal(rollout.environments.observation[:, 1], 3)
    assert metrics["training/episode_reward"] == 15
    assert metrics["training/episode_cost"] == 2.5


def test_a_time_limit_truncates_and_keeps_the_final_observation():
    agent = make_trpo(HostCounter(lifetime=50), config(episode_length=4))
    _, transition, _ = collected(agent, agent.init(jax.random.key(0)))
    np.testing.assert_array_equal(transition.truncated[:, 0], [False] * 3 + [True] + [False] * 3 + [True])
    assert transition.next_observation[3, 0, 1] == 4
    assert transition.observation[4, 0, 1] == 0
    assert not np.any(transition.terminated)


def test_a_lost_step_is_a_fault_and_begins_anew():
    agent = make_trpo(HostCounter(lifetime=50, lost_every=3), config(episode_length=50))
    _, transition, metrics = collected(agent, agent.init(jax.random.key(0)))
    np.testing.assert_array_equal(transition.fault[:, 0], [False, False, True, False, False, True, False, False])
    assert not np.any(transition.fault[:, 1:])
    assert transition.observation[3, 0, 1] == 0
    assert metrics["training/num_faults"] == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(transition))


def test_a_start_that_is_not_finite_is_a_fault():
    agent = make_trpo(HostCounter(lifetime=3, lost_start=1), config(episode_length=50))
    state, metrics = agent.update(agent.init(jax.random.key(0)))
    assert metrics["training/num_faults"] == 3  # all environments restart together
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((inference_params(state), metrics)))


def test_actions_are_brought_into_the_box():
    environment = HostCounter()
    agent = make_trpo(environment, config(policy=trpo_jax.PolicyConfig(init_log_std=1.0, hidden_sizes=(8,))))
    agent.update(agent.init(jax.random.key(0)))
    actions = np.stack(agent.environment.opened[0].actions)
    assert actions.shape == (8, 3, 2)
    assert np.abs(actions).max() == 1.0


def test_iterations_go_on_where_the_last_one_stopped():
    agent = make_trpo(HostCounter(lifetime=1000), config(episode_length=1000))
    state = agent.init(jax.random.key(0))
    for _ in range(3):
        state, metrics = agent.update(state)
    np.testing.assert_array_equal(state.rollout.environments.observation[:, 1], 24)
    assert agent.environment.opened[0].begun == 1
    assert metrics["training/kl"] <= agent.config.trust_region.max_kl


def test_a_state_of_another_point_in_time_begins_new_episodes():
    agent = make_trpo(HostCounter(lifetime=1000), config(episode_length=1000))
    start = agent.init(jax.random.key(0))
    agent.update(start)
    state, _ = agent.update(start)
    np.testing.assert_array_equal(state.rollout.environments.observation[:, 1], 8)
    assert agent.environment.opened[0].begun == 2


def test_two_states_in_turn_each_begin_new_episodes():
    agent = make_trpo(HostCounter(lifetime=1000), config(episode_length=1000))
    states = [agent.init(jax.random.key(seed)) for seed in (0, 1)]
    for _ in range(3):
        states = [agent.update(state)[0] for state in states]
    for state in states:
        np.testing.assert_array_equal(state.rollout.environments.observation[:, 1], 8)
    assert agent.environment.opened[0].begun == 6


def test_a_rollout_that_failed_is_begun_anew():
    agent = make_trpo(HostCounter(lifetime=1000, fails_at=12), config(episode_length=1000))
    state, _ = agent.update(agent.init(jax.random.key(0)))
    with pytest.raises(SimulatorError):
        agent.update(state)
    state, _ = agent.update(state)
    np.testing.assert_array_equal(state.rollout.environments.observation[:, 1], 8)
    np.testing.assert_array_equal(state.rollout.episodes.running_length, 8)


def test_observations_and_rewards_get_the_dtypes_that_the_environment_describes(x64):
    agent = make_trpo(HostCounter(), config(episode_length=50))
    state = agent.init(jax.random.key(0))
    assert state.rollout.environments.observation.dtype == "float64"
    state, metrics = agent.update(state)
    assert metrics["training/kl"] <= agent.config.trust_region.max_kl
    evaluate = evaluator_for(agent.environment, agent.make_policy, num_episodes=2, deterministic=True)
    np.testing.assert_array_equal(evaluate(inference_params(state), jax.random.key(3)).episode_return, 15.0)


def test_a_training_closes_its_simulators():
    environment = HostCounter()
    environment.limited = lambda _: environment
    train(environment, 24, num_envs=3, unroll_length=8, critic={"num_minibatches": 2})
    assert len(environment.opened) == 2
    assert all(each.closed for each in environment.opened)


@pytest.mark.parametrize("kind", ["mlp", "gru"])
def test_a_training_learns_saves_and_resumes(tmp_path, kind):
    fields = {"policy": {"network": kind, "hidden_sizes": (8,)}, "num_envs": 4, "unroll_length": 8, "episode_length": 6} | FLAT
    run = functools.partial(train, critic={"num_minibatches": 2, "hidden_sizes": (8,)}, **fields)
    whole = run(HostCounter(), 64, num_evals=2)[2]
    assert whole["eval/episode_reward"] == 15.0
    assert whole["eval/episode_cost"] == 2.5
    half = run(HostCounter(), 32, save_checkpoint_path=str(tmp_path))[2]
    resumed = run(HostCounter(), 64, save_checkpoint_path=str(tmp_path), resume=True)[2]
    assert without_clocks(half) != without_clocks(resumed)
    assert resumed["eval/episode_reward"] == 15.0


def test_evaluation_plays_each_first_episode_to_its_end():
    agent = make_trpo(HostCounter(lifetime=7), config(episode_length=50))
    params = inference_params(agent.init(jax.random.key(0)))
    evaluate = evaluator_for(agent.environment, agent.make_policy, num_episodes=5, deterministic=True)
    for _ in range(2):
        episodes = evaluate(params, jax.random.key(3))
        np.testing.assert_array_equal(episodes.episode_return, 28.0)
        np.testing.assert_array_equal(episodes.episode_length, 7)
        np.testing.assert_array_equal(episodes.episode_cost, 3.5)


def test_many_episodes_are_played_some_at_a_time(monkeypatch):
    monkeypatch.setattr("trpo_jax.agent.host.AT_ONCE", 4)
    agent = make_trpo(HostCounter(lifetime=7), config(episode_length=50))
    params = inference_params(agent.init(jax.random.key(0)))
    evaluate = evaluator_for(agent.environment, agent.make_policy, num_episodes=10, deterministic=False)
    episodes = evaluate(params, jax.random.key(3))
    np.testing.assert_array_equal(episodes.episode_return, np.full(10, 28.0))
    np.testing.assert_array_equal(episodes.episode_cost, np.full((10, 1), 3.5))
    (simulator,) = agent.environment.opened
    assert (simulator.num_envs, simulator.begun) == (4, 3)


def test_seeds_differ_by_environment_and_training_and_follow_from_the_key():
    keys = jax.random.split(jax.random.key(0), 3)
    seeds = seeds_from(keys, 4)
    assert len(set(seeds)) == 12
    np.testing.assert_array_equal(seeds[4:8], seeds_from(keys[1], 4))


def test_an_environment_that_fails_in_mid_run_leaves_a_checkpoint(tmp_path):
    fields = {"num_envs": 2, "unroll_length": 4, "critic": {"num_minibatches": 2, "hidden_sizes": (8,)}} | FLAT
    with pytest.raises(SimulatorError, match="HostCounter failed: it was told to"):
        train(HostCounter(fails_at=30), 400, save_checkpoint_path=str(tmp_path), num_evals=9, **fields)
    metrics = train(HostCounter(), 400, save_checkpoint_path=str(tmp_path), resume=True, **fields)[2]
    assert metrics["eval/episode_reward"] == 15.0


def test_costs_of_the_host_can_be_limited():
    agent = make_agent(HostCounter(), CPOConfig(num_envs=4, unroll_length=8, cost_limit=1.0))
    state = agent.init(jax.random.key(0))
    for _ in range(12):
        state, metrics = agent.update(state)
    np.testing.assert_allclose(metrics["training/episode_cost"], 2.5)
    np.testing.assert_allclose(metrics["training/expected_cost"], 2.5, rtol=0.3)


def test_costs_are_counted_to_a_longer_limit_of_the_environments_own():
    environment = HostCounter(lifetime=1000, limit=30)
    environment.limited = lambda _: environment
    agent = make_agent(environment, CPOConfig(num_envs=4, unroll_length=10, episode_length=10, cost_limit=1.0))
    state = agent.init(jax.random.key(0))
    for _ in range(12):
        state, metrics = agent.update(state)
    np.testing.assert_allclose(metrics["training/expected_cost"], 15.0, rtol=0.3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampler": "vine"}, "sampler: got 'vine', allowed: path, for an environment that resets itself or that Python steps"),
        ({"action_repeat": 2}, "action_repeat: got 2, allowed: 1, for an environment that Python steps"),
        ({"frame_stack": 2}, "frame_stack: got 2, allowed: 1, for an environment that Python steps"),
        ({"observe_last_step": True}, "observe_last_step: got True, allowed: False, for an environment that Python steps"),
    ],
)
def test_what_only_a_simulator_on_the_device_can_do_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        make_trpo(HostCounter(), TRPOConfig(**fields))


def test_the_probe_of_the_device_agrees():
    """Rewards, observations and ends of `Counter` on the device, with a time limit that does not count."""
    on_host = make_trpo(HostCounter(lifetime=3), config(episode_length=1000))
    on_device = make_trpo(Counter(lifetime=3), config(episode_length=1000))
    _, ours, _ = collected(on_host, on_host.init(jax.random.key(0)))
    state = on_device.init(jax.random.key(0))
    _, theirs, _ = jax.jit(on_device.collect)(state.learner, state.rollout, on_device.draw(jax.random.key(1)), state.key)
    for name in ("reward", "terminated", "truncated", "fault"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    np.testing.assert_array_equal(ours.next_observation[..., 1], theirs.next_observation[..., 1])
