"""Tilted draws against the exact moments at any beta, and against the plain chain where that can be trusted."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

import finwidth
from finwidth import MLP, Activation
from finwidth.exact.moments import exact_values
from finwidth.quantities import DRAWN
from finwidth.sampling.one_input import importance
from finwidth.sampling.one_input.importance import (
    importance_estimates,
    importance_sampler,
    make_tilts,
    weighted_coins,
)
from finwidth.sampling.one_input.sample import one_input_sampler
from finwidth.sampling.sampler import draw_chunks
from finwidth.sampling.statistics.estimates import estimate_moments
from stats import same_counts, same_mean

DRAWS = 60_000
BETA_3 = {
    "5 x 15": (MLP([3, *[5] * 15, 1]), [1.0, 2.0, 2.0]),
    "10 x 30": (MLP([3, *[10] * 30, 1]), [1.0, 2.0, 2.0]),
    "20 x 60": (MLP([3, *[20] * 60, 1]), [1.0, 2.0, 2.0]),
    "unequal": (MLP([2, *[5, 20] * 12, 1]), [0.1, 0.2]),
    "standard": (MLP([2, *[8] * 24, 1], parameterization="standard"), [3.0, 4.0]),
}
NETWORKS = BETA_3 | {
    "narrow": (MLP([2, 3, 3, 1]), [1.0, 2.0]),
    "dead layers": (MLP([3, 2, 2, 1]), [1.0, -2.0, 0.5]),
    "width 1": (MLP([2, 1, 1, 1]), [1.0, 2.0]),
    "beta 10": (MLP([3, *[2] * 20, 1]), [1.0, 2.0, 2.0]),
    "small beta": (MLP([2, 30, 30, 1]), [1.0, 2.0]),
    "huge": (MLP([2, *[10**9] * 3, 1]), [3.0, 4.0]),
    "mup": (MLP([3, 20, 30, 1], parameterization="mup"), [1.0, 2.0, 3.0]),
    "gains": (MLP([3, 6, 6, 1], gains=[1.0, 3.0, 0.5]), [1.0, 2.0, 3.0]),
    "frozen biases": (MLP([3, 6, 6, 1], bias="frozen"), [1.0, 2.0, 3.0]),
    "large input": (MLP([2, *[6] * 12, 1]), [300.0, 400.0]),
    "no hidden layer": (MLP([2, 1]), [1.0, 2.0]),
}
# Weighted values of the first are at most so many times their mean (docs/theory/importance.md), which bounds variances.
BOUNDS = {"K_w": 6, "K_b": 6, "K": 6, "K_w^2": 12, "K_b^2": 12, "K^2": 24}


def weighted(name: str, seed: int) -> dict[str, npt.NDArray[np.float64]]:
    """Draws in an order in which the three laws are mixed, as the batches of same_mean need."""
    net, x = NETWORKS[name]
    drawn = list(draw_chunks(importance_sampler(net, x), DRAWS, seed))
    order = np.random.default_rng(0).permutation(DRAWS)
    return {name: np.concatenate([piece[name] for piece in drawn])[order] for name in drawn[0]}


drawn_once = lru_cache(weighted)


@pytest.mark.parametrize("name", NETWORKS)
def test_means_are_the_exact_ones(name: str) -> None:
    """By same_mean, whose variances come from the bounds on the weighted values; these hold for every draw."""
    net, x = NETWORKS[name]
    exact = exact_values(finwidth.moments(net, x))
    drawn = drawn_once(name, 1)
    assert drawn["weight"].max() <= 3.01  # chunks are split in three to the last draw
    assert same_mean(drawn["weight"], 1.0, 2.0)
    for quantity, bound in BOUNDS.items():
        values, mean = DRAWN[quantity](drawn) * drawn["weight"], exact[quantity]
        assert values.max() <= 1.01 * bound * mean
        assert same_mean(values, mean, (bound - 1) * mean**2), quantity


@pytest.mark.parametrize("name", NETWORKS)
def test_estimates_admit_their_error(name: str) -> None:
    """Within six standard errors of the exact values, trusted, and as precise as is promised."""
    net, x = NETWORKS[name]
    exact = exact_values(finwidth.moments(net, x))
    for quantity, found in estimate_moments([drawn_once(name, 1)], exact).items():
        assert found.trust, (quantity, found.verdict)
        assert abs(found.value - exact[quantity]) <= 6 * found.se + 1e-9 * abs(exact[quantity]), quantity
        assert found.se <= (12 / DRAWS) ** 0.5 * abs(exact[quantity]), quantity


@pytest.mark.parametrize("name", BETA_3)
def test_plain_draws_are_off_by_factors_at_beta_three(name: str) -> None:
    """Of twenty samples of 3,000, the median is below half of the exact value; all of them together are not trusted."""
    net, x = BETA_3[name]
    assert 2.9 < net.beta_hidden < 3.1
    exact = exact_values(finwidth.moments(net, x))
    found = estimate_moments([drawn_once(name, 1)])
    plain = list(draw_chunks(one_input_sampler(net, x), DRAWS, seed=3))
    verdicts = estimate_moments(plain)
    for quantity in ("K^2", "dK"):
        assert found[quantity].effective_draws > 10_000
        assert found[quantity].se < 0.01 * abs(exact[quantity])
        values = np.concatenate([DRAWN[quantity](piece) for piece in plain])
        assert abs(np.median(values.reshape(20, -1).mean(axis=1))) < abs(exact[quantity]) / 2
        assert not verdicts[quantity].trust


def test_one_per_cent_at_beta_three() -> None:
    """400,000 draws: three standard errors are within 1%."""
    net, x = BETA_3["5 x 15"]
    exact = exact_values(finwidth.moments(net, x))
    found = importance_estimates(net, x, 400_000, seed=2)
    for quantity in ("K^2", "dK"):
        assert 3 * found[quantity].se < 0.01 * abs(exact[quantity])
        assert abs(found[quantity].value / exact[quantity] - 1) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", BETA_3)
def test_one_per_cent_with_two_million_draws(name: str) -> None:
    """Six standard errors are within 1% here, so the estimate is."""
    net, x = BETA_3[name]
    exact = exact_values(finwidth.moments(net, x))
    for quantity, found in importance_estimates(net, x, 2_000_000, seed=4).items():
        error = found.value / exact[quantity] - 1
        print(f"{name}, {quantity}: off by {error:+.2%}, standard error {found.se / abs(exact[quantity]):.2%}")
        assert 6 * found.se < 0.0125 * abs(exact[quantity])
        assert abs(error) < 0.01


def test_agrees_with_the_plain_chain_at_small_beta() -> None:
    """In means of functions that have no exact value here."""
    net, x = NETWORKS["small beta"]
    tilt, plain = drawn_once("small beta", 1), finwidth.sample(net, x, DRAWS, seed=6)
    functions: tuple[Callable[[Any], Any], ...] = (
        lambda d: np.log(d["K"]),
        lambda d: d["K"] ** 3,
        lambda d: d["dK"] ** 2,
        lambda d: abs(d["output"]),
        lambda d: d["output"],
        lambda d: d["dK"] / d["K"] ** 2,
    )
    for function in functions:
        one, other = np.asarray(function(tilt) * tilt["weight"]), np.asarray(function(plain))
        error = np.hypot(one.std(), other.std()) / DRAWS**0.5
        assert abs(one.mean() - other.mean()) < 6 * error


def forget_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """chi2(m) has E[chi^2] = m (m + 2), not m^2."""
    right = importance._chi_square_moments
    monkeypatch.setattr(importance, "_chi_square_moments", lambda n: right(n) | {(2, 0): n * (n + 1) / 4})


def forget_the_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    right = importance._chi_square_moments
    monkeypatch.setattr(importance, "_chi_square_moments", lambda n: right(n) | {(0, 0): 1.0})


def fair_coins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gammas are tilted, their coins are not."""
    fair = lambda rng, n, a, b: np.maximum(rng.binomial(n, 0.5, len(a)), 1.0)  # noqa: E731
    monkeypatch.setattr(importance, "weighted_coins", fair)


