"""The only tests, besides those of the command line, that compile Brax; inverted_pendulum is its quickest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax import ConfigError
from trpo_jax.environments import brax as adapter
from trpo_jax.environments.registry import as_environment, resolve_backend


@pytest.fixture(scope="module")
def pendulum():
    return as_environment("inverted_pendulum")


PAIRS = [(name, "generalized" if name == "swimmer" else "spring") for name in adapter.environment_names()]
PAIRS += [("inverted_pendulum", backend) for backend in adapter.BACKENDS if backend != "spring"]


QUICK = {
    ("ant", "spring"),
    ("swimmer", "generalized"),
    *((name, backend) for name, backend in PAIRS if name == "inverted_pendulum"),
}


@pytest.mark.parametrize(
    ("name", "backend"), [pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow) for pair in PAIRS]
)
def test_every_environment_and_every_backend_traces(name, backend):
    """Traced, not compiled: shapes and dtypes are those of the protocol."""
    environment = as_environment(name, backend=backend)
    keys = jax.random.split(jax.random.key(0), 2)

    def reset_and_step(keys):
        state = environment.reset(keys)
        return environment.step(state, jnp.zeros((2, environment.action_space.size)))

    state = jax.eval_shape(reset_and_step, keys)
    assert state.reward.shape == state.terminated.shape == state.truncated.shape == (2,)
    assert state.reward.dtype == jnp.float32
    assert state.terminated.dtype == bool
    assert state.observation.shape[0] == 2


def test_a_backend_that_an_environment_lacks_is_answered_with_those_it_has():
    with pytest.raises(ConfigError, match=r"backend: got 'spring', allowed: one that swimmer offers: generalized"):
        as_environment("swimmer", backend="spring")


@pytest.mark.parametrize(("name", "expected"), [("hopper", "spring"), ("swimmer", "generalized")])
def test_auto_is_the_first_backend_that_an_environment_offers(name, expected):
    assert resolve_backend(name) == expected
    assert as_environment(name).environment.backend == expected


def test_a_backend_that_is_named_stays():
    assert resolve_backend("hopper", "brax", "positional") == "positional"


@pytest.mark.brax
def test_a_fallen_pendulum_terminates_and_is_not_truncated(pendulum):
    state = jax.jit(pendulum.reset)(jax.random.split(jax.random.key(0), 2))
    step = jax.jit(pendulum.step)
    action = jnp.asarray([[1.0], [0.0]])
    terminated = []
    for _ in range(30):
        state = step(state, action)
        terminated.append(np.asarray(state.terminated))
    assert terminated[-1][0]
    assert not terminated[0].any()
    assert not state.truncated.any()


def test_a_brax_environment_object_is_taken(pendulum):
    again = as_environment(pendulum.environment)
    assert again.action_space == pendulum.action_space
    assert again.environment is pendulum.environment


def test_loading_writes_nothing_to_the_terminal_or_the_folder(tmp_path, monkeypatch, capfd):
    """halfcheetah's model makes MuJoCo warn, and by default write a log file."""
    monkeypatch.chdir(tmp_path)
    as_environment("halfcheetah")
    assert not list(tmp_path.iterdir())
    out, err = capfd.readouterr()
    assert out == err == ""


def test_a_wrapped_brax_environment_is_refused(pendulum):
    """Brax's wrappers overwrite the final observation and restart from a cached state."""
    wrapped = adapter.brax.envs.training.EpisodeWrapper(pendulum.environment, 1000, 1)
    with pytest.raises(TypeError, match="environment: got a Brax environment inside a EpisodeWrapper, allowed: a bare one"):
        as_environment(wrapped)
