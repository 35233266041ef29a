"""Gymnasium environments on the host: spaces, ends, costs, backends, failures."""

import functools
import multiprocessing

import jax
import numpy as np
import pytest

import gymnasium_probes  # noqa: F401 - registers environments
import trpo_jax
from trpo_jax import Box, Composite, ConfigError, Discrete, MultiBinary, MultiDiscrete
from trpo_jax.environments import gymnasium as suite
from trpo_jax.environments.registry import as_environment, environment_names
from trpo_jax.errors import SimulatorError

load = functools.partial(as_environment, suite="gymnasium")
FLAT = {"schedule": {"max_kl_at_end": 1.0, "learning_rate_at_end": 1.0}}


def train(name, num_timesteps, **options):
    fields = {"num_envs": 2, "unroll_length": 8, "num_eval_envs": 2, "critic": {"num_minibatches": 2, "hidden_sizes": (8,)}}
    return trpo_jax.train(name, num_timesteps, suite="gymnasium", **fields | FLAT | options)


def test_every_kind_of_space_is_translated():
    environment = load("Everything-v0", backend="sync")
    assert environment.action_space == Composite(
        {
            "bits": MultiBinary(2),
            "go": Box(2),
            "pick": MultiDiscrete((2, 3)),
            "pair": Composite((Discrete(4), Box(1, -np.inf, np.inf))),
        }
    )
    state = environment.reset(jax.random.split(jax.random.key(0), 3))
    simulator = environment.open(3)
    observation = simulator.reset(np.arange(3))
    described = [jax.tree.map(lambda leaf: f"{leaf.dtype}{leaf.shape}", each) for each in (observation, state.observation)]
    assert described[0] == described[1]
    np.testing.assert_array_equal(observation["action_mask"]["pick"][1], [True, False, True, True, True])
    np.testing.assert_array_equal(observation["pair"]["0"][0], [1, 0, 0])
    np.testing.assert_array_equal(observation["pair"]["1"][0], [0, 1, 0, 0, 1])
    assert observation["image"].dtype == np.uint8
    assert observation["x"].shape == (3, 4)


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_actions_are_scaled_costs_told_and_episodes_restart_one_by_one(backend):
    simulator = load("Everything-v0", backend=backend).open(2)
    simulator.reset(np.arange(2))
    action = {
        "bits": np.ones((2, 2), int),
        "go": np.array([[-1.0, 1.0], [0.0, 0.0]], np.float32),
        "pick": np.array([[1, 2]] * 2),
        "pair": (np.array([0, 3]), np.zeros((2, 1), np.float32)),
    }
    costs = []
    for _ in range(3):
        step = simulator.step(action)
        costs.append(step.cost[:, 0].tolist())
    assert costs == [[0.5, 0.5], [0.0, 0.0], [0.5, 0.5]]  # 0 where none is told
    np.testing.assert_allclose(step.reward, [-1.0, 1.5])
    np.testing.assert_array_equal(step.terminated, True)
    np.testing.assert_array_equal(step.observation["x"][:, 0], 3)
    observation = simulator.restart(np.array([True, False]))
    np.testing.assert_array_equal(observation["x"][:, 0], [0, 3])
    simulator.close()


def test_every_kind_of_space_is_trained():
    entries = {"policy": {"observation_key": "x,bits"}, "critic": {"observation_key": "x", "num_minibatches": 2}}
    _, _, metrics = train("Everything-v0", 32, backend="sync", **entries)
    assert metrics["eval/episode_cost"] == 1.0
    images = {"observation_key": "image", "image": {"kernel_sizes": (2,)}}
    entries = {"policy": images, "critic": images | {"num_minibatches": 2}}
    _, _, metrics = train("Everything-v0", 16, backend="sync", num_eval_envs=0, **entries)
    assert np.isfinite(metrics["training/kl"])


def test_an_environment_without_a_time_limit_gets_one():
    _, _, metrics = train("Line-v0", 32, backend="sync", episode_length=7)
    assert metrics["eval/avg_episode_length"] == 7
    limited = load("Everything-v0", backend="sync")
    assert limited.limited(7) is limited


def test_envpool_keeps_to_the_limit_that_it_is_given():
    pytest.importorskip("envpool", reason='needs the extra "envpool"')
    environment = load("CliffWalking-v1", backend="envpool").limited(7)
    assert environment.most_actions == 7
    simulator = environment.open(2)
    simulator.reset(np.arange(2))
    truncated = [simulator.step(np.zeros(2, np.int32)).truncated.tolist() for _ in range(7)]
    assert truncated == [[False] * 2] * 6 + [[True] * 2]


