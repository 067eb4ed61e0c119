r"""Means E[phi(u) phi(v)] and E[phi'(u) phi'(v)] over Gaussian pairs, of any functions: quadrature with known error.

Both functions are first cut into panels on each of which they are polynomials to rounding (`Resolved`): panels are
halved until the Legendre coefficients have decayed, and where they never do there is a kink or a jump.  Then, with
v = s' (cos(theta) u/s + sin(theta) w)::

    E[f(u) f(v)] = int du f(u) n(u/s)/s  E_w[f(mu + tau w)],   mu = s' cos(theta) u/s,   tau = s' sin(theta)

is a composite Gauss-Legendre sum in u and in w.  The inner integrals are cut where mu + tau w leaves a panel, the outer
one at panels of u, at panels of mu and, as the inner integral turns over a length tau about a kink, in geometric steps
towards that.  Where there is no kink and the deviations are moderate a trapezoidal rule does, whose error falls
faster than any power.  Each result is computed at two orders, and their difference is the error that is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt

from finwidth.errors import FinwidthError
from finwidth.exact.gaussian_means import Pairs, Units
from finwidth.networks.activations import SmoothActivation
from finwidth.networks.laws import FloatArray

PRECISION = 1e-10  # what a result's error may be, of its size
_REACH = 12.0  # in deviations: beyond it there is less than 10^-32
_TAIL = 1e-12  # of a mean square: the most that may lie in the last deviation of the reach
_DEGREE = 15  # of the polynomial on a panel
_RESOLVED = 1e-14  # of the largest value on a panel or nearer to 0: coefficients that are 0
_BETWEEN = 47  # points of a panel where its polynomial is tried
_BLURRED = 1e3  # times as much where the argument's own rounding shows
_NARROWEST = 2.0**-44  # of a panel's distance from 0, or of 1
_MOST_PANELS, _MOST_WORK = 5000, 2 * 10**8
_ORDERS = (16, 12)  # of Gauss-Legendre rules: one to use and one to compare with
_BLOCK = 2**21  # numbers worked on at once
_STEPS = (1 / 4, 1 / 8)  # of the trapezoidal rules; each is compared with twice its step
_CONVERGED = 1e-7  # between a step and its half: errors of analytic functions are squared


class Resolved:
    """Panels of [-reach, reach] on which both functions of an activation are polynomials, and where they are singular.

    Arguments: the activation and the reach.  ``edges`` are all ends of panels, ascending; ``singular`` some of them.
    """

    def __init__(self, phi: SmoothActivation, reach: float) -> None:
        self.functions: tuple[Callable[[FloatArray], FloatArray], ...] = (phi.value, phi.derivative)
        self.name = phi.name
        sizes = 2.0 ** np.arange(-3, max(-2, np.ceil(np.log2(reach))) + 1)
        ends = np.concatenate([-sizes[::-1], [0.0], sizes]).clip(-1e308, 1e308)
        nodes, _ = np.polynomial.legendre.leggauss(_DEGREE + 1)
        self._transform = np.linalg.inv(np.polynomial.legendre.legvander(nodes, _DEGREE))
        between = np.linspace(-1, 1, 2 + _BETWEEN)[1:-1]
        self._places = np.concatenate([nodes, between])
        self._predict = np.polynomial.legendre.legvander(between, _DEGREE) @ self._transform
        self._sizes, self._levels = sizes, self._largest(sizes)
        panels, unresolved = self._panels(np.stack([ends[:-1], ends[1:]], 1), reach)
        self.edges = np.unique(panels)
        self.singular = np.unique(np.concatenate([unresolved, self._kinks()]))

    def _panels(self, waiting: FloatArray, reach: float) -> tuple[FloatArray, FloatArray]:
        """Panels made of these by halving, shape (n, 2), and the middles of those too narrow to halve again."""
        found, narrow = [waiting[:0]], [waiting[:0, 0]]
        while len(waiting):
            good = self._is_polynomial(waiting)
            bad = waiting[~good]
            tiny = bad[:, 1] - bad[:, 0] < _NARROWEST * np.maximum(1, np.abs(bad).max(1, initial=0))
            found += [waiting[good], bad[tiny]]
            narrow.append(bad[tiny].mean(1))
            low, high, middle = bad[~tiny, 0], bad[~tiny, 1], bad[~tiny].mean(1)
            waiting = np.concatenate([np.stack([low, middle], 1), np.stack([middle, high], 1)])
            if sum(map(len, found)) + len(waiting) > _MOST_PANELS:
                raise self.refuse(f"it takes more than {_MOST_PANELS} polynomials up to {reach:.3g} to follow it")
        return np.concatenate(found), np.concatenate(narrow)

    def refuse(self, why: str) -> FinwidthError:
        """The error that the means are not known to `PRECISION`."""
        return FinwidthError(
            f"the means of activation {self.name!r} over Gaussian numbers cannot be integrated to {PRECISION:g}: "
            f"{why}; rescale the inputs or the gains, or give a function that turns less"
        )

    def values(self, y: FloatArray) -> list[FloatArray]:
        """Values of both functions; FinwidthError unless they are finite."""
        with np.errstate(all="ignore"):
            found = [np.asarray(function(1.0 * y), dtype=np.float64) for function in self.functions]
        if not all(np.isfinite(each).all() for each in found):
            raise self.refuse(f"it overflows between {y.min():.3g} and {y.max():.3g}")
        return found

    def _is_polynomial(self, panels: FloatArray) -> np.ndarray:
        """Whether both functions are polynomials on each panel, shape (n, 2): by coefficients and by points between."""
        half = (panels[:, 1:] - panels[:, :1]) / 2
        place = np.searchsorted(self._sizes, np.abs(panels).max(1)).clip(0, len(self._sizes) - 1)
        good = np.ones(len(panels), dtype=bool)
        for values, levels in zip(self.values(panels[:, :1] + half * (1 + self._places)), self._levels, strict=True):
            size = np.maximum(levels[place], np.abs(values).max(1))
            size *= np.minimum(np.maximum(1, self._sizes[place]), _BLURRED)  # y itself is rounded
            scaled = values / np.where(size > 0, size, 1)[:, None]
            at_nodes, between = scaled[:, : _DEGREE + 1], scaled[:, _DEGREE + 1 :]
            good &= np.abs(at_nodes @ self._transform.T)[:, -3:].max(1) < _RESOLVED
            good &= np.abs(between - at_nodes @ self._predict.T).max(1) < 100 * _RESOLVED
        return good

    def _kinks(self) -> FloatArray:
        """Inner edges across which the functions are not polynomials."""
        inner, width = self.edges[1:-1], np.diff(self.edges)
        half = np.minimum(width[:-1], width[1:]) / 4
        found: FloatArray = inner[~self._is_polynomial(np.stack([inner - half, inner + half], 1))]
        return found

    def _largest(self, sizes: FloatArray) -> list[FloatArray]:
        """The largest value of both functions between minus and plus each size, by samples."""
        y = sizes[:, None] * np.linspace(0, 1, 65)
        return [np.maximum.accumulate(np.abs(f).max(1)) for f in self.values(np.concatenate([y, -y], 1))]

    @cached_property
    def smooth(self) -> bool:
        """Whether neither function has a singularity."""
        return not len(self.singular)


def _rule(order: int, edges: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Nodes and weights of Gauss-Legendre rules between ascending edges, shape (..., edges): (..., panels, order)."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    half = (edges[..., 1:] - edges[..., :-1])[..., None] / 2
    return edges[..., :-1, None] + half * (1 + nodes), half * weights


def _density(z: npt.NDArray[np.floating]) -> FloatArray:
    density: FloatArray = np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
    return density


class Integrated:
    """The means of a user's activation up to deviations of ``most``; used as the closed forms are."""

    def __init__(self, phi: SmoothActivation, deviations: FloatArray) -> None:
        self.resolved = Resolved(phi, _REACH * float(deviations.max(initial=0.1)))
        self._sizes = {float(s): self._size(float(s)) for s in np.unique(deviations)}
        of = [np.vectorize(lambda s, k=k: self._sizes[float(s)][k], otypes=[float]) for k in (0, 1)]
        self.units = Units(of[0], of[1])

    def _size(self, s: float) -> tuple[float, float]:
        """Root mean squares of values and slopes at a deviation."""
        if s == 0:
            value, slope = (float(abs(each[0])) for each in self.resolved.values(np.zeros(1)))
            return value, slope
        found = []
        for order in _ORDERS:
            nodes, weights = _rule(order, self._cut(s, s * np.arange(-_REACH, _REACH + 1)))
            weights = weights * _density(nodes / s) / s
            for values in self.resolved.values(nodes):
                top = np.abs(values).max() or 1.0
                squares = weights * (values / top) ** 2
                if squares[np.abs(nodes) > (_REACH - 1) * s].sum() > _TAIL * squares.sum():
                    raise self.resolved.refuse(f"it grows too fast for a deviation of {s:.3g}")
                found.append(top * float(np.sqrt(squares.sum())))
        self._agree(np.array(found[:2]), np.array(found[2:]), np.array(found[:2]))
        return found[0], found[1]

    def _agree(self, fine: FloatArray, coarse: FloatArray, scale: FloatArray | float) -> None:
        error = np.max(np.abs(fine - coarse) / np.where(scale == 0, 1, scale), initial=0)
        if not error <= PRECISION:
            raise self.resolved.refuse(f"the error reached is {error:.1g}")

    def _cut(self, s: float, *more: FloatArray) -> FloatArray:
        """Ends of panels within reach of a deviation, with more of them."""
        edges = np.concatenate([self.resolved.edges, *more])
        found: FloatArray = np.unique(edges.clip(-_REACH * s, _REACH * s))
        return found

    def means(self, pairs: Pairs) -> tuple[FloatArray, FloatArray]:
        """Means of values and of slopes, in the units."""
        found = np.full((2, len(pairs.cos)), np.nan)
        if self.resolved.smooth:
            for step in _STEPS:
                left = np.flatnonzero(np.isnan(found[0]))
                found[:, left] = self._trapezoid(pairs[left], step)
        for n in np.flatnonzero(np.isnan(found[0])):
            found[:, n] = self._pair(*(float(each[n]) for each in (pairs.first, pairs.second, pairs.cos, pairs.sin)))
        return found[0], found[1]

    def _units(self, s: float) -> FloatArray:
        """The units of values and of slopes."""
        return np.array([size or 1.0 for size in self._sizes[s]])

    def _trapezoid(self, pairs: Pairs, step: float) -> FloatArray:
        """Both means by the trapezoidal rule, shape (2, n); NaN where it has not converged."""
        z = step * np.arange(-2 * round(_REACH / (2 * step)), 2 * round(_REACH / (2 * step)) + 1)
        weights, coarse = step * _density(z), 2 * step * _density(z[::2])
        found = np.empty((2, len(pairs.cos)))
        size = max(1, _BLOCK // len(z) ** 2)
        for start in range(0, len(pairs.cos), size):
            some = pairs[slice(start, start + size)]
            u = some.first[:, None] * z
            v = some.second[:, None, None] * (some.cos[:, None, None] * z[:, None] + some.sin[:, None, None] * z)
            scales = [np.array([self._units(float(s)) for s in each]).T for each in (some.first, some.second)]
            for k, (f, g) in enumerate(zip(self.resolved.values(u), self.resolved.values(v), strict=True)):
                one, other = f / scales[0][k][:, None], g / scales[1][k][:, None, None]
                fine = ((other @ weights) * one) @ weights
                rough = ((other[:, ::2, ::2] @ coarse) * one[:, ::2]) @ coarse
                found[k, start : start + size] = np.where(np.abs(fine - rough) < _CONVERGED, fine, np.nan)
        return np.where(np.isnan(found).any(0), np.nan, found)

    def _pair(self, s: float, s_: float, cos: float, sin: float) -> FloatArray:
        """Both means at one pair, shape (2,)."""
        if s == 0 or s_ == 0:
            return self._with_constant(s, s_)
        fine, coarse = (self._nested(s, s_, cos, sin, order) for order in _ORDERS)
        self._agree(fine, coarse, 1.0)
        return fine

    def _with_constant(self, s: float, s_: float) -> FloatArray:
        """Both means for a pair of which one variable is always 0."""
        at_zero = np.array([each[0] for each in self.resolved.values(np.zeros(1))]) / self._units(0.0)
        other = max(s, s_)
        if other == 0:
            return at_zero**2
        nodes, weights = _rule(_ORDERS[0], self._cut(other, other * np.arange(-_REACH, _REACH + 1)))
        weights = weights * _density(nodes / other) / other
        means = np.array([(weights * values).sum() for values in self.resolved.values(nodes)])
        found: FloatArray = at_zero * means / self._units(other)
        return found

    def _nested(self, s: float, s_: float, cos: float, sin: float, order: int) -> FloatArray:
        """Both means, shape (2,), by nested rules of an order."""
        tau, share = s_ * sin, (s_ / s) * cos
        edges = [s * np.arange(-_REACH, _REACH + 1)]
        if abs(share) > 1e-300:
            with np.errstate(over="ignore"):
                edges += [self.resolved.edges / share]
                if tau > 0:
                    lengths = tau * 2.0 ** np.arange(-1, 2 + max(0, np.ceil(np.log2(2 * _REACH * s_ / tau))))
                    edges += [((self.resolved.singular[:, None] + sign * lengths) / share).ravel() for sign in (-1, 1)]
                    edges += [(self.resolved.singular / share)]
        u, weights = (each.reshape(-1) for each in _rule(order, self._cut(s, *edges)))
        weights = weights * _density(u / s) / s
        if tau == 0:
            inner = self.resolved.values(share * u)
        else:
            inner = [np.concatenate(each) for each in zip(*self._inner(share * u, tau, order), strict=True)]
        both = zip(self.resolved.values(u), inner, self._units(s), self._units(s_), strict=True)
        return np.array([(weights * (one / unit)) @ (other / unit_) for one, other, unit, unit_ in both])

    def _inner(self, mu: FloatArray, tau: float, order: int) -> Iterator[list[FloatArray]]:
        """E[f(mu + tau w)] of both functions, in blocks of mu."""
        z = np.arange(-_REACH, _REACH + 1)
        low, high = mu.min() - _REACH * tau, mu.max() + _REACH * tau
        panels = self.resolved.edges[(self.resolved.edges > low) & (self.resolved.edges < high)]
        numbers = (len(panels) + len(z)) * order
        if len(mu) * numbers > _MOST_WORK:
            raise self.resolved.refuse(f"it takes more than {_MOST_WORK:.1g} values")
        size = max(1, _BLOCK // numbers)
        for start in range(0, len(mu), size):
            centre = mu[start : start + size, None]
            cut = np.concatenate([np.broadcast_to(z, (len(centre), len(z))), (panels - centre) / tau], 1)
            w, weights = _rule(order, np.sort(cut.clip(-_REACH, _REACH), axis=1))
            weights = weights * _density(w)
            values = self.resolved.values(centre[..., None] + tau * w)
            yield [(each * weights).sum((1, 2)) for each in values]
