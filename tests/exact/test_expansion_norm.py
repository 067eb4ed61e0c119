"""The expansion of normalised networks: exact moments, closed calculations, networks that are the same, and draws."""

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
from exact.test_expansion import (
    ORTHOGONAL,
    X,
    drawn_and_known,
    dropped,
    follow_draws,
    many_draws_follow,
    passes,
    without,
)
from finwidth import MLP, FinwidthError, Norm, ResNet
from finwidth.exact.expansion import steps, tensors
from finwidth.exact.normalised import perpetuity_moments
from finwidth.networks.activations import SmoothActivation
from finwidth.networks.description import Network

# ---- exact moments, at one input of networks without biases


def relative(one: float, other: float) -> float:
    return abs(one - other) / abs(other)


def perpetuity_differences() -> list[float]:
    """Mean and variance of K, of slopes of one size, at widths where the second order is lost in rounding."""
    found, n = [], 10**12
    for phi, position in product(("linear", "abs"), ("before", "after")):
        net = MLP([2, n, 3 * n, 2 * n, 1], activation=phi, norm=Norm("rms", position), bias="none", gains=1.5)
        mean, second = perpetuity_moments(net)
        wide = finwidth.expansion(net, [[0.3, -0.8]])
        found.append(relative(wide.K[0].item(), 6.0))
        found.append(relative(wide.K[1].item(), float(mean - 6)))
        found.append(relative(wide.K_covariance[1].item(), float(second - mean**2)))
    return found


def test_slopes_of_one_size_are_those_of_the_perpetuity() -> None:
    assert max(perpetuity_differences()) < 1e-10


def test_relu_before_a_norm_is_that_of_the_perpetuity() -> None:
    """Given five open neurons or more in each layer; without that condition E[K] is infinite."""
    coefficients = []
    for n in (100, 200, 400):
        net = MLP([2, n, 2 * n, 1], norm=Norm("rms", "after"), bias="none")
        mean, second = perpetuity_moments(net)
        coefficients.append([n * (float(mean) - 3), n * float(second - mean**2)])
    one, two, four = np.array(coefficients)
    wide = finwidth.expansion(net, [[0.3, -0.8]])
    known = [n * wide.K[1].item(), n * wide.K_covariance[1].item()]
    assert (8 * four - 6 * two + one) / 3 == pytest.approx(known, rel=1e-3)


def test_the_output_of_a_normalised_network_does_not_vary_with_its_kernel() -> None:
    """N is N(0, g) given all layers but the last."""
    for norm in ("rms", "layer"):
        for net in (MLP([2, 9, 9, 1], norm=Norm(norm, "after")), ResNet([2, 9, 1], 2, norm=norm, bias=BIASES)):
            wide = finwidth.expansion(net, [[0.3, -0.8]])
            assert wide.output_cumulant[1].item() == pytest.approx(0, abs=1e-12)


BIASES = ("trained", "trained", "trained", "none")

# ---- closed calculations


def squares_over_the_sphere(n: int, dimensions: int) -> float:
    """Var of the mean of relu(u)^2 over n neurons; u of mean square 1 has a uniform direction in the dimensions.

    Of Gaussian neurons in place of u, whose length is independent of their direction.
    """
    variance = dimensions / n
    theta = math.pi / 2 if dimensions == n else math.acos(-1 / (n - 1))
    cos, sin = math.cos(theta), math.sin(theta)
    mixed = variance**2 * (3 * sin * cos + (math.pi - theta) * (1 + 2 * cos**2)) / (2 * math.pi)
    fourth = n * 1.5 * variance**2 + n * (n - 1) * mixed
    return fourth / (dimensions * (dimensions + 2)) - 0.25


