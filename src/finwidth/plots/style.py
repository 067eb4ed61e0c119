"""Common to all figures: palette, style, axes, files."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's palette.
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#555555"
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
}
PALETTE = (VERMILION, BLUE, GREEN, ORANGE, GREY)

Plot = ParamSpec("Plot")


def styled(draw: Callable[Plot, Figure]) -> Callable[Plot, Figure]:
    """Run a drawing function under STYLE; Matplotlib is imported when the first figure is drawn."""

    @functools.wraps(draw)
    def styled(*args: Plot.args, **kwargs: Plot.kwargs) -> Figure:
        import matplotlib as mpl

        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


def new_axes(width: float = 4.6, height: float = 3.1) -> tuple[Figure, Axes]:
    """A figure of one panel, the size of a column; in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot()


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem``.png (200 dpi) and ``stem``.pdf; returns the two paths."""
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".pdf")]
    for path in paths:
        figure.savefig(path, dpi=200, metadata={"CreationDate": None} if path.suffix == ".pdf" else None)
    return paths


def plain_ticks(axis: Axis, low: float, high: float) -> None:
    """Numbers such as 200 rather than powers of ten on a logarithmic axis of less than two decades."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    if high / low < 100:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
