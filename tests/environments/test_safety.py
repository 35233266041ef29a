"""Environments with costs: robots with a speed limit, and a point among hazards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from environments.falling import Falling
from trpo_jax import ConfigError
from trpo_jax.environments.brax import brax  # imported without its noise
from trpo_jax.environments.point_hazards import ARENA, NUM_BINS, PointHazards
from trpo_jax.environments.registry import as_environment, environment_names, resolve_backend, wrapped_environment
from trpo_jax.environments.safety import SPEED_LIMITS
from trpo_jax.environments.speed_limit import SpeedLimit


class Pushed(Falling):
    """Moves along x as fast as its action says, and across twice as fast, in the metrics."""

    across = True

    def reset(self, rng):
        state = super().reset(rng)
        zero = jnp.zeros(())
        return state.replace(metrics={"x_velocity": zero} | ({"y_velocity": zero} if self.across else {}))

    def step(self, state, action):
        metrics = {"x_velocity": action[0]} | ({"y_velocity": 2.0 * action[0]} if self.across else {})
        return super().step(state, action).replace(metrics=metrics)


class Along(Pushed):
    across = False


@pytest.mark.parametrize(("kind", "speed"), [(Along, 1.0), (Pushed, np.sqrt(5.0))])
def test_a_step_costs_one_if_the_robot_is_faster_than_the_limit(kind, speed):
    environment = as_environment(SpeedLimit(kind(), 0.5 * speed))
    state = environment.reset(jax.random.split(jax.random.key(0), 3))
    np.testing.assert_array_equal(state.cost, np.zeros((3, 1)))
    state = environment.step(state, jnp.asarray([[0.49], [0.51], [0.6]]))
    np.testing.assert_array_equal(state.cost, [[0.0], [1.0], [1.0]])


def test_a_robot_without_a_speed_is_refused():
    with pytest.raises(TypeError, match="env: got a Falling, allowed: one whose states have the metric 'x_velocity'"):
        jax.eval_shape(SpeedLimit(Falling(), 1.0).reset, jax.random.key_data(jax.random.key(0)))


class Tagged(brax.envs.Wrapper):
    """A user's own wrapper, which tells a cost."""

    cost = 2.0

    def reset(self, rng):
        state = self.env.reset(rng)
        return state.replace(info={**state.info, "cost": jax.tree.map(jnp.zeros_like, self.cost)})

    def step(self, state, action):
        state = self.env.step(state, action)
        return state.replace(info={**state.info, "cost": jax.tree.map(jnp.asarray, self.cost)})


def test_a_wrapper_of_ones_own_may_tell_a_cost_or_a_vector_of_them():
    keys = jax.random.split(jax.random.key(0), 3)
    environment = as_environment(Tagged(Falling()))
    np.testing.assert_array_equal(environment.step(environment.reset(keys), jnp.zeros((3, 1))).cost, np.full((3, 1), 2.0))
    several = Tagged(Falling())
    several.cost = jnp.asarray([1.0, 3.0])
    environment = as_environment(several)
    np.testing.assert_array_equal(
        environment.step(environment.reset(keys), jnp.zeros((3, 1))).cost, np.full((3, 2), [1.0, 3.0])
    )


@pytest.mark.parametrize("cost", [{"speed": 1.0}, np.ones((2, 2))], ids=["dict", "matrix"])
def test_a_cost_of_another_kind_is_refused(cost):
    wrong = Tagged(Falling())
    wrong.cost = jax.tree.map(jnp.asarray, cost)
    with pytest.raises(
        TypeError, match=r'info\["cost"\]: got .* in the states of the environment, allowed: a number, or a vector'
    ):
        as_environment(wrong).reset(jax.random.split(jax.random.key(0), 3))


def test_a_wrapper_for_training_is_refused_wherever_it_is():
    inside = SpeedLimit(brax.envs.training.EpisodeWrapper(Pushed(), 5, 1), 1.0)
    with pytest.raises(TypeError, match="environment: got a Brax environment inside a EpisodeWrapper, allowed: a bare one"):
        as_environment(inside)


def test_wrappers_that_do_not_sum_costs_are_refused_with_repeated_actions():
    options = {"episode_length": 4, "num_envs": 2}
    environment = SpeedLimit(Pushed(), 1.0)
    with pytest.warns(UserWarning, match="hides the final observations"):
        assert wrapped_environment(environment, brax.envs.training.wrap, **options).has_costs
    with (
        pytest.warns(UserWarning, match="hides"),
        pytest.raises(TypeError, match="action_repeat 2, allowed: action_repeat 1"),
    ):
        wrapped_environment(environment, brax.envs.training.wrap, action_repeat=2, **options)


