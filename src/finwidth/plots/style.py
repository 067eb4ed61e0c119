"""Common to all figures: palette, style, axes, files."""

from __future__ import annotations

import functools
import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias

import numpy as np

from finwidth import outputs
from finwidth.arguments import array, instance, items, path
from finwidth.errors import FinwidthError, shown
from finwidth.networks.description import Network
from finwidth.networks.family import BY_DEPTH, Family
from finwidth.networks.inputs import Vector
from finwidth.networks.laws import FloatArray

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    Panels: TypeAlias = Sequence[Axes] | npt.NDArray[np.object_]

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
    "pdf.fonttype": 42,  # TrueType, which publishers ask for
}
PALETTE = (VERMILION, BLUE, GREEN, ORANGE, GREY)
MARKERS = ("s", "^", "D", "v", "<")  # with the colours, so that lines can be told apart without them
_MARKED = 8  # points of a line, about
_FEW_DECADES = 0.7
_TITLE = 64  # characters of a line above a panel
_NOTED = 68  # with a note, whose mark-up is not seen
_SIZES = re.compile(r"(\w+ )?[\d,x]+(?: of \d+ blocks?)? ")  # as a network's text begins, with its kind

Plot = ParamSpec("Plot")


def styled(draw: Callable[Plot, Figure]) -> Callable[Plot, Figure]:
    """Run a drawing function under STYLE; Matplotlib is imported when the first figure is drawn."""

    @functools.wraps(draw)
    def styled(*args: Plot.args, **kwargs: Plot.kwargs) -> Figure:
        import matplotlib as mpl

        with mpl.rc_context(STYLE):
            figure = draw(*args, **kwargs)
        figure._repr_png_ = functools.partial(_in_notebook, figure)  # type: ignore[attr-defined]
        return figure

    return styled


def _in_notebook(figure: Figure) -> tuple[bytes, dict[str, int]]:
    """What a notebook shows where the figure is the last line of a cell: at half its pixels, sharp on any screen."""
    return rendered(figure, ".png"), {"width": round(100 * figure.get_figwidth())}


def new_axes(ax: Axes | None = None, width: float = 4.6, height: float = 3.1) -> tuple[Figure, Axes]:
    """A figure of one panel, the size of a column, in inches; or the axes that are given, and their figure."""
    from matplotlib.figure import Figure

    if ax is not None:
        return _figure_of(ax), ax
    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot()


def new_panels(
    ax: Panels | None,
    rows: int,
    columns: int,
    width: float,
    height: float,
    *,
    sharex: bool = False,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A figure of several panels, row by row, and its size in inches; or the axes that are given, and their figure."""
    from matplotlib.figure import Figure

    if ax is None:
        figure = Figure(figsize=(width, height))
        return figure, list(figure.subplots(rows, columns, sharex=sharex, sharey=sharey, squeeze=False).flat)
    given: list[Axes] = (
        ax.ravel().tolist() if isinstance(ax, np.ndarray) else items("ax", ax, "axes of Matplotlib, one for each panel")
    )
    if len(given) != rows * columns:
        raise FinwidthError(
            f"ax holds {len(given)} axes, and the figure has {rows * columns} panels; give those of "
            f"plt.subplots({rows}, {columns}), or leave it out"
        )
    figures = [_figure_of(each) for each in given]
    return figures[0], given


def _figure_of(ax: object) -> Figure:
    """The figure that axes of a user's are in; raises FinwidthError unless they are axes, and in one."""
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

    axes = instance("ax", ax, Axes, "axes of Matplotlib, such as those of plt.subplots(), or leave it out")
    whole = axes.get_figure()
    if isinstance(whole, SubFigure):
        whole = whole.figure
    if whole is None:
        raise FinwidthError("ax is in no figure any more; give axes of plt.subplots(), or leave it out")
    return whole


# Who made a figure, and not when: the same figure is the same file.
_METADATA: dict[str, dict[str, str | None]] = {
    ".png": {"Software": outputs.SOURCE},
    ".pdf": {"Creator": outputs.SOURCE, "CreationDate": None},
    ".svg": {"Creator": outputs.SOURCE, "Date": None},
}


def rendered(figure: Figure, suffix: str) -> bytes:
    """The content of a .png (200 dpi), .pdf or .svg file."""
    import matplotlib as mpl

    if not hasattr(figure, "savefig") or suffix not in _METADATA:
        raise FinwidthError(
            f"the figure is {shown(figure)} and the ending {shown(suffix)}; give a figure of finwidth.plots, and .png, "
            ".pdf or .svg"
        )
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE | {"svg.hashsalt": "finwidth"}):  # kinds of fonts, and ticks, are made only now
        figure.savefig(buffer, format=suffix.removeprefix("."), dpi=200, metadata=_METADATA[suffix])
    return buffer.getvalue()