@pytest.mark.parametrize(
    ("wrong", "name"), [(forget_a_moment, "10 x 30"), (forget_the_dead, "dead layers"), (fair_coins, "20 x 60")]
)
def test_a_wrong_likelihood_ratio_is_rejected(wrong, name: str, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    wrong(monkeypatch)
    exact = exact_values(finwidth.moments(*NETWORKS[name]))
    found = estimate_moments([weighted(name, 1)])
    z = [(found[quantity].value - exact[quantity]) / found[quantity].se for quantity in BOUNDS]
    print(f"{name}: z {np.round(z, 1)}")
    assert max(np.abs(z)) > 6


@pytest.mark.parametrize("n", [2, 3, 11, 200])
@pytest.mark.parametrize(("a", "b"), importance.EXPONENTS[2])
def test_weighted_coins(n: int, a: int, b: int) -> None:
    def rising(value: npt.NDArray[np.float64], power: int) -> npt.NDArray[np.float64]:
        return np.prod([value + 2 * j for j in range(power)], axis=0) if power else np.ones_like(value)

    m = np.arange(1.0, n + 1)
    weights = stats.binom.pmf(m, n, 0.5) * rising(m, a) * rising(m - 1, b)
    assert importance._chi_square_moments(n)[a, b] == pytest.approx(weights.sum(), rel=1e-12)
    drawn = weighted_coins(np.random.default_rng(7), n, np.full(DRAWS, float(a)), np.full(DRAWS, float(b)))
    counts = np.bincount(drawn.astype(int), minlength=n + 1)
    assert not counts[0]
    assert same_counts(counts[1:], weights / weights.sum())
    if (a, b) == (2, 0) and n == 11:  # negative control: m^2 for m (m + 2)
        wrong = stats.binom.pmf(m, n, 0.5) * m**2
        assert not same_counts(counts[1:], wrong / wrong.sum())


@pytest.mark.parametrize("name", ["narrow", "20 x 60", "unequal", "frozen biases"])
def test_the_recursion_gives_the_exact_moments(name: str) -> None:
    """A second derivation of E[K_w], E[K_b] and their squares, with no path counted."""
    net, x = NETWORKS[name]
    exact = finwidth.moments(net, x)
    e = float(net.layers[-1].bias_multiplier)
    norm = float(np.square(x).sum())
    for power in (1, 2):
        weights = importance._tilt(net, power, (0.0, 0.0, 1.0, 0.0)).log_mean
        assert np.exp(weights) * norm**power == pytest.approx(float(exact.joint[power, 0]), rel=1e-10)
        biases = np.exp(importance._tilt(net, power, (0.0, 0.0, 0.0, 1.0)).log_mean)
        first, second = float(exact.joint[0, 1]), float(exact.joint[0, 2])
        assert biases == pytest.approx(first - e if power == 1 else second - 2 * e * first + e * e, rel=1e-9, abs=1e-12)


def test_the_parts_are_balanced() -> None:
    for name, (net, _) in NETWORKS.items():
        for tilt in make_tilts(net):
            log_mean = importance._tilt(net, tilt.power, (0.0, 0.0, 1.0, 0.0)).log_mean
            # g/sqrt[p](E tau^p) is a sum of at most two parts of unit norm.
            assert -1e-9 < tilt.log_mean - log_mean <= tilt.power * np.log(2) + 1e-9, name


def test_a_seed_fixes_the_numbers() -> None:
    net = MLP([2, 4, 4, 1])
    one, same = (importance_estimates(net, [1, 2], 50_000, seed=5, threads=threads) for threads in (1, 3))
    assert one == same
    assert one != importance_estimates(net, [1, 2], 50_000, seed=6)
    seen: list[int] = []
    importance_estimates(net, [1, 2], 5, progress=seen.append)
    assert seen == [5]
    assert importance_estimates(net, [1, 2], 1)["K"].draws == 1


@pytest.mark.parametrize(
    ("net", "x", "words"),
    [
        (MLP([2, 3, 1], activation=Activation("leaky", 1, 0.3)), [1, 2], "tilted draws need ReLU"),
        (MLP([2, 3, 1], bias_variance=1), [1, 2], "zero initial biases"),
        (MLP([2, 3, 1], "uniform"), [1, 2], "its weights are uniform"),
        (MLP([2, 3, 1]), [0, 0], "nothing to tilt"),
        (MLP([2, *[2] * 2000, 1]), [1, 2], "overflow a double"),
    ],
)
def test_what_cannot_be_drawn_in_proportion_is_refused(net: MLP, x: list[float], words: str) -> None:
    with pytest.raises(finwidth.FinwidthError, match=words):
        importance_estimates(net, x, 1000)
