"""Figures of the kernel of several inputs and of its first change, drawn in law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

import numpy as np

from finwidth.arguments import check_seed, count, items
from finwidth.errors import FinwidthError
from finwidth.exact.expansion.one_input import only_to_first_order, to_first_order
from finwidth.exact.grid import moments_grid
from finwidth.exact.infinite_width import infinite_width_gram
from finwidth.networks.family import Family
from finwidth.networks.inputs import Vector
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP, MLPOptions
from finwidth.networks.widths import check_depth
from finwidth.plots.style import (
    BLUE,
    GREY,
    MARKERS,
    PALETTE,
    check_alive,
    input_width,
    new_axes,
    new_panels,
    plain_ticks,
    styled,
    titled,
    titled_family,
)
from finwidth.quantities import Estimate
from finwidth.sampling.kernel_matrix.one_of_many import draw_one_input
from finwidth.sampling.kernel_matrix.sample_gram import sample_gram
from finwidth.sampling.one_input import importance
from finwidth.sampling.one_input.sample import one_input_sampler
from finwidth.sampling.sampler import draw_chunks
from finwidth.sampling.statistics.estimates import estimate_moments

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from finwidth.plots.style import Panels


def circle(points: int) -> tuple[FloatArray, FloatArray]:
    """Angles from -pi to pi, shape (points,), and inputs of squared norm n_0 = 2 at them, shape (points, 2)."""
    angles = np.linspace(-math.pi, math.pi, points)
    return angles, math.sqrt(2) * np.stack([np.cos(angles), np.sin(angles)], axis=1)


@styled
def kernel_on_a_circle(
    widths: Sequence[int],
    depth: int,
    *,
    draws: int = 6,
    points: int = 25,
    seed: int = 0,
    ax: Panels | None = None,
    **network: Unpack[MLPOptions],
) -> Figure:
    """K between a point of a circle and the others, for a few networks of each width, and at infinite width.

    Parameters
    ----------
    widths, depth
        Hidden widths, a panel each, and the number of weight layers.
    draws, points, seed
        Lines of a panel, points of the circle (the middle one is at angle 0), and the seed of the draws.
    ax
        Axes of Matplotlib to draw into, one for each width; the figure is theirs, and so is what is above it.
    network
        Further arguments of `MLP`.

    Examples
    --------
    >>> from finwidth.plots import kernel_on_a_circle
    >>> figure = kernel_on_a_circle([8, 64], 3, draws=2, points=5)
    """
    widths = [count("width", width) for width in items("widths", widths, "hidden widths, a panel each")]
    depth = check_depth("depth", depth)
    if not widths:
        raise FinwidthError("widths is empty; give at least one hidden width")
    for name in network.keys() - MLPOptions.__annotations__:
        raise FinwidthError(f"{name} is no option of MLP; it has {', '.join(MLPOptions.__annotations__)}")
    nets = [MLP([2, *[width] * (depth - 1), 1], **network) for width in widths]
    points = count("points", points, 2)
    angles, X = circle(points)
    figure, panels = new_panels(ax, 1, len(widths), 1.0 + 1.9 * len(widths), 2.7, sharey=True)
    for panel, width, net in zip(panels, widths, nets, strict=True):
        limit = infinite_width_gram(net, X)[points // 2]
        if not limit.any():
            raise FinwidthError("the kernel of these networks is zero: nothing of it is trained; give bias='trained'")
        drawn = sample_gram(net, X, draws, seed).K[:, points // 2].to_numpy()
        panel.plot(angles, (drawn / limit.max()).T, color=BLUE, lw=0.9, alpha=0.8)
        panel.plot(angles, limit / limit.max(), color="black", lw=1.2, ls="--")
        panel.set(title=f"$n = {_power_of_ten(width)}$", xlabel=r"angle $\theta$", xticks=[-math.pi, 0, math.pi])
        panel.set_xticklabels([r"$-\pi$", "0", r"$\pi$"])
        panel.set_ylim(bottom=0)
    panels[0].set(ylabel=r"$K(x_0, x_\theta)\,/\,K_\infty(x_0, x_0)$")
    panels[-1].plot([], [], color=BLUE, lw=0.9, label="one network")
    panels[-1].plot([], [], color="black", lw=1.2, ls="--", label="infinite width")
    panels[-1].legend(frameon=True, framealpha=1, edgecolor="none")  # beside the widest networks, whose lines are one
    if ax is None:
        figure.suptitle(titled(nets[0], X[0]), fontsize=9)
    return figure


def _power_of_ten(width: int) -> str:
    exponent = round(math.log10(width))
    return f"10^{exponent}" if width == 10**exponent else f"{width}"


@styled
def update_over_depth(
    widths: Sequence[int],
    depths: Sequence[int],
    x: Vector,
    *,
    draws: int = 100_000,
    seed: int = 0,
    ax: Axes | None = None,
    **network: Unpack[MLPOptions],
) -> Figure:
    """-E[Delta K]/(lambda E[K]) over depth d for a few hidden widths: exact lines, and draws in law with their errors.

    Draws whose error cannot be trusted are hollow; crosses are then as many draws by importance sampling, where there
    is such (`sampling.one_input.importance`).  Where no exact means are known, as for smooth activations, lines are
    first order in 1/width (`finwidth.expansion`) at the depths given, dashed where that does not serve, and of
    E[Delta K]/(lambda E[K]), which has either sign, on a linear axis.

    Parameters
    ----------
    widths, depths
        Hidden widths, at most five, and numbers of weight layers at which to draw.
    x
        The input, shape (n_0,).
    draws, seed
        Networks at each point, and their seed.
    ax
        Axes of Matplotlib to draw into; the figure is theirs.
    network
        Further arguments of `MLP`.

    Examples
    --------
    >>> from finwidth.plots import update_over_depth
    >>> figure = update_over_depth([8, 16], [2, 4], [1.0, 2.0], draws=1000)
    >>> figure = update_over_depth([50, 100], [2, 4], [1.0, 2.0], activation="tanh", draws=500)
    """
    widths = list(dict.fromkeys(count("width", width) for width in items("widths", widths, "hidden widths")))
    depths = [check_depth("depth", depth, 2) for depth in items("depths", depths, "numbers of layers, 2 or more")]
    if not depths:
        raise FinwidthError("depths is empty; give at least one number of layers, 2 or more")
    draws, seed = count("draws", draws), check_seed(seed)
    family = Family(MLP, {**network})
    if only_to_first_order(family.net(1, 2, 2)):
        return _update_to_first_order(family, widths, sorted({*depths}), x, draws, seed, ax)
    figure, axes = new_axes(ax)
    grid = moments_grid(widths, range(2, max(depths) + 1), x, **network)
    check_alive(grid["mean"].to_numpy())
    if not (grid.dK < 0).any():
        raise FinwidthError("the kernels of these networks do not move on average: give another input")
    for marker, width, colour in zip(MARKERS, widths, PALETTE, strict=False):
        line = grid.sel(width=width)
        (curve,) = axes.plot(line.depth, -line.dK / line["mean"], color=colour, lw=1.4, label=f"$n = {width}$")
        curve.set(marker=marker, markersize=4.5, markevery=[])  # in the legend only
        for depth in depths:
            net = MLP([len(np.atleast_1d(np.asarray(x))), *[width] * (depth - 1), 1], **network)
            exact, scale = {"dK": float(line.dK.sel(depth=depth))}, -float(line["mean"].sel(depth=depth))
            found = estimate_moments(draw_chunks(one_input_sampler(net, x), draws, seed), exact)["dK"]
            _point(axes, depth, found, scale, fmt=marker, mfc=colour if found.trust else "white", color=colour)
            if not (found.trust or importance.unsupported(net)):
                weighted = importance.importance_estimates(net, x, draws, seed)["dK"]
                _point(axes, depth, weighted, scale, fmt="x", color=colour)
    axes.plot([], [], "o", color="black", ms=4, label=f"{draws:,} draws")
    axes.plot([], [], "o", color="black", mfc="white", ms=4, label="not to be trusted")
    axes.plot([], [], "x", color="black", ms=4, label="as many, importance-sampled")
    axes.set(xscale="log", yscale="log", xlabel="depth $d$ (weight layers)")
    axes.set_title(titled_family(family, x))
    axes.set_ylabel(r"$-\mathbb{E}[\Delta K]\,/\,(\lambda\,\mathbb{E}[K])$")
    plain_ticks(axes.xaxis, *axes.get_xlim())
    axes.legend()
    return figure


def _update_to_first_order(  # noqa: PLR0917
    family: Family, widths: Sequence[int], depths: Sequence[int], x: Vector, draws: int, seed: int, ax: Axes | None
) -> Figure:
    """Lines of first order, dashed where it does not serve, and draws."""
    n_0 = input_width(x)
    figure, axes = new_axes(ax)
    for marker, width, colour in zip(MARKERS, widths, PALETTE, strict=False):
        nets = [family.net(n_0, width, depth) for depth in depths]
        nets[0].activation.second_derivative(np.zeros(1))  # refuses if there is none
        known = [to_first_order(net, x) for net in nets]
        if not all(each.infinite_width for each in known):
            raise FinwidthError("the kernels of these networks are zero at this input: give another, or bias='trained'")
        line = np.array([float(each.change or 0.0) / each.mean for each in known])
        axes.plot(depths, line, color=colour, lw=1.0, ls="--")
        serves = [each.serves for each in known]
        axes.plot(depths, np.where(serves, line, np.nan), color=colour, lw=1.8, label=f"$n = {width}$")
        for depth, net, each in zip(depths, nets, known, strict=True):
            found = estimate_moments(draw_one_input(net, x, draws, seed))["dK"]
            _point(axes, depth, found, each.mean, fmt=marker, mfc=colour if found.trust else "white", color=colour)
    axes.plot([], [], color="black", lw=1.0, ls="--", label="first order, out of its range")
    axes.plot([], [], "o", color="black", ms=4, label=f"{draws:,} draws")
    axes.axhline(0, color=GREY, lw=0.6)
    axes.locator_params(axis="x", integer=True)
    axes.set_title(titled_family(family, x))
    axes.set(xlabel="depth $d$ (weight layers)", ylabel=r"$\mathbb{E}[\Delta K]\,/\,(\lambda\,\mathbb{E}[K])$")
    axes.legend()
    return figure


def _point(
    axes: Axes, depth: int, found: Estimate, scale: float, *, fmt: str, color: str, mfc: str | None = None
) -> None:
    """An estimate over the scale, with two standard errors."""
    axes.errorbar(
        depth, found.value / scale, 2 * found.se / abs(scale), ms=4.5, capsize=2, lw=1, fmt=fmt, color=color, mfc=mfc
    )
