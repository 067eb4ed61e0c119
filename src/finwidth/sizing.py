"""How wide or how deep a network has to be for a kernel of given spread: `width_for`, `depth_for`.

The spread need not fall with width nor grow with depth: a network that dies has none, biases and other gains shift
weight between layers.  So nothing here assumes that it does (docs/advice.md says what is looked at).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator, Sequence
from functools import partial
from typing import TypeAlias, Unpack

import numpy as np
import numpy.typing as npt

from finwidth import arguments
from finwidth.arguments import count
from finwidth.errors import FinwidthError
from finwidth.exact.expansion.one_input import where_it_serves
from finwidth.exact.grid import spread_by_depth, spread_by_width
from finwidth.exact.moments import moments
from finwidth.exact.moments import unsupported as no_moments
from finwidth.exact.normalised import why_quantiles
from finwidth.networks.activations import SmoothActivation
from finwidth.networks.description import Network
from finwidth.networks.family import Family, FamilyOptions
from finwidth.networks.inputs import Vector
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.networks.norm import Norm
from finwidth.networks.routes import check_supported, not_gaussian
from finwidth.networks.widths import check_depth
from finwidth.sampling.kernel_matrix.sample_gram import kernel_matrix_sampler
from finwidth.sampling.sampler import collect
from finwidth.sampling.statistics.quantile_sketch import QuantileSketch

_Widths = npt.NDArray[np.int64]
_Search: TypeAlias = Generator[int | list[int], FloatArray, int]

EXACTLY = "exact moments"
_INPUT = 64
_WIDEST, _DEEPEST = 10**12, 10**4
_EVERY, _RATIO = 1024, 1.01  # every width up to the first, then widths this far apart
_EVERY_DEPTH = 128  # of blocks, then as far apart
_LARGEST = 1e9  # spread that is told from others
_HUMP = 1e-3  # the most, relative to the spread, that a tip can rise above widths so close
_NEURONS = 2**15  # of the largest network that is drawn
_DRAWS, _FEWEST = 2000, 250
_WIDEST_DRAWN = 2**13  # at all of these depths
_DEPTHS_DRAWN = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 32)
_DEEPEST_DRAWN = 32  # so that the largest is 32 times as wide as deep, and log(1 + cv^2) falls like 1/width from there
_DEPTHS_EXPANDED = (*_DEPTHS_DRAWN, 40, 50, 64)  # to first order in 1/width
_STEPS = 60  # towards a width to first order
_ROUNDING = 1e-9  # of its quadrature


def width_for(
    depth: int, cv: float, *, kind: type[Network] = MLP, input_norm: float = 1.0, **network: Unpack[FamilyOptions]
) -> int:
    """The smallest width from which on a network of this depth has a kernel of spread at most cv.

    That is: a network of this width has it, and so has every wider one; the next narrower has not.  Exact moments of
    every width up to 1024, and beyond of widths 1% apart, over which the spread is a smooth function.  For smooth
    activations, up to 64 layers, the width is from first order in 1/width (`finwidth.expansion`) where that serves
    there, as for small cv.  Else, and for normalised networks, the spread of 2000 networks is drawn, up to 32 layers,
    at widths a factor of two apart, and taken to fall as it does in the limit beyond the widest drawn.  The width is
    then right to about 10%, of draws two standard errors; `finwidth.sizing.spread_from` says which it was.  Of
    normalised networks, whose E[K] is often infinite, cv stands for (q84 - q16) / (2 median) of K, which is the same
    where K is near to normal.

    Parameters
    ----------
    depth
        Of an `MLP` d, the number of weight layers; the network is (64, n, ..., n, 1). Of a `ResNet` or `BalancedResNet`
        L, the number of blocks, and the width is that of the stream.
    cv
        Wanted coefficient of variation of K(x,x), positive; of normalised networks (q84 - q16) / (2 median).
    kind
        The kind of network: `MLP`, `ResNet` or `BalancedResNet`.
    input_norm
        |x|^2 / n_0 of the input.
    network
        Further arguments of the kind, the same in every layer or block, such as ``branch="1/sqrt(depth)"``. Blocks are
        as wide as the stream unless ``hidden`` is given.

    Raises
    ------
    FinwidthError
        If an argument is not allowed, no width up to 10^12 does, or networks have to be drawn and the weights are not
        Gaussian.

    Examples
    --------
    >>> import finwidth
    >>> finwidth.width_for(16, cv=0.1)
    3723
    >>> finwidth.width_for(16, cv=0.1, kind=finwidth.ResNet, branch="1/sqrt(depth)")
    346
    >>> 50 < finwidth.width_for(4, cv=0.3, norm="rms") < 75
    True
    """
    depth, cv, x = check_depth("depth", depth), _positive("cv", cv), _input_of_norm(input_norm)
    family = Family(kind, {**network})
    drawn = _must_be_drawn(family)
    if depth > _DEEPEST and not drawn:
        raise FinwidthError(f"depth is {depth}; give at most {_DEEPEST} (width grows in proportion to depth)")
    if depth == 1 and kind is MLP and not drawn:  # no hidden layer, no spread
        return 1
    width = _width_to_first_order(family, depth, cv, x) if drawn else None
    if width is None:
        width = _searched(family, depth, cv, x, drawn=drawn)
    if width > _WIDEST:
        raise FinwidthError(f"no width up to {_WIDEST:.0e} brings the spread at depth {depth} to {cv}; raise cv")
    return width


def _searched(family: Family, depth: int, cv: float, x: list[float], *, drawn: bool) -> int:
    """The width by exact moments, or by draws."""
    if drawn and depth > _DEEPEST_DRAWN:
        raise FinwidthError(f"depth is {depth}; give at most {_DEEPEST_DRAWN} for {_why_drawn(family)}")
    search = _drawn_search(depth, cv, family.net(_INPUT, 2, 2).norm) if drawn else _exact_search(depth, cv)
    asked = next(search)
    try:
        while True:
            if isinstance(asked, list):
                asked = search.send(spread_by_width(asked, depth, x, kind=family.kind, **family.options))
                continue
            net = family.net(_INPUT, asked, depth)
            if drawn:
                spread = _spread_of_draws(net, collect(kernel_matrix_sampler(net, [x]), _as_many(asked * depth))["K"])
            else:
                spread = moments(net, x).cv
            asked = search.send(np.array(spread))
    except StopIteration as found:
        width: int = found.value
    return width


def depth_for(
    width: int, cv: float, *, kind: type[Network] = MLP, input_norm: float = 1.0, **network: Unpack[FamilyOptions]
) -> float:
    """The largest depth at which networks of ``width`` have a kernel of spread at most cv: a whole number, or inf.

    From exact moments of every depth up to 10^4, of residual networks of every depth up to 128 and of depths 1% apart
    beyond.  Where the spread does not grow with depth, some shallower networks may have more.  The answer is `math.inf`
    where any depth will do: residual networks with skip 1 and branch 1/sqrt(depth) have a limit of infinite depth.
    If in others the spread is at most cv still at a depth of 10^4, that is the answer, with a warning: there may be no
    largest.  For smooth activations and normalised networks the spread is looked at at some depths: to first order in
    1/width where that serves, up to 64 layers; else of draws, up to 32.  The depth is then right to about 10% or one
    layer, 20% of networks wider than 4000.  Other arguments, and what cv is of normalised networks, as in `width_for`.

    Raises
    ------
    FinwidthError
        If an argument is not allowed, residual networks of no depth have such a spread (a single layer of an `MLP` has
        none), or networks have to be drawn and the weights are not Gaussian, or they are wider than 8192.

    Examples
    --------
    >>> import finwidth
    >>> finwidth.depth_for(3723, cv=0.1)
    16
    >>> finwidth.depth_for(400, cv=0.2, kind=finwidth.ResNet)
    7
    >>> finwidth.depth_for(400, cv=0.1, kind=finwidth.ResNet, branch="1/sqrt(depth)")
    inf
    """
    width, cv, x = count("width", width), _positive("cv", cv), _input_of_norm(input_norm)
    family = Family(kind, {**network})
    drawn = _must_be_drawn(family)
    exact = partial(spread_by_depth, width, x=x, kind=kind, **network)
    depths: Sequence[int]
    if drawn:
        known = _spreads_without_moments(family, width, x)
        depths, spreads = list(known), list(known.values())
    else:
        depths = _depths(kind)
        spreads = exact(depths)
    last = max((place for place, spread in enumerate(spreads) if spread <= cv), default=-1)
    if drawn and last == len(depths) - 1 and width > _WIDEST_DRAWN and len(depths) < len(_DEPTHS_EXPANDED):
        raise FinwidthError(f"width is {width}; give at most {_WIDEST_DRAWN} for {_why_drawn(family)}")
    if last < 0:
        raise FinwidthError(
            f"no number of {family.layers} keeps to a spread of {cv} at width {width}: that of {depths[0]} is "
            f"{spreads[0]:.3g}, and the smallest {min(spreads):.3g}; raise cv or width"
        )
    if last < len(depths) - 1:
        if drawn:
            return depths[last] + _share(depths[last + 1] - depths[last], spreads[last], cv, spreads[last + 1])
        between = range(depths[last], depths[last + 1])
        return max(depth for depth, spread in zip(between, exact(between), strict=True) if spread <= cv)
    if family.bounded and not drawn and 2 * spreads[-1] - exact([depths[-1] // 2])[0] <= cv:  # less a term in 1/L
        return math.inf
    first = max((place for place, spread in enumerate(spreads) if spread > cv), default=-1) + 1
    warnings.warn(
        f"at width {width} the spread is at most {cv} at every depth looked at from {depths[first]} to {depths[-1]}, "
        "the deepest: there is no largest, as far as is known",
        stacklevel=2,
    )
    return depths[-1]


def _depths(kind: type[Network]) -> Sequence[int]:
    """Depths that are looked at: of an `MLP` one pass serves all."""
    if kind is MLP:
        return range(1, _DEEPEST + 1)
    steps = max(0, math.ceil(math.log(_DEEPEST / _EVERY_DEPTH) / math.log(_RATIO)))
    further = [min(_DEEPEST, math.ceil(_EVERY_DEPTH * _RATIO**step)) for step in range(1, steps + 1)]
    return sorted({*range(1, min(_EVERY_DEPTH, _DEEPEST) + 1), *further})


def _share(steps: int, low: float, cv: float, high: float) -> int:
    """Number of the steps between two depths that keep to cv, fewer than all, if log(1 + spread^2) grows evenly."""
    if steps == 1:
        return 0
    below, wanted, above = (math.log1p(spread**2) for spread in (low, cv, high))
    return min(steps - 1, int(steps * (wanted - below) / (above - below))) if above > below else 0


def _exact_search(depth: int, cv: float) -> _Search:
    """The width from exact moments, more than the widest if no width does: a search that asks for spreads.

    Those of a list of widths in double precision, that of a single one without rounding.
    """
    if (yield _WIDEST) > cv:
        return _WIDEST + 1
    widths, spreads = yield from _scan(cv)
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        squares, one = np.square(spreads / cv), np.float64(cv) ** -2
        rounding = 1e-14 * depth * (one + squares)  # of squares, in double precision
        sure = squares > 1 + rounding
    last = int(np.flatnonzero(sure).max(initial=-1))
    unsure = np.flatnonzero(~sure & ~(squares < 1 - rounding))
    for place in unsure[unsure > last][::-1]:
        if (yield int(widths[place])) > cv:
            last = int(place)
            break
    if last < 0:
        return 1
    low, high = int(widths[last]), int(widths[last + 1])  # between them the spread falls below cv
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if (yield middle) > cv else (low, middle)
    return high


def _scan(cv: float) -> Generator[list[int], FloatArray, tuple[_Widths, FloatArray]]:
    """Widths and their spreads: closer and closer together around a hump whose tip may exceed cv."""
    steps = int(math.log(_WIDEST / _EVERY) / math.log(_RATIO))
    wider = [math.ceil(_EVERY * _RATIO**step) for step in range(1, steps + 1)]
    widths = np.array([*range(1, _EVERY + 1), *wider, _WIDEST])
    spreads = yield widths.tolist()
    while True:
        middle = spreads[1:-1]
        tips = (middle >= spreads[:-2]) & (middle >= spreads[2:]) & (middle <= cv) & (middle > cv * (1 - _HUMP))
        tips &= widths[2:] - widths[:-2] > 2
        if not tips.any():
            return widths, spreads
        between = [np.linspace(widths[i], widths[i + 2], 41, dtype=np.int64) for i in np.flatnonzero(tips)]
        finer = np.setdiff1d(np.concatenate(between), widths)
        order = np.argsort(np.concatenate([widths, finer]))
        spreads = np.concatenate([spreads, (yield finer.tolist())])[order]
        widths = np.concatenate([widths, finer])[order]


def _must_be_drawn(family: Family) -> bool:
    """Whether networks of this kind have no exact moments, and are drawn; raises FinwidthError where they cannot be."""
    net = family.net(_INPUT, 2, 2)
    if not _drawn_kind(family):
        check_supported("finwidth.moments", net)
        return False
    if reasons := not_gaussian(net):
        raise FinwidthError(
            f"the spread of networks with {_drawn_kind(family)} is drawn, and this one cannot be: "
            f'{"; ".join(reasons)}; give weight_law="gaussian", bias_law="gaussian"'
        )
    return True


def _drawn_kind(family: Family) -> str:
    """What about networks of this kind has no exact moments; empty if they have them."""
    net = family.net(_INPUT, 2, 2)
    return "a norm" if net.norm is not None else "a smooth activation" * isinstance(net.activation, SmoothActivation)


def _why_drawn(family: Family) -> str:
    """Of networks that are drawn, what they have and why that is, for a message."""
    told = f"{_drawn_kind(family)}, whose networks are drawn"
    if family.net(_INPUT, 2, 2).norm is None:
        told += " where first order in 1/width does not serve"
        told += f" (it does at small cv, up to {_DEPTHS_EXPANDED[-1]} {family.layers})"
    return told


def _width_to_first_order(family: Family, depth: int, cv: float, x: list[float]) -> int | None:
    """The width from which on log(1 + spread^2) is small enough to first order in 1/width; None if that does not serve.

    Width times log(1 + spread^2) is the same at all widths, or goes over from one constant to another. From the widest
    down the steps therefore end at the last width that is too narrow, and the first that is not.
    """
    if depth > _DEPTHS_EXPANDED[-1]:
        return None
    width, wanted = _WIDEST, math.log1p(min(cv, _LARGEST) ** 2)
    for _ in range(_STEPS):
        found = where_it_serves(family.net(_INPUT, width, depth), x)
        if found is None:
            return None
        last, width = width, max(1, math.ceil(width * found.cv**2 / wanted))
        if width > _WIDEST or abs(width - last) <= _ROUNDING * width:
            return width
    return None


def _spreads_without_moments(family: Family, width: int, x: list[float]) -> dict[int, float]:
    """Spreads at some depths: to first order in 1/width where that serves, else of draws as far as those go."""
    found: dict[int, float] = {}
    for depth in _DEPTHS_EXPANDED:
        net = family.net(_INPUT, width, depth)
        wide = where_it_serves(net, x)
        if wide is not None:
            found[depth] = math.sqrt(math.expm1(wide.cv**2))
        elif depth > _DEEPEST_DRAWN or width > _WIDEST_DRAWN:
            break
        else:
            drawn = collect(kernel_matrix_sampler(net, [x]), _as_many(width * depth))
            found[depth] = _spread_of_draws(net, drawn["K"])
    return found


def spread_from(net: Network, x: Vector) -> str:
    """Where the spread of a network that `width_for` or `depth_for` found is from, in words.

    Examples
    --------
    >>> from finwidth import MLP
    >>> from finwidth.sizing import spread_from
    >>> spread_from(MLP([2, 100, 100, 1]), [1, 2])
    'exact moments'
    >>> spread_from(MLP([2, 100, 100, 1], activation="tanh"), [1, 2])
    'first order in 1/width, which leaves out at most about 3.5% of Var K'
    """
    if not no_moments(net):
        return EXACTLY
    found = where_it_serves(net, x)
    return "draws" if found is None else f"first order in 1/width, which {found.remainder}"


def _as_many(neurons: int) -> int:
    """How many networks of so many neurons are drawn."""
    return max(_FEWEST, min(_DRAWS, _NEURONS * _DRAWS // neurons))


def _spread_of_draws(net: Network, K: FloatArray) -> float:
    if not K.any():
        return 0.0
    if why_quantiles(net):
        return min(QuantileSketch.of(K.ravel()).relative_spread.value, _LARGEST)  # infinite where the median is 0
    relative = K / K.max()  # squares of K may leave a double's range
    return float(relative.std() / relative.mean())


def _drawn_search(depth: int, cv: float, norm: Norm | None) -> _Search:
    """Where log(1 + spread^2), drawn at powers of two, comes down to its value at cv, with 1/width at the end.

    It is close to proportional to 1/width at all widths: of ReLU networks about 5 d/n.
    """
    width = 1 if norm is None else norm.narrowest
    found, low, high = float(width), math.inf, math.log1p(float((yield width)) ** 2)
    wanted = math.log1p(min(cv, _LARGEST) ** 2)
    while 2 * width * depth <= _NEURONS and (width < 4 * depth or high > wanted / 4):
        width, low, high = 2 * width, high, math.log1p(float((yield 2 * width)) ** 2)
        if low > wanted >= high:
            found = width / 2 * 2 ** (math.log(low / wanted) / math.log(low / high))
    return math.ceil(found if high <= wanted else width * high / wanted)


def _input_of_norm(norm: float) -> list[float]:
    return [_positive("input_norm", norm, zero=True) ** 0.5] * _INPUT


def _positive(name: str, value: float, *, zero: bool = False) -> float:
    wanted = f"a finite number{' of at least 0' if zero else ' above 0'}"
    return arguments.real(name, value, wanted, lambda v: 0 < v < math.inf or (zero and v == 0))
