"""Moments of outputs and of hidden lengths: against every network of a discrete law, and a closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import pytest

import finwidth
from exact.test_exhaustive import NETWORKS, four
from exhaustive import RealNetwork, average
from finwidth import MLP, FinwidthError, SignalMoments
from finwidth.networks.laws import Rational

SEVERAL = {
    "two outputs": (four(2, 2, 2), [1, 10]),
    "two outputs, random bias": (four(1, 2, 2, bias_variance=(0, 1)), [3]),
}


def powers(network: RealNetwork) -> dict[str, Rational]:
    """N^2 to N^8, |x^(i)|^2 to |x^(i)|^8, and N_0^2 N_1^2."""
    lengths = [sum((entry * entry for entry in vector), start=0 * network.output()) for vector in network.hidden]
    squares = {"N": network.output() ** 2} | {f"x^({i})": length for i, length in enumerate(lengths, 1)}
    found = {f"{name}, {p}": square**p for name, square in squares.items() for p in range(1, 5)}
    if network.net.widths[-1] > 1:
        found["between"] = network.output(0) ** 2 * network.output(1) ** 2
    return found


def by_name(found: SignalMoments) -> dict[str, object]:
    kinds = {"N": found.output} | {f"x^({i})": each for i, each in enumerate(found.hidden, 1)}
    values: dict[str, object] = {f"{n}, {p}": value for n, each in kinds.items() for p, value in enumerate(each.raw, 1)}
    return values | ({"between": found.between_outputs} if found.network.widths[-1] > 1 else {})


@pytest.mark.parametrize("name", [*NETWORKS, *SEVERAL])
def test_every_real_network(name: str) -> None:
    net, x = {**NETWORKS, **SEVERAL}[name]
    assert by_name(finwidth.signal_moments(net, x, exact=True, order=4)) == average(net, x, powers)


def test_another_law_is_told_apart() -> None:
    net, x = NETWORKS["one hidden layer"]
    wrong = MLP(net.widths, gains=net.gains)  # Gaussian weights: other fourth moments
    right = average(net, x, powers)
    found = by_name(finwidth.signal_moments(wrong, x, exact=True, order=4))
    assert found["N, 1"] == right["N, 1"]
    assert found["N, 2"] != right["N, 2"]


@pytest.mark.parametrize("widths", [(3, 5, 5, 5, 1), (2, 7, 2, 9, 1), (2, 1)])
def test_products_of_relu_layers(widths: Sequence[int]) -> None:
    """E|x^(i)|^(2p) by layer is that of a product of independent factors (2/n) chi2(m), m ~ Binomial(n, 1/2)."""
    x = [Fraction(k + 1) for k in range(widths[0])]
    found = finwidth.signal_moments(MLP(widths), x, exact=True, order=4)
    moments = [sum((a * a for a in x), Fraction(0)) ** p for p in range(1, 5)]
    for n_in, n, each in zip(widths[:-1], widths[1:-1], found.hidden, strict=False):
        for p in range(1, 5):
            chi2 = sum(Fraction(math.comb(n, m), 2**n) * math.prod(range(m, m + 2 * p, 2)) for m in range(n + 1))
            moments[p - 1] *= Fraction(2, n_in) ** p * chi2
        assert each.raw == tuple(moments)
    last = [Fraction(1, widths[-2]) ** p * math.prod(range(1, 2 * p, 2)) for p in range(1, 5)]
    assert found.output.raw == tuple(a * b for a, b in zip(moments, last, strict=True))


def test_a_deep_network_overflows_into_logarithms() -> None:
    found = finwidth.signal_moments(MLP([4, *[4] * 1000, 1]), [1.0, 0, 0, 0])
    assert found.output.second_moment == math.inf
    assert found.output.log_raw[1] == pytest.approx(math.log(3 / 16) + 1000 * math.log(1 + 5 / 4), rel=1e-12)
    assert found.kurtosis == math.inf  # 3 (1 + 5/4)^1000 is not, but no double holds it


def test_an_output_that_is_always_zero_has_no_kurtosis() -> None:
    assert finwidth.signal_moments(MLP([2, 3, 1]), [0, 0]).kurtosis is None


def test_mistakes_are_told() -> None:
    with pytest.raises(FinwidthError, match="this one has one"):
        _ = finwidth.signal_moments(MLP([2, 3, 1]), [1, 2]).between_outputs
    with pytest.raises(FinwidthError, match="give 2, 3 or 4"):
        finwidth.signal_moments(MLP([2, 3, 1]), [1, 2], order=5)
    with pytest.raises(FinwidthError, match="not all rational"):
        finwidth.signal_moments(MLP([2, 3, 1], "truncated-normal"), [1, 2], exact=True)
    with pytest.raises(FinwidthError, match=r"its activation is tanh.*finwidth\.sample_gram"):
        finwidth.signal_moments(MLP([2, 3, 1], activation="tanh"), [1, 2])
