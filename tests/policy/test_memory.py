"""Networks with memory: a sequence at once gives what its steps give one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax.policy.layers import Convolutions, Hidden
from trpo_jax.policy.memory import CELLS, Memory, Recurrent, Sequence, initial_carry, policy_step, restarted
from trpo_jax.policy.networks import PolicyNetwork, ValueNetwork
from trpo_jax.spaces import Box, Discrete

T, N, O = 7, 3, 4  # noqa: E741


def recurrent(cell="gru", head=None):
    return Recurrent(Hidden((6,)), CELLS[cell](5), head or PolicyNetwork(Discrete(3), ()))


def sequence_of(network, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    fresh = network.initial_carry((N,))
    carry = jax.tree.map(lambda leaf: jax.random.normal(keys[2], (T, *leaf.shape)), fresh)
    return Sequence(jax.random.normal(keys[0], (T, N, O)), jax.random.bernoulli(keys[1], 0.3, (T, N)), carry)


@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_gives_what_its_steps_give(cell):
    network = recurrent(cell)
    sequence = sequence_of(network)
    params = network.init(jax.random.key(1), sequence.observation[0, 0])
    after, whole = network.unroll(params, sequence)
    carry = jax.tree.map(lambda leaf: leaf[0], sequence.carry)
    for t in range(T):
        carry = restarted(carry, sequence.begins[t], network.initial_carry((N,)))
        carry, step = network.step(params, carry, sequence.observation[t])
        np.testing.assert_allclose(step.logits, whole.logits[t], rtol=1e-5, atol=1e-6)
        jax.tree.map(lambda now, all_, t=t: np.testing.assert_allclose(now, all_[t], rtol=1e-5, atol=1e-6), carry, after)
    np.testing.assert_array_equal(network.apply(params, sequence).logits, whole.logits)


def test_what_came_before_an_episode_does_not_count():
    network = recurrent()
    sequence = sequence_of(network)
    begins = jnp.zeros((T, N), bool).at[3].set(True)
    params = network.init(jax.random.key(1), sequence.observation[0, 0])
    one, other = (
        network.apply(params, sequence._replace(begins=begins, observation=observation)).logits
        for observation in (sequence.observation, sequence.observation.at[:3].add(1.0))
    )
    assert (np.abs(one[:3] - other[:3]) > 1e-4).any()
    np.testing.assert_array_equal(one[3:], other[3:])


def test_only_the_memory_before_the_first_step_counts():
    network = recurrent("lstm")
    sequence = sequence_of(network)
    params = network.init(jax.random.key(1), sequence.observation[0, 0])
    changed = sequence._replace(carry=jax.tree.map(lambda leaf: leaf.at[1:].add(1.0), sequence.carry))
    np.testing.assert_array_equal(network.apply(params, sequence).logits, network.apply(params, changed).logits)
    first = sequence._replace(begins=jnp.zeros((T, N), bool))
    moved = first._replace(carry=jax.tree.map(lambda leaf: leaf.at[0].add(1.0), sequence.carry))
    assert (network.apply(params, first).logits != network.apply(params, moved).logits).any()


def test_a_gradient_reaches_the_beginning_of_a_sequence():
    network = recurrent(head=ValueNetwork(()))
    sequence = sequence_of(network)._replace(begins=jnp.zeros((T, N), bool))
    params = network.init(jax.random.key(1), sequence.observation[0, 0])
    gradient = jax.grad(lambda observation: network.apply(params, sequence._replace(observation=observation))[-1].sum())(
        sequence.observation
    )
    assert (np.abs(gradient[0]) > 0).any()


def test_a_policy_step_begins_anew_where_an_episode_does():
    network = recurrent()
    params = network.init(jax.random.key(1), jnp.zeros(O))
    carry = jnp.ones((N, 5))
    memory = Memory(carry, jnp.asarray([True, False, True]))
    _, distribution = policy_step(network, params, memory, jnp.ones((N, O)))
    _, fresh = network.step(params, network.initial_carry((N,)), jnp.ones((N, O)))
    _, old = network.step(params, carry, jnp.ones((N, O)))
    expected = np.where(np.asarray(memory.begins)[:, None], fresh.logits, old.logits)
    np.testing.assert_allclose(distribution.logits, expected, rtol=1e-6)


def test_networks_without_memory_carry_nothing():
    network = PolicyNetwork(Box(2), (4,))
    params = network.init(jax.random.key(0), jnp.zeros(O))
    assert initial_carry(network, (N,)) is None
    for memory in (None, Memory(None, jnp.ones(N, bool))):
        carry, distribution = policy_step(network, params, memory, jnp.ones((N, O)))
        assert carry is None
        assert distribution.mean.shape == (N, 2)


def test_images_go_through_convolutions_first():
    network = Recurrent(Hidden((6,), encoder=Convolutions((2,))), CELLS["gru"](5), ValueNetwork(()))
    images = jnp.ones((T, N, 5, 5, 1))
    params = network.init(jax.random.key(0), images[0, 0])
    carry = jnp.zeros((T, N, 5))
    assert network.apply(params, Sequence(images, jnp.zeros((T, N), bool), carry)).shape == (T, N)
