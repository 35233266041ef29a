"""What does not keep the protocol is named before anything is compiled; what can be held is held."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trpo_jax
from probes import ConstantReward
from trpo_jax.agent.evaluate import make_evaluator
from trpo_jax.environments.registry import wrapped_environment

CONFIG = trpo_jax.TRPOConfig(num_envs=4, unroll_length=8, episode_length=8, critic=trpo_jax.CriticConfig(num_minibatches=2))


class Changed(ConstantReward):
    """An environment whose reset or step returns something else."""

    def __init__(self, reset=lambda state: state, step=lambda state: state, action_space=None):
        self.of_reset, self.of_step = reset, step
        self.action_space = action_space or ConstantReward.action_space

    def reset(self, keys):
        return self.of_reset(super().reset(keys))

    def step(self, state, action):
        keys = jax.vmap(lambda k: jax.random.split(k)[0])(state.simulator)
        return self.of_step(super().reset(keys)._replace(reward=jnp.ones(action.shape[0])))


def changing(**fields):
    return lambda state: state._replace(**{name: change(getattr(state, name)) for name, change in fields.items()})


def iterate(environment, config=CONFIG):
    trpo = trpo_jax.make_trpo(environment, config)
    return jax.eval_shape(lambda key: trpo.update(trpo.init(key)), jax.random.key(0))


def evaluate(environment):
    trpo = trpo_jax.make_trpo(environment, CONFIG)
    params = trpo_jax.inference_params(jax.eval_shape(trpo.init, jax.random.key(0)))
    evaluator = make_evaluator(trpo.environment, trpo.make_policy, num_episodes=3, deterministic=True)
    return jax.eval_shape(evaluator, params, jax.random.key(0))


class Scripted(Changed):
    """Steps whatever its simulator carries."""

    def step(self, state, action):
        keys = jax.random.split(jax.random.key(0), action.shape[0])
        return self.of_step(ConstantReward().reset(keys)._replace(reward=jnp.ones(action.shape[0])))


as_ints = changing(observation=lambda x: x.astype("int32"))
as_bfloat16 = changing(observation=lambda x: x.astype("bfloat16"))
FAULTS = {
    "observation of reset in integers": (
        {"reset": as_ints},
        r"got float32\[\d, 2\] for observation from step .* but int32\[\d, 2\] from reset",
    ),
    "observation of reset in bfloat16": (
        {"reset": as_bfloat16},
        "for observation from step of Changed but bfloat16",
    ),
    "what the simulator carries": (
        {"step": changing(simulator=lambda x: x[:, None])},
        r"for simulator from step of Changed but key",
    ),
    "a plain tuple": ({"reset": tuple}, "got a tuple from reset of Changed, allowed: a trpo_jax.EnvironmentState"),
    "a plain tuple of step": ({"step": tuple}, "got a tuple from step of Changed"),
    "no batch axis": ({"reset": changing(observation=lambda x: x[0])}, r"got shape \(2,\) for observation .* here \d"),
    "a column of rewards": ({"step": changing(reward=lambda x: x[:, None])}, r"got \(\d, 1\) for reward from step"),
    "rewards in integers": ({"step": changing(reward=lambda x: x.astype("int32"))}, "got int32 for reward from step"),
    "done as Brax has it": ({"step": changing(terminated=lambda x: 1.0 * x)}, r"float32 for terminated .* `done > 0`"),
    "no flag": ({"step": changing(truncated=lambda x: None)}, "got None for truncated from step"),
    "an observation by name": (
        {"step": changing(observation=lambda x: {"x": x})},
        "another structure for observation from step",
    ),
    "no observation": ({"reset": changing(observation=lambda x: {})}, "no array for observation from reset"),
}


@pytest.mark.parametrize("play", [iterate, evaluate])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_keep_the_protocol_is_named(fault, play):
    changes, message = FAULTS[fault]
    with pytest.raises(TypeError, match=f"^environment: .*{message}"):
        play(Changed(**changes))


def test_an_integer_that_a_float_cannot_hold_is_refused():
    counts = changing(simulator=lambda keys: jnp.full(keys.shape, 2**24 + 1, "int32"))
    floats = changing(simulator=lambda keys: jnp.zeros(keys.shape))
    with pytest.raises(TypeError, match=r"got int32\[\d\] for simulator from step of Scripted but float32"):
        iterate(Scripted(floats, counts))


def test_a_key_in_place_of_its_data_is_named():
    data = changing(simulator=jax.random.key_data)
    with pytest.raises(TypeError, match=r"for simulator from step of Scripted but uint32"):
        iterate(Scripted(data, lambda state: state))


def test_a_narrower_step_takes_the_dtype_of_the_reset():
    state, _ = iterate(Changed(step=as_bfloat16))
    assert state.rollout.environments.observation.dtype == jnp.float32
    state, _ = iterate(Changed(reset=as_bfloat16, step=as_bfloat16))
    assert state.rollout.environments.observation.dtype == jnp.bfloat16


def test_repeated_actions_are_checked_too():
    with pytest.raises(TypeError, match="for observation from step of Changed but int32"):
        iterate(Changed(reset=as_ints), dataclasses.replace(CONFIG, action_repeat=2))


class Wrapped:
    """Speaks as Brax's wrappers do, with observations that only steps give as floats."""

    action_size = 1

    def reset(self, keys):
        n = keys.shape[0]
        return WrappedState(jnp.zeros((n, 2), "int32"), jnp.zeros(n), jnp.zeros(n), {"truncation": jnp.zeros(n)})

    def step(self, state, action):
        return state.replace(obs=state.obs + 0.5)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class WrappedState:
    obs: jax.Array
    reward: jax.Array
    done: jax.Array
    info: dict

    def replace(self, **fields):
        return WrappedState(**{**vars(self), **fields})


