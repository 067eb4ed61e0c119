"""Expectations over discrete weights, by running every one of the finitely many networks in fractions.

This ground truth knows nothing of paths or gates as coins: real forward passes, real slopes, real
backpropagation, and second derivatives by pushing two directions through the network at once.  It is
equal to the value for a law with a density (same moments) as long as no pre-activation is zero by
coincidence, for then all that is used is that the law is symmetric; a tie raises `TieError`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import product
from typing import TypeAlias

import numpy as np

from finwidth.networks.description import Layer
from finwidth.networks.laws import Rational, WeightLaw
from finwidth.networks.mlp import MLP

Vector: TypeAlias = list[Rational]
Matrix: TypeAlias = list[Vector]


class TieError(ValueError):
    """A pre-activation is zero by coincidence, which has probability 0 for a law with a density."""


@dataclass(frozen=True)
class Direction:
    """One number for every weight and every bias; ``weights[i][a][b]`` and ``biases[i][a]`` for layer i + 1."""

    weights: list[Matrix]
    biases: list[Vector]

    def scaled(self, by_weights: Sequence[Rational], by_biases: Sequence[Rational]) -> Direction:
        """The direction with every layer's weights and biases multiplied by the layer's factors."""
        return Direction(
            [
                [[c * entry for entry in row] for row in layer]
                for c, layer in zip(by_weights, self.weights, strict=True)
            ],
            [[e * entry for entry in layer] for e, layer in zip(by_biases, self.biases, strict=True)],
        )

    def dot(self, other: Direction) -> Rational:
        """The inner product."""
        mine, others = ([*each.biases, *(row for layer in each.weights for row in layer)] for each in (self, other))
        return sum(_dot(left, right) for left, right in zip(mine, others, strict=True))


@dataclass(frozen=True)
class RealNetwork:
    """One network with all its weights, at one input."""

    net: MLP
    layers: Sequence[Layer]
    parameters: Direction
    x: Sequence[Rational]

    @cached_property
    def _forward(self) -> tuple[list[Vector], list[Vector]]:
        """x^(0), ..., x^(d) and the slopes phi'(y^(i)) of the hidden layers."""
        values, slopes = [list(self.x)], []
        for i, layer in enumerate(self.layers):
            y = _affine(self.parameters.weights[i], values[-1], self.parameters.biases[i])
            if i < self.net.depth - 1:
                self._check_ties(y, dead=not any(values[-1]) and not layer.bias_variance)
                slopes.append([self._slope(each) for each in y])
                y = _scaled(slopes[-1], y)
            values.append(y)
        return values, slopes

    def _check_ties(self, y: Vector, *, dead: bool) -> None:
        phi = self.net.activation
        if not dead and phi.positive != phi.negative and not all(y):
            raise TieError(f"a pre-activation is exactly zero in {y!r}; choose another input or architecture")

    def _slope(self, y: Rational) -> Rational:
        phi = self.net.activation
        return _simplest(phi.at_zero if y == 0 else phi.positive if y > 0 else phi.negative)

    @property
    def hidden(self) -> list[Vector]:
        """x^(1), ..., x^(d-1)."""
        return self._forward[0][1:-1]

    def output(self, a: int = 0) -> Rational:
        """N_a(x)."""
        return self._forward[0][-1][a]

    def gradient(self, a: int = 0) -> Direction:
        """The gradient of N_a by the weights What and the biases, by backpropagation."""
        values, slopes = self._forward
        back: Vector = [int(c == a) for c in range(self.net.widths[-1])]
        weights: list[Matrix] = []
        biases: list[Vector] = []
        for i in reversed(range(self.net.depth)):
            weights.insert(0, [[row * entry for entry in values[i]] for row in back])
            biases.insert(0, back)
            if i:
                columns = zip(*self.parameters.weights[i], strict=True)
                back = _scaled(slopes[i - 1], [_dot(list(column), back) for column in columns])
        return Direction(weights, biases)

    @cached_property
    def gradients(self) -> list[Direction]:
        """The gradient of every output."""
        return [self.gradient(a) for a in range(self.net.widths[-1])]

    @cached_property
    def steps(self) -> list[dict[str, Direction]]:
        """For every output the direction in which SGD on it moves: the gradient times c_i ("w") and e_i ("b")."""
        zero = [0] * self.net.depth
        c = [_simplest(layer.weight_multiplier) for layer in self.layers]
        e = [_simplest(layer.bias_multiplier) for layer in self.layers]
        return [{"w": gradient.scaled(c, zero), "b": gradient.scaled(zero, e)} for gradient in self.gradients]

    def kernel(self, kind: str, a: int = 0, b: int = 0) -> Rational:
        """K_ab by weights ("w") or by biases ("b")."""
        return self.gradients[a].dot(self.steps[b][kind])

    def curvature(self, kinds: str, c: int = 0, a: int = 0) -> Rational:
        """g_c^T H_a g_a, with the part of g_c in ``kinds[0]``, that of g_a in ``kinds[1]``, and all multipliers."""
        return self.second_derivative(self.steps[c][kinds[0]], self.steps[a][kinds[1]], a)

    def second_derivative(self, u: Direction, v: Direction, a: int = 0) -> Rational:
        """d^2/ds dt of N_a at parameters + s u + t v, for s = t = 0, by one pass forward."""
        values, slopes = self._forward
        by_s: Vector = [0] * len(self.x)  # d/ds, d/dt and d^2/ds dt of x^(i)
        by_t: Vector = by_s
        by_both: Vector = by_s
        for i, weights in enumerate(self.parameters.weights):
            y_s = _sum(_affine(weights, by_s, u.biases[i]), _linear(u.weights[i], values[i]))
            y_t = _sum(_affine(weights, by_t, v.biases[i]), _linear(v.weights[i], values[i]))
            mixed = _sum(_linear(u.weights[i], by_t), _linear(v.weights[i], by_s))
            y_both = _affine(weights, by_both, mixed)
            last = i == self.net.depth - 1
            by_s, by_t, by_both = (each if last else _scaled(slopes[i], each) for each in (y_s, y_t, y_both))
        return by_both[a]


