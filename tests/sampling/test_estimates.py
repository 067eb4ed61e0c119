"""Estimates: the arithmetic, and whether the verdicts are right where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest

import finwidth
from finwidth import MLP
from finwidth.sampling.one_input.sample import one_input_sampler
from finwidth.sampling.sampler import draw_chunks
from finwidth.sampling.statistics.estimates import Accumulator, estimate_moments


def test_merging_chunks_is_exact() -> None:
    values = np.random.default_rng(0).lognormal(size=10_000) + 1e6
    total = Accumulator()
    for piece in np.split(values, [1, 17, 4000, 9999]):
        total.add(piece)
    found = total.estimate()
    assert found.value == pytest.approx(values.mean(), rel=1e-14)
    assert found.se == pytest.approx(values.std(ddof=1) / 100, rel=1e-9)
    assert found.effective_draws == pytest.approx(values.sum() ** 2 / np.square(values).sum(), rel=1e-12)


def test_verdicts_where_the_truth_is_known() -> None:
    """Shallow and wide: trusted, and right. Deep and narrow: the mean of K^2 is off tenfold, and refused."""
    for widths, trusted in (([2, 64, 64, 1], True), ([2, *[4] * 20, 1], False), ([2, *[2] * 20, 1], False)):
        exact = float(finwidth.moments(MLP(widths), [1, 2]).second_moment)
        found = estimate_moments(draw_chunks(one_input_sampler(MLP(widths), [1, 2]), 100_000, seed=2))["K^2"]
        assert found.trust is trusted
        assert abs(found.value / exact - 1) < 0.05 or not trusted


def test_a_wrong_value_is_seen_where_there_is_an_exact_one() -> None:
    total = Accumulator()
    total.add(np.random.default_rng(0).exponential(size=10_000))
    assert total.estimate(exact=1.0).trust
    refused = total.estimate(exact=1.1)
    assert not refused.trust
    assert "standard errors from the exact value" in refused.verdict


def test_one_dominating_draw_is_seen() -> None:
    values = np.ones(100_000)
    values[77] = 6_000.0
    total = Accumulator()
    total.add(values)
    found = total.estimate()
    assert not found.trust
    assert "about 311 of 100000 draws carry the sum" in found.verdict


def test_rare_large_draws_behind_a_constant_are_seen() -> None:
    """Nearly every network dead, a few with a huge K_b: the mean looks well carried, its error is not."""
    values = np.ones(100_000)
    values[:3] = 300.0, 20.0, 900.0
    total = Accumulator()
    total.add(values)
    found = total.estimate()
    assert found.effective_draws > 400
    assert not found.trust
    assert "one draw makes" in found.verdict


def test_a_constant_is_trusted() -> None:
    total = Accumulator()
    total.add(np.full(50, 3.5))
    found = total.estimate(exact=3.5)
    assert (found.value, found.se, found.trust) == (3.5, 0.0, True)
