"""The guarantee of the policy update for policies with memory and for policies that see images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trpo_jax.objective.surrogate import Batch
from trpo_jax.objective.trust_region_config import TrustRegionConfig
from trpo_jax.objective.trust_region_update import trust_region_update
from trpo_jax.policy.layers import Convolutions, Hidden
from trpo_jax.policy.memory import CELLS, Recurrent, Sequence
from trpo_jax.policy.networks import PolicyNetwork
from trpo_jax.spaces import Box, Discrete

T, N = 5, 4
NETWORKS = {
    "gru": Recurrent(Hidden((3,)), CELLS["gru"](4), PolicyNetwork(Box(2), ())),
    "lstm": Recurrent(Hidden(()), CELLS["lstm"](3), PolicyNetwork(Discrete(3), ())),
    "images": PolicyNetwork(Discrete(3), (4,), encoder=Convolutions((2,), (3,))),
}


def problem(name, seed, spread):
    """Parameters, and a batch of the policy that they are."""
    network, keys = NETWORKS[name], jax.random.split(jax.random.key(seed), 6)
    observation = spread * jax.random.normal(keys[0], (T, N, *((4, 4, 1) if name == "images" else (3,))))
    if name != "images":
        carry = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (T, *leaf.shape)), network.initial_carry((N,)))
        observation = Sequence(observation, jax.random.bernoulli(keys[1], 0.2, (T, N)), carry)
    one = jax.tree.map(lambda leaf: leaf[0, 0], observation)
    params = network.init(keys[2], one.observation if name != "images" else one)
    params = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(keys[3], leaf.shape), params)
    distribution = network.apply(params, observation)
    action = distribution.sample(keys[4])
    return params, Batch(observation, action, distribution.log_prob(action), jax.random.normal(keys[5], (T, N)))


@functools.partial(jax.jit, static_argnames="name")
def updated(name, params, batch, config):
    return trust_region_update(NETWORKS[name].apply, params, batch, config)


@functools.partial(jax.jit, static_argnames="name")
def compared(name, params, new, batch):
    """Mean KL(old ‖ new), and the surrogate's gain, of the network's own outputs."""
    old, now = (NETWORKS[name].apply(each, batch.observation) for each in (params, new))
    ratio = jnp.exp(now.log_prob(batch.action) - batch.log_prob)
    return jnp.mean(old.kl(now)), jnp.mean((ratio - 1.0) * batch.advantage)


@pytest.mark.parametrize("name", NETWORKS)
@given(seed=st.integers(0, 2**16), spread=st.sampled_from([0.1, 1.0, 30.0]), exponent=st.floats(-4, 0))
def test_an_accepted_step_keeps_the_bound_and_improves(name, seed, spread, exponent):
    params, batch = problem(name, seed, spread)
    config = TrustRegionConfig(max_kl=10**exponent, damping=0.01, cg_iterations=8)
    new, info = updated(name, params, batch, config)
    if not info.accepted:
        jax.tree.map(np.testing.assert_array_equal, new, params)
        return
    kl, gain = compared(name, params, new, batch)
    assert kl <= config.max_kl * (1 + 1e-3) + 1e-7
    assert gain > -1e-6
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))


@pytest.mark.parametrize("name", NETWORKS)
def test_ordinary_problems_are_accepted_and_use_the_bound(name):
    params, batch = problem(name, 0, 1.0)
    _, info = updated(name, params, batch, TrustRegionConfig(max_kl=0.01, damping=0.01, cg_iterations=8))
    assert info.accepted
    assert info.kl > 0.004


@pytest.mark.parametrize("num_microbatches", [1, 2, 4])
def test_microbatches_of_environments_give_the_step_of_the_whole(num_microbatches):
    params, batch = problem("gru", 3, 1.0)
    whole, parts = (
        updated("gru", params, batch, TrustRegionConfig(cg_iterations=5, cg_tolerance=0.0, num_microbatches=number))[0]
        for number in (1, num_microbatches)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), whole, parts)
