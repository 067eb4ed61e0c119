r"""Means over the Gaussian pre-activations of a wide layer: what the recursion of `tensors` needs.

With s = phi(y), t = phi'(y), u = phi''(y) at inputs a, b, ..., y ~ N(0, K):

- of pairs f = s_a s_b, t_a t_b, t_a s_b, u_a t_b, u_a s_b: <f> and its derivatives <d_a^i d_b^j f>.  By Stein's
  identity they are means of f times Hermite polynomials, so that f is never differentiated; kinks and jumps count.
- of four: <s s s s>, <s s t t>, <t t t t>, <u t t s>.

Where y_b is a multiple of y_a, so is all that moves them, and only the derivative along both is used: it is shared out
by the pseudo-inverse of K, in particular in halves where b = a.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from math import comb

import numpy as np
import numpy.typing as npt

from finwidth.errors import FinwidthError
from finwidth.exact.expansion.rules import GaussianPair, PairRule, beyond_reach, pair_rule
from finwidth.networks.activations import Activation, SmoothActivation
from finwidth.networks.laws import FloatArray

# Orders (i, j) of the derivatives d_a^i d_b^j.
_ORDERS = tuple((total - j, j) for total in (0, 1, 2, 4) for j in range(total + 1))
_MIRRORED = [_ORDERS.index((j, i)) for i, j in _ORDERS]
_SMALLEST = 1e-60  # variances of pre-activations whose fourth powers are safe
_DEPENDENT = 1e-13  # a squared sine that is taken as 0
_TAIL = 1e-11  # of the mean of four values: the most that may lie where integration ends


@dataclass(frozen=True)
class PairMeans:
    """Means of products of two, each of shape (orders, m, m); `derivative` has one order.

    ``centre``, shape (m,), is what has been taken away from values: their mean <phi(y_a)>, or 0.  ``bend`` is the mean
    second derivative <d_a^2 phi(y_a)>, or 0 where nothing has been.
    """

    ss: FloatArray
    tt: FloatArray
    ts: FloatArray
    ut: FloatArray
    us: FloatArray
    centre: FloatArray
    bend: FloatArray


def derivative(pair: FloatArray, i: int, j: int) -> FloatArray:
    """<d_a^i d_b^j f>, shape (m, m)."""
    found: FloatArray = pair[_ORDERS.index((i, j))]
    return found


@dataclass(frozen=True)
class FourMeans:
    """Means of products of four, each of shape (m, m, m, m)."""

    ssss: FloatArray
    sstt: FloatArray
    tttt: FloatArray
    utts: FloatArray


@dataclass(frozen=True)
class WideLayer:
    """An activation, the covariance of its neurons at infinite width, shape (m, m), and the means over these."""

    phi: Activation
    K: FloatArray
    pairs: PairMeans
    fours: FourMeans


@dataclass
class GaussianMeans:
    """The means over one wide layer after another, by rules of one level; ``layers`` keeps them.

    Without ``change`` those with phi'' are 0; ``odd`` as for `pair_rule`.
    """

    level: int
    change: bool
    odd: bool = False
    layers: list[WideLayer] = field(default_factory=list)

    def __call__(self, phi: Activation, K: FloatArray, centred: bool = False) -> tuple[PairMeans, FourMeans]:
        """Means at covariance K, shape (m, m); those of four at more than two inputs are left 0.

        ``centred`` values are those less their means.  Raises FloatingPointError if a variance is too small or large.
        """
        m, variances = len(K), K.diagonal()
        if not ((variances == 0) | (variances > _SMALLEST) & (variances < 1 / _SMALLEST)).all():
            raise FloatingPointError("a variance leaves the range in which its powers are doubles")
        rule = pair_rule(phi, float(np.sqrt(variances.max())), self.level, odd=self.odd)
        of_pairs, of_one = np.zeros((5, len(_ORDERS), m, m)), np.zeros((2, m))
        found = PairMeans(*of_pairs, *of_one), FourMeans(*np.zeros((4, m, m, m, m)))
        if centred:
            _take_centres(phi, K, rule, found[0])
        for a in range(m):
            for b in range(a, m):
                _one_pair(phi, K, (a, b) if K[a, a] >= K[b, b] else (b, a), rule, found, change=self.change)
        self.layers.append(WideLayer(phi, K, *found))
        return found


def _take_centres(phi: Activation, K: FloatArray, rule: PairRule, found: PairMeans) -> None:
    """Fill in the means of values and of their second derivatives."""
    for a, s in enumerate(np.sqrt(K.diagonal())):
        z, _, weights = rule(GaussianPair(float(s), 0.0, 1.0, 0.0))
        values = weights * phi.value(s * z)
        found.centre[a] = values.sum()
        found.bend[a] = (values * (z * z - 1)).sum() / s**2 if s else 0.0


def _one_pair(
    phi: Activation,
    K: FloatArray,
    inputs: tuple[int, int],
    rule: PairRule,
    found: tuple[PairMeans, FourMeans],
    *,
    change: bool,
) -> None:
    """Fill in the means at two inputs, of which the first has the larger variance."""
    a, b = inputs
    pair = _gaussian_pair(K, a, b)
    nodes = z, z_, weights = rule(pair)
    at = np.stack([pair.s * z, pair.s_ * (pair.cos * z + pair.sin * z_)])
    values, slopes = phi.value(at) - found[0].centre[[a, b], None], phi.derivative(at)
    curves = phi.second_derivative(at) if change else np.zeros_like(at)
    if isinstance(phi, SmoothActivation) and beyond_reach(nodes, np.square(values).prod(0)) > _TAIL:
        raise FinwidthError(
            f"activation {phi.name!r} grows too fast to be integrated at a deviation of {pair.s:.3g}; rescale the "
            "inputs or the gains"
        )
    _fill_pairs(found[0], inputs, (values, slopes, curves), (weights * _hermite(z, z_)).T @ _stein(pair).T)
    local = np.ix_(*[inputs] * 4)
    ss, tt, us = (_products(*each) for each in ((values, values), (slopes, slopes), (curves, values)))
    for name, one, other in (("ssss", ss, ss), ("sstt", ss, tt), ("tttt", tt, tt), ("utts", us, tt)):
        products = ((weights * one) @ other.T).reshape(2, 2, 2, 2)
        getattr(found[1], name)[local] = products.transpose(0, 2, 3, 1) if name == "utts" else products


def _gaussian_pair(K: FloatArray, a: int, b: int) -> GaussianPair:
    s, s_ = float(np.sqrt(K[a, a])), float(np.sqrt(K[b, b]))
    cos = float(np.clip(K[a, b] / s / s_, -1, 1)) if s_ > 0 else 1.0
    square = 1 - cos * cos
    return GaussianPair(s, s_, *((float(np.sign(cos)), 0.0) if square < _DEPENDENT else (cos, float(np.sqrt(square)))))


def _fill_pairs(
    pairs: PairMeans, inputs: tuple[int, int], functions: tuple[FloatArray, ...], stein: FloatArray
) -> None:
    """Means of all products of two at inputs a, b; ``stein`` has a row of weights for each node, a column an order."""
    a, b = inputs
    (f, f_), (g, g_), (h, h_) = functions
    of_both = {"ss": (f * f_, f_ * f), "tt": (g * g_, g_ * g)}
    of_both |= {"ts": (g * f_, g_ * f), "ut": (h * g_, h_ * g), "us": (h * f_, h_ * f)}
    for name, (one, other) in of_both.items():
        getattr(pairs, name)[:, a, b] = one @ stein
        getattr(pairs, name)[:, b, a] = (other @ stein)[_MIRRORED]


def _products(one: FloatArray, other: FloatArray) -> FloatArray:
    """Of all entries of two arrays, shape (2, n): (4, n)."""
    return (one[:, None] * other).reshape(4, -1)


def _hermite(z: FloatArray, z_: FloatArray) -> FloatArray:
    """He_i(z) He_j(z_) for all orders."""
    one, other = ([np.ones_like(x), x, x * x - 1, x * (x * x - 3), (x * x - 6) * x * x + 3] for x in (z, z_))
    return np.stack([one[i] * other[j] for i, j in _ORDERS])


def _stein(pair: GaussianPair) -> FloatArray:
    """Derivatives by y_a and y_b of all orders, from those by z_1 and z_2 (means times Hermite polynomials)."""
    s, s_, cos, sin = pair
    if s == 0:
        along, across = np.zeros((2, 2))  # of y_a and y_b, by z_1 and by z_2
    elif s_ == 0 or sin == 0:
        ratio = cos * s_ / s
        along, across = np.array([1.0, ratio]) / (s * (1 + ratio * ratio)), np.zeros(2)
    else:
        along, across = np.array([1 / s, 0.0]), np.array([-cos / (sin * s), 1 / (s_ * sin)])
    matrix = np.zeros((len(_ORDERS), len(_ORDERS)))
    for row, (i, j) in enumerate(_ORDERS):
        for k, k_ in product(range(i + 1), range(j + 1)):
            ways = comb(i, k) * comb(j, k_) * across[0] ** k * across[1] ** k_
            column = _ORDERS.index((i + j - k - k_, k + k_))
            matrix[row, column] += ways * along[0] ** (i - k) * along[1] ** (j - k_)
    return matrix


def _many_inputs(m: int) -> npt.NDArray[np.bool_]:
    """Which entries of a tensor over four inputs have three different ones or more, shape (m, m, m, m)."""
    index = np.sort(np.indices((m,) * 4).reshape(4, -1), axis=0)
    found: npt.NDArray[np.bool_] = ((np.diff(index, axis=0) > 0).sum(0) >= 2).reshape((m,) * 4)
    return found


def with_points(
    phi: Activation, K: FloatArray, pairs: PairMeans, fours: FourMeans, points: FloatArray, *, change: bool
) -> FourMeans:
    """Means of four at three or four different inputs by averages over standard normal points, shape (n, m)."""
    values, vectors = np.linalg.eigh(K)
    y = points @ (vectors * np.sqrt(np.maximum(values, 0))).T
    m, n = K.shape[0], len(y)
    rows, columns = np.triu_indices(m)
    place = np.zeros((m, m), dtype=np.int64)
    place[rows, columns] = place[columns, rows] = np.arange(len(rows))
    f, g = phi.value(y) - pairs.centre, phi.derivative(y)
    ss, tt = (x[:, rows] * x[:, columns] for x in (f, g))
    mean_ss, mean_tt, mean_us = (derivative(x, 0, 0) for x in (pairs.ss, pairs.tt, pairs.us))
    # The means of pairs are known: products of what deviates from them have less variance.
    ss -= mean_ss[rows, columns]
    tt -= mean_tt[rows, columns]

    def spread(product: FloatArray) -> FloatArray:
        return product[place][:, :, place] / n

    def raw(product: FloatArray, one: FloatArray, other: FloatArray) -> FloatArray:
        return spread(product) + np.multiply.outer(one, other)

    found = {
        "ssss": raw(ss.T @ ss, mean_ss, mean_ss),
        "sstt": raw(ss.T @ tt, mean_ss, mean_tt),
        "tttt": raw(tt.T @ tt, mean_tt, mean_tt),
        "utts": fours.utts,
    }
    if change:
        us = (phi.second_derivative(y)[:, :, None] * f[:, None]).reshape(n, m * m) - mean_us.ravel()
        mixed = (us.T @ tt).reshape(m, m, -1)[:, :, place] / n + np.multiply.outer(mean_us, mean_tt)
        found["utts"] = mixed.transpose(0, 2, 3, 1)
    many = _many_inputs(m)
    return FourMeans(**{name: np.where(many, each, getattr(fours, name)) for name, each in found.items()})
