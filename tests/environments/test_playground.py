"""MuJoCo Playground, where it is installed. CartpoleBalance is its quickest; the rest is hand-made or only traced."""

import gc
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from environments.falling import FallingModel, random_gravity
from trpo_jax import ConfigError
from trpo_jax.environments.registry import as_environment, environment_names, resolve_backend, wrapped_environment
from trpo_jax.environments.wrappers import EpisodeLimit, FreshAutoReset

pytest.importorskip("mujoco_playground", exc_type=ModuleNotFoundError)

from trpo_jax.environments import playground as adapter  # only where the package is there

N = 3


def keys(seed, *shape):
    return jax.random.split(jax.random.key(seed), shape or N)


class Falling(adapter.mujoco_playground.MjxEnv):
    """A mass that falls, observed as a dict; no physics engine behind it."""

    action_size, xml_path, mj_model = 1, "", None

    def __init__(self):
        self._mjx_model = FallingModel(jnp.float32(1.0), jnp.float32(2.0), jnp.arange(3.0))

    @property
    def mjx_model(self):
        return self._mjx_model

    def reset(self, rng):
        return self._state(jnp.stack([jax.random.uniform(rng, minval=1.0, maxval=2.0), jnp.float32(0.0)]))

    def step(self, state, action):
        height, speed = state.data
        speed = speed + 0.1 * (action[0] / self.mjx_model.mass - self.mjx_model.gravity)
        new = self._state(jnp.stack([height + 0.1 * speed, speed]))
        return state.replace(data=new.data, obs=new.obs, reward=new.reward, done=new.done)

    def _state(self, data):
        done = (data[0] < 0).astype(jnp.float32)
        return adapter.mujoco_playground.State(data, {"state": data, "privileged_state": data[:1]}, data[0], done, {}, {})


def test_names_are_listed_and_unknown_ones_answered_with_the_nearest():
    names = environment_names("playground")
    assert {"CartpoleBalance", "Go1JoystickFlatTerrain", "PandaPickCube"} <= set(names)
    assert names == sorted(names)
    for call in (as_environment, resolve_backend):
        with pytest.raises(
            ConfigError, match=r"environment: got 'CartpolBalance', allowed: a known Playground.*CartpoleBalance"
        ):
            call("CartpolBalance", suite="playground")


def test_backends():
    assert resolve_backend("CartpoleBalance", "playground") == "jax"
    assert resolve_backend("CartpoleBalance", "playground", "warp") == "warp"
    with pytest.raises(ConfigError, match="backend: got 'spring', allowed: one of auto, jax, warp"):
        as_environment("CartpoleBalance", suite="playground", backend="spring")


@pytest.mark.parametrize("git", [None, "#!/bin/sh\nexit 128\n"])
def test_models_that_cannot_be_cloned_are_one_clear_line(git, tmp_path, monkeypatch, capfd, caplog):
    """With no git at all, and with one that has no network."""
    engine = adapter.mujoco_playground._src.mjx_env
    monkeypatch.setattr(engine, "EXTERNAL_DEPS_PATH", tmp_path / "deps")
    monkeypatch.setattr(engine, "MENAGERIE_PATH", tmp_path / "deps" / "menagerie")
    monkeypatch.setenv("PATH", str(tmp_path))
    if git:
        (tmp_path / "git").write_text(git)
        (tmp_path / "git").chmod(0o755)
    with pytest.raises(
        ConfigError, match=r"environment: got 'Go1JoystickFlatTerrain', allowed: .* could not be cloned"
    ) as caught:
        as_environment("Go1JoystickFlatTerrain", suite="playground")
    message = str(caught.value)
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")
    assert "can take minutes" in caplog.text
    with warnings.catch_warnings(action="ignore"):  # Playground leaves git's pipes open
        del caught
        gc.collect()


def test_loading_writes_nothing_to_the_terminal_or_the_folder(tmp_path, monkeypatch, capfd):
    """CheetahRun's model makes MuJoCo warn, and by default write a log file."""
    monkeypatch.chdir(tmp_path)
    as_environment("CheetahRun", suite="playground")
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


