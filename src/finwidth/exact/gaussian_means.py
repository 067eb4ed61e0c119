r"""Means E[phi(u) phi(v)] and E[phi'(u) phi'(v)] over Gaussian pairs in closed form, for the built-in activations.

u and v have deviations s, s' and correlation cos(theta).  Two integrals are enough (docs/theory/infinite-width.md):
with Phi the normal distribution function, t = a s / sqrt(1 + a^2 s^2), c = 1 / sqrt(1 + a^2 s^2), t' and c' likewise
with a' and s', r = t t' cos(theta) and S = sqrt(1 - r^2) = |(c, t c', t t' sin(theta))|::

    E[(2 Phi(a u) - 1)(2 Phi(a' v) - 1)] = (2/pi) arctan(r / S)
    E[u Phi(a u) v Phi(a' v)] / (s s') = cos(theta) arccos(-r) / (2 pi) + t t' (S + (cos(theta) c c')^2 / S) / (2 pi)

since erf(y) = 2 Phi(sqrt(2) y) - 1, GELU(y) = y Phi(y), and tanh and SiLU(y) = y sigmoid(y) are mixtures of both kinds:
a logistic number is 2 k times a standard normal one, with k of Kolmogorov's law (Andrews and Mallows 1974), so
sigmoid(y) = E[Phi(y / 2k)].  The trapezoidal rule in log k makes 27 terms of it and is right to rounding.

All numbers are scaled by deviations, so that nothing overflows, underflows or cancels, at any s from 0 to 10^308.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from finwidth.networks.activations import ACTIVATIONS, Activation, SmoothActivation
from finwidth.networks.laws import FloatArray

_LINEAR = 1e-9  # below it arctan(r) is r to all digits of a double


@dataclass(frozen=True)
class Pairs:
    """Pairs of centred Gaussian numbers: their deviations and the cosine and sine of the angle between them, (n,)."""

    first: FloatArray
    second: FloatArray
    cos: FloatArray
    sin: FloatArray

    def __getitem__(self, some: slice | npt.NDArray[np.int64]) -> Pairs:
        """Some of the pairs."""
        return Pairs(self.first[some], self.second[some], self.cos[some], self.sin[some])


def alone(deviations: FloatArray) -> Pairs:
    """Each number paired with itself."""
    return Pairs(deviations, deviations, np.ones_like(deviations), np.zeros_like(deviations))


@dataclass(frozen=True)
class Units:
    """Units of values and of slopes at standard deviation s: functions of s of about their sizes."""

    value: Callable[[FloatArray], FloatArray]
    slope: Callable[[FloatArray], FloatArray]


def _kolmogorov() -> tuple[FloatArray, FloatArray]:
    """Weights, nodes k and the trapezoidal rule in log k: sums are means over Kolmogorov's law, to rounding."""
    step = 1 / 8
    k = np.exp(step * np.arange(-14, 13))
    j = np.arange(1, 30)[:, None]
    above = (8 * k * (-1.0) ** (j - 1) * j**2 * np.exp(-2 * (j * k) ** 2)).sum(0)
    exponent = ((2 * j - 1) * math.pi) ** 2 / 8  # the same density by Poisson's summation, which converges for small k
    below = (math.sqrt(2 * math.pi) * (2 * exponent / k**4 - 1 / k**2) * np.exp(-exponent / k**2)).sum(0)
    weights = step * k * np.where(k > 1, above, below)
    return weights / weights.sum(), k


_WEIGHTS, _K = _kolmogorov()
_ONE = np.ones(1)


@dataclass(frozen=True)
class _Mixture:
    """sum_j w_j (2 Phi(a_j y) - 1)."""

    w: FloatArray
    a: FloatArray

    units = Units(lambda s: np.minimum(s, 1.0), lambda s: 1 / np.sqrt(np.maximum(s, 1.0)))

    def _angles(self, pairs: Pairs) -> tuple[FloatArray, ...]:
        """The t and c of the first number, shape (k, 1, n), and of the second, (1, k, n); r and S, (k, k, n)."""
        t, c, unit = [], [], 1 / self.a[:, None]
        for s, axis in ((pairs.first, 1), (pairs.second, 0)):
            length = np.hypot(unit, s)
            t.append(np.expand_dims(s / length, axis))
            c.append(np.expand_dims(unit / length, axis))
        r = t[0] * t[1] * pairs.cos
        S = np.hypot(np.hypot(c[0], t[0] * c[1]), t[0] * t[1] * pairs.sin)
        return t[0], c[0], t[1], c[1], r, S

    def _sum(self, terms: FloatArray) -> FloatArray:
        total: FloatArray = np.einsum("j,k,jkn->n", self.w, self.w, terms)
        return total

    def means(self, pairs: Pairs) -> tuple[FloatArray, FloatArray]:
        """Means of values and of slopes, in the units."""
        t, c, t_, c_, r, S = self._angles(pairs)
        small = np.abs(r) < _LINEAR
        arc = np.where(small, 1.0, np.arctan2(r, S) / np.where(small, 1.0, r))
        q, q_ = (np.where(s > 0, self.units.value(s), 1.0) for s in (pairs.first, pairs.second))
        value = self._sum((t / q) * (t_ / q_) * arc) * pairs.cos
        p, p_ = self.units.slope(pairs.first), self.units.slope(pairs.second)
        slope = self._sum(self.a[:, None, None] * (c / p) / S * (self.a[:, None] * (c_ / p_)))
        return 2 / math.pi * value, 2 / math.pi * slope


