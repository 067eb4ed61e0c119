"""The expansion in 1/width against the exact engine, closed calculations and draws; wrong recursions are seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import finwidth
from finwidth import MLP, Activation, FinwidthError, SmoothActivation
from finwidth.exact.expansion import steps, tensors
from finwidth.exact.expansion.expansion import _points
from finwidth.exact.expansion.means import GaussianMeans, with_points
from finwidth.networks.activations import ACTIVATIONS
from finwidth.networks.description import Network
from stats import same_mean

ORTHOGONAL = math.sqrt(2) * np.eye(2)
GELU, TANH = (ACTIVATIONS[name] for name in ("gelu", "tanh"))
TWO_SLOPES: list[str | Activation] = ["relu", "linear", "abs", "leaky_relu", Activation("minus", 1, -0.5)]


def first(found: Any, name: str) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = found[name].sel(order=1).to_numpy()
    return values


# ---- the exact engine, at one input and widths where the second order is lost in rounding


def engine_differences(net: Network, x: list[float]) -> dict[str, float]:
    """Relative differences of all that the exact engine knows."""
    found = finwidth.expansion(net, [x], [0.0])
    # Of so wide networks that can die fractions have too many digits.
    fractions = not (isinstance(net, MLP) and net.activation.can_die)
    exact, signal = finwidth.moments(net, x, exact=fractions), finwidth.signal_moments(net, x, exact=fractions)
    cumulant = float(signal.output.second_moment - 3 * signal.output.mean**2) if fractions else math.nan
    both = {
        "K": (found.K[0].item(), float(exact.mean)),
        "no correction": (1 + found.K[1].item() / (found.attrs["inverse_widths"] or 1) / float(exact.mean), 1.0),
        "K_covariance": (found.K_covariance[1].item(), float(exact.variance)),
        "output_covariance": (found.output_covariance[0].item(), float(signal.output.mean)),
        "output_cumulant": (found.output_cumulant[1].item(), cumulant),
        "dK": (found.dK[1].item(), float(exact.update["dK"])),
    }
    return {name: abs(one - other) / (abs(other) or 1) for name, (one, other) in both.items() if not math.isnan(other)}


@pytest.mark.parametrize("activation", TWO_SLOPES, ids=str)
def test_one_input_is_that_of_the_exact_engine(activation: str | Activation) -> None:
    wide = 10**12
    for depth, parameterization, bias_variance in product((1, 2, 3, 6), ("ntk", "standard", "mup"), (0, 0.5)):
        widths = [3, *[wide * (1 + i % 3) for i in range(depth - 1)], 1]
        for options in ({}, {"gains": 1.5, "bias": "frozen", "bias_scale": 0.7}):
            net = MLP(widths, "gaussian", activation, parameterization, bias_variance=bias_variance, **options)  # type: ignore[arg-type]
            worst = engine_differences(net, [1.0, -0.5, 0.25])
            assert max(worst.values()) < 1e-10, (net, worst)


def test_fourth_moment_of_relu_outputs() -> None:
    """E[N^4] = 3 E[N^2]^2 prod(1 + 5/n_i) (Hanin 2018)."""
    wide = finwidth.expansion(MLP([2, 10, 20, 40, 1]), [[3, 4]])
    mean = wide.output_covariance[0].item()
    assert wide.output_cumulant[1].item() == pytest.approx(3 * mean**2 * 5 * (1 / 10 + 1 / 20 + 1 / 40), rel=1e-12)


# ---- values of an independent implementation: coefficients of 1/n

# one input of length 1, n_0 = 1, d = 3, trained biases: Theta, and n times mean correction, Var K and E[dK]
ONE_INPUT = {
    "tanh": (2.7152072716, 0.0037727, 6.9546604, 3.9331127),
    "gelu": (4.6565512316, -0.1423305, 93.673674, -55.323035),
    "erf": (3.2805518041, 0.0160487, 13.841121, 8.5546988),
}


def one_input_differences() -> list[float]:
    found = []
    for name, known in ONE_INPUT.items():
        wide = finwidth.expansion(MLP([1, 1, 1, 1], activation=name), [[1.0]], [0.0])
        values = [wide.K[0].item(), wide.K[1].item(), wide.K_covariance[1].item(), wide.dK[1].item()]
        found += [abs(one - other) / abs(other) for one, other in zip(values, known, strict=True)]
    return found


# two orthogonal inputs, |x|^2 = n_0 = 2, ReLU, no biases, by depth
PI = 1 / math.pi
TWO_INPUTS = {
    2: {"mean": PI, "shift": 0, "12 12": 1 - PI**2, "11 22": 2, "11 12": 4 * PI, "dK 11": -10, "dK 12": -4 * PI},
    3: {
        "mean": 0.6857086363, "shift": -0.0503478665, "12 12": 4.9522549564, "11 12": 9.4850214168,
        "dK 12": -9.3633021348,
    },
}  # fmt: skip


def two_input_differences() -> list[float]:
    found = []
    for depth, known in TWO_INPUTS.items():
        wide = finwidth.expansion(MLP([2, *[1] * (depth - 1), 1], bias="none"), ORTHOGONAL, [0, 0])
        covariance, dK = first(wide, "K_covariance"), first(wide, "dK")
        values = {
            "mean": wide.K[0, 0, 1].item(), "shift": first(wide, "K")[0, 1], "12 12": covariance[0, 1, 0, 1],
            "11 22": covariance[0, 0, 1, 1], "11 12": covariance[0, 0, 0, 1], "dK 11": dK[0, 0], "dK 12": dK[0, 1],
        }  # fmt: skip
        found += [abs(values[name] - value) / (abs(value) or 1) for name, value in known.items()]
    return found


def test_values_to_recognise() -> None:
    assert max(one_input_differences()) < 1e-5  # the printed digits of the smallest
    assert max(two_input_differences()) < 1e-8


# ---- one hidden layer: the network is a sum over neurons, and everything a mean over one of them


def one_hidden_layer(net: MLP, X: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    """n times what is exactly linear in 1/n, by Gauss-Legendre quadrature at two inputs."""
    (one, two), m, n = net.layers, len(X), net.widths[1]
    gram = X @ X.T
    K = float(one.bias_variance) + float(one.weight_variance) * gram
    theta = float(one.bias_multiplier) + float(one.weight_multiplier) * gram
    z, w = np.polynomial.legendre.leggauss(220)
    z, w = 10 * z, 10 * w * np.exp(-50 * z * z) / math.sqrt(2 * math.pi)
    y = np.stack(np.meshgrid(z, z)).reshape(2, -1).T @ np.linalg.cholesky(K).T
    weights = np.outer(w, w).ravel()
    s, t, u = (f(y) for f in (net.activation.value, net.activation.derivative, net.activation.second_derivative))
    g, c = float(two.weight_variance) * n, float(two.weight_multiplier) * n
    ss, tt = s[:, :, None] * s[:, None], t[:, :, None] * t[:, None]

    def mean(one: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.tensordot(weights, one, 1)

    def both(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.tensordot(weights[:, None, None] * one, other, (0, 0))

    # n times a neuron's kernel is k = c s s + v h: v, n times the square of its last weight, has means g and 3 g^2.
    h = tt * theta
    outer = np.multiply.outer
    k = c * ss + g * h
    A = both(k, k) - outer(mean(k), mean(k)) + 2 * g * g * both(h, h)
    D = c * g * both(ss, ss) + 3 * g * g * both(h, ss) - outer(mean(k), g * mean(ss))
    pairs = g * g * outer(mean(ss), mean(ss))
    cumulant = 3 * g * g * both(ss, ss) - pairs - pairs.transpose(0, 2, 1, 3) - pairs.transpose(0, 3, 2, 1)
    dK = np.zeros((m, m))
    for a, b, x in product(range(m), repeat=3):
        f, f_, F = s[:, a], s[:, b], s[:, x]
        p, p_, P = t[:, a], t[:, b], t[:, x]
        q, q_ = u[:, a], u[:, b]
        second = (
            c * g * (p * theta[a, x] * P * f_ + f * p_ * theta[b, x] * P) * F + 2 * c * g * F * F * p * p_ * theta[a, b]
        )
        fourth = 3 * g * g * (q * theta[a, x] * p_ + p * q_ * theta[b, x]) * P * theta[a, b] * F
        dK[a, b] -= weights @ (second + fourth)
    return {"K_covariance": A, "K_output_covariance": D, "output_cumulant": cumulant, "dK": dK}


def hidden_layer_differences() -> list[float]:
    X, n = np.array([[1.0, 0.5], [0.3, -0.8]]), 7
    found = []
    for name, bias_variance in (("tanh", 0.3), ("gelu", 0), ("erf", 0.1)):
        net = MLP([2, n, 1], "gaussian", name, bias_variance=bias_variance, gains=[1.5, 0.8], bias_scale=[1, 0.5])
        known, wide = one_hidden_layer(net, X), finwidth.expansion(net, X, [1.0, 2.0])
        found += [float(np.abs(n * first(wide, key) - each).max() / np.abs(each).max()) for key, each in known.items()]
    return found


def test_one_hidden_layer_is_a_mean_over_neurons() -> None:
    assert max(hidden_layer_differences()) < 1e-9


# ---- wrong recursions

Mutant = Callable[..., Any]


def without(*names: str, factor: float = 0.0) -> Callable[[Mutant], Mutant]:
    """A part of what binds neurons that is left out, or multiplied."""

    def mutant(right: Mutant) -> Mutant:
        def wrong(*given: Any) -> Any:
            found = right(*given)
            return replace(found, **{name: factor * getattr(found, name) for name in names})

        return wrong

    return mutant


def dropped(right: Mutant) -> Mutant:
    return lambda *given: 0.0 * right(*given)


MUTANTS: dict[str, tuple[Any, str, Callable[[Mutant], Mutant]]] = {
    "no F": (steps, "_sampled", without("F")),
    "no B": (steps, "_sampled", without("B")),
    "B of the other sign": (steps, "_sampled", without("B", factor=-1)),
    "no correlation with the weights": (steps, "_slopes_with_weights", dropped),
    "no product of slopes and H": (steps, "_slopes_with_H", dropped),
    "P of the other sign": (steps, "through_gates", without("P", factor=-1)),
    "Q of the other sign": (steps, "through_gates", without("Q", factor=-1)),
    "neurons that are not sampled": (steps, "_sampled", dropped),
    "no second derivatives": (steps, "curved", dropped),
    "second derivatives of the other sign": (steps, "curved", lambda right: lambda *given: -right(*given)),
    "F that is not differentiated": (tensors, "on_first", dropped),
    "covariances that do not spread": (tensors, "along", dropped),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_wrong_recursions_are_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, attribute, mutant = MUTANTS[name]
    monkeypatch.setattr(module, attribute, mutant(getattr(module, attribute)))
    assert max(one_input_differences() + two_input_differences()) > 1e-3


# ---- several inputs

X = np.array([[1.0, 0.5], [0.3, -0.8], [-0.4, 0.9], [0.2, 0.1]])


def test_more_inputs_change_nothing() -> None:
    """Entries of two inputs are those of the two alone, but for dK, to which every input adds."""
    net = MLP([2, 10, 20, 10, 1], activation="gelu", bias_variance=0.1)
    together, pair = (finwidth.expansion(net, inputs) for inputs in (X, X[[1, 3]]))
    for name in pair:
        some = {each: [1, 3] for each in pair[name].dims if each != "order"}
        one, other = together[name].isel(some).to_numpy(), pair[name].to_numpy()
        assert one == pytest.approx(other, rel=1e-9, abs=1e-9 * np.abs(other[1]).max()), name


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_duplicates_are_known_without_points(activation: str) -> None:
    """At inputs a, b, a and b the means of four that points give are known by quadrature."""
    net = MLP([2, 10, 20, 10, 1], activation=activation, bias_variance=0.1)
    pair = finwidth.expansion(net, X[:2], [1, 1])
    twice = finwidth.expansion(net, X[[0, 1, 0, 1]], [1, 1, 1, 1])
    for name in ("K_covariance", "K_output_covariance", "output_cumulant"):
        error = np.abs(first(twice, name) - np.tile(first(pair, name), (2, 2, 2, 2))).max()
        assert 1e-9 < error < 8 * twice[name].attrs["error"], name
        assert twice[name].attrs["error"] < 3e-3 * np.abs(first(pair, name)).max(), name
    assert first(twice, "dK") == pytest.approx(2 * np.tile(first(pair, "dK"), (2, 2)), abs=8 * twice.dK.attrs["error"])
    assert first(twice, "K") == pytest.approx(np.tile(first(pair, "K"), (2, 2)), rel=1e-9)


def test_means_by_points_are_those_of_wick() -> None:
    """phi = y: <y_a y_b y_c y_d> is a sum over pairings; what is left out without points is seen."""
    phi, m = ACTIVATIONS["linear"], 4
    K = X @ X.T + 0.1
    pairs, fours = GaussianMeans(0, change=True)(phi, K)
    exact = np.einsum("ab,cd->abcd", K, K) + np.einsum("ac,bd->abcd", K, K) + np.einsum("ad,bc->abcd", K, K)
    each = [with_points(phi, K, pairs, fours, points, change=True).ssss for points in _points(m, 4096, 0)]
    mean, error = np.mean(each, 0), np.std(each, 0, ddof=1) / math.sqrt(len(each))
    assert np.abs(mean - exact).max() < 8 * error.max() < 1e-2 * exact.max()
    assert np.abs(fours.ssss - exact).max() > 8 * error.max()


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_multiples_of_an_input(activation: str) -> None:
    """Without biases K at 2x is twice and four times that at x, in every network; -x is not x."""
    net = MLP([2, 10, 20, 10, 1], activation=activation, bias="none")
    one, both = finwidth.expansion(net, X[:1], [0]), finwidth.expansion(net, [X[0], 2 * X[0]], [0, 0])
    sizes = np.array([1.0, 2.0])
    scale = np.einsum("a,b,c,d->abcd", *[sizes] * 4)
    for name in ("K_covariance", "K_output_covariance", "output_cumulant"):
        assert first(both, name) == pytest.approx(scale * first(one, name), rel=1e-9), name
    assert first(both, "dK") == pytest.approx(5 * np.outer(sizes, sizes) * first(one, "dK"), rel=1e-9)
    opposite = finwidth.expansion(net, [X[0], -X[0]], [0, 0])
    assert abs(first(opposite, "dK")[0, 1] / first(one, "dK").item()) < 0.9


def test_dependent_inputs_are_the_limit_of_independent_ones() -> None:
    """Multiples of an input of tanh, whose first layer is of rank one, and 0, which has no direction."""
    net = MLP([2, 10, 20, 10, 1], activation="tanh")
    for other in (1.7 * X[0], np.zeros(2)):
        exactly = finwidth.expansion(net, [X[0], other], [0, 0])
        for small, allowed in ((1e-1, 0.7), (1e-2, 7e-3)):
            near = finwidth.expansion(net, [X[0], other + small * np.array([-0.3, 0.6])], [0, 0])
            for name in near:
                size = np.abs(first(exactly, str(name))).max()
                assert np.abs(first(near, str(name)) - first(exactly, str(name))).max() < allowed * size, (name, small)


def test_an_input_of_zeros() -> None:
    net = MLP([2, 10, 10, 1], bias_variance=0.5)
    assert np.isfinite(finwidth.expansion(net, np.zeros((1, 2)), [0.0]).K_covariance).all()
    nothing = finwidth.expansion(MLP([2, 10, 10, 1], bias="none"), [[0.0, 0.0], [1.0, 0.0]], [0, 0])
    assert float(np.abs(nothing.K[:, 0]).max()) == 0
    alone = finwidth.expansion(MLP([2, 10, 10, 1], bias="none"), [[1.0, 0.0]], [0])
    assert first(nothing, "dK")[1, 1] == pytest.approx(first(alone, "dK").item(), rel=1e-12)


def test_several_outputs() -> None:
    """One output is as alone, but every output adds to the change; K between outputs by draws below."""
    nets = [MLP([2, 8, 8, outputs], activation="erf") for outputs in (1, 3)]
    one, three = (finwidth.expansion(net, X[:2], np.zeros((2, net.widths[-1])).squeeze()) for net in nets)
    for name in set(one) - {"dK"}:
        assert (three[name] == one[name]).all()
    assert (np.abs(first(three, "dK")) > 1.2 * np.abs(first(one, "dK"))).all()
    # Cov of one output with itself: that with another, and twice what is between them.
    within, between = first(three, "K_covariance"), first(three, "K_between_covariance")
    swapped = np.einsum("abdc->abcd", between)
    assert within == pytest.approx(first(three, "K_apart_covariance") + between + swapped, rel=1e-12)


# ---- functions of a user


def test_functions_of_a_user_are_as_those_built_in() -> None:
    relu = SmoothActivation("my relu", lambda y: np.maximum(y, 0), lambda y: 1.0 * (y > 0), 2, lambda y: 0 * y)
    gelu = SmoothActivation("my gelu", GELU.value, GELU.derivative, 2, GELU.second_derivative)
    for mine, name in ((relu, "relu"), (gelu, "gelu")):
        nets = [MLP([2, 9, 9, 1], activation=each, bias="none") for each in (mine, name)]
        one, other = (finwidth.expansion(net, X[:2], [0, 0]) for net in nets)
        for key in other:
            size = np.abs(first(other, str(key))).max() + np.abs(other.K[0]).max().item()
            assert np.abs(one[key] - other[key]).max() < 1e-9 * size, (name, key)


def test_a_kink_beside_zero_counts() -> None:
    """phi(y) = relu(y - 1/2): a mean over kinks that are nowhere special, at one hidden layer."""
    shifted = SmoothActivation(
        "shifted", lambda y: np.maximum(y - 0.5, 0), lambda y: 1.0 * (y > 0.5), 2, lambda y: 0 * y
    )
    net = MLP([2, 9, 1], activation=shifted, bias="none", gains=1)
    covariance = first(finwidth.expansion(net, ORTHOGONAL, [0, 0]), "output_cumulant")
    # Independent y of variance 1: <s^2> and <s^4> of each, with the density p and the distribution P at -1/2.
    p, P, b = math.exp(-1 / 8) / math.sqrt(2 * math.pi), (1 - math.erf(0.5 / math.sqrt(2))) / 2, 0.5
    square, fourth = (b * b + 1) * P - b * p, (b**4 + 6 * b * b + 3) * P - (b**3 + 5 * b) * p
    mean = p - b * P
    assert covariance[0, 0, 0, 0] == pytest.approx(3 * (fourth - square**2) / 9, rel=1e-10)
    assert covariance[0, 0, 1, 1] == pytest.approx((3 * square**2 - square**2 - 2 * mean**4) / 9, rel=1e-10)


# ---- draws


def drawn_and_known(
    net: Network, inputs: npt.NDArray[np.float64], draws: int, seed: int
) -> list[tuple[str, Any, float]]:
    """Names of entries, draws whose mean is the entry to first order, and what the expansion says of it."""
    wide = finwidth.expansion(net, inputs, np.zeros(len(inputs)))
    found = finwidth.sample_gram(net, inputs, draws, seed, y=np.zeros(len(inputs)), threads=1)
    K, N, dK = (found[name].to_numpy() for name in ("K", "output", "dK"))
    limit, entries = wide.K[0].to_numpy(), [(0, 0), (0, 1), (len(inputs) - 1, 0)]
    pairs: list[tuple[str, Any, float]] = []
    for a, b in entries:
        pairs.append((f"K {a}{b}", K[:, a, b], wide.K.sum("order")[a, b].item()))
        pairs.append((f"dK {a}{b}", dK[:, a, b], wide.dK[1, a, b].item()))
        for c, d in entries[1:]:
            moved = (K[:, a, b] - limit[a, b]) * (K[:, c, d] - limit[c, d])
            pairs.append((f"K K {a}{b}{c}{d}", moved, wide.K_covariance[1, a, b, c, d].item()))
            outputs = (K[:, a, b] - limit[a, b]) * N[:, c] * N[:, d]
            value = wide.K_output_covariance[1, a, b, c, d].item()
            value += wide.K[1, a, b].item() * wide.output_covariance[0, c, d].item()
            pairs.append((f"K N N {a}{b}{c}{d}", outputs, value))
    return pairs


def passes(values: npt.NDArray[np.float64], mean: float) -> bool:
    """By their own variance, half as large again."""
    return same_mean(values, mean, 1.5 * float(values.var()))


def test_draws_follow_it() -> None:
    follow_draws(MLP([2, 40, 60, 1], activation="tanh", bias_variance=0.2), seed=3)


def follow_draws(net: Network, seed: int, seen: tuple[str, ...] = ("dK 00", "dK 01", "K K 0001")) -> None:
    """20,000 draws at two inputs; of the other sign the means ``seen`` are seen to be wrong."""
    pairs = drawn_and_known(net, X[:2], 20_000, seed)
    assert [name for name, values, known in pairs if not passes(values, known)] == []
    wrong = [name for name, values, known in pairs if not passes(values, -known)]
    assert set(seen) <= set(wrong)


def test_draws_of_two_outputs_follow_it() -> None:
    net = MLP([2, 30, 60, 2], activation="tanh", bias_variance=0.2)
    wide = finwidth.expansion(net, X[:2], np.zeros((2, 2)))
    drawn = finwidth.sample_gram(net, X[:2], 20_000, seed=4, y=np.zeros((2, 2)), threads=1)
    K, dK = drawn.K.to_numpy(), drawn.dK.to_numpy()
    between, apart = first(wide, "K_between_covariance"), first(wide, "K_apart_covariance")
    moved = K - wide.K[0].to_numpy()[:, :, None, None]
    assert passes(K[:, 0, 1, 0, 1] ** 2, between[0, 1, 0, 1])
    assert passes(K[:, 0, 1, 0, 1] * K[:, 1, 0, 0, 1], between[0, 1, 1, 0])
    assert passes(moved[:, 0, 1, 0, 0] * moved[:, 0, 1, 1, 1], apart[0, 1, 0, 1])
    assert not passes(moved[:, 0, 1, 0, 0] ** 2, apart[0, 1, 0, 1])
    assert passes(dK[:, 0, 1, 0, 0], first(wide, "dK")[0, 1])
    assert not passes(dK[:, 0, 1, 0, 0], -first(wide, "dK")[0, 1])


def test_large_inputs_of_functions_that_saturate() -> None:
    """Deviations of 30: another rule than at 3, and K at infinite width by closed forms."""
    for size in (3.9, 4.1, 30.0):
        net = MLP([2, 9, 9, 1], activation="tanh")
        wide = finwidth.expansion(net, size * ORTHOGONAL, [0, 0])
        assert wide.K[0].to_numpy() == pytest.approx(finwidth.infinite_width_gram(net, size * ORTHOGONAL), rel=1e-10)
        assert wide.dK.attrs["error"] < 1e-9 * float(np.abs(wide.dK).max())


SIX = ("relu", "leaky_relu", "tanh", "erf", "gelu", "silu")


@pytest.mark.slow
@pytest.mark.parametrize("depth", [3, 4])
@pytest.mark.parametrize("activation", SIX)
def test_many_draws_follow_it(activation: str, depth: int) -> None:
    many_draws_follow(
        lambda scale: MLP(
            [2, *[scale * n for n in (20, 40, 30)[: depth - 1]], 1], activation=activation, bias_variance=0.1
        )
    )


def many_draws_follow(make: Callable[[int], Network], draws: int = 200_000, seen: float = 0.5) -> None:
    """Three inputs, unequal widths, random biases: means to a part of their deviations, at two widths extrapolated.

    Of the other sign a share of at least ``seen`` is seen to be wrong.
    """
    narrow, wide = (drawn_and_known(make(scale), X[:3], draws, seed) for scale, seed in ((1, 1), (2, 2)))
    wrong = 0
    for (name, one, known), (_, two, half) in zip(narrow, wide, strict=True):
        # 4 E[wide] - E[narrow] has no second order where the limit is 0, and with it where that is subtracted.
        shift = 2 * half - known if name.startswith("K ") and len(name) == 4 else 0.0
        extrapolated = 4 * (two - shift) - (one - shift)
        first_order = known - shift
        assert passes(extrapolated, first_order), name
        wrong += not passes(extrapolated, -first_order)
    assert wrong >= len(narrow) * seen  # all of dK and Cov(K, K); the others are small


# ---- refusals


@pytest.mark.parametrize(
    ("options", "arguments", "said"),
    [
        ({"weight_law": "uniform"}, {}, "its weights are uniform .*finwidth.infinite_width_gram"),
        ({"bias_variance": 1, "bias_law": "uniform"}, {}, "its initial biases are uniform"),
        ({}, {"y": [1, 2, 3]}, r"y has shape \(3,\); give finite numbers of shape \(2,\)"),
        ({}, {"points": 0}, "points is 0"),
        ({}, {"seed": -1}, "seed is -1"),
        ({}, {"X": [[1, 2, 3]]}, "the inputs have shape"),
        ({}, {"X": [[1e200, 0], [0, 1]]}, "leaves the range of a double"),
        ({"bias": "none"}, {"X": [[1e-40, 0], [0, 1]]}, "leaves the range of a double"),
        ({"activation": SmoothActivation("flat", np.sin, np.cos)}, {"y": [0, 0]}, "has no second derivative"),
        ({"activation": "tanh", "bias": "none"}, {"X": [[1, 0], [1, 1e-5]]}, "nearly parallel"),
        ({"activation": SmoothActivation("exp", np.exp, np.exp)}, {"X": [[5, 0]]}, "grows too fast"),
    ],
)
def test_refused(options: dict[str, Any], arguments: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"X": ORTHOGONAL, **arguments}
    with pytest.raises(FinwidthError, match=said):
        finwidth.expansion(MLP([2, 5, 5, 1], **options), **given)


def test_targets_do_not_matter() -> None:
    net = MLP([2, 5, 5, 1])
    one, other = (finwidth.expansion(net, ORTHOGONAL, y) for y in ([0, 0], [3, -1]))
    assert one.identical(other)
    assert "dK" not in finwidth.expansion(net, ORTHOGONAL)


# ---- criticality


def test_critical_gains() -> None:
    """Values of Roberts, Yaida and Hanin (2022), 5.3; (3 + sqrt(17))/2 solves <phi phi''> = 0 of gelu."""
    gelu, silu = finwidth.critical("gelu"), finwidth.critical("silu")
    assert (gelu.gain, gelu.bias_variance) == pytest.approx((1.98305826, 0.17292239), abs=1e-8)
    assert gelu.kernel == pytest.approx((3 + math.sqrt(17)) / 2, rel=1e-12)
    assert (silu.gain, silu.bias_variance) == pytest.approx((1.98800468, 0.55514317), abs=1e-8)
    for name, gain in (("tanh", 1), ("erf", math.pi / 4)):
        found = finwidth.critical(name)
        assert found.gain == pytest.approx(gain)
        assert (found.bias_variance, found.kernel, found.universality) == (0, 0, "K* = 0")
    for slopes in TWO_SLOPES:
        found = finwidth.critical(slopes)
        assert (found.kernel, found.universality) == (None, "scale-invariant")
    mine = SmoothActivation("my relu", lambda y: np.maximum(y, 0), lambda y: 1.0 * (y > 0))
    assert finwidth.critical(mine).universality == "scale-invariant"
    softplus = SmoothActivation("softplus", lambda y: np.logaddexp(0, y), lambda y: 1 / (1 + np.exp(-y)))
    for phi in (softplus, SmoothActivation("exp", np.exp, np.exp)):
        with pytest.raises(FinwidthError, match="critical at no gain"):
            finwidth.critical(phi)


@pytest.mark.parametrize("name", ["gelu", "silu"])
def test_covariances_stay_at_criticality(name: str) -> None:
    """Over many layers; not at the gain that keeps gradients at large pre-activations."""
    found = finwidth.critical(name)
    kernel = found.kernel or 0.0

    def last(gain: float) -> float:
        x = math.sqrt((kernel - found.bias_variance) / gain)
        net = MLP([1, *[10] * 30, 1], activation=name, gains=gain, bias_variance=found.bias_variance)
        return float(finwidth.expansion(net, [[x]]).output_covariance[0].item())

    assert last(found.gain) == pytest.approx(kernel, rel=1e-8)
    assert abs(last(2.0) - kernel) > 0.05
