"""What is known exactly of normalised networks: tails, the perpetuity and its law, against dense networks and draws."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import special, stats

import finwidth
from finwidth import MLP, Activation, FinwidthError, Norm, ResNet
from finwidth.exact.normalised import _least_average, perpetuity_moments, stationary_law, tail_exponent
from stats import follows, same_mean

X = [1.0, -2.0, 2.0]
BENT = Activation("bent", 1, -0.6)
AFTER = Norm("rms", "after")


def dense(width: int, depth: int, networks: int, seed: int, relu: bool) -> tuple[npt.NDArray[np.float64], ...]:
    """K_w in parameterization "ntk" of networks with norms after the activation, and their least open layer's count."""
    rng, fan_in = np.random.default_rng(seed), 3
    x, K, least = np.broadcast_to(X, (networks, 3)), np.zeros(networks), np.full(networks, width)
    layers = []
    for _ in range(depth - 1):
        v = (2 if relu else 1) / fan_in
        W = rng.standard_normal((networks, width, fan_in)) * v**0.5
        y = np.einsum("bij,bj->bi", W, x)
        gates = (y > 0) if relu else np.ones_like(y, dtype=bool)
        least = np.minimum(least, gates.sum(1))
        z = gates * y
        length = np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-300)
        layers.append((W, gates, z / length, width**0.5 / length, v * np.square(x).sum(1)))
        x, fan_in = width**0.5 * z / length, width
    G = rng.standard_normal((networks, width)) / width**0.5
    K += np.square(x).sum(1) / width
    for W, gates, unit, factor, c in reversed(layers):
        J = gates * (G - unit * (unit * G).sum(1, keepdims=True)) * factor
        K += c * np.square(J).sum(1)
        G = np.einsum("bij,bi->bj", W, J)
    return K, least


# ---- the perpetuity


def test_mean_given_open_neurons_is_that_of_networks() -> None:
    net = MLP([3, *[12] * 3, 1], norm=AFTER)
    K, least = dense(12, 4, 40_000, 0, relu=True)
    mean, second = map(float, perpetuity_moments(net))
    kept = K[least >= 5]
    assert 15_000 < len(kept) < 25_000
    assert same_mean(kept, mean, second - mean**2)
    assert not same_mean(kept, mean + 0.5 * (second - mean**2) ** 0.5, second - mean**2)


def test_second_moment_is_that_of_the_ratios() -> None:
    """By enumeration of the open neurons, and SciPy's moments of the ratios."""
    net = MLP([3, 7, 6, 1], norm=AFTER, parameterization="standard", gains=[1, 3, 0.5])
    w = [float(layer.weight_multiplier / layer.weight_variance) for layer in net.layers]
    total, means = 0.0, np.zeros(2)
    for m1, m2 in itertools.product(range(5, 8), range(5, 7)):
        weight = math.comb(7, m1) * math.comb(6, m2)
        r1, r2 = (stats.betaprime((m - 1) / 2, m / 2) for m in (m1, m2))
        lower = (w[0] * r1.moment(1), w[0] ** 2 * r1.moment(2))
        upper = (r2.moment(1) * (w[1] + lower[0]), r2.moment(2) * (w[1] ** 2 + 2 * w[1] * lower[0] + lower[1]))
        means += weight * np.array([w[2] + upper[0], w[2] ** 2 + 2 * w[2] * upper[0] + upper[1]])
        total += weight
    scale = float(net.layers[2].weight_variance) * 6
    found = [float(value) for value in perpetuity_moments(net)]
    assert found == pytest.approx(means / total * np.array([scale, scale**2]), rel=1e-9)


def test_means_of_linear_networks_need_no_condition() -> None:
    net = MLP([3, 11, 9, 12, 1], activation="abs", norm="rms", parameterization="standard", gains=[1, 2, 3, 0.5])
    mean, second = map(float, perpetuity_moments(net))
    drawn = finwidth.sample(net, X, 100_000, seed=1).K_w.to_numpy()
    assert same_mean(drawn, mean, second - mean**2)
    with pytest.raises(FinwidthError, match="no 5 open neurons"):
        perpetuity_moments(MLP([3, 4, 1], activation="linear", norm="rms"))