def sphere_differences() -> list[float]:
    found, n = [], 10**6
    for norm, dimensions in (("rms", n), ("layer", n - 1)):
        wide = finwidth.expansion(MLP([2, n, 1], norm=norm, bias="none", gains=[2, 1.5]), [[0.3, -0.8]])
        known = 3 * 1.5**2 * squares_over_the_sphere(n, dimensions)
        found.append(relative(wide.output_cumulant[1].item(), known))
    return found


def test_relu_of_a_direction() -> None:
    assert max(sphere_differences()) < 1e-4


BENT = SmoothActivation("bent", lambda y: y + 0.5 * y * y, lambda y: 1 + y, 1, np.ones_like)


def two_norms_after(epsilon: float) -> tuple[float, float]:
    """First correction of E[N^2], one input, LayerNorm after `BENT`: times n, by the delta method, and as it is found.

    A layer of covariance g has E[phi^2] - E[phi]^2 = v(g), and the fourth central moment of phi, w(g).
    """
    n, gain = 50, 1.3

    def v(g: float) -> float:
        return g + g * g / 2

    def w(g: float) -> float:
        return 3 * g**2 + 15 * g**3 + 15 / 4 * g**4  # of y + (y^2 - g)/2: E[(z + h)^4]

    def divided(r: float) -> float:
        return r / (r + epsilon)

    def shift(f: Callable[[float], float], at: float, mean: float, variance: float) -> float:
        e = 1e-3 * at
        up, down = f(at + e), f(at - e)
        return mean * (up - down) / (2 * e) + variance * (up + down - 2 * f(at)) / (2 * e * e)

    def sampled(g: float) -> tuple[float, float]:
        """n times the shift and the variance of the mean square over neurons, less the square of their mean."""
        return -v(g), w(g) - v(g) ** 2

    first_g = gain * 0.73 / 2
    moved = shift(lambda r: divided(v(gain * divided(r))), v(first_g), *sampled(first_g))
    second_g = gain * divided(v(first_g))
    own = shift(divided, v(second_g), *sampled(second_g))
    net = MLP([2, n, n, 1], activation=BENT, gains=gain, bias="none", norm=Norm("layer", "after", epsilon=epsilon))
    wide = finwidth.expansion(net, [[0.3, -0.8]])
    assert wide.output_covariance[0].item() == pytest.approx(gain * divided(v(second_g)), rel=1e-12)
    return gain * (moved + own), n * wide.output_covariance[1].item()


def centred_means() -> tuple[float, float]:
    """The first correction of E[K] where neurons of `BENT` are centred and not divided, times n; known, found.

    Neurons y of layer 1 are N(0, g), and K is a function h of R, the variance of phi over them, and T = avg phi'^2, but
    for terms in 1/n: U = <phi'^2 (phi - <phi>)^2> comes from the correlation of slopes and weights, and from kernels
    between neurons.
    """
    n, e, C = 50, 10**12, 1.3
    g = C * 0.73 / 2
    z, weights = np.polynomial.hermite_e.hermegauss(12)
    y, weights = math.sqrt(g) * z, weights / math.sqrt(2 * math.pi)
    s, t = y + (y * y - g) / 2, (1 + y) ** 2
    R, T, U = (float(weights @ each) for each in (s * s, t, t * s * s))
    variance, covariance = float(weights @ s**4) - R * R, U - R * T
    below, last = C * R + C * g * T, C * (C * R + (C * R) ** 2 / 2)  # h = C (1 + C R) below + last
    by_R, by_T = C * (C * below + (1 + C * R) * C + C + C * C * R), C * (1 + C * R) * C * g
    known = -R * by_R - T * by_T + 3 / 2 * C**3 * variance + C**3 * g * covariance
    known += 2 * C**3 * g * U - C**3 * g * U - C * (1 + C * R) * below - last
    options: dict[str, Any] = {"gains": [C, C * e, C * e], "norm": Norm("layer", "after", epsilon=e)}
    wide = finwidth.expansion(MLP([2, n, n, 1], activation=BENT, bias="none", **options), [[0.3, -0.8]])
    assert wide.K[0].item() == pytest.approx(C * (1 + C * R) * below + last, rel=1e-9)
    return known, n * wide.K[1].item()


