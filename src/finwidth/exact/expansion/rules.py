"""Quadrature rules for two functions of Gaussian pairs, from coarse to fine.

A rule takes a `GaussianPair`, y_a = s z_1 and y_b = s_ (cos z_1 + sin z_2), and gives points (z_1, z_2) and weights,
each of shape (n,), for means over standard normal z.

- Two slopes: polar coordinates.  Products of values, slopes and Hermite polynomials are homogeneous polynomials between
  the angles where y_a or y_b changes sign: Gauss-Laguerre in r^2/2 is exact, Gauss-Legendre in the angle is right to
  rounding.  Odd powers of r, where a mean over neurons is taken away, have Gauss-Legendre panels in r.
- Smooth functions: the trapezoidal rule, whose error falls exponentially in 1/step.
- Functions with kinks, and smooth ones at large deviations: nested Gauss-Legendre rules on panels.  These are cut at
  kinks, the outer ones also where y_b has them, in geometric steps; at large deviations also at powers of two.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache, partial
from typing import NamedTuple, TypeAlias

import numpy as np

from finwidth.exact.gaussian_means import mixture_of
from finwidth.exact.quadrature import Resolved
from finwidth.networks.activations import Activation, SmoothActivation
from finwidth.networks.laws import FloatArray


class GaussianPair(NamedTuple):
    """Two Gaussian numbers: their deviations, and the cosine and sine of the angle between them."""

    s: float
    s_: float
    cos: float
    sin: float


_Nodes: TypeAlias = tuple[FloatArray, FloatArray, FloatArray]
PairRule: TypeAlias = Callable[[GaussianPair], _Nodes]

_REACH = 11.0  # deviations; beyond it there is less than 10^-26
_RADII = 5  # exact for polynomials of degree 18 in the radius; a product of four values and a fourth derivative has 8
FINEST = 6  # levels begin at 0
_ORDINARY = 4.0  # deviations up to which functions hardly turn between points
_ORDER = 16
_ANGLES = tuple(24 + 4 * level for level in range(FINEST + 1))  # points between two cuts
_STEPS = tuple(0.35 * 2 ** (-level / 2) for level in range(FINEST + 1))
_PANELS = tuple(2 * 1.25**-level for level in range(FINEST + 1))  # widths, in deviations


def pair_rule(phi: Activation, largest: float, level: int, *, odd: bool = False) -> PairRule:
    """The rule of a level from 0 to `FINEST` for an activation at deviations up to ``largest``.

    ``odd``: of two slopes also for products of an odd number of values and Hermite polynomials.
    """
    if not isinstance(phi, SmoothActivation):
        return partial(_polar, _ANGLES[level], _every_radius(_PANELS[level]) if odd else _even_radii())
    size = 2.0 ** np.ceil(np.log2(max(largest, 0.1)))
    kinks = np.zeros(0) if mixture_of(phi) else _kinks(phi, size)
    if not len(kinks) and size <= _ORDINARY:
        nodes = _trapezoid(_STEPS[level])
        return lambda _: nodes
    scales = 2.0 ** np.arange(-1, np.log2(_REACH * size)) if size > _ORDINARY else np.zeros(0)
    return partial(_nested, kinks, np.concatenate([kinks, -scales, scales]), _PANELS[level])


@lru_cache(maxsize=64)
def _kinks(phi: SmoothActivation, largest: float) -> FloatArray:
    return Resolved(phi, _REACH * largest).singular


def _legendre(edges: FloatArray, order: int) -> tuple[FloatArray, FloatArray]:
    """Points and weights between ascending edges, shape (..., edges): both (..., panels * order)."""
    points, weights = np.polynomial.legendre.leggauss(order)
    half = np.diff(edges)[..., None] / 2
    shape = (*edges.shape[:-1], -1)
    return (edges[..., :-1, None] + half * (1 + points)).reshape(shape), (half * weights).reshape(shape)


@cache
def _even_radii() -> tuple[FloatArray, FloatArray]:
    """Radii and their weights, exact for even polynomials."""
    t, weights = np.polynomial.laguerre.laggauss(_RADII)
    return np.sqrt(2 * t), weights


@cache
def _every_radius(width: float) -> tuple[FloatArray, FloatArray]:
    """Radii and their weights for all polynomials, by panels."""
    radii, weights = _legendre(np.append(np.arange(0, _REACH, width), _REACH), _ORDER)
    return radii, weights * radii * np.exp(-0.5 * radii * radii)


def _polar(order: int, radial: tuple[FloatArray, FloatArray], pair: GaussianPair) -> _Nodes:
    quarter, turn = np.pi / 2, 2 * np.pi
    middle = np.arctan2(pair.sin, pair.cos)
    cuts = np.sort(np.mod([quarter, -quarter, middle + quarter, middle - quarter], turn))
    angles, shares = _legendre(np.append(cuts, cuts[0] + turn), order)
    radii, weights = radial
    z = np.outer(np.cos(angles), radii), np.outer(np.sin(angles), radii)
    return z[0].ravel(), z[1].ravel(), np.outer(shares / turn, weights).ravel()


@cache
def _trapezoid(step: float) -> _Nodes:
    half = np.ceil(_REACH / step)
    z = step * np.arange(-half, half + 1)
    weights = step * _gaussian_weight(z)
    inside = np.hypot(z[:, None], z) <= _REACH
    one, other = (each[inside] for each in np.meshgrid(z, z, indexing="ij"))
    return one, other, np.outer(weights, weights)[inside]


def _nested(kinks: FloatArray, cuts: FloatArray, width: float, pair: GaussianPair) -> _Nodes:
    s, s_, cos, sin = pair
    panels = np.arange(-_REACH, _REACH + width / 2, width)
    edges = [panels]
    if s > 0:
        edges.append(cuts / s)
    if s_ * abs(cos) > 0:
        places, turn = kinks / (s_ * cos), abs(sin / cos)
        steps = turn * 2.0 ** np.arange(-1, 2 + max(0.0, np.ceil(np.log2(2 * _REACH / turn)))) if turn else np.zeros(1)
        edges += [cuts / (s_ * cos), *((places[:, None] + sign * steps).ravel() for sign in (-1, 1))]
    outer, weights = _legendre(np.unique(np.concatenate(edges).clip(-_REACH, _REACH)), _ORDER)
    weights = weights * _gaussian_weight(outer)
    if s_ * sin == 0:
        return outer, np.zeros_like(outer), weights
    through = ((cuts / s_ - cos * outer[:, None]) / sin).clip(-_REACH, _REACH)
    inner = np.concatenate([np.broadcast_to(panels, (len(outer), len(panels))), through], 1)
    z, shares = _legendre(np.sort(inner), _ORDER)
    shares = shares * _gaussian_weight(z) * weights[:, None]
    return np.broadcast_to(outer[:, None], z.shape).ravel(), z.ravel(), shares.ravel()


def beyond_reach(nodes: _Nodes, f: FloatArray) -> float:
    """The share of the mean of f, which is not negative, that lies in the last deviation of the reach."""
    z, z_, weights = nodes
    shares = weights * f
    found: float = shares[np.hypot(z, z_) > _REACH - 1].sum() / (shares.sum() or 1.0)
    return found


def _gaussian_weight(z: FloatArray) -> FloatArray:
    density: FloatArray = np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
    return density