class _Gated(_Mixture):
    """sum_j w_j y Phi(a_j y)."""

    units = Units(lambda s: 1.0 * s, np.ones_like)

    def means(self, pairs: Pairs) -> tuple[FloatArray, FloatArray]:
        """Means of values and of slopes, in the units."""
        t, c, t_, c_, r, S = self._angles(pairs)
        both = np.arctan2(S, -r)  # over 2 pi: E[Phi(a u) Phi(a' v)]
        x, y = c / S, c_ / S
        value = self._sum(pairs.cos * both + t * t_ * (S + pairs.cos**2 * (x * c_) * (c * c_)))
        slope = self._sum(both + r * (c * x + c_ * y + x * y * (x * c_)))
        return value / (2 * math.pi), slope / (2 * math.pi)


_CLOSED: dict[Activation, _Mixture] = {
    ACTIVATIONS["erf"]: _Mixture(_ONE, math.sqrt(2) * _ONE),
    ACTIVATIONS["tanh"]: _Mixture(_WEIGHTS, 1 / _K),  # tanh(y) = 2 sigmoid(2 y) - 1
    ACTIVATIONS["gelu"]: _Gated(_ONE, _ONE),
    ACTIVATIONS["silu"]: _Gated(_WEIGHTS, 1 / (2 * _K)),
}


def mixture_of(phi: SmoothActivation) -> _Mixture | None:
    """The means of a smooth activation that comes with the package; None for a user's."""
    return _CLOSED.get(phi)


# ---- two slopes: arc-cosine kernels


@dataclass(frozen=True)
class ArcCosine:
    """Correlations of values, and of slopes, of a two-slope activation at angles (Cho and Saul 2009), any shape.

    With C = (a - b)^2 / (a^2 + b^2) and h(x) = sin(x) - x cos(x), at an angle theta up to pi/2 and pi - theta beyond::

        values cos(theta) + C h(theta) / pi,    (C - 1) cos(pi - theta) + C h(pi - theta) / pi
        slopes 1 - C theta / pi,                 1 - C + C (pi - theta) / pi
    """

    cos: FloatArray
    sin: FloatArray
    slopes: FloatArray

    @classmethod
    def of(cls, phi: Activation, cos: FloatArray, sin: FloatArray) -> ArcCosine:
        """At angles with this cosine and sine."""
        a, b = float(phi.positive), float(phi.negative)
        scale = max(abs(a), abs(b))
        a, b = a / scale, b / scale
        C, rest = (a - b) ** 2 / (a * a + b * b), (a + b) ** 2 / (a * a + b * b)
        acute = cos >= 0
        x = np.arctan2(sin, np.abs(cos))  # the angle to the nearer of 0 and pi
        less, h = 2 * np.sin(x / 2) ** 2, _excess(x) / np.pi
        near, far = np.where(acute, less - C * h, less + rest * np.abs(cos) - C * h), 0.0 * x  # 1 - correlation
        far = np.where(acute, 2 - near, less + C * (np.abs(cos) + h))  # 1 + correlation
        values = np.where(acute, cos + C * h, (C - 1) * np.abs(cos) + C * h)
        slopes = np.where(acute, 1 - C * x / np.pi, 1 - C + C * x / np.pi)
        return cls(values, np.sqrt(np.maximum(near, 0) * far), slopes)


def _excess(x: FloatArray) -> FloatArray:
    """sin(x) - x cos(x), by its series where it would cancel."""
    n = np.arange(1, 10)
    signs = np.array([(-1.0) ** (k + 1) * 2 * k / math.factorial(2 * k + 1) for k in n])
    small = np.minimum(x, 1.0)[..., None]
    series: FloatArray = (signs * small ** (2 * n + 1)).sum(-1)
    return np.where(x < 1, series, np.sin(x) - x * np.cos(x))