def test_every_robot_has_a_task_with_the_backend_it_usually_has():
    names = environment_names("safety")
    assert names == sorted([*(f"{name}_velocity" for name in SPEED_LIMITS), "point_hazards"])
    assert resolve_backend("ant_velocity", "safety") == "spring"
    assert resolve_backend("point_hazards", "safety") == "jax"
    with pytest.raises(ConfigError, match=r"environment: got 'ant_velocit', allowed: .*ant_velocity"):
        as_environment("ant_velocit", suite="safety")
    with pytest.raises(ConfigError, match="backend: got 'mjx', allowed: auto or jax, for point_hazards"):
        as_environment("point_hazards", suite="safety", backend="mjx")
    with pytest.raises(TypeError, match="randomization_fn: got a function, allowed: None for point_hazards"):
        as_environment("point_hazards", suite="safety", randomization_fn=lambda sys, keys: (sys, None))


@pytest.mark.brax
def test_a_robot_with_a_limit_moves_as_the_robot_without():
    plain, limited = as_environment("inverted_pendulum"), as_environment("swimmer_velocity", suite="safety")
    assert plain.reset(jax.random.split(jax.random.key(0), 2)).cost is None
    keys, action = jax.random.split(jax.random.key(0), 2), jnp.full((2, 2), 0.5)
    bare = as_environment("swimmer")
    states = [jax.jit(lambda keys, each=each: each.step(each.reset(keys), action))(keys) for each in (bare, limited)]
    np.testing.assert_array_equal(states[0].observation, states[1].observation)
    np.testing.assert_array_equal(states[0].reward, states[1].reward)
    assert states[1].cost.shape == (2, 1)


def placed(hazards, position, **changes):
    """One task with given hazards and position, standing still, with its goal far away."""
    environment = PointHazards(len(hazards), 0.25)
    state = environment.reset(jax.random.split(jax.random.key(0), 1))
    point = state.simulator._replace(
        hazards=jnp.asarray([hazards]),
        position=jnp.asarray([position]),
        velocity=jnp.zeros((1, 2)),
        goal=jnp.asarray([[1.4, 0.0]]),
        **changes,
    )
    return environment, state._replace(simulator=point)


def test_a_point_within_a_hazard_costs_and_sees_it():
    environment, state = placed([[0.0, 0.5], [-1.0, -1.0]], [0.0, 0.2])
    state = environment.step(state, jnp.zeros((1, 2)))
    assert state.cost == 0.0  # 0.3 away
    seen = np.asarray(state.observation[0, 4:])
    assert np.argmax(seen) == NUM_BINS // 4  # straight ahead along y
    np.testing.assert_allclose(seen[NUM_BINS // 4], 1.0 - 0.3 / ARENA, rtol=1e-5)
    environment, state = placed([[0.0, 0.5]], [0.0, 0.3])
    assert environment.step(state, jnp.zeros((1, 2))).cost == 1.0


def test_coming_nearer_pays_and_a_goal_that_is_reached_pays_one_more_and_is_drawn_anew():
    environment, state = placed([[-1.0, 0.0]], [1.0, 0.0])
    new = environment.step(state, jnp.asarray([[1.0, 0.0]]))
    np.testing.assert_allclose(new.reward, 0.05 * 0.2, rtol=1e-4)
    np.testing.assert_array_equal(new.simulator.goal, state.simulator.goal)
    environment, state = placed([[-1.0, 0.0]], [1.195, 0.0])
    new = environment.step(state, jnp.asarray([[1.0, 0.0]]))
    np.testing.assert_allclose(new.reward, 1.0 + 0.05 * 0.2, rtol=1e-4)
    assert (np.asarray(new.simulator.goal) != np.asarray(state.simulator.goal)).all()


def test_layouts_leave_the_start_free_and_episodes_differ():
    environment = PointHazards()
    point = environment.reset(jax.random.split(jax.random.key(0), 500)).simulator
    distance = np.linalg.norm(point.hazards, axis=-1)
    assert distance.min() >= 2 * environment.hazard_radius - 1e-6
    assert distance.max() <= ARENA + 1e-6
    assert len(np.unique(np.asarray(point.goal), axis=0)) == 500
    clearance = np.linalg.norm(point.hazards - point.goal[:, None], axis=-1).min(axis=-1)
    assert np.mean(clearance > environment.hazard_radius) > 0.95


@pytest.mark.parametrize(("arguments", "message"), [((0,), "num_hazards: got 0"), ((4, 0.75), "hazard_radius: got 0.75")])
def test_a_task_that_cannot_be_laid_out_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PointHazards(*arguments)
