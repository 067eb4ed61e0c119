r"""The kernel matrix of infinitely wide networks, for comparison: the limit that finite widths deviate from.

With Q_i the covariance of the pre-activations of layer i at the inputs, and E over a Gaussian pair of that covariance::

    Q_1 = v_1 X X^T + b_1,   Q_{i+1} = v_{i+1} n_i E[phi phi](Q_i) + b_{i+1}
    G_d = 1,   G_i = v_{i+1} n_i E[phi' phi'](Q_i) * G_{i+1}
    K = sum_i (c_i A_{i-1} + e_i) * G_i,   A_0 = X X^T,   A_i = n_i E[phi phi](Q_i)

(Jacot, Gabriel, Hongler 2018, written for any parameterization).  The expectations have closed forms for two slopes and
for the smooth activations that come with the package (`gaussian_means`); those of a user's are integrated
(`quadrature`).  A matrix is kept as the lengths of its vectors and the cosines and sines of their angles, so that
neither tiny nor huge nor nearly parallel inputs lose digits (docs/theory/infinite-width.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from finwidth.errors import FinwidthError
from finwidth.exact.gaussian_means import ArcCosine, Pairs, alone, mixture_of
from finwidth.exact.quadrature import PRECISION, Integrated
from finwidth.memory import afford
from finwidth.networks.activations import Activation, SmoothActivation
from finwidth.networks.description import Network
from finwidth.networks.inputs import check_inputs
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.networks.routes import check_supported, not_normalised, other_kind
from finwidth.progress import stage

# A smaller input that is not zero is taken as this long, in its direction: what depends on its length, the weights'
# part of K, is 0 in a double either way, and the biases' part depends on its direction only.
_SHORTEST = 1e-290
_ROUNDING = 2.0**-50  # of a cosine that is computed from means
_NEARLY = 0.1  # a sine below which rounding of the cosine may show
_PAIRS = 2**10  # worked on at once


_Places: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Vectors:
    """m vectors by their lengths, shape (m,), and the cosines and sines of the angles between them, (m, m)."""

    lengths: FloatArray
    cos: FloatArray
    sin: FloatArray

    def with_constant(self, factor: float, constant: float) -> Vectors:
        """All lengths times a factor, and one more entry, the same for all."""
        s = factor * self.lengths
        if not constant:
            return Vectors(s, self.cos, self.sin)
        lengths = np.hypot(s, constant)
        p, q = s / lengths, constant / lengths
        top, bottom = np.maximum.outer(lengths, lengths), np.minimum.outer(lengths, lengths)
        half = np.where(self.cos > 0, self.sin / np.sqrt(2 * (1 + np.abs(self.cos))), np.sqrt((1 - self.cos) / 2))
        one, other = s[:, None] / top, s / top
        between = np.hypot(one - other, 2 * np.sqrt(one * other) * half)  # of the vectors, without the entry, over top
        sin = np.hypot(np.outer(p, p) * self.sin, between * (constant / bottom))
        return Vectors(lengths, np.outer(p, p) * self.cos + np.outer(q, q), sin)


@dataclass(frozen=True)
class Means:
    """Of one layer: the vectors phi(y) over neurons, and the lengths and cosines of the vectors phi'(y)."""

    values: Vectors
    slopes: FloatArray
    slope_cos: FloatArray


def unsupported(net: Network) -> list[str]:
    """Reasons why `infinite_width_gram` does not serve this network: it serves every `MLP` without a norm."""
    return other_kind(net, MLP) + not_normalised(net)


