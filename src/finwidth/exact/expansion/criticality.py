r"""`critical`: the gain and the variance of biases at which an activation neither amplifies nor forgets its inputs.

Over layers the covariance of wide networks goes K -> b + C <phi^2>_K.  Of two inputs that are nearly equal the mean and
the difference move by the susceptibilities (Roberts, Yaida, Hanin, The Principles of Deep Learning Theory, 2022,
chapter 5)::

    chi_parallel = d(b + C <phi^2>_K)/dK = C <phi^2 (z^2 - 1)>/(2 K),   chi_perp = C <phi'^2>_K,   y = sqrt(K) z

and both are 1 at criticality, K = b + C <phi^2>_K.  As chi_parallel = C <phi'^2 + phi phi''>, they agree where
<phi phi''>_K = 0: for two slopes at every K, b = 0 (scale-invariant); else at isolated K (half-stable), or in the limit
K -> 0 where phi(0) = 0, phi'(0) is not 0 and small K shrink (K* = 0): if phi is smooth, where
phi'''(0)/phi'(0) + (3/4) (phi''(0)/phi'(0))^2 < 0.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from finwidth.documents import plain
from finwidth.errors import FinwidthError
from finwidth.exact.expansion.rules import GaussianPair, beyond_reach, pair_rule
from finwidth.networks.activations import Activation, SmoothActivation, activation
from finwidth.networks.laws import FloatArray
from finwidth.tables import Result, Table, Told

_LEVEL = 4  # of the quadrature rules
_KERNELS = np.geomspace(2.0**-8, 2.0**7, 46)  # where <phi phi''> may change sign
_NEAR = 1e-4  # pre-activations and K that tell how it is at 0
_ROUNDING = 1e-12


@dataclass(frozen=True, repr=False)
class Criticality(Result):
    """Where deep wide networks of an activation are critical.

    Attributes
    ----------
    activation
        Its name.
    gain, bias_variance
        fan-in times the variance of a weight, and the variance of the biases, of every layer.
    kernel
        K*, the variance of pre-activations that stays as it is; None if every one does.
    chi_parallel, chi_perp
        The susceptibilities there, 1 but for rounding.
    universality
        ``"scale-invariant"``: K stays as it is, at any size. ``"K* = 0"``: K falls as a power of depth.
        ``"half-stable"``: K comes to rest from one side, and leaves on the other.
    """

    activation: str
    gain: float
    bias_variance: float
    kernel: float | None
    chi_parallel: float
    chi_perp: float
    universality: str

    def content(self) -> dict[str, object]:
        """The attributes."""
        found: dict[str, object] = plain(asdict(self))
        return found

    def _table(self) -> Table:
        table = Table(f"{self.activation} at criticality", ("quantity", "value"), _CLASSES[self.universality])
        table.add("gain", self.gain)
        table.add("variance of biases", self.bias_variance)
        table.add("K*", Told(None, "any") if self.kernel is None else self.kernel)
        table.add("class", self.universality)
        return table

    def _headline(self) -> str:
        return (
            f"{self.activation}: gain {self.gain:.6g}, variance of biases {self.bias_variance:.6g}, {self.universality}"
        )


_CLASSES = {
    "scale-invariant": "The variance of pre-activations stays as it is, at any size.",
    "K* = 0": "The variance of pre-activations falls as a power of depth.",
    "half-stable": "The variance of pre-activations comes to rest at K* from one side, and leaves it on the other.",
}


def critical(activation: str | Activation) -> Criticality:
    """The gain and the variance of biases at criticality, where chi_parallel = chi_perp = 1.

    Parameters
    ----------
    activation
        A name, or an `Activation`; a `SmoothActivation` needs no second derivative.

    Raises
    ------
    FinwidthError
        If no gain and variance are critical (as for sigmoids and softplus), or its means cannot be integrated.

    Examples
    --------
    >>> import finwidth
    >>> finwidth.critical("relu")
    <Criticality relu: gain 2, variance of biases 0, scale-invariant>
    >>> finwidth.critical("tanh").universality
    'K* = 0'
    >>> found = finwidth.critical("gelu")
    >>> round(found.gain, 5), round(found.bias_variance, 5), round(found.kernel, 4), found.universality
    (1.98306, 0.17292, 3.5616, 'half-stable')

    The network that it says:

    >>> net = finwidth.MLP([8, *[100] * 20, 1], activation="gelu", gains=found.gain, bias_variance=found.bias_variance)
    """
    phi = _activation_of(activation)
    if not isinstance(phi, SmoothActivation):
        return Criticality(phi.name, float(phi.default_gain), 0.0, None, 1.0, 1.0, "scale-invariant")
    found = _at_zero(phi) or _elsewhere(phi)
    if found is None:
        raise FinwidthError(
            f"activation {phi.name!r} is critical at no gain and variance of biases; without phi(0) = 0 few are, such "
            "as tanh, gelu and silu"
        )
    return found


_activation_of = activation  # the argument hides it


def _at_zero(phi: SmoothActivation) -> Criticality | None:
    """K* = 0, if phi(0) = 0, the slope there is one, and small K shrink at the gain 1/slope^2."""
    value, slope = float(phi.value(np.zeros(1))[0]), float(phi.derivative(np.zeros(1))[0])
    beside = np.abs(phi.derivative(_NEAR * np.array([-1.0, 1.0])) - slope)
    if abs(value) > _ROUNDING or abs(slope) < _NEAR or beside.max() > 10 * _NEAR * abs(slope):
        return None
    shrinks = all(_means(phi, K)[0] < K * slope**2 * (1 - _ROUNDING) for K in (_NEAR, _NEAR / 10))
    return Criticality(phi.name, slope**-2, 0.0, 0.0, 1.0, 1.0, "K* = 0") if shrinks else None


def _elsewhere(phi: SmoothActivation) -> Criticality | None:
    """Every K, or the least at which the susceptibilities agree and the biases' variance is not negative."""
    from scipy.optimize import brentq

    gaps = [_disagreement(phi, K) for K in _KERNELS]
    if max(map(abs, gaps)) < 1e-9:
        return Criticality(phi.name, 1 / _means(phi, 1.0)[2], 0.0, None, 1.0, 1.0, "scale-invariant")
    for low, high, one, other in zip(_KERNELS, _KERNELS[1:], gaps, gaps[1:], strict=False):
        if one * other < 0:
            kernel = float(brentq(lambda K: _disagreement(phi, K), low, high, xtol=1e-13, rtol=1e-13))
            square, parallel, perp = _means(phi, kernel)
            variance = kernel - square / perp
            if variance >= 0:
                return Criticality(phi.name, 1 / perp, variance, kernel, parallel / perp, 1.0, "half-stable")
    return None


def _disagreement(phi: SmoothActivation, kernel: float) -> float:
    _, parallel, perp = _means(phi, kernel)
    return parallel / perp - 1


def _means(phi: SmoothActivation, kernel: float) -> tuple[float, float, float]:
    """<phi^2>, and chi_parallel and chi_perp at C = 1; NaN where phi grows too fast to tell."""
    s = math.sqrt(kernel)
    nodes = z, _, weights = pair_rule(phi, s, _LEVEL)(GaussianPair(s, 0.0, 1.0, 0.0))
    with np.errstate(all="ignore"):
        values, slopes = phi.value(s * z), phi.derivative(s * z)
        if not beyond_reach(nodes, values**2) < _ROUNDING:
            return (math.nan,) * 3

    def mean(f: FloatArray) -> float:
        return float((weights * f).sum())

    return mean(values**2), mean(values**2 * (z * z - 1)) / (2 * kernel), mean(slopes**2)
