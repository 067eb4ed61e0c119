"""The expansion of residual networks: the exact engine, limits of infinite depth, a closed calculation, draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

import finwidth
from exact.test_expansion import (
    ORTHOGONAL,
    X,
    dropped,
    engine_differences,
    first,
    follow_draws,
    many_draws_follow,
    without,
)
from finwidth import MLP, BalancedResNet, FinwidthError, ResNet
from finwidth.exact.expansion import steps, tensors
from finwidth.networks.description import Fork, Join, Network, Step

# ---- the exact engine, at one input

WIDE = 10**12
x = [1.0, -0.5, 0.25]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"skip": "sqrt(1/2)", "branch": "1/sqrt(depth)", "bias": "frozen", "bias_variance": 0.5},
    {"skip": 0.5, "branch": [1.5, 0, 0.3], "bias_scale": 0.7, "gains": 1.3, "parameterization": "standard"},
]
MAKERS: dict[str, Callable[..., Network]] = {
    "unequal hidden widths": lambda **options: ResNet([3, WIDE, 1], 3, [WIDE, 3 * WIDE, WIDE // 2], **options),
    "hidden width n/4": lambda **options: ResNet([3, WIDE, 1], 3, WIDE // 4, **options),
    "balanced": lambda **options: BalancedResNet([3, WIDE, 1], 3, **options),
}


@pytest.mark.parametrize("name", MAKERS)
def test_one_input_is_that_of_the_exact_engine(name: str) -> None:
    for activation, options in product(("relu", "linear", "leaky_relu", "abs"), OPTIONS):
        net = MAKERS[name](activation=activation, **options)
        worst = engine_differences(net, x)
        assert max(worst.values()) < 1e-10, (net, worst)


MUTANTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "no F": (steps, "_sampled", without("F")),
    "no B": (steps, "_sampled", without("B")),
    "no way through the branch of one and the stream of the other": (steps, "_across", dropped),
    "a stream that is not sampled": (tensors, "_with_themselves", dropped),
    "no parameters of the layer itself": (steps, "through_weights", lambda right: lambda here, C, c: right(here, C, 0)),
}


@pytest.mark.parametrize("name", MUTANTS)
@pytest.mark.parametrize("kind", ["hidden width n/4", "balanced"])
def test_wrong_recursions_are_seen(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, attribute, mutant = MUTANTS[name]
    monkeypatch.setattr(module, attribute, mutant(getattr(module, attribute)))
    assert max(engine_differences(MAKERS[kind](), x).values()) > 1e-3


def test_depth_is_free_with_small_branches() -> None:
    """b^2 = c/L, a = 1, no biases: L -> infinity at one input of ReLU, whatever the hidden width.

    E[K^2] and E[dK] in that limit at width n, docs/theory/residual.md; their coefficients of 1/n by differences.
    """
    c = 0.5

    def limit(n: float) -> tuple[float, float]:
        k, f, growth = 1 + 2 / n, 1 - math.exp(-6 * c / n), math.exp((2 + 4 / n) * c)
        e6 = n / 6 * f
        pi, psi = ((k + r * (1 - f)) / 3 for r in (2 - 2 / n, -(1 - 1 / n)))
        I1, J1 = ((k * c + r * e6) / 3 for r in (2 - 2 / n, -(1 - 1 / n)))
        I2, J2 = ((k * c * c / 2 + r * n / 6 * (c - e6)) / 3 for r in (2 - 2 / n, -(1 - 1 / n)))
        second = growth * (2 * k + 2 * pi + 8 * k * I1 + 8 * k * k * I2)
        return second - (math.exp(c) * (2 + 2 * c)) ** 2, -2 * growth * (2 * psi + 8 * k * J1 + 8 * k * k * J2)

    n = 10**4
    known = [2 * 2 * n * twice - n * one for one, twice in zip(limit(n), limit(2 * n), strict=True)]
    known.append(math.exp(c) * (2 + 2 * c))
    for hidden in (n, n // 3):
        found = []
        for depth in (16, 32, 64):
            net = ResNet([1, n, 1], depth, hidden, branch=f"sqrt(1/{2 * depth})", bias="none")
            wide = finwidth.expansion(net, [[1.0]], [0])
            found.append([n * wide.K_covariance[1].item(), n * wide.dK[1].item(), wide.K[0].item()])
        one, two, four = np.array(found)
        extrapolated = (8 * four - 6 * two + one) / 3  # in 1/L and its square
        assert extrapolated == pytest.approx(known, rel=5e-4)


# ---- other routes to the same numbers


def test_a_skip_alone_is_a_linear_layer() -> None:
    """Without branches the stream is what a linear network has below its head; without skips the blocks are layers."""
    stem_and_head = MLP([2, 30, 1], activation="linear", gains=[1, 0.25], bias="none")
    net = ResNet([2, 30, 1], 2, skip=[0.5, 1], branch=0, gains=[1, 1, 1, 1], bias="none")
    layers = MLP([2, 30, 40, 30, 1], activation="linear", gains=1)
    blocks = ResNet([2, 30, 1], 1, 40, skip=0, activation="linear", gains=1)
    for one, other in ((stem_and_head, net), (layers, blocks)):
        pair = [finwidth.expansion(each, X[:2], [0, 0]) for each in (one, other)]
        for name in ("output_covariance", "output_cumulant") if one is stem_and_head else pair[0]:
            assert pair[0][name].to_numpy() == pytest.approx(pair[1][name].to_numpy(), rel=1e-12, abs=1e-14), name


def one_block_mean(net: ResNet, size: float) -> float:
    """E[K] at one input of length ``size``, no biases: a mean over chi2(n), as y = V x is Gaussian given |x|."""
    (block,), n, m = net.blocks, net.widths[1], net.hidden[0]
    phi, a2, b2 = net.activation, float(block.skip_squared), float(block.branch_squared)
    v, cV, w, cW = (
        float(each) for layer in (block.inner, block.outer) for each in (layer.weight_variance, layer.weight_multiplier)
    )
    theta = float(net.stem.weight_multiplier) * size**2
    z = np.linspace(-10, 10, 401)
    weights = 0.05 * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    u, uw = np.polynomial.legendre.leggauss(60)
    r = 1 + 12 * math.sqrt(2 / n) * u  # chi2(n)/n
    density = np.exp(n / 2 * (np.log(r) - r + 1)) / r
    density = uw * density / (uw * density).sum()
    total = 0.0
    for part, share in zip(r, density, strict=True):
        square = n * float(net.stem.weight_variance) * size**2 * part  # |x_0|^2
        y = math.sqrt(v * square) * z
        ss, tt = (weights @ f(y) ** 2 for f in (phi.value, phi.derivative))
        tty = weights @ (phi.derivative(y) ** 2 * y * y) / square
        # |V_k|^2 of the row of a neuron: y^2/|x_0|^2 along x_0, n - 1 others across.
        below = cV * square * tt + theta * (v * (n - 1) * tt + tty)
        H = n * (a2 * theta + b2 * (cW * m * ss + w * m * below))  # summed over the stream
        R = a2 * square + b2 * w * m * n * ss
        total += share * (float(net.head.weight_multiplier) * R + float(net.head.weight_variance) * H)
    return total


def one_block_differences() -> list[float]:
    found = []
    for name, ratio in product(("tanh", "gelu", "erf"), (1, 2)):
        shifts = []
        for n in (2000, 4000):
            net = ResNet(
                [1, n, 1], 1, n * ratio, activation=name, skip=0.8, branch=1.1, gains=[1, 1.5, 1, 0.7], bias="none"
            )
            wide = finwidth.expansion(net, [[1.3]])
            shifts.append(n * (one_block_mean(net, 1.3) - wide.K[0].item()))
        known = n * wide.K[1].item()
        found.append(abs(2 * shifts[1] - shifts[0] - known) / abs(known))
    return found


def test_the_mean_of_one_block_is_a_mean_over_the_length_of_its_stream() -> None:
    assert max(one_block_differences()) < 1e-5


@pytest.mark.parametrize("name", ["curved", "_slopes_with_weights"])
def test_means_without_second_derivatives_are_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, name, dropped(getattr(steps, name)))
    assert max(one_block_differences()) > 1e-2


def test_several_outputs() -> None:
    nets = [ResNet([2, 8, outputs], 2, activation="erf") for outputs in (1, 3)]
    one, three = (finwidth.expansion(net, X[:2], np.zeros((2, net.widths[-1])).squeeze()) for net in nets)
    for name in set(one) - {"dK"}:
        assert (three[name] == one[name]).all()
    within, between = first(three, "K_covariance"), first(three, "K_between_covariance")
    apart = first(three, "K_apart_covariance")
    assert within == pytest.approx(apart + between + np.einsum("abdc->abcd", between), rel=1e-12)


def test_inputs_of_zeros_and_many() -> None:
    net = ResNet([2, 10, 1], 2, bias="none")
    nothing = finwidth.expansion(net, [[0.0, 0.0], [1.0, 0.0]], [0, 0])
    alone = finwidth.expansion(net, [[1.0, 0.0]], [0])
    assert float(np.abs(nothing.K[:, 0]).max()) == 0
    assert first(nothing, "dK")[1, 1] == pytest.approx(first(alone, "dK").item(), rel=1e-12)
    four, pair = (finwidth.expansion(net, inputs) for inputs in (X, X[[1, 3]]))
    for name in pair:
        some = {each: [1, 3] for each in pair[name].dims if each != "order"}
        one, other = four[name].isel(some).to_numpy(), pair[name].to_numpy()
        assert one == pytest.approx(other, rel=1e-9, abs=1e-9 * np.abs(other[1]).max()), name


# ---- draws


def test_draws_follow_it() -> None:
    follow_draws(ResNet([2, 40, 1], 2, [30, 60], activation="tanh", branch=0.8, bias_variance=0.2), seed=3)


KINDS: dict[str, Callable[[int, str], Network]] = {
    "resnet": lambda s, name: ResNet(
        [2, 25 * s, 1], 3, [20 * s, 40 * s, 30 * s], activation=name, skip=0.8, branch=0.9, bias_variance=0.1
    ),
    "balanced": lambda s, name: BalancedResNet([2, 30 * s, 1], 2, activation=name, branch=0.8, bias_variance=0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize("kind", KINDS)
def test_many_draws_follow_it(kind: str, activation: str) -> None:
    many_draws_follow(lambda scale: KINDS[kind](scale, activation))


# ---- refusals


class Unbalanced(BalancedResNet):
    """Without its random signs."""

    def _inside(self, block: Any) -> Any:
        return super()._inside(block)[1:]


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (ResNet([2, 5, 1], 2, weight_law="uniform"), "its weights are uniform"),
        (Unbalanced([2, 5, 1], 2), "its activations act on the stream without random signs"),
    ],
)
def test_refused(net: Network, said: str) -> None:
    with pytest.raises(FinwidthError, match=said) as caught:
        finwidth.expansion(net, ORTHOGONAL)
    assert "\n" not in str(caught.value)


def test_steps_that_are_not_known_are_not_overlooked() -> None:
    class Other(ResNet):
        @property
        def stages(self) -> tuple[tuple[Step, ...], ...]:
            return ((self.stem,), (Fork(), object(), Join(1.0)), (self.head,))  # type: ignore[return-value]

    with pytest.raises(NotImplementedError):
        finwidth.expansion(Other([2, 5, 1], 1), ORTHOGONAL)
