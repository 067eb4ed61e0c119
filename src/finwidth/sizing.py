"""How wide or how deep a network has to be for a kernel of given spread: `width_for`, `depth_for`.

The spread need not fall with width nor grow with depth: a network that dies has none, biases and other gains shift
weight between layers.  So nothing here assumes that it does (docs/advice.md says what is looked at).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Unpack

import numpy as np
import numpy.typing as npt

from finwidth import arguments
from finwidth.arguments import count
from finwidth.errors import FinwidthError, shown
from finwidth.exact.grid import spread_by_depth, spread_by_width
from finwidth.exact.moments import moments
from finwidth.networks.activations import SmoothActivation
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP, MLPOptions
from finwidth.networks.routes import check_mlp
from finwidth.networks.widths import check_depth
from finwidth.sampling.kernel_matrix.sample_gram import sample_gram
from finwidth.sampling.sampler import not_gaussian

Widths = npt.NDArray[np.int64]

_INPUT = 64
_WIDEST, _DEEPEST = 10**12, 10**4
_EVERY, _RATIO = 1024, 1.01  # every width up to the first, then widths this far apart
_HUMP = 1e-3  # the most, relative to the spread, that a tip can rise above widths so close
_NEURONS = 2**15  # of the largest network that is drawn
_DRAWS, _FEWEST = 2000, 250
_WIDEST_DRAWN = 2**13  # at all of these depths
_DEPTHS_DRAWN = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 32)
_DEEPEST_DRAWN = 32  # so that the largest is 32 times as wide as deep, and log(1 + cv^2) falls like 1/width from there


def width_for(depth: int, cv: float, *, input_norm: float = 1.0, **network: Unpack[MLPOptions]) -> int:
    """The smallest hidden width from which on a network of ``depth`` weight layers has a kernel of spread at most cv.

    That is: a network of this width has it, and so has every wider one; the next narrower has not.  Exact moments of
    every width up to 1024, and beyond of widths 1% apart, over which the spread is a smooth function.  For smooth
    activations, and up to 32 layers, the spread of 2000 networks is drawn, at widths a factor of two apart, and taken
    to fall as it does in the limit beyond the widest drawn: the width is then right to about 10% (two standard errors).

    Parameters
    ----------
    depth
        d, the number of weight layers; the network is (64, n, ..., n, 1).
    cv
        Wanted coefficient of variation of K(x,x), positive.
    input_norm
        |x|^2 / n_0 of the input.
    network
        Further arguments of `MLP`, the same in every layer.

    Raises
    ------
    FinwidthError
        If an argument is not allowed, no width up to 10^12 does, or the activation is smooth and the weights are not
        Gaussian.

    Examples
    --------
    >>> import finwidth
    >>> finwidth.width_for(16, cv=0.1)
    3723
    """
    depth, cv, x = check_depth("depth", depth), _positive("cv", cv), _input_of_norm(input_norm)
    drawn = _must_be_drawn(network)
    deepest = _DEEPEST_DRAWN if drawn else _DEEPEST
    if depth > deepest:
        which = " for a smooth activation, whose networks are drawn" * drawn
        raise FinwidthError(f"depth is {depth}; give at most {deepest}{which} (width grows in proportion to depth)")
    width = _drawn_width(depth, cv, x, network) if drawn else _exact_width(depth, cv, x, network)
    if width > _WIDEST:
        raise FinwidthError(f"no width up to {_WIDEST:.0e} brings the spread at depth {depth} to {cv}; raise cv")
    return width


def depth_for(width: int, cv: float, *, input_norm: float = 1.0, **network: Unpack[MLPOptions]) -> int:
    """The largest number of weight layers at which hidden layers of ``width`` have a kernel of spread at most cv.

    From exact moments of every depth up to 10^4.  Where the spread does not grow with depth, some shallower networks
    may have more.  If it is at most cv still at 10^4 layers, that is the answer, with a warning: there may be no
    largest number.  For smooth activations the spread is drawn at twelve depths up to 32, the most that is answered:
    right to about 10% or one layer, 20% of networks wider than 4000.  Other arguments as in `width_for`; a single
    layer has no spread, so the answer is at least 1.

    Raises
    ------
    FinwidthError
        If an argument is not allowed, or the activation is smooth and the weights are not Gaussian, or wider than 8192.

    Examples
    --------
    >>> import finwidth
    >>> finwidth.depth_for(3723, cv=0.1)
    16
    """
    width, cv, x = count("width", width), _positive("cv", cv), _input_of_norm(input_norm)
    depths: Sequence[int] = range(1, _DEEPEST + 1)
    if _must_be_drawn(network):
        depths = _DEPTHS_DRAWN
        if width > _WIDEST_DRAWN:
            raise FinwidthError(
                f"width is {width}; give at most {_WIDEST_DRAWN} for a smooth activation, which is drawn"
            )
        spreads = [_drawn_spread(depth, width, x, network) for depth in depths]
    else:
        spreads = spread_by_depth(width, _DEEPEST, x, **network)
    last = max(place for place, spread in enumerate(spreads) if spread <= cv)
    if last < len(depths) - 1:
        return depths[last] + _share(depths[last + 1] - depths[last], spreads[last], cv, spreads[last + 1])
    first = max((place for place, spread in enumerate(spreads) if spread > cv), default=-1) + 1
    warnings.warn(
        f"at width {width} the spread is at most {cv} at every depth looked at from {depths[first]} to {depths[-1]}, "
        "the deepest: there is no largest, as far as is known",
        stacklevel=2,
    )
    return depths[-1]


def _share(steps: int, low: float, cv: float, high: float) -> int:
    """Number of the steps between two depths that keep to cv, fewer than all, if log(1 + spread^2) grows evenly."""
    if steps == 1:
        return 0
    below, wanted, above = (math.log1p(spread**2) for spread in (low, cv, high))
    return min(steps - 1, int(steps * (wanted - below) / (above - below))) if above > below else 0


def _exact_width(depth: int, cv: float, x: Sequence[float], network: MLPOptions) -> int:
    """From exact moments; more than the widest if no width does."""

    def above(width: int) -> bool:
        return moments(MLP([_INPUT, *[width] * (depth - 1), 1], **network), x).cv > cv

    if depth == 1:  # no hidden layer, no spread
        return 1
    if above(_WIDEST):
        return _WIDEST + 1
    widths, spreads = _scan(cv, partial(spread_by_width, depth=depth, x=x, **network))
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        squares, one = np.square(spreads / cv), np.float64(cv) ** -2
        rounding = 1e-14 * depth * (one + squares)  # of squares, in double precision
        sure = squares > 1 + rounding
    last = int(np.flatnonzero(sure).max(initial=-1))
    unsure = np.flatnonzero(~sure & ~(squares < 1 - rounding))
    last = next((int(place) for place in unsure[::-1] if place > last and above(int(widths[place]))), last)
    return 1 if last < 0 else _first_within(above, int(widths[last]), int(widths[last + 1]))


def _scan(cv: float, spreads_of: Callable[[list[int]], FloatArray]) -> tuple[Widths, FloatArray]:
    """Widths and their spreads: closer and closer together around a hump whose tip may exceed cv."""
    steps = int(math.log(_WIDEST / _EVERY) / math.log(_RATIO))
    wider = [math.ceil(_EVERY * _RATIO**step) for step in range(1, steps + 1)]
    widths = np.array([*range(1, _EVERY + 1), *wider, _WIDEST])
    spreads = spreads_of(widths.tolist())
    while True:
        middle = spreads[1:-1]
        tips = (middle >= spreads[:-2]) & (middle >= spreads[2:]) & (middle <= cv) & (middle > cv * (1 - _HUMP))
        tips &= widths[2:] - widths[:-2] > 2
        if not tips.any():
            return widths, spreads
        between = [np.linspace(widths[i], widths[i + 2], 41, dtype=np.int64) for i in np.flatnonzero(tips)]
        finer = np.setdiff1d(np.concatenate(between), widths)
        order = np.argsort(np.concatenate([widths, finer]))
        spreads = np.concatenate([spreads, spreads_of(finer.tolist())])[order]
        widths = np.concatenate([widths, finer])[order]


def _first_within(above: Callable[[int], bool], low: int, high: int) -> int:
    """The width at which ``above`` ends, between one where it holds and one where it does not."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if above(middle) else (low, middle)
    return high


