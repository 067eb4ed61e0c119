"""Every residual network of a discrete law, in whole numbers: forward passes, slopes and backpropagation; no paths.

All that a description can draw are run at once, in arrays of whole numbers: variances, multipliers, factors and slopes
have to be such that nothing else occurs, and that 64 bits suffice.

With several neurons in the stream, pre-activations of discrete weights can be zero by coincidence.  A law with a
density close to the discrete one breaks such a tie by the noise in that neuron's own weights, which is symmetric: to
either side with probability one half, whatever else happens.  So every network is run once for each choice of sides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import product
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from exhaustive import TWO_VALUED
from finwidth.networks.description import Layer
from finwidth.networks.laws import WeightLaw
from finwidth.networks.resnet import ResNet

Whole: TypeAlias = npt.NDArray[np.int64]  # the first axis is that of the networks
Parameters: TypeAlias = list[tuple[Whole, Whole]]  # of each layer: weights (.., fan_out, fan_in), biases (.., fan_out)

ODD = WeightLaw(
    "odd",
    tuple(Fraction(1 + 9**k, 2 * 5**k) for k in range(1, 5)),
    lambda rng, shape: rng.choice([-3, -1, 1, 3], shape),
)
VALUES = {  # by law a variance, and the values that a weight then has
    TWO_VALUED.name: (1, (-1, 1)),
    ODD.name: (5, (-3, -1, 1, 3)),
}


def whole(value: Fraction) -> int:
    """A whole number; there must be no others."""
    assert value.denominator == 1, value
    return value.numerator


def root(value: Fraction) -> int:
    """The square root, which must be a whole number."""
    found = math.isqrt(whole(value))
    assert found**2 == value, value
    return found


def values(law: WeightLaw, variance: Fraction) -> list[int]:
    """All equally likely values of a weight or bias."""
    if not variance:
        return [0]
    unit, listed = VALUES[law.name]
    return [root(variance / unit) * value for value in listed]


def apply(parameters: tuple[Whole, Whole], x: Whole) -> Whole:
    weights, biases = parameters
    return np.asarray((weights * x[..., None, :]).sum(-1) + biases)


def apply_transposed(weights: Whole, x: Whole) -> Whole:
    return np.asarray((weights * x[..., :, None]).sum(-2))


@dataclass(frozen=True)
class EveryResNet:
    """All networks that ``net`` can draw, equally likely, at one input."""

    net: ResNet
    x: Sequence[int]

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Stem, inner and outer layer of each block, head."""
        blocks = [layer for block in self.net.blocks for layer in (block.inner, block.outer)]
        return (self.net.stem, *blocks, self.net.head)

    @cached_property
    def factors(self) -> list[tuple[int, int]]:
        """Skip and branch of each block."""
        return [(root(block.skip_squared), root(block.branch_squared)) for block in self.net.blocks]

    @cached_property
    def _drawn(self) -> Whole:
        """One row for each network and choice of sides."""
        net = self.net
        choices: list[list[int]] = []
        for layer in self.layers:
            choices += [values(net.weight_law, layer.weight_variance)] * (layer.fan_in * layer.fan_out)
            choices += [values(net.bias_law, layer.bias_variance)] * layer.fan_out
        kinked = net.activation.positive != net.activation.negative
        choices += [[1, -1] if kinked else [1]] * sum(net.hidden)
        return np.array(list(product(*choices)), dtype=np.int64)

    @cached_property
    def parameters(self) -> Parameters:
        """All weights and biases."""
        found, place, networks = [], 0, len(self._drawn)
        for layer in self.layers:
            middle = place + layer.fan_in * layer.fan_out
            weights = self._drawn[:, place:middle].reshape(networks, layer.fan_out, layer.fan_in)
            place = middle + layer.fan_out
            found.append((weights, self._drawn[:, middle:place]))
        return found

    @cached_property
    def _forward(self) -> tuple[list[Whole], list[Whole], list[Whole]]:
        """The stream x_0, ..., x_L, and the hidden vectors z_l and the slopes of all blocks."""
        phi, theta = self.net.activation, self.parameters
        sides = np.split(self._drawn[:, -sum(self.net.hidden) :], np.cumsum(self.net.hidden)[:-1], axis=1)
        stream, hidden, slopes = [apply(theta[0], np.array([self.x]))], [], []
        for place, ((skip, branch), side) in enumerate(zip(self.factors, sides, strict=True)):
            y = apply(theta[2 * place + 1], stream[-1])
            broken = np.where(y == 0, side, y)
            slope = np.where(broken > 0, whole(phi.positive), whole(phi.negative))
            slopes.append(slope if y.any() else 0 * slope + whole(phi.at_zero))  # zero in all networks is no tie
            hidden.append(slopes[-1] * y)
            stream.append(skip * stream[-1] + branch * apply(theta[2 * place + 2], hidden[-1]))
        return stream, hidden, slopes

    @property
    def stream(self) -> list[Whole]:
        """x_0, ..., x_L."""
        return self._forward[0]

    def output(self, a: int = 0) -> Whole:
        """N_a(x)."""
        return apply(self.parameters[-1], self.stream[-1])[:, a]

    def gradient(self, a: int = 0) -> Parameters:
        """The gradient of N_a by all weights and biases, by backpropagation."""
        (stream, hidden, slopes), theta = self._forward, self.parameters
        back = np.zeros((len(self._drawn), self.net.widths[-1]), np.int64)
        back[:, a] = 1
        into, values = [back], [stream[-1]]  # what multiplies a layer's input in its gradient; that input
        back = apply_transposed(theta[-1][0], back)
        for place, (skip, branch) in reversed([*enumerate(self.factors)]):
            outer = branch * back
            inner = slopes[place] * apply_transposed(theta[2 * place + 2][0], outer)
            into, values = [inner, outer, *into], [stream[place], hidden[place], *values]
            back = skip * back + apply_transposed(theta[2 * place + 1][0], inner)
        into, values = [back, *into], [np.array([self.x]), *values]
        return [(g[:, :, None] * v[:, None, :], g) for g, v in zip(into, values, strict=True)]

    def second_derivative(self, u: Parameters, v: Parameters, a: int = 0) -> Whole:
        """d^2/ds dt of N_a at parameters + s u + t v, for s = t = 0, by one pass forward."""
        stream, hidden, slopes = self._forward

        def through(place: int, x: Whole, along: Sequence[Whole]) -> list[Whole]:
            """The derivatives by s, by t and by both, through a layer with input ``x``."""
            weights, (by_s, by_t, by_both) = self.parameters[place][0], along
            none = np.zeros(1, np.int64)
            mixed = apply((u[place][0], none), by_t) + apply((v[place][0], none), by_s)
            return [
                apply((weights, none), by_s) + apply(u[place], x),
                apply((weights, none), by_t) + apply(v[place], x),
                apply((weights, none), by_both) + mixed,
            ]

        x = np.array([self.x])
        along = through(0, x, [0 * x] * 3)
        for place, (skip, branch) in enumerate(self.factors):
            inner = [slopes[place] * each for each in through(2 * place + 1, stream[place], along)]
            outer = through(2 * place + 2, hidden[place], inner)
            along = [skip * one + branch * other for one, other in zip(along, outer, strict=True)]
        return through(len(self.layers) - 1, stream[-1], along)[2][:, a]

    def step(self, kind: str, a: int = 0) -> Parameters:
        """The gradient of N_a times c_i for weights ("w"), or e_i for biases ("b"); 0 for the other kind."""
        of_weights = kind == "w"
        return [
            (whole(layer.weight_multiplier) * of_weights * w, whole(layer.bias_multiplier) * (not of_weights) * b)
            for layer, (w, b) in zip(self.layers, self.gradient(a), strict=True)
        ]

    def kernel(self, kind: str, a: int = 0, b: int = 0) -> Whole:
        """K_ab by weights ("w") or by biases ("b")."""
        products = [
            (one * other).reshape(len(one), -1).sum(1)
            for layer in zip(self.gradient(a), self.step(kind, b), strict=True)
            for one, other in zip(*layer, strict=True)
        ]
        return np.asarray(np.sum(products, axis=0))

    def curvature(self, kinds: str, c: int = 0, a: int = 0) -> Whole:
        """g_c^T H_a g_a, with the part of g_c in ``kinds[0]``, that of g_a in ``kinds[1]``, and all multipliers."""
        return self.second_derivative(self.step(kinds[0], c), self.step(kinds[1], a), a)


def mean(*factors: Whole) -> Fraction:
    """The mean of a product over all networks."""
    products = [math.prod(values) for values in zip(*(each.tolist() for each in factors), strict=True)]
    return Fraction(sum(products), len(products))


def single_output(networks: EveryResNet) -> Mapping[str, Fraction]:
    """E[K_w^a K_b^b] for a + b <= 4 ("wwb"), of Delta_ww and Delta_wb ("delta ww"), and of their squares."""
    kernels = {kind: networks.kernel(kind) for kind in "wb"}
    deltas = {kinds: networks.output() * networks.curvature(kinds) for kinds in ("ww", "wb")}
    powers = ["w" * a + "b" * b for a in range(5) for b in range(5 - a) if a + b]
    return {
        **{kinds: mean(*(kernels[kind] for kind in kinds)) for kinds in powers},
        **{f"delta {one}": mean(value) for one, value in deltas.items()},
        **{f"delta {one} {one}": mean(value, value) for one, value in deltas.items()},
    }