def bent_differences() -> list[float]:
    return [relative(found, known) for known, found in (two_norms_after(0.3), two_norms_after(100.0), centred_means())]


def test_a_mean_over_neurons_that_is_taken_away() -> None:
    assert max(bent_differences()) < 1e-5


def scaled_differences() -> list[float]:
    """A head that reads trained scales g times a linear stem, as epsilon is large and blocks are without branches.

    N = sqrt(C/n) sum_i w_i g_i y_i with w ~ N(0, 1), g = 1 and y ~ N(0, k): K = (C/n) sum_i [y^2 + w^2 y^2 + k w^2], so
    that n Var K = C^2 k^2 Var(A + B + A B) with A, B squares of standard normals, 29 - 9, and
    E[grad K . grad N N] = (C^2/n) E[4 w^2 y^4 + 4 k w^2 y^2 + 4 k w^4 y^2] = 28 (C k)^2/n.
    """
    n, C, e = 30, 1.3, 10**12
    norm = Norm("rms", epsilon=e, parameters="trained")
    net = ResNet([2, n, 1], 2, skip=0.8, branch=0, gains=[1.5, 1, 1, C * e], norm=norm, bias="none")
    wide = finwidth.expansion(net, [[0.3, -0.8]], [0])
    Ck = C * 0.8**4 * 1.5 * 0.73 / 2
    found = [relative(wide.K[0].item(), 3 * Ck), abs(wide.K[1].item()) / Ck * n]
    found += [relative(n * wide.K_covariance[1].item(), 20 * Ck**2), relative(n * wide.dK[1].item(), -28 * Ck**2)]
    return [*found, relative(n * wide.K_output_covariance[1].item(), 12 * Ck**2)]


def test_trained_scales_of_a_linear_network() -> None:
    assert max(scaled_differences()) < 1e-9


# ---- networks that are the same


def same_quantities(one: Network, other: Network, inputs: list[npt.NDArray[np.float64]]) -> None:
    pair = [finwidth.expansion(net, each, np.zeros(len(each))) for net, each in zip((one, other), inputs, strict=True)]
    for name in pair[0]:
        values = [each[name].to_numpy() for each in pair]
        assert values[0] == pytest.approx(values[1], rel=1e-8, abs=1e-9 * np.abs(values[1]).max()), name


def test_a_large_epsilon_leaves_nothing_of_a_norm_but_a_factor() -> None:
    """Which the gains of the layers above take back."""
    e = 10**12
    options: dict[str, Any] = {"activation": "gelu", "bias": "none"}
    layers = [MLP([2, 9, 8, 1], gains=1.5, **options), MLP([2, 9, 8, 1], gains=[1.5, 1.5 * e, 1.5 * e],
              norm=Norm("rms", "after", epsilon=e), **options)]  # fmt: skip
    blocks = [ResNet([2, 9, 1], 2, gains=[1, 1.5, 1, 1.5], **options), ResNet([2, 9, 1], 2,
              gains=[1, 1.5 * e, 1, 1.5 * e], norm=Norm("rms", epsilon=e), **options)]  # fmt: skip
    for one, other in (layers, blocks):
        same_quantities(one, other, [X[:2]] * 2)


NORMS = [Norm(kind, position) for kind, position in product(("rms", "layer"), ("before", "after"))]


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: f"{norm.kind} {norm.position}")
def test_the_size_of_an_input_does_not_matter(norm: Norm) -> None:
    """Where the first layer is normalised: outputs and kernels of x and 3x are equal in every network."""
    nets = [MLP([2, 9, 8, 1], activation="relu" if norm.position == "after" else "gelu", norm=norm, bias="none")]
    nets += [MLP([2, 9, 8, 1], norm=norm, bias="none")]
    inputs = np.array([[0.3, -0.8], [1.0, 0.5]])
    for net in nets:
        same_quantities(net, net, [inputs, inputs * [[3.0], [0.5]]])
        both = finwidth.expansion(net, [inputs[0], 3 * inputs[0]], [0, 0])
        for name in both:
            values = both[name].sel(order=1).to_numpy()
            size = max(np.abs(values).max(), 1e-3)
            assert np.abs(values - values.ravel()[0]).max() < 1e-9 * size, name


