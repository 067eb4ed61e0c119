"""What every figure shares: palette, style, axes, files."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from finwidth.arguments import path
from finwidth.errors import FinwidthError, shown

if TYPE_CHECKING:
    import xarray as xr
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


def save(figure: Figure, stem: str | Path) -> list[Path]:
    """Write ``stem``.png (200 dpi) and ``stem``.pdf; returns the two paths."""
    stem, wanted = path("stem", stem), "a figure of finwidth.plots"
    if not stem.name or not hasattr(figure, "savefig"):
        raise FinwidthError(f"the figure is {shown(figure)} and the file {stem}; give {wanted} and the name of a file")
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".pdf")]
    try:
        for each in paths:
            figure.savefig(each, dpi=200, metadata={"CreationDate": None} if each.suffix == ".pdf" else None)
    except OSError as error:
        raise FinwidthError(f"cannot write {stem}: {error.strerror}; give a place one can write to") from None
    return paths


def check_alive(grid: xr.Dataset) -> None:
    """Raise FinwidthError where a mean kernel of `moments_grid` is zero, so that nothing can be divided by it."""
    if not (grid["mean"] > 0).all():
        raise FinwidthError("the kernel of these networks is zero at this input: give another input, or bias='trained'")


def plain_ticks(axis: Axis, low: float, high: float) -> None:
    """Numbers such as 200 rather than powers of ten on a logarithmic axis of less than two decades."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    if math.log10(high) - math.log10(low) < 2:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