def _must_be_drawn(network: MLPOptions) -> bool:
    """Whether networks of this kind have no exact moments, and are drawn; raises FinwidthError where they cannot be."""
    for name, value in network.items():
        if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str):
            raise FinwidthError(f"{name} is {shown(value)}; give one value, for layers that are all alike")
    net = check_mlp(MLP([_INPUT, 2, 1], **network))
    if not isinstance(net.activation, SmoothActivation):
        return False
    reasons = not_gaussian(net)
    if reasons:
        raise FinwidthError(
            f"the spread of {net.activation.name} networks is drawn, and this one cannot be: {'; '.join(reasons)}; "
            'give weight_law="gaussian", bias_law="gaussian"'
        )
    return True


def _drawn_spread(depth: int, width: int, x: Sequence[float], network: MLPOptions) -> float:
    draws = max(_FEWEST, min(_DRAWS, _NEURONS * _DRAWS // (width * depth)))
    K = sample_gram(MLP([_INPUT, *[width] * (depth - 1), 1], **network), [x], draws, seed=0).K.to_numpy()
    relative = K / (K.max() or 1.0)  # squares of K may leave a double's range
    return float(relative.std() / relative.mean()) if K.any() else 0.0


def _drawn_width(depth: int, cv: float, x: Sequence[float], network: MLPOptions) -> int:
    """Where log(1 + spread^2), drawn at powers of two, comes down to its value at cv, with 1/width at the end.

    It is close to proportional to 1/width at all widths: of ReLU networks about 5 d/n.
    """
    wanted, low, high = math.log1p(min(cv, 1e9) ** 2), math.inf, math.log1p(_drawn_spread(depth, 1, x, network) ** 2)
    width, found = 1, 1.0
    while 2 * width * depth <= _NEURONS and (width < 4 * depth or high > wanted / 4):
        width, low, high = 2 * width, high, math.log1p(_drawn_spread(depth, 2 * width, x, network) ** 2)
        if low > wanted >= high:
            found = width / 2 * 2 ** (math.log(low / wanted) / math.log(low / high))
    return math.ceil(found if high <= wanted else width * high / wanted)


def _input_of_norm(norm: float) -> list[float]:
    return [_positive("input_norm", norm, zero=True) ** 0.5] * _INPUT


def _positive(name: str, value: float, *, zero: bool = False) -> float:
    wanted = f"a finite number{' of at least 0' if zero else ' above 0'}"
    return arguments.real(name, value, wanted, lambda v: 0 < v < math.inf or (zero and v == 0))