def test_layernorm_of_linear_networks_is_rmsnorm_in_one_dimension_less() -> None:
    """Which is of second order."""
    for position in ("before", "after"):
        one, other = (
            MLP([2, 9, 8, 1], activation="linear", norm=Norm(kind, position), bias="none") for kind in ("rms", "layer")
        )
        same_quantities(one, other, [X[:2]] * 2)


# ---- wrong recursions


def changed(name: str, change: Callable[[Any], Any]) -> Callable[..., Any]:
    """`through_norm` with one tensor by a changed argument."""

    def mutant(right: Callable[..., Any]) -> Callable[..., Any]:
        def wrong(here: Any, *given: Any) -> Any:
            return replace(right(here, *given), **{name: getattr(right(change(here), *given), name)})

        return wrong

    return mutant


def only_divided(right: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(here: Any, K: Any, Theta: Any, inverse: Any) -> Any:
        return tensors.Between(*(tensors.on_pair(np.sqrt(np.outer(inverse, inverse)), each) for each in here))

    return wrong


def unbent(name: str) -> Callable[..., Any]:
    """Means in which V or F does not meet the bend of the activation."""

    def mutant(right: Callable[..., Any]) -> Callable[..., Any]:
        def wrong(x: Any, pairs: Any) -> Any:
            values, slopes = right(x, pairs)
            no_values, no_slopes = right(x, replace(pairs, bend=0 * pairs.bend))
            return (no_values, slopes) if name == "V" else (values, no_slopes)

        return wrong

    return mutant


MUTANTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "no derivative of the norm": (steps, "through_norm", only_divided),
    "no curvature in P": (steps, "through_norm", changed("P", lambda here: replace(here, B=0 * here.B))),
    "no curvature in Q": (steps, "through_norm", changed("Q", lambda here: replace(here, F=0 * here.F))),
    "no F": (steps, "_sampled", without("F")),
    "no second derivatives": (steps, "curved", dropped),
    "neurons whose mean is 0, but independent": (steps, "_of_shared", dropped),
    "their values": (steps, "_of_shared", without("V")),
    "their kernels": (steps, "_of_shared", without("F")),
    "their first move": (steps, "_of_shared", without("Q", "Q_back")),
    "a mean that is taken away, but fixed": (steps, "_activated_means", unbent("V")),
    "kernels that it does not meet": (steps, "_activated_means", unbent("F")),
    "scales whose kernels are not those of a neuron": (steps, "_of_scales", without("F")),
    "scales of fixed kernels": (steps, "_of_scales", without("B")),
    "scales without a first move": (steps, "_of_scales", without("P", "Q", "Q_back")),
    "scales whose kernels do not vary": (steps, "through_scales", lambda right: lambda here: here),
}
BY_DRAWS = {"no curvature in P", "no curvature in Q", "no F", "their kernels", "their first move"}
LAYERNORM = MLP([2, 20, 25, 1], activation="gelu", bias_variance=0.2, norm=Norm("layer", epsilon=0.1))


@pytest.fixture(scope="module")
def drawn() -> list[tuple[str, Any, float]]:
    return drawn_and_known(LAYERNORM, X[:2], 60_000, 3)


def test_draws_follow_it(drawn: list[tuple[str, Any, float]]) -> None:
    assert [name for name, values, known in drawn if not passes(values, known)] == []