def infinite_width_gram(net: MLP, X: npt.ArrayLike) -> FloatArray:
    """K at several inputs of the network with the same gains and infinitely wide hidden layers, shape (m, m).

    Right to 10^-10 of sqrt(K_aa K_bb), and usually to rounding, for inputs of any size: for two slopes and the smooth
    activations that come with the package by closed forms, O(m^2) a layer; a user's functions, with kinks or not, are
    integrated for each pair of inputs, which takes up to 0.5 s where they are not smooth or pre-activations are large.

    Parameters
    ----------
    net
        Any `MLP`; its hidden widths enter only where the parameterization puts them into learning rates.
    X
        Inputs, shape (m, n_0).

    Raises
    ------
    FinwidthError
        If an argument is not allowed, the kernel overflows a double, or its precision cannot be reached: a user's
        function that oscillates or grows too fast, or inputs whose angle a layer makes too small to know.

    Examples
    --------
    >>> import finwidth
    >>> finwidth.infinite_width_gram(finwidth.MLP([2, 3, 3, 1], bias="none"), [[1, 0], [0, 1]]).round(4)
    array([[1.5   , 0.3429],
           [0.3429, 1.5   ]])
    >>> float(finwidth.infinite_width_gram(finwidth.MLP([1, 50, 50, 1], activation="tanh"), [[1000]])[0, 0])
    249.425...
    """
    check_supported("finwidth.infinite_width_gram", net)
    inputs, layers = check_inputs(net, X), net.layers
    m = len(inputs)
    at_once = 6 if isinstance(net.activation, SmoothActivation) else 24  # matrices, beside those that layers keep
    needed = 8 * m * m * (3 * net.depth + at_once)
    afford(needed, f"a kernel of {m} inputs and {net.depth} layers", "take fewer inputs, or fewer layers")
    with (
        np.errstate(over="ignore", invalid="ignore", under="ignore"),
        stage("kernel at infinite width", net.depth * m * m) as told,
    ):
        vectors, means = [_directions(inputs)], []
        for i, layer in enumerate(layers[:-1]):
            deviation = float(layer.weight_variance) ** 0.5
            y = vectors[-1].with_constant(deviation, float(layer.bias_variance) ** 0.5)
            phi = net.activation
            means.append(_smooth(phi, y, i, told) if isinstance(phi, SmoothActivation) else _two_slopes(phi, y))
            values = means[-1].values
            vectors.append(Vectors(layer.fan_out**0.5 * values.lengths, values.cos, values.sin))
        K, G, cos = np.zeros_like(vectors[0].cos), np.ones(len(vectors[0].lengths)), np.ones_like(vectors[0].cos)
        for i in reversed(range(net.depth)):
            part = vectors[i].lengths * G
            K += float(layers[i].weight_multiplier) * (part[:, None] * (vectors[i].cos * cos) * part)
            K += float(layers[i].bias_multiplier) * (G[:, None] * cos * G)
            if i:
                G = (float(layers[i].weight_variance) * layers[i].fan_in) ** 0.5 * means[i - 1].slopes * G
                cos = means[i - 1].slope_cos * cos
    if not np.isfinite(K).all():
        a = int(np.argwhere(~np.isfinite(K))[0, 0])
        raise FinwidthError(
            f"the kernel overflows a double at input {a}, of length {vectors[0].lengths[a]:.3g}; rescale the inputs or "
            "the gains"
        )
    return np.triu(K) + np.triu(K, 1).T  # the same on both sides, to the last bit


def _directions(X: FloatArray) -> Vectors:
    """Lengths and angles of inputs, shape (m, n_0)."""
    largest = np.abs(X).max(1)
    exponents = np.frexp(largest)[1]
    unit = np.ldexp(X, -exponents[:, None])
    lengths = np.sqrt((unit * unit).sum(1))
    unit /= np.where(lengths > 0, lengths, 1)[:, None]
    cos, sin = (unit @ unit.T).clip(-1, 1), np.zeros((len(X), len(X)))
    for a, row in enumerate(unit):
        minus, plus = (np.sqrt(np.square(unit + sign * row).sum(1)) for sign in (-1, 1))
        sin[a] = minus * plus / 2 * (lengths > 0) * (lengths[a] > 0)
    np.fill_diagonal(cos, 1)
    lengths = np.maximum(np.ldexp(lengths, exponents), np.where(lengths > 0, _SHORTEST, 0))
    return Vectors(lengths, cos, sin)


