"""Figures 1 and 2 of the paper, drawn from real 4-tuples of paths, and the ratios exact/form along beta."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from finwidth.paper.moment_checks import ratio_curves
from finwidth.paper.path_checks import CARTOON, FIRST_MARK, MEETINGS, SECOND_MARK, Four, figure_paths

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which the colour-blind can tell apart; line styles tell them apart in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_DASHES = ("solid", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
_CURVES = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_ROWS = 5  # neurons drawn in a hidden layer; the paths are in a part of the network
_GAP = 0.13  # between two paths on one edge
GREY, _INK, _MARK = "#C4C4C4", "#222222", "#6B5500"


def row(layer: int, neuron: int) -> int:
    """Where a neuron of the narrow network stands among the _ROWS of the drawn one."""
    return _ROWS // 2 if CARTOON.widths[layer] == 1 else (_ROWS - 2 if neuron == 0 else 1)


def cartoon(number: int) -> Figure:
    """Figure 1 (partners kept) or 2 (partners swapped, and swapped back)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.4))
    axes = figure.add_axes((0.01, 0.02, 0.98, 0.96))
    _marks(axes)
    _neurons(axes)
    gammas = figure_paths(number)
    _paths(axes, gammas)
    _labels(axes, gammas, number)
    axes.set_xlim(-0.75, CARTOON.depth + 0.75)
    axes.set_ylim(-2.1, _ROWS + 0.55)
    axes.set_axis_off()
    return figure


def _marks(axes: Axes) -> None:
    for mark, name in ((FIRST_MARK, "first"), (SECOND_MARK, "second")):
        axes.fill_betweenx((-0.45, _ROWS - 0.55), mark - 0.84, mark - 0.16, color="#FFF3C4", zorder=0, linewidth=0)
        axes.text(mark - 0.5, _ROWS - 0.35, f"{name} marked\nlayer", ha="center", va="bottom", fontsize=8, color=_MARK)


def _neurons(axes: Axes) -> None:
    for layer in range(CARTOON.depth + 1):
        for place in [_ROWS // 2] if layer == CARTOON.depth else range(_ROWS):
            axes.plot(layer, place, "o", markersize=8, markerfacecolor="white", markeredgecolor=GREY, zorder=1)
        axes.text(layer, -0.6, str(layer), ha="center", va="top", fontsize=8, color=_INK)
        axes.text(layer, -1.0, "collision" * (layer in MEETINGS), ha="center", va="top", fontsize=8, color=_INK)
    axes.text(-0.35, -0.6, "layer", ha="right", va="top", fontsize=8, color=_INK)


def _paths(axes: Axes, gammas: Four) -> None:
    for k, gamma in enumerate(gammas):
        xs: list[float] = []
        ys: list[float] = []
        for layer, (left, right) in enumerate(zip(gamma.neurons, gamma.neurons[1:], strict=False), 1):
            together = [j for j, other in enumerate(gammas) if other.edges[layer - 1] == gamma.edges[layer - 1]]
            shift = _GAP * ((len(together) - 1) / 2 - together.index(k))
            xs += [layer - 1 + 0.1, layer - 0.1]
            ys += [row(layer - 1, left) + shift, row(layer, right) + shift]
        axes.plot(xs, ys, color=_COLOURS[k], linestyle=_DASHES[k], linewidth=2, zorder=3, label=f"path {k + 1}")
    for layer, neuron in {place for gamma in gammas for place in enumerate(gamma.neurons)}:
        axes.plot(layer, row(layer, neuron), "o", markersize=15, markerfacecolor="white", markeredgecolor=_INK,
                  markeredgewidth=1.1, zorder=4)  # fmt: skip


def _labels(axes: Axes, gammas: Four, number: int) -> None:
    for mark, path, name in ((FIRST_MARK, 0, "$e_1$"), (SECOND_MARK, 2, "$e_2$")):
        left, right = gammas[path].neurons[mark - 1 : mark + 1]
        middle = (row(mark - 1, left) + row(mark, right)) / 2
        axes.plot(mark - 0.5, middle, "D", color=_INK, markersize=5.5, zorder=5)
        axes.text(mark - 0.36, middle + 0.24, name, ha="left", va="bottom", fontsize=10, color=_INK, zorder=5)
    words = "keep partners\n1 2 | 3 4" if number == 1 else "swap partners\n1 3 | 2 4"
    middle_of_loop = (MEETINGS[0] + MEETINGS[1]) / 2
    axes.text(middle_of_loop, _ROWS - 0.35, f"they {words}", ha="center", va="bottom", fontsize=8.5, fontweight="bold")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, -0.02), ncols=4, fontsize=8, frameon=False, handlelength=3.4)


def ratios() -> Figure:
    """Exact value over the paper's form along hidden beta, at width 32."""
    from matplotlib.figure import Figure

    names = ("$K^2$", "$K_w^2$", "$K_b^2$", "$K_w K_b$", r"$\Delta_{ww}$", r"$\Delta_{wb}$", r"$\Delta K$")
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for k, (_, betas, values) in enumerate(ratio_curves()):
        dash = _DASHES[k % len(_DASHES)]
        axes.semilogy(betas, values, color=_CURVES[k], linestyle=dash, linewidth=1.6, label=names[k])
    axes.axhline(1, color=GREY, linewidth=0.8, zorder=0)
    axes.set_xlabel(r"$\beta$ = sum of $1/n_i$ over hidden layers (width 32)")
    axes.set_ylabel("exact / paper's form")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    return figure


def svg(figure: Figure, title: str) -> str:
    """A figure as an SVG element to put into a page, the same on every run, with a title for screen readers."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": title, "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    element = text[text.index("<svg") :]
    # Names inside a drawing must not meet names of another drawing on the page.
    prefix = "".join(letter for letter in title.lower() if letter.isalnum())[:12]
    for what in ('id="', 'xlink:href="#', "url(#"):
        element = element.replace(what, what + prefix + "-")
    return element.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
