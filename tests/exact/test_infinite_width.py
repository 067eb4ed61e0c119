"""The infinite-width kernel: closed forms, quadrature, the exact diagonal, and finite networks that approach it."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

import finwidth
from finwidth import MLP, Activation, SmoothActivation, infinite_width_gram, sample_gram
from finwidth.exact.gaussian_means import Pairs, alone, mixture_of
from finwidth.exact.infinite_width import Vectors, _smooth, _two_slopes
from finwidth.exact.quadrature import Integrated
from finwidth.networks.activations import ACTIVATIONS
from finwidth.networks.laws import FloatArray

X = np.array([[1.0, 2.0], [0.5, -1.0], [-1.0, 0.5]])
Q = np.array([[1.3, 0.4], [0.4, 0.7]])


def pair_means(phi: Activation, Q: FloatArray) -> tuple[FloatArray, FloatArray]:
    """E[phi(u) phi(v)] and E[phi'(u) phi'(v)] of all pairs of a Gaussian vector with covariance Q."""
    lengths = np.sqrt(np.diagonal(Q))
    cos = Q / np.outer(lengths, lengths)
    y = Vectors(lengths, cos, np.sqrt(1 - cos**2))
    found = _smooth(phi, y, 0, lambda done: None) if isinstance(phi, SmoothActivation) else _two_slopes(phi, y)
    sizes = found.values.lengths, found.slopes
    return tuple(np.outer(size, size) * c for size, c in zip(sizes, (found.values.cos, found.slope_cos), strict=True))  # type: ignore[return-value]


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
    for found, function in zip(pair_means(phi, Q), (phi.value, phi.derivative), strict=True):

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
    values, gates = pair_means(ACTIVATIONS["erf"], Q)
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
    assert pair_means(sine, Q)[0][0, 1] == pytest.approx(math.exp(-1) * math.sinh(0.4), abs=1e-13)
    with pytest.raises(finwidth.FinwidthError, match=r"shape \(m, 2\)"):
        infinite_width_gram(MLP([2, 3, 1]), [1, 2])
    with pytest.raises(finwidth.FinwidthError, match="rescale the inputs"):
        infinite_width_gram(MLP([2, 3, 1]), [[1e200, 0]])


# ---- inputs of any size: closed forms beside a quadrature that shares no code with them, and limits known otherwise

SMOOTH = ("tanh", "erf", "gelu", "silu")
GEOMETRIES = [
    (1.0, 0.3, 2.5),
    (30.0, 10.0, 0.5),
    (1e3, 1e3, 1e-3),
    (1e-200, 1e3, 0.2),
    (1e8, 1e8, 3.14159),
    (50, 50, 0),
]


def user(name: str) -> SmoothActivation:
    """The same functions, as a user gives them."""
    phi = ACTIVATIONS[name]
    return SmoothActivation(f"user's {name}", phi.value, phi.derivative, phi.default_gain)


def correlations(rule: object, pair: Pairs) -> list[float]:
    """Of values and slopes."""
    means = rule.means  # type: ignore[attr-defined]
    both, first, second = means(pair), means(alone(pair.first)), means(alone(pair.second))
    return [float(c[0] / math.sqrt(a[0] * b[0])) for c, a, b in zip(both, first, second, strict=True)]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("name", SMOOTH)
def test_closed_forms_agree_with_quadrature(name: str, geometry: tuple[float, float, float]) -> None:
    s, other, angle = geometry
    pair = Pairs(*(np.array([x]) for x in (s, other, math.cos(angle), math.sin(angle))))
    phi = ACTIVATIONS[name]
    assert isinstance(phi, SmoothActivation)
    integrated = Integrated(user(name), np.array([s, other]))
    assert correlations(mixture_of(phi), pair) == pytest.approx(correlations(integrated, pair), abs=3e-14)


def by_scipy(phi: Activation, x: float) -> float:
    """K(x, x) of [1, n, n, 1] with biases from zero, by adaptive quadrature cut at powers of ten."""
    gain, squares, slopes = float(phi.default_gain), [x * x], []
    for _ in range(2):
        s = math.sqrt(gain * squares[-1])
        ends = [0.0, *(e for e in 10.0 ** np.arange(-3, 8) if e < 12 * s), 12 * s]

        def mean(f, s=s, ends=ends) -> float:  # type: ignore[no-untyped-def]
            def integrand(y: float) -> float:
                density = math.exp(-0.5 * (y / s) ** 2) / (s * math.sqrt(2 * math.pi))
                return float(density * f(np.array(y)) ** 2)

            pieces = [(sign * a, sign * b) for a, b in pairwise(ends) for sign in (1, -1)]
            return float(
                sum(abs(integrate.quad(integrand, *piece, epsabs=1e-300, epsrel=1e-12)[0]) for piece in pieces)
            )

        squares.append(mean(phi.value))
        slopes.append(gain * mean(phi.derivative))
    shares = [gain * squares[0] + 1, gain * squares[1] + 1, squares[2] + 1]
    # The last layer's gain is 1, and so is what leads back from it.
    return shares[2] + (shares[1] + shares[0] * slopes[0]) * slopes[1] / gain


@pytest.mark.filterwarnings("ignore::scipy.integrate.IntegrationWarning")
@pytest.mark.parametrize("x", [0.1, 10.0, 30.0, 100.0, 1000.0])
@pytest.mark.parametrize("name", SMOOTH)
def test_large_inputs_agree_with_adaptive_quadrature(name: str, x: float) -> None:
    expected = by_scipy(ACTIVATIONS[name], x)
    for phi in (name, user(name)):
        net = MLP([1, 50, 50, 1], activation=phi, gains=[ACTIVATIONS[name].default_gain] * 2 + [1])
        assert infinite_width_gram(net, [[x]])[0, 0] == pytest.approx(expected, rel=1e-10)


def test_values_that_were_wrong() -> None:
    """Those of a rule with nodes 0.1 deviations apart were 19.27, 18820, 29.08 and 2649."""
    for name, x, expected in (
        ("tanh", 30, 9.80996),
        ("tanh", 1e3, 249.425),
        ("erf", 30, 13.57598),
        ("gelu", 30, 2709.14),
    ):
        net = MLP([1, 50, 50, 1], activation=name)
        assert infinite_width_gram(net, [[x]])[0, 0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("s", [1e4, 1e8, 1e100, 1e300])
def test_limits_of_large_deviations(s: float) -> None:
    """Almost all of a wide Gaussian is where tanh is a sign, and GELU and SiLU are ReLU."""
    tanh, _ = mixture_of(ACTIVATIONS["tanh"]).means(alone(np.array([s])))  # type: ignore[arg-type, union-attr]
    assert 1 - tanh[0] == pytest.approx(math.sqrt(2 / math.pi) / s, rel=1e-2, abs=1e-14)  # 1 - tanh^2 integrates to 2
    for name in ("gelu", "silu"):
        means = mixture_of(ACTIVATIONS[name]).means(alone(np.array([s])))  # type: ignore[arg-type, union-attr]
        assert [float(mean[0]) for mean in means] == pytest.approx([0.5, 0.5], rel=1e-4)


@pytest.mark.parametrize("size", [5e-324, 1e-310, 1e-200, 1e-162, 1e-100, 1.0, 1e100, 1e150])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "abs", "linear"])
def test_two_slopes_of_any_size_have_the_exact_mean(activation: str, size: float) -> None:
    net, x = MLP([2, 7, 5, 1], activation=activation, bias_variance=[0, 0, 0.5]), [size, -size]
    assert infinite_width_gram(net, [x])[0, 0] == pytest.approx(finwidth.infinite_width(net, x), rel=1e-12)


@pytest.mark.parametrize("activation", SMOOTH)
def test_smooth_activations_of_any_size(activation: str) -> None:
    """Tiny inputs: a linear network of slope phi'(0). Batches of all sizes: each input as it is alone."""
    net = MLP([2, 7, 5, 1], activation=activation)
    phi = ACTIVATIONS[activation]
    slope = float(phi.derivative(np.zeros(1))[0]) ** 2 * float(phi.default_gain)
    for size in (5e-324, 1e-310, 1e-200, 1e-162):
        K = infinite_width_gram(net, [[size, size], [0.0, 0.0]])
        bias = 1 + slope / float(phi.default_gain) * (1 + slope)
        assert pytest.approx(np.full((2, 2), bias), rel=1e-13) == K
    sizes = [5e-324, 1e-200, 1e-3, 1.0, 30.0, 1e100]
    X = np.array(sizes)[:, None] * [1.0, -0.5]
    together = infinite_width_gram(net, X)
    for a in range(len(X)):
        for b in range(a, len(X)):
            pair = infinite_width_gram(net, X[[a, b]])[0, 1] if a < b else infinite_width_gram(net, X[[a]])[0, 0]
            assert together[a, b] == together[b, a] == pytest.approx(pair, rel=1e-12)