@pytest.mark.parametrize(
    "net",
    [MLP([3, 8, 1]), MLP([3, 8, 1], norm="rms"), MLP([3, 8, 1], norm="layer"), MLP([3, 1], norm=AFTER),
     MLP([3, 8, 1], norm=Norm("rms", "after", epsilon=1)), MLP([3, 8, 1], norm=AFTER, bias_variance=1),
     MLP([3, 8, 1], norm=AFTER, activation=BENT), MLP([3, 8, 1], norm=AFTER, activation="tanh")],
)  # fmt: skip
def test_the_perpetuity_is_not_claimed_of_other_networks(net: MLP) -> None:
    with pytest.raises(FinwidthError, match="these moments are of"):
        perpetuity_moments(net)


@pytest.mark.parametrize("n", [400, 1600])
def test_growth_of_wide_networks(n: int) -> None:
    """E[r] = 1 + 2/n, E[r^2] / E[r]^2 = 1 + 8/n and E[log r] = -2/n of ReLU, but for terms of 1/n^2."""
    mean, second = map(float, perpetuity_moments(MLP([3, n, 1], norm=AFTER)))
    r1 = mean - 1
    r2 = second - 1 - 2 * r1
    assert abs(r1 - (1 + 2 / n)) < 20 / n**2
    assert abs(r2 / r1**2 - (1 + 8 / n)) < 100 / n**2
    m = np.arange(5, n + 1)
    logs = special.digamma((m - 1) / 2) - special.digamma(m / 2)
    assert abs((stats.binom.pmf(m, n, 0.5) * logs).sum() + 2 / n) < 20 / n**2


# ---- its stationary law


def test_deep_linear_networks_follow_the_stationary_law() -> None:
    K, _ = dense(4, 100, 10_000, 1, relu=False)
    assert follows(K, stationary_law(4).cdf)
    assert not follows(K, stationary_law(5).cdf)


@pytest.mark.parametrize(
    ("net", "dimensions"),
    [
        (MLP([3, *[4] * 100, 1], activation="linear", norm="rms"), 4),
        (MLP([3, *[4] * 100, 1], activation="abs", norm="layer"), 3),
    ],
)
def test_draws_of_deep_networks_follow_the_stationary_law(net: MLP, dimensions: int) -> None:
    drawn = finwidth.sample(net, X, 10_000, seed=2).K_w.to_numpy()
    assert follows(drawn, stationary_law(dimensions).cdf)
    assert not follows(drawn, stationary_law(dimensions + 1).cdf)


@pytest.mark.slow
def test_deep_wide_relu_networks_follow_dufresnes_law() -> None:
    """K_w / n tends to 1 / (2 Z^2), Z standard normal, for depth over width over 1: 3000 layers of 200."""
    K = finwidth.sample(MLP([3, *[200] * 3000, 1], norm=AFTER, bias="none"), X, 4000, seed=3).K.to_numpy() / 200

    def cdf(t: npt.NDArray[np.floating]) -> Any:
        return 2 * stats.norm.sf(1 / np.sqrt(2 * t))

    assert follows(K, cdf)
    assert not follows(1.3 * K, cdf)


# ---- tails


@pytest.mark.parametrize(
    ("net", "exponent"),
    [
        (MLP([3, 4, 4, 1]), math.inf),
        (MLP([3, 4, 4, 1], norm=Norm("rms", epsilon=1e-5)), math.inf),
        (MLP([3, 4, 4, 1], norm=AFTER), 1),
        (MLP([3, 4, 4, 1], norm="rms"), 0.5),
        (MLP([3, 4, 4, 1], norm="rms", bias="none"), 1),
        (MLP([3, 4, 1], norm="rms"), 2),
        (MLP([3, 4, 4, 1], norm="rms", bias_variance=1), 2),
        (MLP([3, 4, 4, 1], norm=AFTER, bias_variance=1), 1),
        (MLP([3, 5, 3, 1], norm="rms", activation=BENT), 1.5),
        (MLP([3, 5, 3, 1], norm="layer", activation="abs"), 1),
        (MLP([3, 1, 1, 1], norm="rms", activation=BENT), math.inf),
        (ResNet([3, 3, 1], 1, 1, norm="rms"), 1),
        (ResNet([3, 4, 1], 6, 1, activation="abs", norm="rms"), 5 / 7),
        (ResNet([3, 40, 1], 8, norm="layer"), (39 + 8) / 18),
        (ResNet([3, 40, 1], 8, activation="abs", norm="layer"), 19.5),
        (ResNet([3, 40, 1], 8, norm=AFTER), 20),
        (ResNet([3, 40, 1], 8, norm=Norm("layer", "after")), 19.5),
        (ResNet([3, 40, 1], 8, norm="rms", bias_variance=[0, 0, 1, 0]), 20),
        (ResNet([3, 40, 1], 8, norm="rms", branch=[1, *[0] * 7]), 41 / 4),
        (ResNet([3, 40, 1], 2, norm="rms", skip=[1, 0]), 0.5),
    ],
)
def test_tail_exponents(net: MLP | ResNet, exponent: float) -> None:
    assert tail_exponent(net) == pytest.approx(exponent, rel=1e-12)


