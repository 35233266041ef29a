"""The guarantee of the policy update over all distributions and options, with hostile batches, in float32 and float64."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trpo_jax.objective.surrogate import Batch
from trpo_jax.objective.trust_region_config import TrustRegionConfig
from trpo_jax.objective.trust_region_update import stateful_trust_region_update
from trpo_jax.policy.distributions import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    Joint,
    MultiCategorical,
    MultivariateGaussian,
    TanhGaussian,
)
from trpo_jax.solver.outcome import StepOutcome
from trpo_jax.solver.step_config import init_trust_region_state
from update_problems import same_bits

B, O, K = 12, 3, 6  # noqa: E741 - samples, observation, outputs


def outputs(params, observation):
    return jnp.tanh(observation @ params["in"]) @ params["out"] + params["bias"][None]


def multivariate(x):
    lower = jnp.tril(x[:, None, 2:4] * jnp.ones((1, 2, 1), x.dtype), -1)
    return MultivariateGaussian(x[:, :2], lower + jnp.exp(x[:, 4:6])[:, :, None] * jnp.eye(2, dtype=x.dtype)[None])


POLICIES = {
    "gaussian": lambda x: DiagonalGaussian(x[:, :3], x[:, 3:]),
    "tanh gaussian": lambda x: TanhGaussian(x[:, :3], x[:, 3:]),
    "multivariate gaussian": multivariate,
    "categorical": Categorical,
    "masked categorical": lambda x: Categorical(x, jnp.broadcast_to(jnp.arange(K) % 4 > 0, x.shape)),
    "multicategorical": lambda x: MultiCategorical(x, (2, 4)),
    "bernoulli": Bernoulli,
    "joint": lambda x: Joint({"move": DiagonalGaussian(x[:, :1], x[:, 1:2]), "fire": Bernoulli(x[:, 2:])}),
}
OPTIONS = {
    "plain": TrustRegionConfig(cg_iterations=5),
    "microbatches": TrustRegionConfig(cg_iterations=5, num_microbatches=3, curvature_fraction=0.5),
    "largest KL": TrustRegionConfig(cg_iterations=5, kl_constraint="max", num_microbatches=2),
    "empirical Fisher": TrustRegionConfig(cg_iterations=5, fisher="empirical"),
    "shaped damping": TrustRegionConfig(cg_iterations=5, damping_shape="gradient", accept_ratio=0.1),
    "random curvature": TrustRegionConfig(cg_iterations=5, curvature_fraction=0.5, curvature_sampling="random"),
    "natural gradient": TrustRegionConfig(cg_iterations=5, line_search=False),
}
# Every distribution and every option in both precisions, without the product of all three, which would take long to compile.
CASES = [
    pytest.param(policy, list(OPTIONS)[(i + shift) % len(OPTIONS)], precision, marks=marks)
    for i, policy in enumerate(POLICIES)
    for shift, precision, marks in ((0, "float32", ()), (3, "float64", pytest.mark.slow))
]
SPOIL = {
    "ordinary": lambda x: x,
    "offset": lambda x: x + 1000,
    "huge": lambda x: 1e30 * x,
    "tiny": lambda x: 1e-30 * x,
    "zero": lambda x: 0 * x,
    "nan": lambda x: x.at[5].set(jnp.nan),
    "inf": lambda x: x.at[5].set(jnp.inf),
}
CASE = {
    "seed": st.integers(0, 2**31 - 1),
    "advantage": st.sampled_from(["ordinary"] * 6 + list(SPOIL)),
    "observation": st.sampled_from(["ordinary"] * 6 + list(SPOIL)),
    "params": st.sampled_from(["ordinary"] * 9 + ["huge", "zero", "nan"]),
    "weight": st.sampled_from(["ones", "some zero", "all zero"]),
    "max_kl": st.floats(-6, 1).map(lambda exponent: 10.0**exponent),
    "damping": st.sampled_from([0.0, 1e-4, 0.1]),
    "off_policy": st.sampled_from([0.0, 0.0, 0.5, 50.0]),
}


@functools.partial(jax.jit, static_argnames="policy")
def sample(policy, params, observation, key):
    distribution = POLICIES[policy](outputs(params, observation))
    action = distribution.sample(key)
    return action, distribution.log_prob(action)


@functools.partial(jax.jit, static_argnames="policy")
def step(policy, params, batch, state, config, key):
    def policy_fn(params, observation):
        return POLICIES[policy](outputs(params, observation))

    return stateful_trust_region_update(policy_fn, params, batch, state, config, key=key)


@functools.partial(jax.jit, static_argnames="policy")
def kl_and_surrogate(policy, params, new, batch):
    """By the definitions, in float64 where the caller has switched it on."""
    old, moved = (POLICIES[policy](outputs(p, batch.observation)) for p in (params, new))
    ratios = [jnp.exp(p.log_prob(batch.action) - batch.log_prob) for p in (old, moved)]
    return old.kl(moved), (ratios[1] - ratios[0]) * batch.advantage


def draw(policy, dtype, case):
    rng = np.random.default_rng(case["seed"])
    shapes = {"in": (O, 4), "out": (4, K), "bias": (K,)}
    params = {name: jnp.asarray(0.5 * rng.normal(size=shape), dtype) for name, shape in shapes.items()}
    observation = jnp.asarray(rng.normal(size=(B, O)), dtype)
    key = jax.random.key(case["seed"])
    action, log_prob = sample(policy, params, observation, key)
    log_prob = log_prob + jnp.asarray(case["off_policy"] * rng.normal(size=B), dtype)
    weight = {"ones": np.ones(B), "all zero": np.zeros(B), "some zero": 1.0 * (rng.random(B) < 0.7)}[case["weight"]]
    params["out"] = SPOIL[case["params"]](params["out"])
    advantage = SPOIL[case["advantage"]](jnp.asarray(rng.normal(size=B), dtype))
    batch = Batch(SPOIL[case["observation"]](observation), action, log_prob, advantage, jnp.asarray(weight, dtype))
    return params, batch, key


def in_float64(tree):
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x), "float64") if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


@pytest.fixture
def dtype(precision):
    with jax.enable_x64(precision == "float64"):
        yield jnp.dtype(precision)


@pytest.mark.parametrize(("policy", "option", "precision"), CASES)
def test_an_accepted_step_keeps_its_promise_and_any_other_changes_nothing(policy, option, dtype):
    outcomes = collections.Counter()

    @given(st.fixed_dictionaries(CASE))
    @settings(max_examples=40 if dtype == "float32" else 15)
    def check(case):
        params, batch, key = draw(policy, dtype, case)
        config = dataclasses.replace(OPTIONS[option], max_kl=case["max_kl"], damping=case["damping"])
        new, _, info = step(policy, params, batch, init_trust_region_state(params, config), config, key)
        outcomes[StepOutcome(int(info.outcome))] += 1
        assert bool(info.accepted) == (info.outcome == StepOutcome.ACCEPTED)
        if not info.accepted:
            assert same_bits(new, params)
            return
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))
        if option == "natural gradient":
            return
        constrained = info.max_kl if config.kl_constraint == "max" else info.kl
        assert constrained <= jnp.asarray(config.max_kl, dtype)
        assert info.surrogate_improvement > 0
        if {case["observation"], case["params"], case["advantage"]} == {"ordinary"} and case["off_policy"] < 1:
            with jax.enable_x64(True):
                kl, gain = kl_and_surrogate(policy, *in_float64((params, new)), in_float64(batch))
                counted = np.asarray(batch.weight) > 0
                kl, gain = np.asarray(kl)[counted], np.asarray(gain)[counted]
            kl = kl.max() if config.kl_constraint == "max" else kl.mean()
            # What float32 rounds the outputs by is a KL of about 1e-12 at most, and moves the root of the KL by its own.
            assert np.sqrt(kl) <= np.sqrt(config.max_kl) * (1 + 1e-3) + 2e-6
            assert gain.mean() > -1e-5 * np.abs(np.asarray(batch.advantage)).max()

    with np.errstate(all="ignore"):
        check()
    assert outcomes[StepOutcome.ACCEPTED] > 3
    assert len(outcomes) > 1
