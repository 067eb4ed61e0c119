"""Tests on random numbers that a correct build fails less than once in a million runs of the whole suite.

Every comparison of the suite calls one of the functions below and is allowed ALPHA = 10^-6 / COMPARISONS.  Seeds and
numbers of draws are fixed in advance, so a given build always gives the same verdict.  Bounds are valid at finite
samples and need no normal approximation:

- ``same_law``: two-sample Kolmogorov-Smirnov with the constant of Dvoretzky, Kiefer, Wolfowitz and Massart, which
  holds for two samples of equal size >= 458 (Wei and Dudley, 2012): P(D > e) <= 2 exp(-n e^2).  Atoms only make it
  safer.  At 10^5 draws it rejects laws whose distribution functions differ by more than about 0.03 anywhere.
- ``same_mean``: median of means.  Given the exact variance, a batch mean is off by two of its standard deviations
  with probability at most 1/4 (Chebyshev), so the number of such batches out of 100 is below a binomial quantile.
  It rejects a mean that is off by more than about 3.5 standard deviations of a batch of draws/100.
- ``follows``: one-sample Kolmogorov-Smirnov with Massart's constant, valid at every n: P(D > e) <= 2 exp(-2 n e^2).
- ``same_counts``: each count of a value against its binomial law, ALPHA split over the values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

COMPARISONS = 4000  # of all processes; conftest.py adds up what each made
ALPHA = 1e-6 / COMPARISONS
BATCHES = 100

made = 0


def _count() -> None:
    global made  # noqa: PLW0603
    made += 1


def same_law(one: npt.NDArray[np.floating], other: npt.NDArray[np.float64]) -> bool:
    """Whether two samples of equal size pass for samples of one law."""
    _count()
    assert len(one) == len(other) >= 458
    distance = stats.ks_2samp(one, other, method="asymp").statistic
    return bool(distance <= math.sqrt(math.log(2 / ALPHA) / len(one)))


def follows(draws: npt.NDArray[np.floating], cdf: Callable[[npt.NDArray[np.floating]], Any]) -> bool:
    """Whether the draws pass for draws from a continuous law with this distribution function."""
    _count()
    distance = stats.kstest(draws, cdf, method="asymp").statistic
    return bool(distance <= math.sqrt(math.log(2 / ALPHA) / (2 * len(draws))))


def same_counts(counts: npt.NDArray[np.integer], probabilities: npt.NDArray[np.floating]) -> bool:
    """Whether counts of values pass for those of draws with these probabilities."""
    _count()
    total, share = int(counts.sum()), ALPHA / (2 * len(counts))
    too_few, too_many = stats.binom.cdf(counts, total, probabilities), stats.binom.sf(counts - 1, total, probabilities)
    return bool(min(too_few.min(), too_many.min()) >= share)


def same_mean(draws: npt.NDArray[np.floating], mean: float, variance: float) -> bool:
    """Whether the draws pass for draws with this mean, given their exact variance."""
    _count()
    batches = draws[: len(draws) // BATCHES * BATCHES].reshape(BATCHES, -1)
    deviation = math.sqrt(variance / batches.shape[1])
    far = int((np.abs(batches.mean(axis=1) - mean) > 2 * deviation + 1e-12 * abs(mean)).sum())
    return bool(far <= stats.binom.isf(ALPHA, BATCHES, 0.25))
