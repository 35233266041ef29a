"""The guarantee of the policy update with every dtype of every input, whole, in microbatches and over a named axis."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trpo_jax.objective.surrogate import Batch
from trpo_jax.objective.trust_region_config import TrustRegionConfig
from trpo_jax.objective.trust_region_update import trust_region_update
from update_problems import A, H, O, gaussian_fn, numpy_kl, same_bits

PARTS, SAMPLES = 3, 43  # 129 samples: shares of three parts that no binary fraction holds
INPUTS = ("params", "observation", "log_prob", "advantage", "weight")
NARROW = [{name: dtype} for name in INPUTS for dtype in ("bfloat16", "float16")]
ALL = [dict.fromkeys(INPUTS, dtype) for dtype in ("bfloat16", "float16")]
DTYPES = [dict.fromkeys(INPUTS, "float32") | dtypes for dtypes in NARROW + ALL]
WAYS = ("whole", "microbatches", "axis")
CASES = [
    pytest.param(dtypes, way, marks=() if dtypes["weight"] != "float32" else pytest.mark.slow)
    for i, dtypes in enumerate(DTYPES)
    for way in WAYS
    if "weight" in NARROW[i % 10] or way == WAYS[i % 3]
]
"""Narrow weights, which shares of parts are made of, in every way; each other input in one."""


@functools.partial(jax.jit, static_argnames="way")
def update(params, batch, max_kl, way):
    config = TrustRegionConfig(max_kl=max_kl, cg_iterations=5, num_microbatches=PARTS if way == "microbatches" else 1)
    if way != "axis":
        return trust_region_update(gaussian_fn, params, batch, config)
    parts = jax.tree.map(lambda leaf: leaf.reshape(PARTS, SAMPLES, *leaf.shape[1:]), batch)
    one = functools.partial(trust_region_update, gaussian_fn, config=config, axis_name="parts")
    return jax.tree.map(lambda leaf: leaf[0], jax.vmap(one, (None, 0), axis_name="parts")(params, parts))


def draw(seed, dtypes, weights):
    rng = np.random.default_rng(seed)
    shapes = {"in": (O, H), "bias": (H,), "out": (H, A), "log_std": (A,)}
    params = {name: jnp.asarray(0.5 * rng.normal(size=shape), dtypes["params"]) for name, shape in shapes.items()}
    size = PARTS * SAMPLES
    observation = jnp.asarray(rng.normal(size=(size, O)), dtypes["observation"])
    old = gaussian_fn(params, observation)
    action = old.sample(jax.random.key(seed))
    weight = {"ones": np.ones(size), "random": rng.random(size), "one counts": np.arange(size) == 5}[weights]
    rest = {"log_prob": old.log_prob(action), "advantage": rng.normal(size=size), "weight": weight}
    return params, Batch(observation, action, **{name: jnp.asarray(leaf, dtypes[name]) for name, leaf in rest.items()})


def numbers(params, batch):
    """The policy's distributions as it computes them, in numpy's float64."""
    distribution = gaussian_fn(params, batch.observation)
    return {name: np.asarray(getattr(distribution, name), np.float64) for name in ("mean", "log_std")}


@pytest.mark.parametrize(("dtypes", "way"), CASES)
def test_the_kl_of_an_accepted_step_is_within_the_bound_whatever_the_dtypes(dtypes, way):
    accepted = []

    @given(st.integers(0, 2**31), st.sampled_from(["ones", "random", "one counts"]), st.floats(-3, -1))
    @settings(max_examples=15)
    def check(seed, weights, exponent):
        params, batch = draw(seed, dtypes, weights)
        new, info = update(params, batch, 10.0**exponent, way)
        accepted.append(bool(info.accepted))
        if not info.accepted:
            assert same_bits(new, params)
            return
        assert info.kl <= np.float32(10.0**exponent)
        if gaussian_fn(params, batch.observation).mean.dtype != jnp.float32:
            return  # how a narrow policy rounds depends on what it is compiled with
        weight = np.asarray(batch.weight, np.float64)
        kl = np.average(numpy_kl("gaussian", numbers(params, batch), numbers(new, batch)), weights=weight)
        assert kl <= 10.0**exponent * (1 + 1e-5)
        np.testing.assert_allclose(info.kl, kl, rtol=1e-5)

    check()
    assert sum(accepted) > 5
