import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax.solver.line_search import backtracking_line_search


@functools.partial(jax.jit, static_argnames="max_backtracks")
def search(largest_passing, factor=0.8, *, max_backtracks=5):
    """Accept fractions up to `largest_passing`; the trial says what was tried."""

    def trial_fn(fraction):
        return fraction <= largest_passing, {"fraction": fraction, "candidate": jnp.stack([fraction, -fraction])}

    return backtracking_line_search(trial_fn, backtrack_factor=factor, max_backtracks=max_backtracks)


@pytest.mark.parametrize("k", range(5))
@pytest.mark.parametrize("factor", [0.8, 0.5, 0.1])
def test_the_first_fraction_accepted_is_a_power_of_the_factor(k, factor):
    result = search(factor**k * 1.01, factor)
    assert bool(result.accepted)
    assert result.backtracks == k
    np.testing.assert_allclose(result.fraction, factor**k, rtol=1e-6)


@pytest.mark.parametrize("max_backtracks", [0, 1, 5])
def test_a_step_accepted_at_the_very_last_backtrack_is_kept_bug_4(max_backtracks):
    result = search(0.8**max_backtracks * 1.01, max_backtracks=max_backtracks)
    assert bool(result.accepted)
    assert result.backtracks == max_backtracks


@pytest.mark.parametrize("max_backtracks", [0, 1, 5])
def test_when_every_fraction_fails_the_last_one_is_reported(max_backtracks):
    result = search(0.0, max_backtracks=max_backtracks)
    assert not bool(result.accepted)
    assert result.backtracks == max_backtracks
    np.testing.assert_allclose(result.fraction, 0.8**max_backtracks, rtol=1e-6)
    np.testing.assert_array_equal(result.trial["fraction"], result.fraction)


@pytest.mark.parametrize("largest_passing", [1.0, 0.5, 0.34, 0.0])
def test_the_trial_returned_is_bit_for_bit_that_of_the_fraction_returned(largest_passing):
    result = search(largest_passing)
    np.testing.assert_array_equal(result.trial["fraction"], result.fraction)
    np.testing.assert_array_equal(result.trial["candidate"], [result.fraction, -result.fraction])


def test_a_verdict_that_comes_from_nan_is_a_failure():
    assert not bool(search(jnp.nan).accepted)


def test_a_batch_of_searches_equals_one_after_another():
    passing, factors = jnp.asarray([1.0, 0.3, 0.0, 0.6]), jnp.asarray([0.8, 0.5, 0.8, 0.7])
    together = jax.vmap(search)(passing, factors)
    assert together.backtracks.tolist() == [0, 2, 5, 2]
    for i in range(4):
        alone = search(passing[i], factors[i])
        assert together.accepted[i] == alone.accepted
        np.testing.assert_allclose(together.trial["candidate"][i], alone.trial["candidate"], rtol=1e-6)


def test_trials_of_float64_keep_their_precision(x64):
    third = backtracking_line_search(lambda fraction: (fraction < 2, jnp.float64(1) / 3), backtrack_factor=0.8).trial
    assert third == 1 / 3


def test_a_negative_number_of_backtracks_is_refused():
    with pytest.raises(ValueError, match="max_backtracks: got -1, allowed: an integer >= 0"):
        backtracking_line_search(lambda fraction: (fraction > 0, fraction), max_backtracks=-1)


def test_the_first_backtrack_may_come_from_what_the_first_trial_has_shown():
    def trial_fn(fraction):
        return fraction <= 0.7, {"fraction": fraction}

    result = backtracking_line_search(trial_fn, backtrack_factor=0.8, first_factor_fn=lambda trial: 0.9 * trial["fraction"])
    assert result.backtracks == 3  # 1, 0.9, 0.72, 0.576
    np.testing.assert_allclose([result.fraction, result.trial["fraction"]], 0.9 * 0.8**2, rtol=1e-6)
