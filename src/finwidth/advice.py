"""Advice for practitioners, from exact values: how wide, how deep, and what kind of kernel a network has."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finwidth.errors import FinwidthError
from finwidth.exact.moments import exp, moments
from finwidth.network import MLP, Vector, count

# A kernel within 10% of its mean is called deterministic, one that a step moves by less than 10% at rest.
SPREAD = 0.1
MOVEMENT = 0.1
_WIDEST, _DEEPEST = 10**12, 10**4


@dataclass(frozen=True)
class Regime:
    """What kind of kernel a network has at initialization.

    Attributes
    ----------
    name
        ``"near-deterministic"``: cv and movement at most 0.1.  ``"noisy"``: cv above 0.1, movement at most 0.1.
        ``"moving"``: movement above 0.1.
    cv
        Standard deviation of K over its mean, over random initializations.
    movement
        abs(E[Delta K]) / E[K] for one SGD step of learning rate 1/E[K], the rate at which a fixed kernel would fit
        the point in one step, towards a target of mean zero.
    advice
        The same in a sentence.
    """

    name: str
    cv: float
    movement: float
    advice: str


def regime(net: MLP, x: Vector | None = None) -> Regime:
    """Whether the kernel of a network is near-deterministic, noisy or moving, from its exact moments.

    Theorem 1 and 2 of the paper say that all depends on depth over width; this says where a given network stands.

    Parameters
    ----------
    net
        The network.
    x
        One input, shape (n_0,); by default one of squared norm n_0.

    Examples
    --------
    >>> import finwidth
    >>> for hidden in (2000, 200, 20):
    ...     print(finwidth.regime(finwidth.MLP([10, *[hidden] * 4, 1])).name)
    near-deterministic
    noisy
    moving
    """
    found = moments(net, [1.0] * net.widths[0] if x is None else x)
    if not found.mean:
        raise FinwidthError("the kernel of this network is zero at this input: nothing is trained; use bias='trained'")
    log_movement = found.log_update["dK"] - 2 * found.K.log_raw[0]
    cv, movement = found.cv, exp(log_movement)
    spread = f"its kernel varies by {cv:.2g} of its mean between initializations"
    shift = f"one step of learning rate 1/E[K] moves it by {movement:.2g} of its mean"
    name = "moving" if movement > MOVEMENT else "noisy" if cv > SPREAD else "near-deterministic"
    meaning = {
        "near-deterministic": "the infinite-width kernel describes it",
        "noisy": "average over initializations, or widen it, before trusting any one kernel",
        "moving": "a fixed kernel does not describe its training",
    }[name]
    return Regime(name, cv, movement, f"{spread}; {shift}: {meaning}")


def width_for(depth: int, cv: float, *, norm: float = 1.0, **network: Any) -> int:
    """The smallest hidden width at which a network of ``depth`` weight layers has a kernel of spread at most ``cv``.

    Parameters
    ----------
    depth
        d, the number of weight layers; the network is (64, n, ..., n, 1).
    cv
        Wanted coefficient of variation of K(x,x), positive.
    norm
        |x|^2 / n_0 of the input.
    network
        Further arguments of `MLP`, the same in every layer.

    Raises
    ------
    FinwidthError
        If an argument is not allowed, or no width up to 10^12 does.

    Examples
    --------
    >>> import finwidth
    >>> finwidth.width_for(16, cv=0.1)
    3723
    """
    depth, cv = count("depth", depth), _positive("cv", cv)
    if depth > _DEEPEST:
        raise FinwidthError(f"depth is {depth}; give at most {_DEEPEST}, for width grows in proportion to depth")
    width = _first(lambda width: _cv(depth, width, norm, network) <= cv, _WIDEST)
    if width is None:
        raise FinwidthError(f"no width up to {_WIDEST:.0e} brings the spread at depth {depth} to {cv}; raise cv")
    return width


def depth_for(width: int, cv: float, *, norm: float = 1.0, **network: Any) -> int:
    """The largest number of weight layers at which hidden layers of ``width`` keep the spread of K at most ``cv``.

    Parameters as in `width_for`; a single layer has no spread, so the answer is at least 1.

    Examples
    --------
    >>> import finwidth
    >>> finwidth.depth_for(3723, cv=0.1)
    16
    """
    width, cv = count("width", width), _positive("cv", cv)
    depth = _first(lambda depth: _cv(depth, width, norm, network) > cv, _DEEPEST)
    if depth is None:
        raise FinwidthError(f"at width {width} the spread is at most {cv} up to depth {_DEEPEST}; give a smaller cv")
    return depth - 1


def _cv(depth: int, width: int, norm: float, network: dict[str, Any]) -> float:
    net = MLP([64, *[width] * (depth - 1), 1], **network)
    return moments(net, [_positive("norm", norm, zero=True) ** 0.5] * 64).cv


def _first(holds: Callable[[int], bool], limit: int) -> int | None:
    """The smallest n >= 1 at which ``holds``, which does from there on; None if past ``limit``."""
    high = 1
    while not holds(high):
        high *= 2
        if high > limit:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _positive(name: str, value: float, *, zero: bool = False) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise FinwidthError(f"{name} is {value!r}; give a finite number{' of at least 0' if zero else ' above 0'}")
    return float(value)