@pytest.mark.parametrize("activation", ["tanh", "erf"])
def test_bounded_activations_reach_the_ends_of_doubles(activation: str) -> None:
    """K grows like |x|, so that it is a number where |x|^2 is none."""
    net = MLP([2, 7, 5, 1], activation=activation)
    one, other = (infinite_width_gram(net, [[size, 0.0], [0.0, size]]) for size in (1e100, 1e300))
    assert np.diagonal(other) == pytest.approx(1e200 * np.diagonal(one), rel=1e-12)
    assert other[0, 1] == pytest.approx(one[0, 1], rel=1e-12)  # of orthogonal inputs it stays


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu", "silu", "linear"])
def test_overflow_is_refused(activation: str) -> None:
    huge: list[list[list[float]]] = [[[1e160, 0.0]], [[1.0, 1.0], [1e200, 1.0]], [[1.7e308, -1.7e308]]]
    for X in huge:
        with pytest.raises(finwidth.FinwidthError, match="overflows a double"):
            infinite_width_gram(MLP([2, 3, 3, 1], activation=activation), X)
    with pytest.raises(finwidth.FinwidthError, match="overflows"):
        finwidth.infinite_width(MLP([2, 3, 3, 1]), [1e160, 0])


@pytest.mark.parametrize("angle", [1e-3, 1e-7, 1e-11, math.pi / 2, math.pi - 1e-6])
def test_nearly_parallel_inputs_keep_their_digits(angle: float) -> None:
    """ReLU's slopes are 1 - angle/pi: a cosine would know the angle to 10^-8 only."""
    mpmath: Any = pytest.importorskip("mpmath", reason="comes with SymPy")

    X = np.array([[1.0, 0.0], [math.cos(angle), math.sin(angle)]])
    with mpmath.workdps(40):
        theta = mpmath.atan2(mpmath.mpf(X[1, 1]), mpmath.mpf(X[1, 0]))
        squared = mpmath.mpf(X[1, 0]) ** 2 + mpmath.mpf(X[1, 1]) ** 2
        scale, total, gate = mpmath.sqrt(squared) / 2, mpmath.mpf(0), mpmath.mpf(1)
        angles = [theta]
        for _ in range(2):
            t = angles[-1]
            angles.append(mpmath.acos((mpmath.sin(t) + (mpmath.pi - t) * mpmath.cos(t)) / mpmath.pi))
        for t, below in zip(reversed(angles), [*reversed(angles[:-1]), None], strict=True):
            total += gate * mpmath.cos(t)
            gate *= 1 if below is None else 1 - below / mpmath.pi
        expected = float(scale * total)
    K = infinite_width_gram(MLP([2, 7, 5, 1], bias="none"), X)
    assert K[0, 1] == pytest.approx(expected, rel=1e-13)


