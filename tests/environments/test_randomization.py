import jax
import jax.numpy as jnp
import numpy as np
import pytest

from environments.falling import Falling, random_gravity
from probes import Counter
from trpo_jax.environments.registry import as_environment
from trpo_jax.environments.wrappers import EpisodeLimit, FreshAutoReset

N = 4


def keys(seed, *shape):
    return jax.random.split(jax.random.key(seed), shape or N)


def observations(environment, state, num_steps):
    step = jax.jit(environment.step)
    seen = [state.observation]
    for _ in range(num_steps):
        state = step(state, jnp.ones((state.reward.shape[0], environment.action_space.size)))
        seen.append(state.observation)
    return np.stack(seen)


def test_each_environment_follows_the_model_that_was_drawn_for_it():
    environment = as_environment(Falling(), randomization_fn=random_gravity)
    state = jax.jit(environment.reset)(keys(0))
    (gravity,) = state.simulator.parameters
    assert len(np.unique(gravity)) == N
    seen = observations(environment, state, 5)
    for k in range(N):
        alone = as_environment(Falling(gravity[k]))
        start = state._replace(simulator=state.simulator.state)  # the others of this batch fall at a wrong rate
        np.testing.assert_allclose(observations(alone, start, 5)[:, k], seen[:, k], rtol=1e-6)
    assert np.abs(seen[-1, 0, 1] - seen[-1, 1, 1]) > 1e-3


def test_only_randomized_leaves_are_carried():
    state = as_environment(Falling(), randomization_fn=random_gravity).reset(keys(0))
    assert [leaf.shape for leaf in state.simulator.parameters] == [(N,)]


def test_every_episode_has_a_model_of_its_own_and_the_environment_keeps_its():
    inner = Falling()
    environment = FreshAutoReset(EpisodeLimit(as_environment(inner, randomization_fn=random_gravity), 3))
    state = environment.reset(keys(0))
    step, gravities = jax.jit(environment.step), []
    for seed in range(1, 8):
        gravities.append(np.asarray(state.simulator.simulator.parameters[0]))
        state, _, _ = step(state, jnp.zeros((N, 1)), environment.reset(keys(seed)))
    np.testing.assert_array_equal(gravities[0], gravities[2])
    assert len(np.unique([gravities[0], gravities[3], gravities[6]])) == 3 * N
    assert inner.sys.gravity == 1.0


def test_the_same_keys_draw_the_same_models_and_others_draw_others():
    environment = as_environment(Falling(), randomization_fn=random_gravity)
    first, again, other = (environment.reset(keys(seed)).simulator.parameters[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.isin(first, other).any()


def test_in_axes_may_be_a_prefix_and_name_any_axis():
    def randomize_all(sys, rng):
        n = rng.shape[0]
        return jax.tree.map(lambda leaf: jnp.repeat(leaf[..., None], n, axis=-1), sys), -1

    environment = as_environment(Falling(), randomization_fn=randomize_all)
    state = environment.reset(keys(0))
    assert [leaf.shape for leaf in state.simulator.parameters] == [(N,), (N,), (N, 3)]
    np.testing.assert_allclose(
        observations(environment, state, 3)[1:] - np.asarray(state.observation),
        observations(as_environment(Falling()), as_environment(Falling()).reset(keys(0)), 3)[1:]
        - np.asarray(as_environment(Falling()).reset(keys(0)).observation),
        rtol=1e-4,
        atol=1e-6,
    )


def test_without_randomization_the_simulator_carries_what_it_did():
    state = as_environment(Falling()).reset(keys(0))
    assert jax.tree.structure(state.simulator) == jax.tree.structure(Falling().reset(jax.random.PRNGKey(0)))


WRONG = {
    "a text": ("a str", "a function"),
    lambda sys, rng: sys: ("a function that returns a FallingModel", r"one that returns \(model, in_axes\)"),
    lambda sys, rng: (sys, None): ("a function whose in_axes map no leaf", "at least one leaf"),
    lambda sys, rng: (sys, {"gravity": 0}): ("a function whose in_axes do not fit its model", "the model's structure"),
    lambda sys, rng: (sys.replace(gravity=jnp.ones(7)), sys.replace(gravity=0, mass=None, unused=None)): (
        r"a leaf of shape \(7,\), mapped along axis 0",
        "length 2 along that axis",
    ),
}


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize("randomization_fn", WRONG)
def test_a_function_that_cannot_be_used_is_refused_before_any_step(randomization_fn):
    got, allowed = WRONG[randomization_fn]
    with pytest.raises(TypeError, match=f"randomization_fn: got {got}.*, allowed: .*{allowed}"):
        as_environment(Falling(), randomization_fn=randomization_fn)


def test_an_environment_without_a_model_cannot_be_randomized():
    class NoModel(Falling):
        def __init__(self):
            pass

    with pytest.raises(TypeError, match="randomization_fn: got a function, allowed: None for a NoModel, which has no model"):
        as_environment(NoModel(), randomization_fn=random_gravity)
    with pytest.raises(TypeError, match="randomization_fn: got a function, allowed: None for a Counter; only Brax"):
        as_environment(Counter(), randomization_fn=random_gravity)


def test_an_environment_behind_the_protocol_can_be_randomized_later():
    environment = as_environment(as_environment(Falling()), randomization_fn=random_gravity)
    assert environment.reset(keys(0)).simulator.parameters[0].shape == (N,)


@pytest.mark.brax
def test_a_pendulum_with_a_drawn_gravity_moves_as_one_built_with_it():
    def random_gravity_of_brax(sys, rng):
        scale = jax.vmap(lambda key: jax.random.uniform(key, minval=0.2, maxval=3.0))(rng)
        in_axes = jax.tree.map(lambda _: None, sys).tree_replace({"gravity": 0})
        return sys.tree_replace({"gravity": scale[:, None] * sys.gravity}), in_axes

    environment = as_environment("inverted_pendulum", randomization_fn=random_gravity_of_brax)
    state = jax.jit(environment.reset)(keys(0, 2))
    # Both start from the same state, so that only the gravity makes a difference.
    start = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), state.simulator.state)
    state = state._replace(simulator=state.simulator._replace(state=start))
    seen = observations(environment, state, 4)
    assert np.abs(seen[-1, 0] - seen[-1, 1]).max() > 1e-3
    built = as_environment("inverted_pendulum")
    built.environment.sys = built.environment.sys.tree_replace({"gravity": state.simulator.parameters[0][1]})
    alone = observations(built, state._replace(simulator=start), 4)
    np.testing.assert_allclose(alone[1:, 1], seen[1:, 1], rtol=1e-5, atol=1e-6)
