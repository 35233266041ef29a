"""The guarantee of the policy update, for every input that hypothesis can think of."""

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
from trpo_jax.solver.outcome import StepOutcome
from update_problems import (
    CONFIG,
    NAMES,
    B,
    as_array,
    draw,
    examine,
    same_bits,
    update,
)

SPOIL = {
    "ordinary": lambda x: x,
    "constant": lambda x: np.ones_like(x),
    "zero": np.zeros_like,
    "offset": lambda x: x + 1000,
    "huge": lambda x: 1e30 * x,
    "largest": lambda x: 3e38 * np.sign(x),
    "tiny": lambda x: 1e-30 * x,
    "nan": lambda x: np.where(np.arange(x.size).reshape(x.shape) == 5, np.nan, x),
    "inf": lambda x: np.where(np.arange(x.size).reshape(x.shape) == 5, np.inf, x),
}
INPUT = {
    "seed": st.integers(0, 2**32 - 1),
    "advantage": st.sampled_from(["ordinary"] * 4 + list(SPOIL)),
    "observation": st.sampled_from(["ordinary"] * 8 + list(SPOIL)),
    "params": st.sampled_from(["ordinary"] * 12 + ["zero", "huge", "nan", "inf"]),
    "weight": st.sampled_from(["ones", "ones", "some zero", "some zero", "all zero", "large"]),
    "max_kl": st.floats(-8, 1).map(lambda exponent: 10**exponent),
    "damping": st.one_of(st.just(0.0), st.floats(-6, 0).map(lambda exponent: 10**exponent)),
    "backtrack_factor": st.floats(0.2, 0.9),
    "accept_ratio": st.sampled_from([0.0, 0.1, 0.9]),
    "off_policy": st.sampled_from([0.0, 0.0, 0.5, 50.0]),
}


def spoiled(name, dtype, case):
    """Parameters and batch of one example; a sample of weight zero holds NaN."""
    params, batch = jax.tree.map(np.asarray, draw(name, dtype, case["seed"]))
    rng = np.random.default_rng(case["seed"])
    with np.errstate(over="ignore"):
        params["out"] = SPOIL[case["params"]](params["out"]).astype(dtype)
        observation, advantage = SPOIL[case["observation"]](batch.observation), SPOIL[case["advantage"]](batch.advantage)
    weight = {
        "all zero": np.zeros(B),
        "large": 3e38 * rng.random(B),
        "ones": np.ones(B),
        "some zero": 1.0 * (rng.random(B) < 0.7),
    }
    weight = weight[case["weight"]]
    if case["weight"] == "some zero":
        observation, advantage = (
            np.where((weight > 0).reshape(-1, *[1] * (x.ndim - 1)), x, np.nan) for x in (observation, advantage)
        )
    log_prob = batch.log_prob + case["off_policy"] * rng.normal(size=B)
    batch = Batch(observation, batch.action, log_prob, advantage, weight)
    return jax.tree.map(functools.partial(as_array, dtype=dtype), (params, batch))


@pytest.mark.parametrize("name", NAMES)
def test_an_accepted_step_is_inside_the_trust_region_and_better_and_any_other_changes_nothing_bugs_5_11_12(name, dtype):
    outcomes = collections.Counter()
    eps = float(jnp.finfo(dtype).eps)

    @given(st.fixed_dictionaries(INPUT))
    @settings(max_examples=150 if dtype == "float32" else 50)
    def check(case):
        params, batch = spoiled(name, dtype, case)
        config = dataclasses.replace(
            CONFIG, **{key: case[key] for key in ("max_kl", "damping", "backtrack_factor", "accept_ratio")}
        )
        new, info = update(name, params, batch, config)
        outcomes[StepOutcome(int(info.outcome))] += 1
        if not info.accepted:
            assert info.outcome != StepOutcome.ACCEPTED
            assert same_bits(new, params)
            return
        assert info.outcome == StepOutcome.ACCEPTED
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((new, info)))
        # The noise is bounded for the worst case; roundings of random sign stay far below, a tenth is never reached.
        kl, kl_noise, improvement, improvement_noise = examine(name, params, new, batch, eps / 10)
        assert info.kl <= np.asarray(config.max_kl, dtype)
        assert np.sqrt(kl) <= np.sqrt(config.max_kl) * (1 + 20 * eps) + kl_noise
        if case["observation"] == case["params"] == "ordinary" and config.max_kl >= 1e-6:
            assert kl <= config.max_kl * (1 + 1e-3)
        assert info.surrogate_improvement > 0
        assert improvement > -improvement_noise / 10

    with np.errstate(all="ignore"):
        check()
    # The examples reach both sides, or nothing was proven.
    assert outcomes[StepOutcome.ACCEPTED] > 10
    assert {StepOutcome.NOT_FINITE, StepOutcome.ZERO_GRADIENT} <= set(outcomes)