KINKED: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "relu": (lambda y: np.maximum(y, 0), lambda y: 1.0 * (y > 0)),
    "leaky_relu": (lambda y: np.where(y > 0, y, 0.01 * y), lambda y: np.where(y > 0, 1.0, 0.01)),
    "abs": (np.abs, np.sign),
}


@pytest.mark.parametrize("name", KINKED)
def test_a_users_kinks_are_found(name: str) -> None:
    """Slopes jump: rules for smooth functions are off by some percent."""
    phi = SmoothActivation("mine", *KINKED[name], gain=ACTIVATIONS[name].default_gain)
    X = np.array([[1.0, 2.0], [1.0, 2.001], [-100.0, 30.0]])
    found, expected = (infinite_width_gram(MLP([2, 5, 5, 1], activation=each), X) for each in (phi, name))
    assert found == pytest.approx(expected, rel=1e-10)


def test_a_clipped_line_has_the_means_of_its_pieces() -> None:
    """E[clip(u)^2] and E[slope^2] = P(|u| < 1) at any deviation, the kinks at -1 and 1."""
    clipped = SmoothActivation("hardtanh", lambda y: np.clip(y, -1, 1), lambda y: 1.0 * (abs(y) < 1))
    for s in (0.1, 1.0, 30.0, 1e6):
        value, slope = Integrated(clipped, np.array([s]))._size(s)
        inside = math.erf(1 / s / math.sqrt(2))
        density = math.exp(-0.5 / s**2) / math.sqrt(2 * math.pi)
        assert slope**2 == pytest.approx(inside, rel=1e-12)
        assert value**2 == pytest.approx(s * s * (inside - 2 / s * density) + 1 - inside, rel=1e-9)