def _two_slopes(phi: Activation, y: Vectors) -> Means:
    """Arc-cosine kernels; at y = 0 the slope is phi'(0), always."""
    a, b = float(phi.positive), float(phi.negative)
    size = float(np.hypot(a, b)) / 2**0.5
    found = ArcCosine.of(phi, y.cos, y.sin)
    zero = y.lengths == 0
    at_zero = abs(float(phi.at_zero)) * np.ones_like(y.lengths)
    alone = np.where(zero, np.sign(float(phi.at_zero)), (a + b) / 2 / size)  # mean slopes over their lengths
    one_is_zero = zero[:, None] | zero
    cos = np.where(one_is_zero, np.outer(alone, alone), found.slopes)
    return Means(Vectors(size * y.lengths, found.cos, found.sin), np.where(zero, at_zero, size), cos)


class _Correlations:
    """Correlations of values and slopes of a smooth activation between Gaussian vectors."""

    def __init__(self, phi: SmoothActivation, y: Vectors) -> None:
        self.y, self.rule = y, mixture_of(phi) or Integrated(phi, y.lengths)
        self.sizes = [np.sqrt(np.where(each > 0, each, 1)) for each in self.rule.means(alone(y.lengths))]

    @property
    def lengths(self) -> list[FloatArray]:
        """Root mean squares of values and slopes."""
        units = (self.rule.units.value, self.rule.units.slope)
        return [unit(self.y.lengths) * size for unit, size in zip(units, self.sizes, strict=True)]

    def at(self, a: _Places, b: _Places, moved: float = 0.0) -> list[FloatArray]:
        """Between vectors a and b, with their squared sines ``moved``."""
        sin = np.sqrt(self.y.sin[a, b] ** 2 + moved) if moved else self.y.sin[a, b]
        pairs = Pairs(self.y.lengths[a], self.y.lengths[b], self.y.cos[a, b], sin)
        found = [mean / (size[a] * size[b]) for mean, size in zip(self.rule.means(pairs), self.sizes, strict=True)]
        same = (pairs.first == pairs.second) & (sin == 0) & (pairs.cos > 0)
        return [np.where(same, 1, each.clip(-1, 1)) for each in found]

    def check(self, a: _Places, b: _Places, found: list[FloatArray], layer: int) -> None:
        """Refuse pairs so nearly parallel, or opposite, that rounding of their cosine shows."""
        same = (self.y.lengths[a] == self.y.lengths[b]) & (self.y.sin[a, b] == 0) & (self.y.cos[a, b] > 0)
        near = np.flatnonzero((self.y.sin[a, b] < _NEARLY) & ~same)
        moved = self.at(a[near], b[near], 2 * _ROUNDING) if len(near) else []
        for one, other in zip(moved, found, strict=False):
            error = np.abs(one - other[near])
            if (error > PRECISION).any():
                worst = near[int(np.argmax(error))]
                raise FinwidthError(
                    f"inputs {a[worst]} and {b[worst]} are so nearly parallel in layer {layer + 1} that rounding of "
                    f"their angle makes an error of {error.max():.1g} in the kernel between them, above "
                    f"{PRECISION:g}; leave one of them out, or scale the inputs down"
                )


def _smooth(phi: SmoothActivation, y: Vectors, layer: int, told: Callable[[int], None]) -> Means:
    """The means of a smooth activation by closed forms or quadrature, pair by pair."""
    if not np.isfinite(y.lengths).all():
        raise FinwidthError("the kernel overflows a double; rescale the inputs or the gains")
    correlations, cos = _Correlations(phi, y), [np.ones_like(y.cos), np.ones_like(y.cos)]
    rows, columns = np.triu_indices(len(y.lengths), 1)
    for start in range(0, len(rows), _PAIRS):
        a, b = rows[start : start + _PAIRS], columns[start : start + _PAIRS]
        found = correlations.at(a, b)
        if layer:  # the angles of inputs are exact
            correlations.check(a, b, found, layer)
        for matrix, each in zip(cos, found, strict=True):
            matrix[a, b] = matrix[b, a] = each
        told(layer * len(y.lengths) ** 2 + 2 * (start + len(a)))
    values, slopes = correlations.lengths
    return Means(Vectors(values, cos[0], np.sqrt((1 - cos[0]) * (1 + cos[0]))), slopes, cos[1])