def test_the_least_average_is_that_of_all_runs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        length = int(rng.integers(0, 7))
        starts, added = rng.integers(1, 10, length + 1).tolist(), rng.integers(1, 10, length).tolist()
        runs = [(starts[i] + sum(added[i:j])) / (j - i + 1) for i in range(length + 1) for j in range(i, length + 1)]
        assert _least_average(starts, added) == pytest.approx(min(runs), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "quantity"),
    [
        (MLP([3, 4, 1], norm=AFTER), "K"),
        (MLP([3, 3, 1], norm="rms"), "K"),
        (MLP([3, 3, 3, 1], norm="rms"), "K_b"),
        (ResNet([3, 6, 1], 1, 1, activation="abs", norm="rms", bias="none"), "K"),
        (ResNet([3, 3, 1], 1, 1, norm="rms", bias="none"), "K"),
        (ResNet([3, 3, 1], 1, 4, norm=AFTER, bias="none"), "K"),
    ],
)
def test_tails_of_draws(net: MLP | ResNet, quantity: str) -> None:
    """Hill's estimate from the 2,000 largest of two million draws: within a quarter, as logarithms come in slowly."""
    largest = np.sort(finwidth.sample(net, X, 2_000_000, seed=1)[quantity].to_numpy())[-2001:]
    hill = 1 / np.log(largest[1:] / largest[0]).mean()
    assert hill == pytest.approx(tail_exponent(net), rel=0.25)


def test_moments_say_why_there_are_none() -> None:
    with pytest.raises(FinwidthError, match=r"E\[K\] is infinite at every width, as a layer has 2 open neurons"):
        finwidth.moments(MLP([3, 500, 500, 1], norm="rms"), X)
    with pytest.raises(FinwidthError, match=r"E\[K\] is infinite, as P\(K > t\) falls like t\^-0.743"):
        finwidth.moments(ResNet([3, 50, 1], 100, norm="rms"), X)
    with pytest.raises(FinwidthError, match=r'it is normalised .norm="layer".*; finwidth.sample has draws'):
        finwidth.moments(ResNet([3, 50, 1], 4, norm="layer"), X)
    with pytest.raises(FinwidthError, match="activations of two slopes, not for tanh"):
        tail_exponent(MLP([3, 5, 1], activation="tanh", norm="rms"))
    with pytest.raises(FinwidthError, match="a width of at least 2"):
        stationary_law(1)


# ---- what is heuristic: measured, and not exact


@pytest.mark.slow
def test_heuristics_of_deep_pre_norm_networks() -> None:
    """n Var[log K] ~ (8/3) log L and E[K] ~ 2 log L (docs/theory/normalisation.md), between L = 64 and 1024."""
    variances, typical = [], []
    for depth in (64, 1024):
        K = finwidth.sample(ResNet([3, 8192, 1], depth, norm="rms", bias="none"), X, 4000, seed=4).K.to_numpy()
        variances.append(8192 * np.log(K).var())
        typical.append(np.median(K))
    slope = (variances[1] - variances[0]) / math.log(16)
    assert 2.2 < slope < 3.1
    assert (typical[1] - typical[0]) / math.log(16) == pytest.approx(2, abs=0.15)
