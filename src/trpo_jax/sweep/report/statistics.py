"""Statistics of a few noisy runs: aggregates with intervals, performance profiles, probabilities of improvement.

Scores are a mapping from strata, such as environments, to arrays `[n]`, one number per run. The bootstrap resamples runs
with replacement within each stratum.

Reference: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (arXiv 2108.13264).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

Scores = Mapping[str, Float[np.ndarray, "_"]]

Reduced = Float[np.ndarray, "..."] | np.floating
"""Result of a reduction over the last axis; numpy returns a scalar if no axis is left."""

Statistic = Callable[[Sequence[Float[np.ndarray, "... _"]]], Reduced]
"""Function of the runs of each stratum."""

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000
_BATCH = 250
"""Resamples drawn at once, which bounds memory."""


class Estimate(NamedTuple):
    """A statistic and the percentile interval of its bootstrap distribution, NaN if every stratum has a single run."""

    value: float
    low: float
    high: float


def interquartile_mean(strata: Sequence[Float[np.ndarray, "... _"]]) -> Reduced:
    """Return the mean of all runs without the lowest and the highest quarter."""
    return stats.trim_mean(np.concatenate(strata, axis=-1), 0.25, axis=-1)


def mean(strata: Sequence[Float[np.ndarray, "... _"]]) -> Reduced:
    """Return the mean over strata of the mean over runs."""
    return np.mean([np.mean(each, axis=-1) for each in strata], axis=0)


def median(strata: Sequence[Float[np.ndarray, "... _"]]) -> Reduced:
    """Return the median over strata of the mean over runs; for a single stratum, the median over runs."""
    if len(strata) == 1:
        return np.median(strata[0], axis=-1)
    return np.median([np.mean(each, axis=-1) for each in strata], axis=0)


def estimate(scores: Scores, statistic: Statistic = interquartile_mean, *, seed: int = 0) -> Estimate:
    """Return a statistic of runs, with its interval.

    Args:
        scores: by stratum; must be comparable between strata.
        statistic: applied to the strata.
        seed: seed of the bootstrap.
    """
    strata = list(scores.values())
    value = float(statistic(strata))
    if _are_single(strata):
        return Estimate(value, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    resampled = [statistic([resample(each, size, rng) for each in strata]) for size in _sizes()]
    return Estimate(value, *_interval(np.concatenate(resampled)))


def performance_profile(
    scores: Scores, thresholds: Float[np.ndarray, "k"], *, seed: int = 0
) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"], Float[np.ndarray, "k"]]:
    """Return the fraction of runs with a score above each threshold, and the lower and upper ends of its intervals.

    Every environment counts the same, however many runs it has. The ends are NaN if every environment has a single run.
    """
    strata = list(scores.values())
    value = _part_above(thresholds, strata)
    if _are_single(strata):
        return value, np.full_like(value, math.nan), np.full_like(value, math.nan)
    rng = np.random.default_rng(seed)
    resampled = [_part_above(thresholds, [resample(each, size, rng) for each in strata]) for size in _sizes()]
    low, high = np.quantile(np.concatenate(resampled), ends(), axis=0)
    return value, low, high


def _part_above(thresholds: Float[np.ndarray, "k"], strata: Sequence[Float[np.ndarray, "... _"]]) -> Float[np.ndarray, "... k"]:
    return np.mean([np.mean(each[..., None] > thresholds, axis=-2) for each in strata], axis=0)


def probability_of_improvement(ours: Scores, theirs: Scores, *, seed: int = 0) -> Estimate:
    """Return the probability that a run of ours scores higher than one of theirs; ties count half.

    It is the Mann-Whitney U statistic divided by the number of pairs, averaged over environments. Both must have the same.
    """
    value = float(np.mean([_chance(ours[name], theirs[name]) for name in ours]))
    if any(_are_single(list(scores.values())) for scores in (ours, theirs)):
        return Estimate(value, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    resampled = [
        np.mean([_chance(resample(ours[name], size, rng), resample(theirs[name], size, rng)) for name in ours], axis=0)
        for size in _sizes()
    ]
    return Estimate(value, *_interval(np.concatenate(resampled)))


def _chance(ours: Float[np.ndarray, "... n"], theirs: Float[np.ndarray, "... m"]) -> Reduced:
    return np.mean(0.5 * (1 + np.sign(ours[..., :, None] - theirs[..., None, :])), axis=(-2, -1))


def _are_single(strata: Sequence[Float[np.ndarray, "_"]]) -> bool:
    """Tell whether every stratum has a single run, so that the spread of runs is unknown."""
    return all(len(each) == 1 for each in strata)


def resample(scores: Float[np.ndarray, "n"], count: int, rng: np.random.Generator) -> Float[np.ndarray, "count n"]:
    """Draw n of n scores with replacement, `count` times."""
    return scores[rng.integers(len(scores), size=(count, len(scores)))]


def _sizes() -> list[int]:
    return [_BATCH] * (NUM_RESAMPLES // _BATCH)


def ends() -> tuple[float, float]:
    """Return the quantiles between which an interval lies."""
    return (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2


def _interval(resampled: Float[np.ndarray, "b"]) -> tuple[float, float]:
    low, high = np.quantile(resampled, ends())
    return float(low), float(high)
