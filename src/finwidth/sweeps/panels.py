"""What the pictures of a sweep share: names of axes, titles, which widths are drawn, and curves of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from finwidth.errors import FinwidthError
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.networks.residual import ResidualNetwork
from finwidth.plots import BLUE, GREEN, GREY, ORANGE, VERMILION
from finwidth.sweeps.schema.kinds import kind_of

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

_COLOURS = (VERMILION, BLUE, GREEN, ORANGE, "#56B4E9", "#CC79A7")  # Okabe and Ito's
_MARKERS = "os^Dv<"
_ALL_MARKED = 12  # points of a line


@dataclass(frozen=True)
class AxisNames:
    """What a picture of one kind of network calls its axes, and whether the paper's forms are of it.

    ``beta`` is the sum of 1/n over hidden layers, or blocks: the depth less ``first``, over the width.
    """

    depth: str
    depth_symbol: str
    width: str
    beta: str
    first: int
    of_paper: bool


_NAMES: dict[type, AxisNames] = {
    MLP: AxisNames("depth $d$ (weight layers)", "d", "hidden width $n$", r"$\beta=(d-1)/n$", 1, of_paper=True),
    ResidualNetwork: AxisNames(
        "depth $L$ (blocks)",
        "L",
        "width $n$ of the stream",
        "$L/n$ (blocks over width of the stream)",
        0,
        of_paper=False,
    ),
}


def axis_names(found: xr.Dataset) -> AxisNames:
    """Of the kind of networks that the store is of."""
    description = kind_of(json.loads(found.attrs["config"])["network"]).description
    names = next(_NAMES[each] for each in description.__mro__ if each in _NAMES)
    return replace(names, of_paper=False) if only_expanded(found) else names


def only_expanded(found: xr.Dataset) -> bool:
    """Whether first order in 1/width is all that the store has, which the paper's forms are not of."""
    return "expansion_mean" in found and not {"exact_mean", "sampled_mean"} & {*found}


def only_forms(found: xr.Dataset) -> bool:
    """Whether the paper's forms are all that the store has of one input."""
    return "bounds_log_form" in found and not {"exact_mean", "sampled_mean", "expansion_mean"} & {*found}


OF_FORMS = "the paper's forms, which hold up to constants"


def sweep_title(found: xr.Dataset, *, one_input: bool = True) -> str:
    """Activation, law and input, and what the store says of blocks of residual networks, norms and first order.

    Of what is not of ``one_input`` no input is told.
    """
    size = f", $|x|^2/n_0 = {float(found.squared_norm / found.n_0):.4g}$" * one_input
    lines = [f"{found.activation.item()}, {found.law.item()} weights{size}"]
    if one_input and only_expanded(found):
        return f"{lines[0]}\nfirst order in 1/width where it serves"
    if one_input and only_forms(found):
        return f"{lines[0]}\n{OF_FORMS}"
    said = json.loads(found.attrs["config"])["network"]
    said |= {name: found[name].item() for name in ("hidden", "skip", "branch", "norm", "signs") if name in found.coords}
    shown = {name: value for name, value in said.items() if not axis_names(found).of_paper or name == "norm"}
    told = ", ".join(f"{name} {value}" for name, value in shown.items() if (name, value) != ("norm", "none"))
    return "\n".join([*lines, told] if told else lines)


@dataclass(frozen=True)
class RouteValues:
    """A quantity over its infinite-width scale, over (depth, width), by the routes that the store has."""

    exact: xr.DataArray | None  # or to first order, where that serves
    sampled: xr.DataArray | None
    error: xr.DataArray | None
    trust: xr.DataArray | None = None  # all of it, by default


def need_depth_and_width(found: xr.Dataset) -> None:
    """Raise FinwidthError unless the two are axes."""
    if not {"depth", "width"} <= {*found.dims}:
        raise FinwidthError("the pictures need the axes depth and width, and not depth over width, ratio; give both")


def only_quantiles(found: xr.Dataset) -> bool:
    """Whether sampled quantiles are drawn, as means need not exist: where there are some, and no exact values."""
    return "sampled_quantile" in found and "exact_mean" not in found


def drawn_widths(found: xr.Dataset) -> Iterator[tuple[int, str, str]]:
    """At most six widths, spread over those there are by ratio, with colour and marker."""
    widths = found.width.to_numpy()
    wanted = np.geomspace(widths[0], widths[-1], min(len(widths), len(_COLOURS)))
    places = np.unique([np.argmin(np.abs(widths - each)) for each in wanted])
    for place, colour, marker in zip(places, _COLOURS, _MARKERS, strict=False):
        yield int(widths[place]), colour, marker


def draw_curves(axes: Axes, x: xr.DataArray, values: RouteValues) -> None:
    """Exact values as lines, samples with bars of two standard errors; open markers, without bars, if not trusted.

    Lines without samples have markers of their own, so that they differ by more than colour.
    """
    for width, colour, marker in drawn_widths(x.to_dataset(name="x")):
        here, label = x.sel(width=width).to_numpy(), f"$n={width}$"
        if values.exact is not None and values.exact.sel(width=width).notnull().any():
            (line,) = axes.plot(here, values.exact.sel(width=width), color=colour, lw=1.4, label=label, zorder=2)
            # Samples have the markers on the lines; then they are in the legend only.
            marked = None if len(here) <= _ALL_MARKED else 0.12
            line.set(marker=marker, markersize=4, markevery=marked if values.sampled is None else [])
        if values.sampled is None or values.error is None:
            continue
        y, bars = (each.sel(width=width).to_numpy() for each in (values.sampled, values.error))
        trust = np.isfinite(y) if values.trust is None else values.trust.sel(width=width).to_numpy()
        named = label if values.exact is None else None
        draw_samples(axes, here, y, bars, trust, colour=colour, marker=marker, size=4, label=named)
    if values.sampled is not None:
        label_samples(axes, values.trust)


def draw_samples(
    axes: Axes,
    x: FloatArray,
    y: FloatArray,
    errors: FloatArray,
    trust: npt.NDArray[np.bool_],
    *,
    colour: str,
    marker: str,
    size: float,
    label: str | None,
) -> None:
    """Samples with bars of two standard errors; open markers, without bars, if not trusted."""
    axes.errorbar(
        x[trust], y[trust], 2 * errors[trust], color=colour, fmt=marker, ms=size, lw=0, elinewidth=1, zorder=4,
        label=label,
    )  # fmt: skip
    axes.plot(x[~trust], y[~trust], marker, color=colour, mfc="white", ms=size, zorder=4)


def label_samples(axes: Axes, trust: xr.DataArray | None) -> None:
    """What the legend says of samples."""
    axes.plot([], [], "o", color=GREY, ms=4, label="sampled, 2 s.e.")
    if trust is not None and not trust.all():
        axes.plot([], [], "o", color=GREY, mfc="white", ms=4, label="not to be trusted")
