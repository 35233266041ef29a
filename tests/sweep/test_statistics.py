"""The statistics of a report, against scipy, by hand, and by how often their intervals hold what they should."""

import numpy as np
import pytest
import scipy.stats

from trpo_jax.sweep.report import statistics
from trpo_jax.sweep.report.statistics import estimate, interquartile_mean, mean, median


def test_the_interquartile_mean_cuts_a_quarter_off_at_each_end():
    assert interquartile_mean([np.array([1.0, 2, 3, 4, 100, -50, 7, 8])]) == (2 + 3 + 4 + 7) / 4
    many = np.random.default_rng(0).normal(size=(3, 40))
    expected = [np.sort(row)[10:30].mean() for row in many]
    np.testing.assert_allclose(interquartile_mean([many]), expected)
    np.testing.assert_allclose(interquartile_mean([many[:, :15], many[:, 15:]]), expected)  # of all runs, whatever the strata


def test_mean_and_median_over_several_strata_are_those_of_their_means():
    strata = [np.array([1.0, 3.0]), np.array([10.0, 10.0, 40.0]), np.array([6.0])]
    assert mean(strata) == (2 + 20 + 6) / 3
    assert median(strata) == 6
    assert median(strata[1:2]) == 10


@pytest.mark.parametrize("statistic", [interquartile_mean, mean, median])
def test_of_one_environment_the_interval_is_scipys_percentile_bootstrap(statistic):
    scores = np.random.default_rng(1).exponential(size=30)
    found = estimate({"ant": scores}, statistic)
    expected = scipy.stats.bootstrap(
        (scores,), lambda x, axis: statistic([x]), method="percentile", n_resamples=20_000, rng=np.random.default_rng(2)
    ).confidence_interval
    spread = expected.high - expected.low
    assert found.value == statistic([scores])
    np.testing.assert_allclose(found[1:], expected, atol=0.1 * spread)


def test_strata_are_resampled_each_by_itself():
    # Constant scores within every environment leave nothing to chance, however far environments lie apart.
    scores = {"ant": np.full(5, 1.0), "hopper": np.full(5, 9.0)}
    assert estimate(scores, mean) == (5.0, 5.0, 5.0)


def test_where_nothing_varies_by_chance_no_interval_is_made_up():
    found = estimate({"ant": np.array([1.0]), "hopper": np.array([3.0])})
    assert found.value == 2.0
    assert np.isnan(found[1:]).all()
    single = {"ant": np.array([1.0]), "hopper": np.array([3.0])}
    chance = statistics.probability_of_improvement(single, {"ant": np.array([0.0]), "hopper": np.array([4.0])})
    assert chance.value == 0.5
    assert np.isnan(chance[1:]).all()
    several = {"ant": np.array([0.0, 2.0]), "hopper": np.array([4.0])}
    assert np.isnan(statistics.probability_of_improvement(single, several)[1:]).all()
    chance = statistics.probability_of_improvement({"ant": np.array([1.0, 3.0]), "hopper": np.array([3.0])}, several)
    assert chance.low < chance.value < chance.high
    part, *interval = statistics.performance_profile(single, np.array([2.0]))
    assert part == 0.5
    assert np.isnan(interval).all()


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    found = [estimate({"ant": rng.normal(size=20), "hopper": rng.normal(2.0, 1.0, size=20)}, mean, seed=i) for i in range(200)]
    held = np.mean([low <= 1.0 <= high for _, low, high in found])
    assert 0.88 <= held <= 0.99  # the percentile bootstrap of few runs is a little narrow


def test_a_performance_profile_is_the_part_of_runs_above_each_threshold():
    scores = {"ant": np.array([0.1, 0.5, 0.9, 0.9]), "hopper": np.array([0.5, 1.5])}
    middle, low, high = statistics.performance_profile(scores, np.array([0.0, 0.5, 1.0, 2.0]))
    np.testing.assert_allclose(middle, [1.0, (0.5 + 0.5) / 2, (0.0 + 0.5) / 2, 0.0])
    assert np.all((low <= middle) & (middle <= high))
    np.testing.assert_array_equal(low[[0, 3]], high[[0, 3]])


def test_the_probability_of_improvement_is_mann_whitneys_u_over_the_pairs():
    rng = np.random.default_rng(4)
    ours = {"ant": rng.normal(0.5, 1, 12), "hopper": rng.integers(0, 3, 9).astype(float)}
    theirs = {"ant": rng.normal(0, 1, 8), "hopper": rng.integers(0, 3, 7).astype(float)}
    u = [scipy.stats.mannwhitneyu(ours[name], theirs[name]).statistic / (len(ours[name]) * len(theirs[name])) for name in ours]
    found = statistics.probability_of_improvement(ours, theirs)
    np.testing.assert_allclose(found.value, np.mean(u))
    assert found.low < found.value < found.high
    back = statistics.probability_of_improvement(theirs, ours)
    np.testing.assert_allclose(found.value + back.value, 1.0)


def test_equal_scores_are_no_improvement():
    scores = {"ant": np.ones(4)}
    assert statistics.probability_of_improvement(scores, scores) == (0.5, 0.5, 0.5)