@pytest.mark.parametrize("normalized", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", ["int32", "bool", "bfloat16"])
def test_observations_of_any_dtype_are_learned_from(dtype, normalized):
    same = changing(observation=lambda x: x.astype(dtype))
    trpo = trpo_jax.make_trpo(Changed(same, same), dataclasses.replace(CONFIG, normalize_observations=normalized))
    _, metrics = trpo.update(trpo.init(jax.random.key(0)))
    assert np.isfinite(metrics["training/kl"])
    assert metrics["training/num_faults"] == 0


@pytest.mark.filterwarnings("ignore:.*hides the final observations")
def test_an_environment_that_is_wrapped_already_is_checked_too():
    environment = wrapped_environment(Wrapped(), None, episode_length=8)
    with pytest.raises(TypeError, match="from step of WrappedEnvironment but int32"):
        iterate(environment)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (trpo_jax.Box(2, 1.0, -1.0), "allowed: low < high"),
        (trpo_jax.Box(2, float("nan"), 1.0), "allowed: low < high"),
        (trpo_jax.Box(0), "allowed: an integer >= 1 for size"),
        (trpo_jax.Box(True), "allowed: an integer >= 1 for size"),
        (trpo_jax.Box(2, np.full(2, -1.0), 1.0), "allowed: one low and one high"),
        (trpo_jax.Discrete(0), "allowed: an integer >= 1 for num_actions"),
        (trpo_jax.Discrete(2.0), "allowed: an integer >= 1 for num_actions"),
        (trpo_jax.MultiDiscrete(()), "allowed: a tuple of integers >= 1 for sizes, at least one"),
        (trpo_jax.MultiDiscrete((2, 0)), "allowed: an integer >= 1 for each of sizes"),
        (trpo_jax.MultiBinary(0), "allowed: an integer >= 1 for size"),
        (trpo_jax.Composite({}), "allowed: a dict or tuple of action spaces for parts"),
        (trpo_jax.Composite({"a": trpo_jax.Discrete(0)}), "allowed: an integer >= 1 for num_actions"),
        (3, "allowed: a trpo_jax.Box, Discrete, MultiDiscrete, MultiBinary or Composite"),
    ],
)
def test_a_space_without_actions_is_refused(space, message):
    with pytest.raises((TypeError, ValueError), match=f"^action_space: got .*{message}"):
        trpo_jax.make_trpo(Changed(action_space=space), CONFIG)


@pytest.mark.parametrize("space", [trpo_jax.Box(np.prod((2, 1))), trpo_jax.Discrete(np.int64(3))])
def test_the_integers_of_numpy_make_a_space(space):
    trpo_jax.make_trpo(Changed(action_space=space), CONFIG)


def test_no_action_space_is_refused():
    environment = Changed()
    environment.action_space = None
    with pytest.raises(TypeError, match=r"^action_space: got None"):
        trpo_jax.make_trpo(environment, CONFIG)


def test_an_unbounded_box_has_clipped_actions_only():
    unbounded = Changed(action_space=trpo_jax.Box(2, -np.inf, np.inf))
    iterate(unbounded)
    with pytest.raises(trpo_jax.ConfigError, match=r'policy\.action_bounds: .*"clip"'):
        trpo_jax.make_trpo(unbounded, dataclasses.replace(CONFIG, policy=trpo_jax.PolicyConfig(action_bounds="tanh")))