@pytest.mark.parametrize("name", MUTANTS)
def test_wrong_recursions_are_seen(name: str, drawn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module, attribute, mutant = MUTANTS[name]
    monkeypatch.setattr(module, attribute, mutant(getattr(module, attribute)))
    if name in BY_DRAWS:
        wrong = finwidth.expansion(LAYERNORM, X[:2], [0, 0])
        known = {"dK 00": wrong.dK[1, 0, 0].item(), "dK 01": wrong.dK[1, 0, 1].item()}
        assert not all(passes(values, known[name]) for name, values, _ in drawn if name in known)
    else:
        assert max(perpetuity_differences() + sphere_differences() + bent_differences() + scaled_differences()) > 1e-3


# ---- draws


def test_draws_of_residual_networks_follow_it() -> None:
    norm = Norm("layer", epsilon=0.1, parameters="trained")
    net = ResNet([2, 40, 1], 2, [30, 60], activation="tanh", bias_variance=0.2, norm=norm)
    follow_draws(net, seed=3, seen=("dK 01", "K K 0001"))


MAKERS: dict[str, Callable[..., Network]] = {
    "layers": lambda s, **options: MLP([2, 30 * s, 60 * s, 45 * s, 1], **options),
    "blocks": lambda s, **options: ResNet([2, 40 * s, 1], 2, [30 * s, 60 * s], skip=0.8, branch=0.9, **options),
}


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: f"{norm.kind} {norm.position}")
@pytest.mark.parametrize("kind", MAKERS)
def test_many_draws_follow_it(kind: str, norm: Norm, activation: str) -> None:
    # Outputs hardly vary with the kernel, and dK is small: fewer means are large enough to be seen with another sign.
    trained = kind == "blocks" and norm.position == "before"
    some = Norm(norm.kind, norm.position, epsilon=0.1, parameters="trained" if trained else "none")
    many_draws_follow(lambda s: MAKERS[kind](s, activation=activation, norm=some, bias_variance=0.1), 100_000, seen=0.3)


# ---- refusals


def test_trained_parameters_of_a_norm_are_refused_where_no_layer_reads_them() -> None:
    before, after = (Norm("layer", position, parameters="trained") for position in ("before", "after"))
    layers = [MLP([2, 5, 5, 1], norm=norm) for norm in (before, after)]
    for net in (*layers, ResNet([2, 5, 1], 2, norm=after)):
        with pytest.raises(FinwidthError, match="the parameters of its norm are trained") as caught:
            finwidth.expansion(net, ORTHOGONAL)
        assert "\n" not in str(caught.value)


def test_a_zero_input_stays_zero() -> None:
    for norm in NORMS:
        nothing = finwidth.expansion(
            MLP([2, 9, 8, 1], activation="tanh", norm=norm, bias="none"), [[0, 0], [1, 2]], [0, 0]
        )
        assert float(np.abs(nothing.K[:, 0]).max()) == 0
        assert np.isfinite(nothing.dK).all()


def test_layernorm_of_a_stream_is_rmsnorm_in_one_dimension_less() -> None:
    """The mean that a LayerNorm took away is not there for the next.

    What it gives is longer by the root of n/(n - 1), a number for each dimension, beside what a branch adds.
    """
    n, h = 50, 1e-4

    def K(kind: str, factor: float = 1.0) -> Any:
        skips = [0.8, 1.5 * factor, factor]  # the first is of the stem, which has no norm
        net = ResNet([2, n, 1], 3, skip=skips, branch=[1, 0, 0.5], norm=Norm(kind, "after"), bias="none")
        return finwidth.expansion(net, [[1.0, 0.3], [-0.2, 1.0]]).K.to_numpy()

    longer = (K("rms", 1 + h) - K("rms", 1 - h))[0] / (2 * h) / (2 * n)
    np.testing.assert_allclose((K("layer") - K("rms"))[1], longer, rtol=1e-6)
    assert np.all(abs(longer) > 1e-3)
