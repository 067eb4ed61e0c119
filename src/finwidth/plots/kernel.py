"""One kernel: its law at one input, and its second moment over depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

import numpy as np

from finwidth.arguments import array, check_seed, count, items, real, text
from finwidth.errors import FinwidthError
from finwidth.exact.expansion.one_input import only_to_first_order, to_first_order
from finwidth.exact.grid import grid_moments
from finwidth.exact.growth import growth
from finwidth.exact.moments import moments
from finwidth.networks.description import Network, check_network
from finwidth.networks.family import Family, FamilyOptions
from finwidth.networks.inputs import Vector
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.networks.routes import check_supported
from finwidth.plots.style import (
    BLUE,
    GREEN,
    MARKERS,
    PALETTE,
    VERMILION,
    check_alive,
    input_width,
    marked,
    new_axes,
    plain_ticks,
    styled,
    titled_family,
)
from finwidth.sampling.kernel_matrix.one_of_many import draw_one_input
from finwidth.sampling.statistics.quantile_sketch import Measured
from finwidth.summary import summarize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LARGEST_LOG = 575.0
_POINTS = 5  # of draws on a line, at most
_FLAT = 2.0  # a ratio up to which the axis is linear
_SIGNAL = ("hidden", "skip", "branch", "activation", "gains")  # options that growth to first order depends on


@styled
def law_of_kernel(
    K: FloatArray, mean: float | None, infinite_width: float | None, title: str = "", *, ax: Axes | None = None
) -> Figure:
    """Histogram of draws of K, shape (draws,), on a logarithmic axis, with its mean and the infinite-width value.

    None leaves out the line of a value that does not exist, or is not known.  With ``ax`` it is drawn into these axes
    of Matplotlib, and the figure is theirs.

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth.plots import law_of_kernel
    >>> figure = law_of_kernel(np.exp(np.random.default_rng(0).normal(size=1000)), 1.65, 1.65)
    """
    wanted = "draws of a kernel, finite numbers of shape (draws,), 0 or more"
    K, title = array("K", K, wanted), text("title", title, "a text")
    if K.ndim != 1 or not len(K) or K.min() < 0:
        raise FinwidthError(f"K has shape {K.shape}, and its least number is {K.min(initial=0):.3g}; give {wanted}")
    mean, infinite_width = (
        None if value is None else real(name, value, "a finite number, 0 or more", lambda each: 0 <= each < math.inf)
        for name, value in (("mean", mean), ("infinite_width", infinite_width))
    )
    figure, axes = new_axes(ax)
    positive = K[K > 0]  # a network that is dead and has no trained output bias has K = 0
    if len(positive) < len(K):
        title += f"\nK = 0 in {1 - len(positive) / len(K):.1%} of them"
    if not len(positive) or positive.min() == positive.max():
        value = float(positive[0]) if len(positive) else 0.0
        told = f"K is {value:.6g} in every {'other ' if len(positive) < len(K) else ''}draw"
        axes.text(0.5, 0.5, told, ha="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[], title=title)
        return figure
    low, high = np.quantile(positive, [0.0005, 0.9995])
    edges = np.geomspace(*((low, high) if low < high else (positive.min(), positive.max())), 121)
    axes.set_xscale("log")
    # A density over log10 K, so that its area is one on the axis that is drawn.
    counts, _ = np.histogram(positive, edges)
    axes.stairs(counts / len(K) / np.diff(np.log10(edges)), edges, fill=True, color=BLUE, alpha=0.75)
    if mean is not None:
        axes.axvline(mean, color=VERMILION, lw=1.6, label=f"exact mean {mean:.4g}")
    if infinite_width is not None:
        axes.axvline(infinite_width, color="black", lw=1.2, ls="--", label=f"infinite width {infinite_width:.4g}")
    median = float(np.median(K))
    axes.axvline(median, color=GREEN, lw=1.2, ls=":", label=f"median of the draws {median:.4g}")
    axes.set(xlabel="kernel $K(x,x)$", ylabel=r"density over $\log_{10} K$", title=title)
    axes.set_ylim(top=1.45 * axes.get_ylim()[1])  # room for the legend
    plain_ticks(axes.xaxis, *axes.get_xlim())
    axes.legend(loc="upper left", frameon=True, framealpha=1, edgecolor="none")  # over lines that pass behind it
    return figure


@styled
def growth_with_depth(
    x: Vector,
    widths: Sequence[int],
    depths: Sequence[int],
    here: Network | None = None,
    *,
    draws: int = 2000,
    seed: int = 0,
    ax: Axes | None = None,
    kind: type[Network] = MLP,
    **network: Unpack[FamilyOptions],
) -> Figure:
    """E[K^2]/E[K]^2 over depth for a few widths: exact (lines) against its exponent to first order in 1/width (dashes).

    The exponent is that of `finwidth.growth`: for ReLU 5 d/n, up to 5/n, for one slope 2 d/n, and for a `ResNet` what
    its blocks give.
    Where no exact moments are known, as for smooth activations, lines are first order in 1/width
    (`finwidth.expansion`), dashed where that does not serve, and points are draws with bars of two standard errors.

    Parameters
    ----------
    x
        The input, shape (n_0,).
    widths, depths
        Widths n, at most five, and depths: numbers d of weight layers, or L of blocks.
    here
        A network to mark, if any.
    draws, seed
        Networks that are drawn at each point, if any are, and their seed.
    ax
        Axes of Matplotlib to draw into; the figure is theirs.
    kind, network
        `MLP`, `ResNet` or `BalancedResNet`, and further arguments of it for the lines; by default the paper's network.

    Examples
    --------
    >>> from finwidth import ResNet
    >>> from finwidth.plots import growth_with_depth
    >>> figure = growth_with_depth([1.0, 2.0], [8, 16], [1, 2, 4, 8])
    >>> figure = growth_with_depth([1.0, 2.0], [8, 16], [1, 2, 4, 8], kind=ResNet, branch="1/sqrt(depth)")
    >>> figure = growth_with_depth([1.0, 2.0], [50, 100], [2, 4], activation="tanh", draws=200)
    """
    widths = list(dict.fromkeys(count("width", width) for width in items("widths", widths, "hidden widths")))
    depths = items("depths", depths, "numbers of layers")
    here = None if here is None else check_network(here)
    family, seed = Family(kind, {**network}), check_seed(seed)
    if only_to_first_order(family.net(1, 2, 2)):
        draws = count("draws", draws, 2)
        return _growth_to_first_order(family, x, widths, depths, here, draws, seed, ax)
    figure, axes = new_axes(ax)
    grid = grid_moments(widths, depths, x, kind=kind, **network)
    check_alive(grid.values["mean"])
    # Past 10^250 a figure says nothing, and Matplotlib's axes overflow.
    exact = 1 + np.minimum(grid.values["cv"], math.exp(_LARGEST_LOG / 2)) ** 2
    for place, (width, colour, line) in enumerate(zip(widths, PALETTE, exact, strict=False)):
        marks = marked(place, len(grid.depths))
        axes.plot(grid.depths, line, lw=1.6, label=f"$n = {width}$", **marks)
        exponents = [_exponent(family, width, depth) for depth in grid.depths]
        axes.plot(grid.depths, np.exp(np.minimum(exponents, _LARGEST_LOG)), color=colour, lw=1.0, ls="--")
    if here is not None:
        check_supported("finwidth.moments", here)
        found = moments(here, x)
        ratio = np.exp(min(found.log_second_moment - 2 * found.K.log_raw[0], _LARGEST_LOG))
        axes.plot(here.depth, ratio, "o", color="black", ms=5, label="this network", zorder=5)
    form = rf"$\exp({_exponent(family, 1, 1):g}\,d/n)$" if kind is MLP else "exp of the growth exponent"
    axes.plot([], [], color="black", lw=1.0, ls="--", label=form)
    _finish_growth(axes, family, x, max(depths))
    return figure


def _finish_growth(axes: Axes, family: Family, x: Vector, deepest: float) -> None:
    symbol = "d" if family.kind is MLP else "L"
    axes.set(xlabel=f"depth ${symbol}$ ({family.layers})", ylabel=r"$\mathbb{E}[K^2]\,/\,\mathbb{E}[K]^2$")
    axes.set(xlim=(0, deepest), title=titled_family(family, x))
    top = axes.get_ylim()[1]
    if top < _FLAT:
        axes.set_ylim(1, 1 + 1.7 * (top - 1))  # room for the legend
    else:
        axes.set_yscale("log")
        axes.set_ylim(bottom=1)
        plain_ticks(axes.yaxis, *axes.get_ylim())
    axes.legend(loc="upper left" if top < _FLAT else "best")


def _growth_to_first_order(  # noqa: PLR0917
    family: Family,
    x: Vector,
    widths: Sequence[int],
    depths: Sequence[int],
    here: Network | None,
    draws: int,
    seed: int,
    ax: Axes | None,
) -> Figure:
    """Lines of first order, dashed where it does not serve, and draws at a few of the depths."""
    n_0, depths = input_width(x), sorted({count("depth", depth) for depth in depths})
    if not widths or not depths:
        raise FinwidthError(f"{'depths' if widths else 'widths'} is empty; give at least one")
    figure, axes = new_axes(ax)
    drawn_at = depths[:: max(1, math.ceil(len(depths) / _POINTS))]
    for marker, width, colour in zip(MARKERS, widths, PALETTE, strict=False):
        found = [to_first_order(family.net(n_0, width, depth), x) for depth in depths]
        growth, serves = np.array([1 + each.cv**2 for each in found]), np.array([each.serves for each in found])
        axes.plot(depths, growth, color=colour, lw=1.0, ls="--")
        axes.plot(depths, np.where(serves, growth, np.nan), color=colour, lw=1.8, label=f"$n = {width}$")
        told = [_drawn_growth(family.net(n_0, width, depth), x, draws, seed) for depth in drawn_at]
        values, errors = np.transpose(told)
        axes.errorbar(drawn_at, values, errors, fmt=marker, color=colour, ms=3.5, elinewidth=0.8)
    if here is not None:
        axes.plot(here.depth, 1 + to_first_order(here, x).cv ** 2, "D", color="black", ms=4, label="this network")
    axes.plot([], [], color="black", lw=1.0, ls="--", label="first order, out of its range")
    axes.plot([], [], "o", color="black", ms=3.5, label=f"{draws:,} draws")
    _finish_growth(axes, family, x, max(depths) + 0.5)
    return figure


def _drawn_growth(net: Network, x: Vector, draws: int, seed: int) -> tuple[float, float]:
    """E[K^2]/E[K]^2 of draws, and two standard errors by the delta method."""
    K = np.concatenate([chunk["K"] for chunk in draw_one_input(net, x, draws, seed, change=False)])
    if not K.any():
        return math.nan, math.nan
    moved = K / K.mean() - 1
    square = float(np.square(moved).mean())
    return 1 + square, 2 * float((np.square(moved) - 2 * square * moved).std()) / math.sqrt(draws)


@styled
def spread_over_depth(
    x: Vector,
    widths: Sequence[int],
    depths: Sequence[int],
    here: Network | None = None,
    *,
    draws: int = 4000,
    seed: int = 0,
    ax: Axes | None = None,
    kind: type[Network] = MLP,
    **network: Unpack[FamilyOptions],
) -> Figure:
    """(q84 - q16) / (2 median) of draws of K over depth for a few widths, with bars of two standard errors.

    For networks whose E[K^2] need not exist, as those with norms; `finwidth.summarize` draws them.  Arguments as in
    `growth_with_depth`.

    Examples
    --------
    >>> from finwidth.plots.kernel import spread_over_depth
    >>> figure = spread_over_depth([1.0, 2.0], [8, 16], [1, 2, 4, 8], norm="rms", draws=500)
    """
    widths = list(dict.fromkeys(count("width", width) for width in items("widths", widths, "hidden widths")))
    depths = [count("depth", depth) for depth in items("depths", depths, "numbers of layers")]
    if not widths or not depths:
        raise FinwidthError(f"{'depths' if widths else 'widths'} is empty; give at least one")
    family, n_0 = Family(kind, {**network}), input_width(x)
    figure, axes = new_axes(ax)
    for place, width in enumerate(widths[: len(PALETTE)]):
        found = [_spread_of(family.net(n_0, width, depth), x, draws, seed) for depth in depths]
        told = np.array([(each.value, 2 * each.se) for each in found])
        values, errors = np.where(np.isfinite(told), told, np.nan).T  # infinite where half of the networks are dead
        axes.errorbar(
            depths, values, errors, lw=1.6, elinewidth=0.8, label=f"$n = {width}$", **marked(place, len(depths))
        )
    if here is not None:
        value = _spread_of(check_network(here), x, draws, seed).value
        axes.plot(here.depth, value, "o", color="black", ms=5, label="this network", zorder=5)
    axes.set(xlabel=f"depth ${'d' if kind is MLP else 'L'}$ ({family.layers})", title=titled_family(family, x))
    axes.set(ylabel="$(q_{84} - q_{16})\\,/\\,(2\\,q_{50})$ of $K$", xlim=(0, max(depths) + 0.5))
    axes.set_ylim(bottom=0)
    axes.legend(loc="best")
    return figure


def _spread_of(net: Network, x: Vector, draws: int, seed: int) -> Measured:
    spread = summarize(net, x, draws, seed).spread
    assert spread is not None  # of plain draws
    return spread


def _exponent(family: Family, width: int, depth: int) -> float:
    """The exponent of E[K^2] / E[K]^2 to first order in 1/width: that of one layer, or block, as often as they are."""
    options = {name: value for name, value in family.of_depth(depth).options.items() if name in _SIGNAL}
    one = Family(family.kind, options).net(1, width, 2 if family.kind is MLP else 1)
    return depth * growth(one).leading
