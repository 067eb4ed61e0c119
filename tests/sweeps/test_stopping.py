"""The stopping rule is unbiased; stopping at a sample's own standard error is not, and the same test sees it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from finwidth.networks.laws import FloatArray
from finwidth.quantities import Estimate
from finwidth.sweeps.quantities import stopping
from finwidth.sweeps.quantities.stopping import wanted_draws
from stats import same_mean

TARGET, REPEATS, MOST = 0.24, 60_000, 400
MEAN, VARIANCE = math.exp(0.5), math.exp(2) - math.exp(1)  # of exp(z), z normal: skewed, as the kernel is


def two_stage(rng: np.random.Generator) -> tuple[float, int]:
    """The rule, with pilots of 16 draws that are believed, so that its decision is as random as it can be."""

    def pilot(stage: int, draws: int) -> dict[str, Estimate]:
        values = rng.lognormal(size=draws)
        return {"K": Estimate(values.mean(), values.std(ddof=1) / math.sqrt(draws), draws, draws, True, "")}

    draws = int(min(wanted_draws(pilot, ["K"], TARGET, MOST), MOST))
    return float(rng.lognormal(size=draws).mean()), draws


def peeking(rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """From 4 draws on, draw until the standard error of all that were drawn is below the target."""
    values = rng.lognormal(size=(REPEATS // 10, MOST))
    count = np.arange(1, MOST + 1)
    mean = values.cumsum(axis=1) / count
    error = np.sqrt(np.maximum((values**2).cumsum(axis=1) / count - mean**2, 0) / np.maximum(count - 1, 1))
    stop = np.argmax((error <= TARGET * mean) & (count >= 4) | (count == MOST), axis=1)
    return mean[np.arange(len(mean)), stop], count[stop]


def test_the_rule_is_unbiased_and_peeking_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the number N of draws, the variance of a mean under the rule is VARIANCE / N."""
    monkeypatch.setattr(stopping, "_FIRST_PILOT", 16)
    rng = np.random.default_rng(11)
    found = np.array([two_stage(rng) for _ in range(REPEATS)])
    means, draws = found.T
    assert draws.std() > 0.2 * draws.mean()  # the rule did decide from what it saw
    variance = VARIANCE * float((1 / draws).mean())
    assert same_mean(means, MEAN, variance)

    biased, peeked = np.concatenate([peeking(rng) for _ in range(10)], axis=1)
    assert 0.5 < peeked.mean() / draws.mean() < 2  # about the same work
    assert not same_mean(biased, MEAN, variance)
    assert biased.mean() < 0.95 * MEAN


def test_more_is_not_asked_for_than_the_spread_needs() -> None:
    """An untrusted pilot gives way to a larger one; one that is tiny beside what it asks for, too."""
    asked: list[tuple[int, int]] = []

    def pilot(stage: int, draws: int) -> dict[str, Estimate]:
        asked.append((stage, draws))
        return {name: Estimate(1.0, 3 / math.sqrt(draws), draws, 500, draws > 1024, "") for name in ("K", "K^2")}

    assert wanted_draws(pilot, ["K"], 0.01, 10**6) == pytest.approx(1.2 * 9 / 0.01**2)
    assert asked == [(0, 1024), (1, 4096), (2, 16384)]
    assert wanted_draws(pilot, ["K"], 0.01, 16383) == math.inf
    assert wanted_draws(pilot, ["K"], 1.0, 10**6) == 4096


def test_means_of_zero_and_constants() -> None:
    zero = Estimate(0.0, 0.1, 1024, 500, True, "")
    constant = Estimate(2.0, 0.0, 1024, 1024, True, "")
    assert wanted_draws(lambda i, n: {"dK": zero}, ["dK"], 0.1, 10**5) == math.inf
    assert wanted_draws(lambda i, n: {"K": constant}, ["K"], 0.1, 10**5) == 1024