@pytest.mark.parametrize(
    ("phi", "x", "reason"),
    [
        (SmoothActivation("sin", np.sin, np.cos), 1e6, "polynomials"),
        (SmoothActivation("exp", np.exp, np.exp), 20.0, "grows too fast|error reached|overflows"),
        (
            SmoothActivation(
                "root", lambda y: np.sqrt(abs(y)), lambda y: 0.5 * np.sign(y) / np.sqrt(abs(y) + (y == 0))
            ),
            1.0,
            ".",
        ),
        (SmoothActivation("square", np.square, lambda y: 2 * y), 1e200, "overflows"),
    ],
)
def test_what_cannot_be_integrated_is_refused(phi: SmoothActivation, x: float, reason: str) -> None:
    with pytest.raises(finwidth.FinwidthError, match=reason):
        infinite_width_gram(MLP([1, 5, 5, 1], activation=phi), [[x]])


def test_angles_lost_to_rounding_are_refused() -> None:
    """A layer of GELU knows the angle of nearly parallel inputs by its cosine; duplicates have none to lose."""
    net = MLP([2, 5, 5, 5, 1], activation="gelu")
    X = np.array([[1.0, 0.0], [1.0, 1e-8]])
    assert np.ptp(infinite_width_gram(net, X)) < 1e-7  # no kink at this size
    with pytest.raises(finwidth.FinwidthError, match="nearly parallel"):
        infinite_width_gram(net, 1e9 * X)
    duplicates = infinite_width_gram(net, 1e9 * X[[0, 0]])
    assert np.ptp(duplicates) == 0


def test_wide_networks_at_large_inputs_approach_it() -> None:
    """Draws of tanh networks at |x| = 30: the mean off and on the diagonal within five standard errors and 2/n."""
    n, draws, X = 2000, 300, [[30.0, 0.0], [10.0, 20.0]]
    net = MLP([2, n, n, 1], activation="tanh")
    K, limit = sample_gram(net, X, draws, seed=2).K.to_numpy(), infinite_width_gram(net, X)
    assert (abs(K.mean(0) - limit) < 5 * K.std(0) / math.sqrt(draws) + 2 / n * limit).all()
    assert (abs(K.mean(0) - 1.1 * limit) > 5 * K.std(0) / math.sqrt(draws) + 2 / n * limit).all()