@pytest.mark.brax
def test_importing_it_prints_nothing(tmp_path):
    command = [sys.executable, "-c", "import trpo_jax.environments.playground"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.brax
def test_cartpole_balances_and_its_final_observation_is_kept():
    environment = FreshAutoReset(EpisodeLimit(as_environment("CartpoleBalance", suite="playground"), 2))
    reset, step, push = jax.jit(environment.reset), jax.jit(environment.step), jnp.full((N, 1), 0.5)
    fresh = reset(keys(1))
    second, _, _ = step(reset(keys(0)), push, fresh)
    state, final, _ = step(second, push, fresh)
    assert final.truncated.all()
    assert not final.terminated.any()
    assert (final.reward > 0.5).all()
    np.testing.assert_array_equal(state.observation, fresh.observation)
    # The same step, had the clock stood at zero: no limit, no reset.
    early = second._replace(simulator=second.simulator._replace(steps=jnp.zeros(N, jnp.int32)))
    undisturbed, _, _ = step(early, push, fresh)
    np.testing.assert_array_equal(final.observation, undisturbed.observation)
    assert np.abs(final.observation - second.observation).max() > 1e-3


def test_a_cartpole_may_be_randomized():
    """Traced only. Playground's own randomization functions have this form."""

    def random_mass(model, rng):
        scale = jax.vmap(lambda key: jax.random.uniform(key, minval=0.5, maxval=2.0))(rng)
        in_axes = jax.tree.map(lambda _: None, model).tree_replace({"body_mass": 0})
        return model.tree_replace({"body_mass": scale[:, None] * model.body_mass}), in_axes

    environment = as_environment("CartpoleBalance", suite="playground", randomization_fn=random_mass)
    state = jax.eval_shape(environment.reset, keys(0))
    assert [leaf.shape for leaf in state.simulator.parameters] == [(N, environment.environment.mjx_model.nbody)]
    after = jax.eval_shape(environment.step, state, jnp.zeros((N, 1)))
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_warp_carries_nothing_that_has_no_axis_of_environments():
    """Traced only, also where draws of several initial states go side by side."""
    pytest.importorskip("warp")
    environment = as_environment("CartpoleBalance", suite="playground", backend="warp")
    state = jax.eval_shape(environment.reset, keys(0))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(state)} == {N}
    after = jax.eval_shape(environment.step, state, jnp.zeros((N, 1)))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    pool = jax.eval_shape(jax.vmap(environment.reset), keys(0, 2, N))
    assert {leaf.shape[:2] for leaf in jax.tree.leaves(pool)} == {(2, N)}


def test_observations_that_are_dicts_pass_as_they_are():
    environment = FreshAutoReset(EpisodeLimit(as_environment(Falling()), 2))
    state = environment.reset(keys(0))
    fresh = environment.reset(keys(1))
    for _ in range(2):
        state, final, _ = environment.step(state, jnp.zeros((N, 1)), fresh)
    assert {name: leaf.shape for name, leaf in final.observation.items()} == {"state": (N, 2), "privileged_state": (N, 1)}
    np.testing.assert_allclose(final.observation["state"][:, 1], -0.2, rtol=1e-6)
    np.testing.assert_array_equal(state.observation["privileged_state"], fresh.observation["privileged_state"])


def test_an_object_is_randomized_through_its_mjx_model():
    inner = Falling()
    environment = as_environment(inner, randomization_fn=random_gravity)
    state = environment.reset(keys(0))
    (gravity,) = state.simulator.parameters
    after = environment.step(state, jnp.zeros((N, 1)))
    np.testing.assert_allclose(after.observation["state"][:, 1], -0.1 * gravity, rtol=1e-6)
    assert inner.mjx_model.gravity == 1.0


def test_a_wrapped_environment_is_refused_bare_and_taken_with_its_wrapper():
    wrap = adapter.mujoco_playground.wrapper.wrap_for_brax_training
    with pytest.raises(TypeError, match="environment: got a Playground environment inside a BraxAutoResetWrapper, allowed: a"):
        as_environment(wrap(Falling(), episode_length=2))
    with pytest.warns(UserWarning, match="BraxAutoResetWrapper hides the final observations"):
        environment = wrapped_environment(Falling(), wrap, episode_length=2)
    state = first = environment.reset(keys(0))
    for _ in range(2):
        state = environment.step(state, jnp.zeros((N, 1)))
    assert state.truncated.all()
    np.testing.assert_array_equal(state.observation["state"], first.observation["state"])