def test_seeds_decide_where_episodes_begin():
    simulator = load("Line-v0", backend="sync").open(3)
    first, again, other = simulator.reset(np.arange(3)), simulator.reset(np.arange(3)), simulator.reset(np.arange(3) + 5)
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


@pytest.mark.parametrize(
    ("name", "backend", "message"),
    [
        ("Breaking-v0", "sync", r"Breaking-v0 failed: ValueError: the motor is hot"),
        ("Breaking-v0", "async", r"Breaking-v0 failed: ValueError: the motor is hot"),
        ("Dying-v0", "async", r"Dying-v0 failed: one of its processes has ended"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # Gymnasium's own, about processes that it ends
def test_an_environment_that_fails_says_so_in_one_sentence_and_the_run_can_be_resumed(tmp_path, name, backend, message):
    folder = str(tmp_path)
    with pytest.raises(SimulatorError, match=message):
        train(name, 1_000, backend=backend, num_evals=30, save_checkpoint_path=folder, episode_length=5)
    assert not [process for process in multiprocessing.active_children() if "AsyncVectorEnv" in process.name]
    metrics = train("Line-v0", 128, backend="sync", save_checkpoint_path=folder, resume=True, episode_length=5)[2]
    assert np.isfinite(metrics["eval/episode_reward"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Lin-v0", {}, r"environment: got 'Lin-v0', allowed: .*Line-v0"),
        (
            "no_such_module:Line-v0",
            {},
            r"environment: got 'no_such_module:Line-v0', allowed: a registered",
        ),
        ("Line-v0", {"backend": "spring"}, r"backend: got 'spring', allowed: one of Line-v0: auto, envpool, async, sync"),
        ("Line-v0", {"backend": "envpool"}, r"backend: got 'envpool', allowed: one of Line-v0: auto, async, sync"),
        (
            "NoSpace-v0",
            {"backend": "sync"},
            r"environment: got 'NoSpace-v0', allowed: one with actions in a space",
        ),
        ("NoSight-v0", {"backend": "sync"}, r"environment: got 'NoSight-v0', allowed: one with observations in a space"),
    ],
)
def test_what_cannot_be_used_is_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        load(name, **options)


def test_randomization_is_refused():
    with pytest.raises(TypeError, match=r"randomization_fn: got a function, allowed: None for Line-v0"):
        load("Line-v0", randomization_fn=lambda sys, keys: (sys, sys))


def test_names_are_those_that_are_registered():
    assert {"CartPole-v1", "Line-v0"} <= set(environment_names("gymnasium"))


def test_auto_is_envpool_where_it_has_the_environment():
    pytest.importorskip("envpool")
    assert suite.resolve_backend("CartPole-v1") == "envpool"
    assert suite.resolve_backend("Line-v0") == "sync"
    simulator = load("CartPole-v1").open(3)
    observation = simulator.reset(np.arange(3))
    assert observation.shape == (3, 4)
    for _ in range(30):
        step = simulator.step(np.zeros(3, int))
        ended = step.terminated | step.truncated
        if ended.any():
            fresh = simulator.restart(ended)
            assert (np.abs(fresh[ended]) < 0.06).all()
            np.testing.assert_array_equal(fresh[~ended], step.observation[~ended])
            return
    pytest.fail("no pole has fallen")


def test_envpool_and_gymnasium_agree_on_an_episode():
    pytest.importorskip("envpool")
    rewards = {}
    for backend in ("envpool", "sync"):
        simulator = load("CartPole-v1", backend=backend).open(2)
        simulator.reset(np.arange(2))
        steps = [simulator.step(np.ones(2, int)) for _ in range(7)]
        rewards[backend] = [step.reward.tolist() for step in steps]
        simulator.close()
    assert rewards["envpool"] == rewards["sync"]


def test_a_film_shows_each_step():
    environment = load("Line-v0", backend="sync").limited(6)
    film = environment.film(lambda observation: -np.sign(observation), seed=3, max_steps=100)
    assert len(film.frames) == 7
    assert film.ended
    assert film.seconds_per_frame == 0.05
    assert film.frames[0].shape == (32, 64, 3)
    assert (film.frames[0] != film.frames[-1]).any()
    assert len(environment.film(lambda observation: observation, seed=3, max_steps=2).frames) == 3


def test_an_environment_that_cannot_draw_is_refused():
    with pytest.raises((ConfigError, SimulatorError), match="Everything-v0"):
        load("Everything-v0", backend="sync").film(lambda observation: None, seed=0, max_steps=2)
