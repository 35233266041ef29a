"""The policy improvement bound on Markov decision processes that are small enough for dynamic programming, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from trpo_jax.objective.improvement_bound import improvement_bound
from trpo_jax.policy.distributions import Categorical

STATES, ACTIONS = 5, 3


def draw(seed):
    """Transition probabilities `[S, A, S]`, rewards `[S, A]`, the distribution of the first state, and logits `[S, A]`."""
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.full(STATES, 0.3), size=(STATES, ACTIONS))
    return transition, rng.normal(size=(STATES, ACTIONS)), rng.dirichlet(np.ones(STATES)), rng.normal(size=(STATES, ACTIONS))


def probabilities(logits):
    logits = logits - logits.max(axis=1, keepdims=True)
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def solve(process, logits, discounting):
    """Return η, the discounted visitation `[S]` (a distribution), and the advantages `[S, A]` by dynamic programming."""
    transition, reward, first, _ = process
    policy = probabilities(logits)
    under = np.einsum("sa,sat->st", policy, transition)
    value = np.linalg.solve(np.eye(STATES) - discounting * under, np.sum(policy * reward, axis=1))
    visits = (1 - discounting) * np.linalg.solve(np.eye(STATES) - discounting * under.T, first)
    return first @ value, visits, reward + discounting * transition @ value - value[:, None]


def bound_of(process, old, new, discounting):
    _, visits, advantage = solve(process, old, discounting)
    kl = np.asarray(Categorical(jnp.asarray(old)).kl(Categorical(jnp.asarray(new))))
    improvement = visits @ np.sum(probabilities(new) * advantage, axis=1)
    return improvement_bound(*map(jnp.asarray, (improvement, np.abs(advantage).max(), kl.max())), discounting=discounting)


@given(seed=st.integers(0, 2**32 - 1), size=st.floats(-4, 1), discounting=st.sampled_from([0.0, 0.5, 0.9, 0.99]))
def test_the_return_never_changes_by_less_than_the_bound_says(seed, size, discounting):
    with jax.enable_x64(True):
        process = draw(seed)
        old = process[-1]
        new = old + 10**size * np.random.default_rng(seed + 1).normal(size=old.shape)
        bound = bound_of(process, old, new, discounting)
        change = solve(process, new, discounting)[0] - solve(process, old, discounting)[0]
        assert change >= float(bound.change) - 1e-9
        if discounting == 0:  # nothing but the first action counts, so the surrogate is the return
            np.testing.assert_allclose(change, bound.surrogate, atol=1e-9)


def test_the_prediction_is_right_to_first_order_and_the_penalty_covers_the_rest(x64):
    process = draw(0)
    direction = np.random.default_rng(1).normal(size=(STATES, ACTIONS))
    rest = []
    for size in (1e-2, 1e-3):
        new = process[-1] + size * direction
        change = solve(process, new, 0.9)[0] - solve(process, process[-1], 0.9)[0]
        bound = bound_of(process, process[-1], new, 0.9)
        rest.append(abs(change - float(bound.surrogate)))
        assert rest[-1] <= float(bound.penalty)
    assert rest[1] < 0.02 * rest[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_updates_that_maximize_the_bound_never_lower_the_return(x64, seed):
    process, discounting = draw(seed), 0.5
    logits = process[-1]

    @functools.partial(jax.jit)
    @jax.value_and_grad
    def minus_bound(flat, old, visits, advantage):
        new = flat.reshape(STATES, ACTIONS)
        kl = Categorical(old).kl(Categorical(new))
        improvement = visits @ jnp.sum(jax.nn.softmax(new) * advantage, axis=1)
        return -improvement_bound(improvement, jnp.max(jnp.abs(advantage)), jnp.max(kl), discounting=discounting).change

    returns = []
    for _ in range(200):
        value, visits, advantage = solve(process, logits, discounting)
        returns.append(value)
        given_old = tuple(map(jnp.asarray, (logits, visits, advantage)))
        found = optimize.minimize(minus_bound, logits.ravel(), args=given_old, jac=True, method="L-BFGS-B")
        if -found.fun > 0:  # at the old policy the bound is 0
            logits = np.asarray(found.x).reshape(STATES, ACTIONS)
    changes = np.diff(returns)
    assert changes.min() >= -1e-12
    assert returns[-1] > returns[0] + 1e-3


def test_without_discounting_the_penalty_is_huge_and_finite():
    bound = improvement_bound(jnp.float32(0.1), jnp.float32(2.0), jnp.float32(0.01), discounting=1.0)
    assert 1e10 < bound.penalty < jnp.inf
    assert bound.change < 0