def _simplest(value: Rational) -> Rational:
    """An integer where it is one: both are exact, and integers are several times faster."""
    return value.numerator if value.denominator == 1 else value


def _dot(left: Sequence[Rational], right: Sequence[Rational]) -> Rational:
    total: Rational = sum(map(operator.mul, left, right))
    return total


def _sum(left: Vector, right: Vector) -> Vector:
    return [a + b for a, b in zip(left, right, strict=True)]


def _scaled(left: Vector, right: Vector) -> Vector:
    return [a * b for a, b in zip(left, right, strict=True)]


def _linear(matrix: Matrix, vector: Vector) -> Vector:
    return [_dot(row, vector) for row in matrix]


def _affine(matrix: Matrix, vector: Vector, offset: Vector) -> Vector:
    return _sum(_linear(matrix, vector), offset)


def discrete_law(name: str, *values: Fraction) -> WeightLaw:
    """The law that takes each of ``values`` with the same probability."""
    moments = tuple(sum((v**k for v in values), Fraction(0)) / len(values) for k in range(2, 9, 2))
    floats = [float(v) for v in values]

    def sample(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return rng.choice(floats, shape)

    return WeightLaw(name, moments, sample)


FOUR_VALUES = tuple(Fraction(k, 5) for k in (-7, -1, 1, 7))
TWO_VALUES = (Fraction(-1), Fraction(1))
FOUR_VALUED = discrete_law("four-valued", *FOUR_VALUES)
TWO_VALUED = discrete_law("two-valued", *TWO_VALUES)
_VALUES = {FOUR_VALUED.name: FOUR_VALUES, TWO_VALUED.name: TWO_VALUES}


def _root(value: Fraction) -> Fraction:
    root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
    if root * root != value:
        raise ValueError(f"{value} is not the square of a fraction; choose gains that make every variance one")
    return root


def every_network(net: MLP, x: Sequence[Rational]) -> Iterator[RealNetwork]:
    """All networks that ``net`` can draw, equally likely; its laws must be the discrete ones of this module."""
    layers = net.layers
    choices: list[Vector] = []
    for layer in layers:
        scale, bias_scale = _root(layer.weight_variance), _root(layer.bias_variance)
        choices += [[_simplest(scale * v) for v in _VALUES[net.weight_law.name]]] * (layer.fan_in * layer.fan_out)
        biases: Vector = [_simplest(bias_scale * v) for v in _VALUES[net.bias_law.name]] if bias_scale else [0]
        choices += [biases] * layer.fan_out
    for drawn in product(*choices):
        entries = iter(drawn)
        weights, biases_drawn = [], []
        for layer in layers:
            weights.append([[next(entries) for _ in range(layer.fan_in)] for _ in range(layer.fan_out)])
            biases_drawn.append([next(entries) for _ in range(layer.fan_out)])
        yield RealNetwork(net, layers, Direction(weights, biases_drawn), [_simplest(each) for each in x])


def average(
    net: MLP, x: Sequence[Rational], quantities: Callable[[RealNetwork], Mapping[str, Rational]]
) -> dict[str, Fraction]:
    """The exact means of ``quantities`` over every network, by name.

    >>> net = MLP([1, 1, 1], FOUR_VALUED, gains=1)
    >>> average(net, [1], lambda one: {"K_w": one.kernel("w"), "K_b": one.kernel("b")})
    {'K_w': Fraction(1, 1), 'K_b': Fraction(3, 2)}
    """
    totals: dict[str, Rational] = {}
    count = 0
    for count, network in enumerate(every_network(net, x), 1):  # noqa: B007
        for name, value in quantities(network).items():
            totals[name] = totals.get(name, 0) + value
    return {name: Fraction(total) / count for name, total in totals.items()}


def single_output(network: RealNetwork) -> dict[str, Rational]:
    """K_w^a K_b^b for a + b <= 4 ("wwb"), Delta_ww and Delta_wb ("delta ww"), and their squares."""
    kernels = {kind: network.kernel(kind) for kind in "wb"}
    deltas = {kinds: network.output() * network.curvature(kinds) for kinds in ("ww", "wb")}
    found = {"w" * a + "b" * b: kernels["w"] ** a * kernels["b"] ** b for a in range(5) for b in range(5 - a) if a + b}
    return {
        **found,
        **{f"delta {one}": value for one, value in deltas.items()},
        **{f"delta {one} {one}": value**2 for one, value in deltas.items()},
    }
