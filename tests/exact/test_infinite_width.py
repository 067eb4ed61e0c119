"""The infinite-width kernel: closed forms, quadrature, the exact diagonal, and finite networks that approach it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

import finwidth
from finwidth import MLP, Activation, SmoothActivation, infinite_width_gram, sample_gram
from finwidth.activations import ACTIVATIONS
from finwidth.exact.infinite_width import _pair_means

X = np.array([[1.0, 2.0], [0.5, -1.0], [-1.0, 0.5]])
Q = np.array([[1.3, 0.4], [0.4, 0.7]])


@pytest.mark.parametrize("parameterization", ["ntk", "standard", "mup"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "abs", "linear", Activation("bent", 2, -0.3)])
def test_diagonal_is_the_exact_mean_without_dead_layers(activation: str | Activation, parameterization: str) -> None:
    net = MLP([2, 7, 5, 1], activation=activation, parameterization=parameterization, bias_variance=[0.1, 0, 0.3])
    expected = [finwidth.infinite_width(net, x) for x in X]
    assert np.diagonal(infinite_width_gram(net, X)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["relu", "abs", "leaky_relu", "tanh", "gelu"])
def test_pair_means_are_the_gaussian_integrals(name: str) -> None:
    """By quadrature over one variable and the other given it, split at the kinks."""
    phi = ACTIVATIONS[name]
    slope, rest = Q[0, 1] / Q[0, 0], math.sqrt(Q[1, 1] - Q[0, 1] ** 2 / Q[0, 0])
    for found, function in zip(_pair_means(phi, Q), (phi.value, phi.derivative), strict=True):

        def given(u: float, f=function) -> float:  # type: ignore[no-untyped-def]
            z = np.linspace(-8, 8, 1601) - slope * u / rest  # the kink is a node of Simpson's rule
            y = rest * z + slope * u
            y[800] = 0.0
            sides = [f(np.where(y == 0, sign * 1e-300, y)) * stats.norm.pdf(z) for sign in (-1, 1)]
            return float(integrate.simpson(sides[0][:801], x=z[:801]) + integrate.simpson(sides[1][800:], x=z[800:]))

        def outer(u: float, f=function, given=given) -> float:  # type: ignore[no-untyped-def]
            return float(f(np.array(u)) * given(u) * stats.norm.pdf(u, scale=math.sqrt(Q[0, 0])))

        integral = sum(integrate.quad(outer, *ends, epsabs=1e-9, limit=40)[0] for ends in ((-10, 0), (0, 10)))
        assert found[0, 1] == pytest.approx(integral, abs=2e-8)


def test_erf_has_williams_closed_form() -> None:
    squares = np.outer(1 + 2 * np.diag(Q), 1 + 2 * np.diag(Q))
    values, gates = _pair_means(ACTIVATIONS["erf"], Q)
    assert values == pytest.approx(2 / math.pi * np.arcsin(2 * Q / np.sqrt(squares)), abs=1e-13)
    assert gates == pytest.approx(4 / math.pi / np.sqrt(squares - 4 * Q**2), abs=1e-13)


def test_zero_input_and_duplicates() -> None:
    inputs = [[0, 0], [0, 1], [0, 1]]
    for activation in ("relu", "leaky_relu"):
        net = MLP([2, 3, 3, 1], activation=activation)
        K = infinite_width_gram(net, inputs)
        assert K[0, 0] == pytest.approx(finwidth.infinite_width(net, [0, 0]), rel=1e-12)
        assert K[1] == pytest.approx(K[2])


@pytest.mark.parametrize(
    ("activation", "widths"), [("relu", (16, 32, 64)), ("gelu", (16, 32, 64)), ("tanh", (8, 16, 32))]
)
def test_finite_networks_approach_it_like_one_over_n(activation: str, widths: tuple[int, ...]) -> None:
    """The mean off the diagonal: its deviation falls fourfold from the first width to the last, far above the noise."""
    draws, deviations, errors = 60_000, [], []
    for n in widths:
        net = MLP([2, n, n, n, 1], activation=activation, bias="none")
        K = sample_gram(net, X[1:], draws, seed=5).K[:, 0, 1].to_numpy()
        limit = infinite_width_gram(net, X[1:])[0, 1]
        deviations.append(abs(K.mean() - limit) / abs(limit))
        errors.append(K.std() / math.sqrt(draws) / abs(limit))
    assert all(deviation > 5 * error for deviation, error in zip(deviations, errors, strict=True))
    assert -1.4 < np.polyfit(np.log(widths), np.log(deviations), 1)[0] < -0.6


def test_a_wrong_limit_is_not_approached() -> None:
    """Twice the width does not halve the distance to another activation's limit."""
    net, wide = (MLP([2, n, n, n, 1], activation="gelu", bias="none") for n in (64, 128))
    wrong = infinite_width_gram(MLP([2, 3, 3, 3, 1], activation="silu", bias="none"), X[1:])[0, 1]
    distances = [abs(float(sample_gram(each, X[1:], 20_000, seed=6).K[:, 0, 1].mean()) - wrong) for each in (net, wide)]
    assert distances[1] > 0.8 * distances[0]


def test_users_functions_and_mistakes() -> None:
    sine = SmoothActivation("sin", np.sin, np.cos)
    # E[sin u sin v] = exp(-(Q_uu + Q_vv)/2) sinh(Q_uv)
    assert _pair_means(sine, Q)[0][0, 1] == pytest.approx(math.exp(-1) * math.sinh(0.4), abs=1e-13)
    with pytest.raises(finwidth.FinwidthError, match=r"shape \(m, 2\)"):
        infinite_width_gram(MLP([2, 3, 1]), [1, 2])
    with pytest.raises(finwidth.FinwidthError, match="rescale the inputs"):
        infinite_width_gram(MLP([2, 3, 1]), [[1e200, 0]])
