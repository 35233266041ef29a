"""Policies that people bring: of any framework, recurrent, frozen in part, on dicts of observations and actions."""

import dataclasses
import functools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from trpo_jax.objective.surrogate import Batch
from trpo_jax.objective.trust_region_update import trust_region_update
from trpo_jax.policy.distributions import DiagonalGaussian, Joint
from update_problems import CONFIG, A, H, O, draw, gaussian_fn, update

pytestmark = pytest.mark.quick_compilation


@pytest.fixture(autouse=True)
def quick_compilation():
    """Every test compiles an update of its own, and runs it on a few numbers."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def gaussian(mean, log_std):
    return DiagonalGaussian(mean, jnp.broadcast_to(log_std, mean.shape))


def assert_same(params, expected, rtol=1e-8):
    assert params.keys() == expected.keys()
    for key in expected:
        np.testing.assert_allclose(params[key], expected[key], rtol=rtol, err_msg=key)


# --- frameworks: `gaussian_fn`, a dict of arrays, is the reference that other tests hold against dense linear algebra ---------


class LinenPolicy(nn.Module):
    @nn.compact
    def __call__(self, observation):
        mean = nn.Dense(A, use_bias=False, name="out")(jnp.tanh(nn.Dense(H, name="in")(observation)))
        return gaussian(mean, self.param("log_std", nn.initializers.zeros, (A,)))


def linen(weights):
    """The policy with these weights, in linen: policy_fn, params, and how to read the weights off params."""
    layers = {"in": {"kernel": weights["in"], "bias": weights["bias"]}, "out": {"kernel": weights["out"]}}

    def read(params):
        p = params["params"]
        return {"in": p["in"]["kernel"], "bias": p["in"]["bias"], "out": p["out"]["kernel"], "log_std": p["log_std"]}

    return LinenPolicy().apply, {"params": {**layers, "log_std": weights["log_std"]}}, read


class NnxPolicy(nnx.Module):
    def __init__(self, weights):
        self.hidden = nnx.Linear(O, H, rngs=nnx.Rngs(0))
        self.out = nnx.Linear(H, A, use_bias=False, rngs=nnx.Rngs(0))
        self.hidden.kernel, self.hidden.bias = nnx.Param(weights["in"]), nnx.Param(weights["bias"])
        self.out.kernel, self.log_std = nnx.Param(weights["out"]), nnx.Param(weights["log_std"])
        self.calls = nnx.BatchStat(jnp.zeros((), "int32"))  # no parameter

    def __call__(self, observation):
        return gaussian(self.out(jnp.tanh(self.hidden(observation))), self.log_std[...])


def with_nnx(weights):
    model = NnxPolicy(weights)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def read(params):
        nnx.update(model, params)
        hidden, out = model.hidden, model.out
        return {"in": hidden.kernel[...], "bias": hidden.bias[...], "out": out.kernel[...], "log_std": model.log_std[...]}

    return lambda params, observation: nnx.merge(graphdef, params, rest)(observation), params, read


class EquinoxPolicy(eqx.Module):
    mlp: eqx.nn.MLP
    log_std: jax.Array

    def __init__(self, weights):
        mlp = eqx.nn.MLP(O, A, H, depth=1, activation=jnp.tanh, use_final_bias=False, key=jax.random.key(0))
        arrays = weights["in"].T, weights["bias"], weights["out"].T
        self.mlp = eqx.tree_at(lambda mlp: (mlp.layers[0].weight, mlp.layers[0].bias, mlp.layers[1].weight), mlp, arrays)
        self.log_std = weights["log_std"]

    def __call__(self, observation):
        return DiagonalGaussian(self.mlp(observation), self.log_std)

    def read(self):
        first, last = self.mlp.layers
        return {"in": first.weight.T, "bias": first.bias, "out": last.weight.T, "log_std": self.log_std}


def equinox(weights):
    params, static = eqx.partition(EquinoxPolicy(weights), eqx.is_inexact_array)

    def policy_fn(params, observation):
        return jax.vmap(eqx.combine(params, static))(observation)

    return policy_fn, params, EquinoxPolicy.read


def haiku_policy(observation):
    mean = hk.Linear(A, with_bias=False, name="out")(jnp.tanh(hk.Linear(H, name="in")(observation)))
    return gaussian(mean, hk.get_parameter("log_std", (A,), mean.dtype, init=jnp.zeros))


def haiku(weights):
    params = {
        "in": {"w": weights["in"], "b": weights["bias"]},
        "out": {"w": weights["out"]},
        "~": {"log_std": weights["log_std"]},
    }

    def read(params):
        return {"in": params["in"]["w"], "bias": params["in"]["b"], "out": params["out"]["w"], **params["~"]}

    return hk.without_apply_rng(hk.transform(haiku_policy)).apply, params, read


@pytest.mark.parametrize("framework", [linen, with_nnx, equinox, haiku])
def test_the_same_policy_gets_the_same_update_in_every_framework(framework, x64):
    weights, batch = draw("gaussian", "float64", seed=11)
    expected, expected_info = update("gaussian", weights, batch, CONFIG)
    policy_fn, params, read = framework(weights)
    new, info = jax.jit(functools.partial(trust_region_update, policy_fn))(params, batch, CONFIG)
    assert jax.tree.structure(new) == jax.tree.structure(params)
    assert_same(read(new), expected)
    assert_same(info._asdict(), expected_info._asdict(), rtol=1e-6)
    assert info.accepted


# --- recurrent policies ---------------------------------------------------------------------------------------------------


def recurrent_fn(params, observation):
    """A recurrent policy on axes [T, N], which knows no T and no N."""

    def step(carry, inputs):
        features, first = inputs
        carry = jnp.where(first[:, None], 0.0, carry)
        carry = jnp.tanh(features @ params["in"] + carry @ params["recurrent"])
        return carry, carry

    _, hidden = jax.lax.scan(step, observation["carry"][0], (observation["features"], observation["first"]))
    return gaussian(hidden @ params["out"], params["log_std"])


recurrent = jax.jit(recurrent_fn)
recurrent_update = jax.jit(functools.partial(trust_region_update, recurrent_fn))
# As many iterations as parameters and more: the solution is then the same however the batch is divided.
RECURRENT_CONFIG = dataclasses.replace(CONFIG, cg_iterations=80)
T, N = 6, 4


def draw_recurrent():
    """Parameters, and an on-policy batch whose environments are alike in pairs; each pair has resets of its own."""
    rng = np.random.default_rng(0)
    shapes = {"in": (O, H), "recurrent": (H, H), "out": (H, A), "log_std": (A,)}
    params = {key: 0.7 * rng.normal(size=shape) for key, shape in shapes.items()}
    axes = (T, N // 2)
    first = np.zeros(axes, bool)
    first[2, 0] = first[3, 1] = first[4, 1] = True
    carry = np.broadcast_to(rng.normal(size=(N // 2, H)), (*axes, H))
    observation = {"features": rng.normal(size=(*axes, O)), "first": first, "carry": carry}
    batch = Batch(observation, rng.normal(size=(*axes, A)), np.zeros(axes), rng.normal(size=axes))
    return on_policy(params, jax.tree.map(lambda leaf: np.repeat(leaf, 2, axis=1), batch))


def on_policy(params, batch):
    """The parameters, and the batch with their log-probabilities; all as arrays of JAX."""
    params, batch = jax.tree.map(jnp.asarray, (params, batch))
    return params, batch._replace(log_prob=recurrent(params, batch.observation).log_prob(batch.action))


def numpy_recurrent_mean(params, observation):
    """The means of a recurrent policy, one environment and one step at a time."""
    p, o = (jax.tree.map(np.asarray, tree) for tree in (params, observation))
    mean = np.zeros((*o["first"].shape, A))
    for n in range(mean.shape[1]):
        carry = o["carry"][0, n]
        for t in range(mean.shape[0]):
            carry = np.zeros(H) if o["first"][t, n] else carry
            carry = np.tanh(o["features"][t, n] @ p["in"] + carry @ p["recurrent"])
            mean[t, n] = carry @ p["out"]
    return mean


def test_a_recurrent_policy_is_updated_within_the_kl_of_a_loop_over_time(x64):
    params, batch = draw_recurrent()
    new, info = recurrent_update(params, batch, RECURRENT_CONFIG)
    assert info.accepted
    old_mean, new_mean = (numpy_recurrent_mean(p, batch.observation) for p in (params, new))
    log_ratio = np.asarray(new["log_std"] - params["log_std"])
    shift = (new_mean - old_mean) / np.exp(np.asarray(new["log_std"]))
    kl = np.sum(log_ratio + 0.5 * np.exp(-2 * log_ratio) + 0.5 * shift**2 - 0.5, axis=-1)
    np.testing.assert_allclose([info.kl, info.max_kl], [kl.mean(), kl.max()], rtol=1e-8)
    assert 0 < kl.mean() <= CONFIG.max_kl
    assert_same({"recurrent": new["recurrent"] != params["recurrent"]}, {"recurrent": np.ones((H, H), bool)})


def test_a_reset_within_a_sequence_is_the_beginning_of_another_sequence(x64):
    params, batch = draw_recurrent()
    first = np.zeros((T, N), bool)
    first[T // 2] = True
    params, batch = on_policy(params, batch._replace(observation={**batch.observation, "first": first}))
    halves = jax.tree.map(lambda leaf: jnp.concatenate([leaf[: T // 2], leaf[T // 2 :]], axis=1), batch)
    new, info = recurrent_update(params, batch, RECURRENT_CONFIG)
    expected, _ = recurrent_update(params, halves, RECURRENT_CONFIG)
    assert info.accepted
    assert_same(new, expected)


def test_steps_without_weight_leave_the_sequence_as_it_is(x64):
    params, batch = draw_recurrent()
    weight = jnp.ones((T, N)).at[:3].set(0.0)  # steps that only warm up the carry
    new, info = recurrent_update(params, batch._replace(weight=weight), config=CONFIG)
    assert info.accepted
    kl = recurrent(params, batch.observation).kl(recurrent(new, batch.observation))
    np.testing.assert_allclose(info.kl, kl[3:].mean(), rtol=1e-9)
    hardly, _ = recurrent_update(params, batch._replace(weight=jnp.where(weight > 0, 1.0, 1e-200)), config=CONFIG)
    assert_same(new, hardly)


def test_nothing_before_a_reset_reaches_a_distribution_after_it(x64):
    params, batch = draw_recurrent()
    observation = jax.tree.map(np.array, batch.observation)
    observation["first"][:] = False
    observation["first"][3, 1] = True
    changed = {**observation, "features": observation["features"] + (np.arange(T) == 1)[:, None, None]}
    same = np.asarray(recurrent(params, observation).mean == recurrent(params, changed).mean).all(axis=-1)
    reset = [True, False, False, True, True, True]
    never = [True, False, False, False, False, False]
    assert same.T.tolist() == [never, reset, never, never]


@pytest.mark.parametrize(("name", "value"), [("num_microbatches", 2), ("curvature_fraction", 0.5)])
def test_what_divides_the_batch_divides_environments_and_leaves_time_whole(x64, name, value):
    params, batch = draw_recurrent()
    shapes = set()

    def spied_fn(params, observation):
        shapes.add(observation["first"].shape)
        return recurrent_fn(params, observation)

    config = dataclasses.replace(RECURRENT_CONFIG, **{name: value})
    new, info = jax.jit(functools.partial(trust_region_update, spied_fn))(params, batch, config)
    expected, _ = recurrent_update(params, batch, RECURRENT_CONFIG)
    assert info.accepted
    assert_same(new, expected)
    assert {num_steps for num_steps, _ in shapes} == {T}
    assert min(num_envs for _, num_envs in shapes) < N


# --- parts of the parameters ----------------------------------------------------------------------------------------------


def head_fn(head, features):
    return gaussian(features @ head["out"], head["log_std"])


def head_of(model):
    return model.mlp.layers[1].weight, model.log_std


def test_a_frozen_trunk_stays_bit_for_bit_and_its_head_moves_as_a_policy_on_features_would(x64):
    weights, batch = draw("gaussian", "float64", seed=12)
    features = jnp.tanh(batch.observation @ weights["in"] + weights["bias"][None])
    head = {key: weights[key] for key in ("out", "log_std")}
    expected, info = jax.jit(functools.partial(trust_region_update, head_fn))(
        head, batch._replace(observation=features), CONFIG
    )
    assert info.accepted
    assert (expected["out"] != head["out"]).all()

    model = EquinoxPolicy(weights)
    nothing = jax.tree.map(lambda _: False, model)
    params, trunk = eqx.partition(model, eqx.tree_at(head_of, nothing, replace=(True, True)))

    def closed_over(params, observation):
        return jax.vmap(eqx.combine(params, trunk))(observation)

    params, _ = jax.jit(functools.partial(trust_region_update, closed_over))(params, batch, CONFIG)

    def stopped(weights, observation):
        return gaussian_fn({**weights, **jax.lax.stop_gradient({key: weights[key] for key in ("in", "bias")})}, observation)

    stopped_weights, _ = jax.jit(functools.partial(trust_region_update, stopped))(weights, batch, CONFIG)

    for new in (eqx.combine(params, trunk).read(), stopped_weights):
        assert_same({key: new[key] for key in head}, expected)
        for key in ("in", "bias"):
            assert new[key].tobytes() == weights[key].tobytes()


# --- dicts ----------------------------------------------------------------------------------------------------------------


def test_dicts_of_observations_and_of_actions_are_one_observation_and_one_action(x64):
    weights, batch = draw("gaussian", "float64", seed=13)
    expected, _ = update("gaussian", weights, batch, CONFIG)

    def policy_fn(weights, observation):
        together = jnp.concatenate([observation["position"], observation["camera"].reshape(-1, 2)], axis=-1)
        whole = gaussian_fn(weights, together)
        left, right = (DiagonalGaussian(whole.mean[:, part], whole.log_std[:, part]) for part in (slice(1), slice(1, A)))
        return Joint({"left": left, "right": right})

    observation = {"position": batch.observation[:, :1], "camera": batch.observation[:, 1:].reshape(-1, 1, 2)}
    action = {"left": batch.action[:, :1], "right": batch.action[:, 1:]}
    batch = batch._replace(observation=observation, action=action)
    new, info = jax.jit(functools.partial(trust_region_update, policy_fn))(weights, batch, CONFIG)
    assert info.accepted
    assert_same(new, expected)
