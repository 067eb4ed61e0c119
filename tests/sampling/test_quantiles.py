"""Quantiles and moments of the logarithm: the guarantee, bounded memory, and the same whatever the order."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import stats

import finwidth
from finwidth.sampling.one_input.sample import one_input_sampler
from finwidth.sampling.sampler import draw_chunks
from finwidth.sampling.statistics.quantile_sketch import ACCURACY, SHOWN, QuantileSketch

SHARES = (0, 1e-4, *SHOWN, 0.9999, 1)


def law_of(*pieces: np.ndarray) -> QuantileSketch:
    law = QuantileSketch()
    for piece in pieces:
        law.add(piece)
    return law


DRAWS = {
    "log-normal": np.exp(3 * np.random.default_rng(0).normal(size=100_000)),
    "two sizes": np.concatenate([np.full(500, 1e-300), np.full(501, 1e300)]),
    "all doubles": np.exp(np.linspace(-740, 709.7, 54_321)),
    "with zeros": np.random.default_rng(1).chisquare(3, 1000) * np.repeat([0.0, 1.0], [300, 700]),
    "one": np.array([7.5]),
    "zeros only": np.zeros(4),
}


@pytest.mark.parametrize("name", DRAWS)
def test_quantiles_are_right_to_a_thousandth(name: str) -> None:
    draws = DRAWS[name]
    law = law_of(*np.array_split(draws, min(7, len(draws))))
    assert law.draws == len(draws)
    assert law.zeros == (draws == 0).mean()
    for share in SHARES:
        exact = float(np.quantile(draws, share, method="inverted_cdf"))
        assert abs(law.quantile(share).value - exact) <= ACCURACY * exact * (1 + 1e-9), share


def test_a_worse_accuracy_would_be_seen() -> None:
    """Negative control: the guarantee is nearly used up, so bins a tenth wider would break it."""
    draws = np.exp(np.linspace(0, 1, 100_001))
    law, shares = law_of(draws), np.linspace(0.1, 0.9, 999)
    errors = [abs(law.quantile(q).value / np.quantile(draws, q, method="inverted_cdf") - 1) for q in shares]
    assert 0.9 * ACCURACY < max(errors) <= ACCURACY * (1 + 1e-9)


def test_moments_of_the_logarithm() -> None:
    draws = DRAWS["log-normal"]
    law = law_of(*np.split(draws, 10))
    logs = np.log(draws)
    assert law.log_mean.value == pytest.approx(logs.mean(), rel=1e-12)
    assert law.log_mean.se == pytest.approx(logs.std(ddof=1) / len(logs) ** 0.5)
    assert law.log_sd.value == pytest.approx(logs.std(ddof=1), rel=1e-12)
    error = np.sqrt((((logs - logs.mean()) ** 4).mean() - logs.var() ** 2) / len(logs)) / (2 * logs.std())
    assert law.log_sd.se == pytest.approx(error, rel=1e-3)


def test_order_and_merging_do_not_matter() -> None:
    draws = np.concatenate([DRAWS["log-normal"], np.zeros(10), [1e-200, 1e200]])
    shuffled = np.random.default_rng(2).permutation(draws)
    whole, other = law_of(draws), law_of(*np.array_split(shuffled[:70_000], 9))
    other.merge(law_of(shuffled[70_000:]))
    other.merge(QuantileSketch())
    assert other.draws == whole.draws
    for share in SHARES:
        assert other.quantile(share) == whole.quantile(share)
    assert other.log_mean.value == pytest.approx(whole.log_mean.value, rel=1e-12)
    assert other.log_sd.value == pytest.approx(whole.log_sd.value, rel=1e-12)


def test_standard_errors_are_those_of_repeated_samples() -> None:
    """Over 400 samples of 2,000, the spread of each statistic is its standard error, to 15%."""
    rng = np.random.default_rng(3)
    laws = [law_of(rng.lognormal(0, 2, 2_000)) for _ in range(400)]
    for found in (
        [law.quantile(0.5) for law in laws],
        [law.quantile(0.95) for law in laws],
        [law.log_mean for law in laws],
        [law.log_sd for law in laws],
    ):
        z = (np.array([each.value for each in found]) - np.mean([each.value for each in found])) / np.median(
            [each.se for each in found]
        )
        # The sample standard deviation of 400 normal values is within 15% but for one in 20,000.
        assert abs(z.std() - 1) < 0.15


def test_memory_is_bounded_over_a_long_stream() -> None:
    """Twenty million draws over the whole range of doubles take the six megabytes that are promised."""
    rng = np.random.default_rng(4)
    law = QuantileSketch()
    law.add(np.exp(rng.uniform(-744, 709, 10_000)))
    tracemalloc.start()
    for _ in range(2000):
        law.add(np.exp(rng.uniform(-744, 709, 10_000)))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert law.draws == 20_010_000
    assert held < 6.5e6
    assert peak < 30e6  # a chunk's own counts and their sum


def test_the_law_of_a_network() -> None:
    """Width 10^8 and depth 4: K has the mean and spread of its exact moments, and is nearly normal."""
    net = finwidth.MLP([2, *[10**8] * 3, 1])
    law = QuantileSketch()
    for drawn in draw_chunks(one_input_sampler(net, [1, 2]), 100_000):
        law.add(drawn["K"])
    exact = finwidth.moments(net, [1, 2])
    assert law.quantile(0.5).value == pytest.approx(float(exact.mean), rel=1.1 * ACCURACY)
    assert law.log_sd.value == pytest.approx(float(exact.cv), rel=0.02)
    assert law.log_mean.value == pytest.approx(np.log(float(exact.mean)), abs=6 * law.log_mean.se + 1e-8)


@pytest.mark.parametrize("wrong", [-1.0, np.nan, np.inf])
def test_what_has_no_logarithm_is_refused(wrong: float) -> None:
    with pytest.raises(finwidth.FinwidthError, match="finite draws of at least 0"):
        QuantileSketch().add(np.array([1.0, wrong]))
    with pytest.raises(finwidth.FinwidthError, match="share is 2"):
        law_of(np.ones(3)).quantile(2)


def test_a_law_near_normal_in_the_logarithm() -> None:
    """The quantiles of log K are those of its normal law where they must be: a sum of many small terms."""
    draws = np.exp(np.random.default_rng(5).normal(1, 0.7, 1_000_000))
    law = law_of(draws)
    for share in SHOWN:
        found = law.quantile(share)
        expected = float(np.exp(stats.norm.ppf(share, 1, 0.7)))
        assert abs(found.value - expected) < 6 * found.se + ACCURACY * expected
