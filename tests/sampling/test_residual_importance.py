"""Tilted draws of residual networks against exact moments, and against the plain chain where that can be trusted."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

import finwidth
from finwidth import Activation, ResNet
from finwidth.exact.moments import exact_values
from finwidth.quantities import DRAWN
from finwidth.sampling.one_input import residual_importance
from finwidth.sampling.one_input.arithmetic import polar
from finwidth.sampling.one_input.importance import importance_estimates
from finwidth.sampling.one_input.residual_importance import ResidualMixture, TiltedBlock, certain_heads, rising
from finwidth.sampling.random.streams import stream
from finwidth.sampling.random.variates import Variates
from finwidth.sampling.statistics.estimates import estimate_moments
from stats import same_counts, same_mean

X, NORM = [1.0, -2.0, 2.0], 9.0
LEAKY = Activation("leaky", 1, -0.4)
DEEP = {
    "relu": ResNet([3, 4, 1], 16),
    "narrow": ResNet([3, 3, 1], 12, 2),
    "leaky": ResNet([3, 4, 1], 12, 3, activation=LEAKY),
    "no skip": ResNet([3, 6, 1], 12, 5, skip=0, bias="none"),
}
NETWORKS = DEEP | {
    "one block": ResNet([3, 6, 1], 1, 5),
    "abs": ResNet([3, 7, 1], 4, 3, activation="abs", branch=0.7),
    "linear": ResNet([3, 6, 1], 3, 2, activation="linear", parameterization="standard", branch=0.5),
    "below zero": ResNet([3, 4, 1], 2, 3, activation=Activation("below", 0, 1.5), gains=[1, 2, 0.5, 1]),
    "unequal": ResNet([3, 4, 1], 3, [3, 1, 2], skip=[1, 0.5, 2], branch=[0.5, 1, 0.3]),
    "stream of 3": ResNet([3, 3, 1], 3, 4, activation=LEAKY),
    "stream of 2": ResNet([3, 2, 1], 3, 3),
    "stream of 1": ResNet([3, 1, 1], 3, 3, activation=LEAKY),
    "dead streams": ResNet([3, 3, 1], 4, 2, skip=[1, 0, 0.5, 1], bias="none"),
    "no skip in the last block": ResNet([3, 2, 1], 3, 2, skip=[1, 1, 0]),
    "a branch cut": ResNet([3, 4, 1], 3, 2, branch=[1, 0, 1]),
    "biases": ResNet([3, 4, 1], 2, 3, bias_scale=[0.5, 2, 0.7, 1.5], bias=["trained", "frozen", "trained", "none"]),
    "wide": ResNet([3, 10**6, 1], 4, 10**9, branch="1/sqrt(depth)"),
}
DRAWS = 20_000

Drawn = dict[str, npt.NDArray[np.float64]]


def mixture(net: ResNet, powers: tuple[int, ...] = (1, 2)) -> ResidualMixture:
    return ResidualMixture(net, NORM, powers=powers)


def weighted(name: str, seed: int, powers: tuple[int, ...] = (1, 2)) -> Drawn:
    """Draws in an order in which the laws are mixed, as the batches of same_mean need."""
    made = mixture(NETWORKS[name], powers)
    pieces = [made.draw_weighted(Variates(stream(seed, part)), DRAWS // 4) for part in range(4)]
    order = np.random.default_rng(0).permutation(DRAWS)
    return {key: np.concatenate([piece[key] for piece in pieces])[order] for key in pieces[0]}


drawn_once = lru_cache(weighted)


def bounds(net: ResNet, power: int, powers: tuple[int, ...]) -> tuple[float, float]:
    """What weight x K_w^power and weight x (K_b less its constant)^power cannot exceed."""
    laws = [law for law in mixture(net, powers).laws if law.power == power]
    parts = [[law for law in laws if ("bias" in law.name[0]) == of_biases] for of_biases in (False, True)]
    both = (1 + len(powers)) * sum(map(bool, parts))
    first, second = (both * sum(math.exp(law.log_norm) for law in part) ** power for part in parts)
    return first, second


@pytest.mark.parametrize("name", NETWORKS)
def test_means_are_the_exact_ones(name: str) -> None:
    """By same_mean, whose variances come from the bounds on the weighted values; these hold for every draw."""
    net, drawn = NETWORKS[name], drawn_once(name, 1)
    exact, constant = exact_values(finwidth.moments(net, X)), float(net.head.bias_multiplier)
    assert drawn["weight"].max() <= 3 + 1e-9
    assert same_mean(drawn["weight"], 1.0, 2.0)
    K_b = drawn["K_b"] - constant
    means = {"K_w": exact["K_w"], "K_w^2": exact["K_w^2"], "K_b": exact["K_b"] - constant}
    means["K_b^2"] = exact["K_b^2"] - 2 * constant * exact["K_b"] + constant**2
    limits = dict(
        zip(("K_w", "K_b", "K_w^2", "K_b^2"), (*bounds(net, 1, (1, 2)), *bounds(net, 2, (1, 2))), strict=True)
    )
    for quantity, values in {"K_w": drawn["K_w"], "K_w^2": drawn["K_w"] ** 2, "K_b": K_b, "K_b^2": K_b**2}.items():
        weighted_values, mean = values * drawn["weight"], means[quantity]
        assert weighted_values.max() <= limits[quantity] * (1 + 1e-9)
        assert same_mean(weighted_values, mean, max(limits[quantity] - mean, 0) * mean), quantity


@pytest.mark.parametrize("name", NETWORKS)
def test_estimates_admit_their_error(name: str) -> None:
    """Within six standard errors of the exact values, trusted, and as precise as is promised."""
    exact = exact_values(finwidth.moments(NETWORKS[name], X))
    for quantity, found in estimate_moments([drawn_once(name, 1)], exact).items():
        assert found.trust, (quantity, found.verdict)
        assert abs(found.value - exact[quantity]) <= 6 * found.se + 1e-9 * abs(exact[quantity]), quantity
        assert found.se <= (12 / DRAWS) ** 0.5 * abs(exact[quantity]), quantity


@pytest.mark.parametrize("name", DEEP)
def test_moments_of_orders_two_to_four_where_plain_draws_fail(name: str) -> None:
    """Weighted by powers of the terms up to four; the plain averages of as many draws are below half of the values."""
    net, powers = DEEP[name], (1, 2, 3, 4)
    exact, drawn = finwidth.moments(net, X, order=4), drawn_once(name, 2, powers)
    plain = finwidth.sample(net, X, DRAWS, seed=3).K_w.to_numpy()
    for order in (2, 3, 4):
        mean, (limit, _) = float(exact.K_w.raw[order - 1]), bounds(net, order, powers)
        values = drawn["K_w"] ** order * drawn["weight"]
        assert values.max() <= limit * (1 + 1e-9)
        assert same_mean(values, mean, (limit - mean) * mean)
        assert abs(values.mean() / mean - 1) < min(0.2, 6 * values.std() / DRAWS**0.5 / mean)
        assert (plain.reshape(20, -1) ** order).mean(axis=1).min() < mean / 2
    assert np.median((plain.reshape(20, -1) ** 4).mean(axis=1)) < 0.1 * mean


def test_agrees_with_the_plain_chain() -> None:
    """In means of functions that have no exact value here, for an activation with two groups of neurons."""
    net = ResNet([3, 5, 1], 3, 4, activation=LEAKY, branch=0.8)
    made = mixture(net)
    tilt, plain = made.draw_weighted(Variates(stream(5, 0)), 80_000), finwidth.sample(net, X, 80_000, seed=6)
    views: tuple[Callable[[Any], Any], ...] = (
        lambda d: np.log(d["K"]),
        lambda d: d["K"] ** 3,
        lambda d: d["dK"] ** 2,
        lambda d: abs(d["output"]),
        lambda d: d["output"],
        lambda d: d["dK"] / d["K"] ** 2,
        lambda d: d["output"] ** 2 / d["K"],
        lambda d: d["K_w"] / d["K_b"],
        lambda d: d["K_b"] * d["dK"],
    )
    for view in views:
        one, other = np.asarray(view(tilt) * tilt["weight"]), np.asarray(view(plain))
        assert abs(one.mean() - other.mean()) < 5 * np.hypot(one.std(), other.std()) / 80_000**0.5


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "dead streams"])
def test_both_passes_make_one_network(name: str) -> None:
    """Draw by draw: the tangent along G at the head is the kernel below it, and N is x . G, whichever came first."""
    made = mixture(NETWORKS[name])
    law = np.sort(np.random.default_rng(1).integers(0, len(made.laws), 500))
    with np.errstate(all="ignore"):
        passed, R, output, (nu, rho) = made.both_passes(law, Variates(np.random.default_rng(2)))
        K_w, K_b, _ = made._kernel(passed, R, nu**2 + rho**2)
        _, moved = made._tangent(passed, R, (nu, nu, rho), Variates(np.random.default_rng(3)))
    above = passed[-1].above
    K = (above[0] * moved[0] + above[1] * moved[1]) / above[0] + made.head.c * R + made.head.e
    away = (np.abs(above[0]) > 1e-3 * above[1]) & (R > 0)  # of zeros of N, by which it is divided
    np.testing.assert_allclose(K[away], (K_w + K_b)[away], rtol=1e-8)
    np.testing.assert_allclose((np.sqrt(R) * above[0])[away], output[away], rtol=1e-9)


def forget_the_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ResidualMixture.draw_weighted
    monkeypatch.setattr(ResidualMixture, "draw_weighted", lambda *given: right(*given) | {"weight": np.ones(given[-1])})


def forget_the_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """h along x is as often against the skip as with it."""
    right = TiltedBlock.draw

    def fair(self: TiltedBlock, modes: npt.NDArray[np.int64], rng: Variates) -> residual_importance.BlockScalars:
        found = right(self, modes, rng)
        return found._replace(g=np.where(rng.rng.random(len(modes)) < 0.5, found.g, -found.g))

    monkeypatch.setattr(TiltedBlock, "draw", fair)


def fair_coins(monkeypatch: pytest.MonkeyPatch) -> None:
    """No neuron is open for certain."""
    monkeypatch.setattr(residual_importance, "certain_heads", lambda power: [0.5, 0.5] if power else [1])


def forget_an_angle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the passes meet, G is along x."""

    def wrong(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], ...]:
        return polar(x, 0.5 * y)

    monkeypatch.setattr(residual_importance, "polar", wrong)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [(forget_the_weight, "unequal"), (forget_the_sign, "relu"), (fair_coins, "relu"), (forget_an_angle, "stream of 3")],
)
def test_a_wrong_likelihood_ratio_is_rejected(wrong, name: str, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    wrong(monkeypatch)
    exact = exact_values(finwidth.moments(NETWORKS[name], X))
    found = estimate_moments([weighted(name, 1)])
    z = [(found[quantity].value - exact[quantity]) / found[quantity].se for quantity in DRAWN]
    print(f"z {np.round(z, 1)}")
    assert max(np.abs(z)) > 6


@pytest.mark.parametrize("width", [1, 2, 5, 40])
@pytest.mark.parametrize("power", [1, 2, 4])
def test_weighted_coins_and_their_moments(width: int, power: int) -> None:
    """The open neurons of a block that is weighted by the length inside, and E[S^power], against the binomial law."""
    net = ResNet([3, 4, 1], 1, width)
    tilt = mixture(net, (power,)).tilts[0]
    m = np.arange(1.0, width + 1)
    rising_of_all = np.array([rising(each, power) for each in m])
    weights = stats.binom.pmf(m, width, 0.5) * rising_of_all
    assert math.exp(tilt.log_mean[power, True]) == pytest.approx(weights.sum(), rel=1e-12)
    falling = sum(c * math.prod((m - j for j in range(i)), start=0 * m + 1) for i, c in enumerate(certain_heads(power)))
    np.testing.assert_allclose(falling, rising_of_all, rtol=1e-12)
    modes = np.full(DRAWS, tilt.modes[power, True])
    drawn = tilt.draw(modes, Variates(np.random.default_rng(7))).counts[0]
    counts = np.bincount(drawn.astype(int), minlength=width + 1)
    assert not counts[0]
    assert same_counts(counts[1:], weights / weights.sum())
    if (width, power) == (5, 2):  # negative control: m^2 for m (m + 2)
        wrong = stats.binom.pmf(m, width, 0.5) * m**2
        assert not same_counts(counts[1:], wrong / wrong.sum())


def test_the_norms_are_those_of_exact_moments() -> None:
    """E[|x_l|^4] and the sum of all terms, which no path counting has seen."""
    net = ResNet([3, 4, 1], 3, [3, 1, 2], skip=[1, 0.5, 2], branch=[0.5, 1, 0.3], activation=LEAKY)
    lengths = finwidth.signal_moments(net, X, order=4).hidden
    made = mixture(net, (1, 2, 3, 4))
    for power in (1, 2, 3, 4):
        grown = sum(tilt.log_mean[power, False] for tilt in made.tilts)
        assert math.exp(grown) == pytest.approx(lengths[-1].raw[power - 1] / lengths[0].raw[power - 1], rel=1e-10)
    exact = finwidth.moments(net, X)
    terms = {law.name: math.exp(law.log_norm) for law in made.laws if law.power == 1}
    assert sum(value for name, value in terms.items() if "bias" not in name[0]) == pytest.approx(float(exact.K_w.mean))
    biases = sum(value for name, value in terms.items() if "bias" in name[0])
    assert biases + float(net.head.bias_multiplier) == pytest.approx(float(exact.K_b.mean))


def test_a_seed_fixes_the_numbers_at_any_input() -> None:
    net = ResNet([2, 4, 1], 3)
    one, same = (importance_estimates(net, [1, 2], 30_000, seed=5, threads=threads) for threads in (1, 3))
    assert one == same
    assert one != importance_estimates(net, [1, 2], 30_000, seed=6)
    assert importance_estimates(net, [1, 2], 1)["K"].draws == 1
    large = importance_estimates(ResNet([2, 4, 1], 3, bias="none"), [2.0**200, 2.0**201], 30_000, seed=5)
    small = importance_estimates(ResNet([2, 4, 1], 3, bias="none"), [1, 2], 30_000, seed=5)
    assert large["K"].value == pytest.approx(small["K"].value * 2.0**400, rel=1e-12)
    assert large["dK"].value == pytest.approx(small["dK"].value * 2.0**800, rel=1e-12)


@pytest.mark.parametrize(
    ("net", "x", "words"),
    [
        (ResNet([2, 3, 1], 2, bias_variance=1), [1, 2], "zero initial biases"),
        (ResNet([2, 3, 1], 2, skip=[0, 1]), [1, 2], "a skip in every block"),
        (ResNet([2, 3, 1], 2, weight_law="uniform"), [1, 2], "its weights are uniform"),
        (ResNet([2, 3, 2], 2), [1, 2], "2 outputs"),
        (ResNet([2, 3, 1], 2), [0, 0], "nothing to tilt"),
        (ResNet([2, 3, 1], 1200), [1, 2], "leave a double's range"),
    ],
)
def test_what_cannot_be_drawn_in_proportion_is_refused(net: ResNet, x: list[float], words: str) -> None:
    with pytest.raises(finwidth.FinwidthError, match=words):
        importance_estimates(net, x, 1000)


def test_summaries_take_it() -> None:
    net = DEEP["relu"]
    plain, tilted = (finwidth.summarize(net, X, 20_000, method=each) for each in ("plain", "importance"))
    assert not plain.estimates["K^2"].trust
    assert tilted.estimates["K^2"].trust
    assert tilted.exact is not None
    assert abs(tilted.estimates["K^2"].value / tilted.exact["K^2"] - 1) < 0.1