def save(figure: Figure, stem: str | Path) -> list[Path]:
    """Write ``stem``.png (200 dpi) and ``stem``.pdf; returns the two paths. Raises FinwidthError as `save_as`."""
    stem = path("stem", stem)
    if not stem.name:
        raise FinwidthError(f"the file is {stem}; give the name of a file")
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".pdf")]
    save_as(figure, *paths)
    return paths


def save_as(figure: Figure, *paths: Path) -> None:
    """Write a figure to files that end in .png, .pdf or .svg.

    Files that finwidth wrote are replaced; raises FinwidthError, and changes nothing, where anything else is there, or
    they cannot be written.
    """
    contents = [rendered(figure, path.suffix) for path in paths]
    with outputs.replacing(*paths) as partials:
        for partial, content in zip(partials, contents, strict=True):
            partial.write_bytes(content)


def input_width(x: Vector) -> int:
    """n_0 of one input; raises FinwidthError unless x is one."""
    return len(_one_input(x))


def _one_input(x: Vector) -> FloatArray:
    wanted = "one input, finite numbers of shape (n_0,)"
    given = array("x", x, wanted)
    if given.ndim != 1 or not len(given):
        raise FinwidthError(f"x has shape {given.shape}; give {wanted}")
    return given


def titled(net: Network, x: Vector | None = None, *, widths: bool = False, more: str = "") -> str:
    """A title that names law, activation and input, and all that is not by default; widths and depth only if wanted.

    >>> from finwidth import MLP
    >>> from finwidth.plots.style import titled
    >>> titled(MLP([2, 8, 1]), [3.0, 1.0])
    'relu, gaussian weights, $|x|^2/n_0 = 5$'
    """
    size = [] if x is None else [_size_of(x)]
    note = ", ".join([*size, more] if more else size)
    if widths:
        return "\n".join(_title_lines(str(net), note))
    return _short_title(_without_sizes(net), note)


def _without_sizes(net: Network) -> str:
    return _SIZES.sub(r"\1", str(net), count=1).replace(", ntk parameterization", "")


def _size_of(x: Vector) -> str:
    return f"$|x|^2/n_0 = {float(np.square(_one_input(x)).mean()):.4g}$"


def _title_lines(text: str, note: str) -> list[str]:
    return [*textwrap.wrap(text, _TITLE), *[note] * bool(note)]


def _short_title(text: str, note: str) -> str:
    """On one line, if it fits there."""
    lines = _title_lines(text, note)
    joined = ", ".join(lines)
    return joined if len(lines) <= 2 and len(joined) <= _NOTED else "\n".join(lines)


def titled_family(family: Family, x: Vector) -> str:
    """The same of networks that differ in width and depth.

    >>> from finwidth import ResNet
    >>> from finwidth.networks.family import BY_DEPTH, Family
    >>> from finwidth.plots.style import titled_family
    >>> print(titled_family(Family(ResNet, {"branch": "1/sqrt(depth)"}), [3.0, 1.0]))
    ResNet (branch 1/sqrt(depth)) relu, gaussian weights
    $|x|^2/n_0 = 5$
    """
    text = _without_sizes(family.net(input_width(x), 2, 2))
    for name in ("skip", "branch"):
        if family.options.get(name) == BY_DEPTH:
            text = text.replace(f"{name} 0.7071", f"{name} {BY_DEPTH}")
    return _short_title(text, _size_of(x))


def marked(place: int, points: int) -> dict[str, Any]:
    """Arguments of a line of so many points that mark some of them, the line's place among the others."""
    marker = MARKERS[place % len(MARKERS)]
    return {"color": PALETTE[place % len(PALETTE)], "marker": marker, "ms": 3.5, "markevery": max(1, points // _MARKED)}


def check_alive(mean: FloatArray) -> None:
    """Raise FinwidthError where a mean kernel is zero, so that nothing can be divided by it."""
    if not (mean > 0).all():
        raise FinwidthError("the kernel of these networks is zero at this input: give another input, or bias='trained'")


def plain_ticks(axis: Axis, low: float, high: float) -> None:
    """Numbers such as 200 rather than powers of ten on a logarithmic axis of less than two decades."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    decades = math.log10(high) - math.log10(low)
    if decades < 2:
        few = decades < _FEW_DECADES  # which hold too few of 1, 2, 5, 10
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]) if few else LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
