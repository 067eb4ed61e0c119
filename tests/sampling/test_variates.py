"""Coins and chi-squares against their laws: exactly where that can be done, and by their draws."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import comb

import numpy as np
import pytest
from scipy import stats

from finwidth.sampling.random import variates
from finwidth.sampling.random.streams import stream
from finwidth.sampling.random.variates import MOST_COINS, Variates, thresholds
from stats import follows, same_counts, same_law, same_mean

DRAWS = 400_000


def probabilities(n: int) -> tuple[int, list[Fraction]]:
    """The least number of heads that is drawn, and the probabilities from there on."""
    low, reached = thresholds(n)
    return low, [Fraction(above - below, 2**64) for below, above in pairwise([0, *map(int, reached), 2**64])]


@pytest.mark.parametrize("n", [1, 2, 3, 10, 63, 64, 65, 512, 1001, 4096, MOST_COINS])
def test_table_is_the_binomial_law(n: int) -> None:
    low, table = probabilities(n)
    assert sum(table) == 1
    heads = np.arange(low, low + len(table))
    exact = stats.binom.pmf(heads, n, 0.5)
    # SciPy's probabilities are right to 12 digits.
    assert np.abs(np.array([float(each) for each in table]) - exact).max() < 1e-15 + 1e-12 * exact.max()
    # What is left out is rarer than 2^-64 on either side.
    assert max(stats.binom.cdf(low - 1, n, 0.5), stats.binom.sf(heads[-1], n, 0.5)) < 2.0**-64


def test_table_is_right_to_the_last_bit() -> None:
    low, table = probabilities(300)
    assert max(abs(each - Fraction(comb(300, k), 2**300)) for k, each in enumerate(table, low)) < Fraction(1, 2**63)


@pytest.mark.parametrize("n", [1, 2, 50, 512, 4097, MOST_COINS, 10**9])
def test_coins_follow_the_binomial_law(n: int) -> None:
    heads = Variates(stream(1, 0)).coins(n, DRAWS)
    assert same_mean(heads, n / 2, n / 4)
    assert same_law(heads, np.random.default_rng(99).binomial(n, 0.5, DRAWS).astype(float))
    if n <= 4097:
        counts = np.bincount(heads.astype(int), minlength=n + 1)
        assert same_counts(counts, stats.binom.pmf(np.arange(n + 1), n, 0.5))


def test_unfair_coins_are_rejected() -> None:
    heads = Variates(stream(1, 0)).coins(512, DRAWS).astype(int)
    counts = np.bincount(heads, minlength=513)
    assert not same_counts(counts, stats.binom.pmf(np.arange(513), 512, 0.502))
    swapped = np.where(heads == 256, 257, heads)  # one value drawn for another
    assert not same_counts(np.bincount(swapped, minlength=513), stats.binom.pmf(np.arange(513), 512, 0.5))


def test_all_sixty_four_bits_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rarest value of 16 coins, once in 65536, is told from its neighbours by more bits than sixteen."""
    assert thresholds(16)[1][0] == 2**48
    monkeypatch.setattr(Variates, "_sixteen_bits", lambda self, count: np.zeros(count, dtype=np.uint16))
    assert set(Variates(stream(2, 0)).coins(16, 1000)) == {0.0}
    # Of 17 coins, none and one share the first of 2^16 buckets in equal parts.
    heads = Variates(stream(2, 0)).coins(17, DRAWS)
    assert same_counts(np.bincount(heads.astype(int), minlength=2), np.array([0.5, 0.5]))


@pytest.mark.parametrize("k", [1, 2, 3, 4, 7, 30, 257, 10**6, 5 * 10**8])
@pytest.mark.parametrize("less", [0, 1, 2])
def test_chi_squares_follow_their_law(k: int, less: int) -> None:
    drawn = Variates(stream(3, less)).chi_square(np.full(DRAWS, float(k)), less, scale=0.25)
    if k <= less:
        assert not drawn.any()
        return
    assert same_mean(drawn, (k - less) / 4, 2 * (k - less) / 16)
    assert follows(4 * drawn, stats.chi2(k - less).cdf)


def test_chi_squares_of_mixed_degrees() -> None:
    """Given the degrees, in any arrangement, and with a small one among them."""
    for least in (3, 0):
        k = np.random.default_rng(0).integers(least, 40, (2, DRAWS)).astype(float)
        drawn = Variates(stream(4, 0)).chi_square(k)
        assert drawn.shape == k.shape
        for degree in (max(least, 1), 10, 39):
            some = drawn[k == degree][:9000]
            assert follows(some, stats.chi2(degree).cdf), degree


@pytest.mark.parametrize("k", [3, 12])
def test_proposals_without_rejection_are_rejected(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variates, "_rejection", lambda d, s: np.zeros_like(d))
    drawn = Variates(stream(3, 0)).chi_square(np.full(10 * DRAWS, float(k)))
    assert not follows(drawn, stats.chi2(k).cdf)


@pytest.mark.parametrize("d", [7 / 6, 5 / 3, 10, 1000])
def test_what_is_accepted_is_a_gamma(d: float) -> None:
    """Density of the proposal d (1 + s)^3 times 1 - r over that of Gamma(d + 1/3): one constant; and r's bound."""
    s = np.linspace(-0.99, 2, 1001)
    x = s * np.sqrt(9 * d)
    r = variates._rejection(np.full_like(s, d), s)
    assert (r <= x**4 / (27 * d) + 1e-15).all()
    seen = r < 1 - 1e-9
    assert seen.sum() > 50
    s, x, r = s[seen], x[seen], r[seen]
    log_jacobian = np.log(3 * d * np.square(1 + s) / np.sqrt(9 * d))
    ratio = stats.norm.logpdf(x) - log_jacobian + np.log1p(-r) - stats.gamma(d + 1 / 3).logpdf(d * (1 + s) ** 3)
    assert np.ptp(ratio) < 1e-6
    assert variates._rejection(np.array([d]), np.array([-1.5]))[0] == 1


@pytest.mark.parametrize("k", [0, 1, 2, 3, 4, 17, 511, 10**9])
def test_chi_squares_of_one_number_follow_their_law(k: int) -> None:
    drawn = Variates(stream(8, 0)).chi_squares(k, DRAWS)
    if k == 0:
        assert not drawn.any()
        return
    assert same_mean(drawn, k, 2 * k)
    assert follows(drawn, stats.chi2(k).cdf)
    assert not follows(drawn, stats.chi2(k + max(1, k // 100)).cdf)
