"""Pictures of a sweep: the phase diagram over depth and width, how second moment and update collapse, and curves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from finwidth import outputs
from finwidth.errors import FinwidthError
from finwidth.networks.laws import FloatArray
from finwidth.plots.style import new_axes, new_panels, plain_ticks, save_as, styled
from finwidth.sweeps.curves import matrix_over_depth, moments_over_depth, training_curves
from finwidth.sweeps.panels import (
    OF_FORMS,
    AxisNames,
    RouteValues,
    axis_names,
    draw_curves,
    drawn_widths,
    need_depth_and_width,
    only_forms,
    only_quantiles,
    sweep_title,
)
from finwidth.sweeps.schema.grid import AXES
from finwidth.sweeps.store.dataset import read

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from finwidth.plots.style import Panels

_SUFFIXES = (".pdf", ".svg", ".png")
_RATIOS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16, 32)  # d/n of the lines in the phase diagram
_LOWEST, _HIGHEST = 0.03, 100.0  # ends of the colours
_LITTLE = 5  # below which E[K^2]/E[K]^2 needs no logarithmic axis
_LARGEST_LOG = 575.0  # past 10^250 a figure says nothing, and Matplotlib's axes overflow


def plot(
    store: str | Path, picture: str, output: str | Path, *, source: str | None = None, at: Iterable[str] = ()
) -> None:
    """Draw one of `PICTURES` from a store into a file.

    Parameters
    ----------
    store
        Of a sweep over depth and width.
    picture
        ``"phase"``, ``"collapse"``, ``"update"``, ``"moments"``, ``"gram"`` or ``"training"``.
    output
        A file that ends in .pdf, .svg or .png; one that finwidth wrote is replaced.
    source
        ``"exact"``, ``"expansion"``, ``"sampled"`` or ``"bounds"``, of the phase diagram; by default the first of these
        that the store has.
    at
        Where to cut an axis of several values, such as ``"law=uniform"``.

    Raises
    ------
    FinwidthError
        If the store does not hold what the picture needs, or the file cannot be written, or is not finwidth's.
    """
    target = Path(output)
    if picture not in PICTURES:
        raise FinwidthError(f"the picture {picture!r} is not known; choose from {', '.join(PICTURES)}")
    if target.suffix not in _SUFFIXES:
        raise FinwidthError(f"{target} must end in {', '.join(_SUFFIXES)}, which says what kind of file it is")
    if source is not None and picture != "phase":
        raise FinwidthError(f"{picture} draws all that the store has; source is for phase")
    outputs.check(target)
    found = cut(read(store), at)
    save_as(phase(found, source) if picture == "phase" else PICTURES[picture](found), target)


def cut(found: xr.Dataset, at: Iterable[str]) -> xr.Dataset:
    """The dataset at the values given, with depth and width (or ratio) as its only axes of networks."""
    for each in at:
        name, _, value = each.partition("=")
        if name not in found.dims or name not in {*AXES, "ratio"}:
            known = ", ".join(str(dim) for dim in found.dims if dim in AXES)
            raise FinwidthError(f"cannot cut at {each!r}; write AXIS=VALUE, where AXIS is one of {known or 'none'}")
        labels = {str(label): place for place, label in enumerate(found[name].to_numpy())}
        if value not in labels:
            raise FinwidthError(f"cannot cut at {each!r}; the values of {name} are {', '.join(labels)}")
        found = found.isel({name: labels[value]})
    for name in AXES:
        if name in {"depth", "width"}:
            continue
        if name in found.dims and found.sizes[name] > 1:
            values = ", ".join(map(str, found[name].to_numpy()))
            raise FinwidthError(f"there are several values of {name}: {values}; choose one with --at {name}=...")
        if name in found.dims:
            found = found.squeeze(name)
    return found.expand_dims([name for name in ("depth", "width") if name in found.coords and not found[name].ndim])


@styled
def phase(found: xr.Dataset, source: str | None = None, *, ax: Panels | None = None) -> Figure:
    """Spread and first change of the kernel over depth and width, with lines of constant d/n.

    Two panels over (depth, width): the coefficient of variation of K, and abs(E[Delta K])/E[K] per unit learning rate.
    Where the store has sampled quantiles, as of normalised networks, they are (q84 - q16)/(2 median) and the median of
    Delta K over that of K.  Colours end where the numbers go on; grey cells are not done, or sampled and not to be
    trusted, or of networks too narrow for first order in 1/width to serve.  With ``ax``, two axes of Matplotlib, it is
    drawn into these; the figure is theirs, and so is what is above it.
    """
    need_depth_and_width(found)
    has = [name for name, (variable, _) in _PANELS.items() if variable in found]
    source = source or next(iter(has), "exact")
    if source not in has:
        none = f"none of {', '.join(_PANELS)}"
        raise FinwidthError(f"the store has no {source} values; it has {', '.join(has) or none}")
    (spread, cv), (move, update) = _PANELS[source][1](found)
    figure, (left, right) = new_panels(ax, 1, 2, 7.0, 3.2, sharey=True)
    names = axis_names(found)
    _panel(left, cv, spread, names)
    _panel(right, update, move, names)
    left.set_ylabel(names.width)
    if ax is None:
        of_forms = f"\n{OF_FORMS}" * (source == "bounds" and not only_forms(found))
        figure.suptitle(sweep_title(found) + of_forms, fontsize="medium")
    return figure


_Labelled: TypeAlias = "tuple[str, xr.DataArray]"
_SPREADS = {False: r"coefficient of variation of $K$", True: r"$(q_{84} - q_{16})\,/\,(2\,$median$)$ of $K$"}
_MOVES = {
    False: r"$|\mathbb{E}[\Delta K]|\,/\,(\lambda\,\mathbb{E}[K])$",
    True: r"$|$median $\Delta K|\,/\,(\lambda\,$median $K)$",
}  # of means, or of quantiles


def _exact_panels(found: xr.Dataset) -> tuple[_Labelled, _Labelled]:
    update = np.exp(found.exact_log_dK - np.log(found.exact_mean))
    return (_SPREADS[False], found.exact_cv), (_MOVES[False], update)


def _sampled_panels(found: xr.Dataset) -> tuple[_Labelled, _Labelled]:
    if "sampled_quantile" in found:
        return (_SPREADS[True], _spread(found)[0]), (_MOVES[True], _median_move(found)[0])
    mean, trust = found.sampled_mean, found.sampled_trust
    K, square, update = (mean.sel(moment=name) for name in ("K", "K^2", "dK"))
    cv = np.sqrt((square / K**2 - 1).clip(min=0)).where(trust.sel(moment="K^2"))
    return (_SPREADS[False], cv), (_MOVES[False], abs(update / K).where(trust.sel(moment="dK")))


def _of_quantiles(found: xr.Dataset, moment: str, share: float) -> tuple[xr.DataArray, xr.DataArray]:
    """A quantile and its standard error."""
    place = {"moment": moment, "quantile": share}
    return found.sampled_quantile.sel(place), found.sampled_quantile_se.sel(place)


def _spread(found: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """(q84 - q16) / (2 median) of K, and its standard error, as of independent quantiles (`QuantileSketch`)."""
    (low, of_low), (middle, of_middle), (high, of_high) = (_of_quantiles(found, "K", q) for q in (0.16, 0.5, 0.84))
    spread = (high - low) / (2 * middle)
    return spread, (of_low**2 + of_high**2 + (2 * spread * of_middle) ** 2) ** 0.5 / (2 * middle)


def _median_move(found: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """The median of Delta K, without its sign, over that of K; and the sum of their relative errors times that."""
    (update, of_update), (K, of_K) = (_of_quantiles(found, name, 0.5) for name in ("dK", "K"))
    return abs(update) / K, (of_update + abs(update) * of_K / K) / K


def _expanded_panels(found: xr.Dataset) -> tuple[_Labelled, _Labelled]:
    cv, update = found.expansion_cv, abs(found.expansion_dK / found.expansion_mean)
    serves = found.expansion_serves
    return (_SPREADS[False], cv.where(serves)), (_MOVES[False], update.where(serves))


def _bounds_panels(found: xr.Dataset) -> tuple[_Labelled, _Labelled]:
    """Of the paper's forms, which hold up to constants."""
    square, update = (_relative_form(found, moment, power) for moment, power in (("K^2", 2), ("dK", 1)))
    cv = (square - 1).clip(min=0) ** 0.5
    return (_SPREADS[False], cv), (_MOVES[False], update)


def _relative_form(found: xr.Dataset, moment: str, power: int) -> xr.DataArray:
    """The paper's form of a moment over a power of that of E[K], without the output layer's constant e^5."""
    forms = found.bounds_log_form
    found_log = forms.sel(form=moment, drop=True) - 5 - power * forms.sel(form="K", drop=True)
    form: xr.DataArray = np.exp(np.minimum(found_log, _LARGEST_LOG))
    return form.where(form > 0)


# What each source is known by, in the order in which they are preferred.
_PANELS = {
    "exact": ("exact_mean", _exact_panels),
    "expansion": ("expansion_mean", _expanded_panels),
    "sampled": ("sampled_mean", _sampled_panels),
    "bounds": ("bounds_log_form", _bounds_panels),
}


def _panel(axes: Axes, values: xr.DataArray, label: str, names: AxisNames) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    depth, width = values.depth.to_numpy(), values.width.to_numpy()
    numbers = values.transpose("width", "depth").to_numpy()
    shown = numbers[np.isfinite(numbers) & (numbers > 0)]
    if not len(shown):
        raise FinwidthError("no cell of this sweep is done, or none can be trusted; there is nothing to draw")
    low, high = max(shown.min(), min(_LOWEST, shown.max() / 100)), min(shown.max(), _HIGHEST)
    colours = colormaps["viridis"].with_extremes(bad="#dddddd")
    masked = np.ma.masked_where(np.isnan(numbers), np.clip(numbers, 1e-300, 1e300))
    mesh = axes.pcolormesh(
        _cell_borders(depth),
        _cell_borders(width),
        masked,
        norm=LogNorm(low, max(high, 1.01 * low)),
        cmap=colours,
        rasterized=True,
    )
    ends = (shown.min() < low, shown.max() > high)
    extend = {(True, True): "both", (True, False): "min", (False, True): "max", (False, False): "neither"}[ends]
    assert axes.figure is not None
    bar = axes.figure.colorbar(mesh, ax=axes, extend=extend, pad=0.02)
    axes.set(xscale="log", yscale="log", xlabel=names.depth, title=label)
    axes.set_xlim(*_cell_borders(depth)[[0, -1]].tolist())
    axes.set_ylim(*_cell_borders(width)[[0, -1]].tolist())
    for axis in (axes.xaxis, axes.yaxis, bar.ax.yaxis):
        axis.set_major_formatter("{x:g}")
    for axis, values_on_it in ((axes.xaxis, depth), (axes.yaxis, width)):
        plain_ticks(axis, *_cell_borders(values_on_it)[[0, -1]].tolist())
    plain_ticks(bar.ax.yaxis, low, high)
    axes.spines[:].set_visible(True)
    if masked.mask.any():
        note = {"fc": "#dddddd", "ec": "none", "boxstyle": "square,pad=0.2"}
        axes.text(
            0.97, 0.03, "not done, or not to be trusted", ha="right", transform=axes.transAxes, fontsize=7, bbox=note
        )
    _lines_of_ratio(axes, names.depth_symbol)


def _cell_borders(centres: FloatArray) -> FloatArray:
    """Borders of cells around values on a logarithmic axis."""
    logs = np.log(np.asarray(centres, dtype=np.float64))
    if len(logs) == 1:
        return np.asarray(np.exp(logs[0] + np.array([-0.5, 0.5])))
    middles = (logs[1:] + logs[:-1]) / 2
    ends = [2 * logs[0] - middles[0]], [2 * logs[-1] - middles[-1]]
    return np.asarray(np.exp(np.concatenate([ends[0], middles, ends[1]])))


def _lines_of_ratio(axes: Axes, depth: str) -> None:
    """Lines of depth over width = const, each with its value on it, at most about six."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    inside = [c for c in _RATIOS if left / top * 1.5 < c < right / bottom / 1.5]
    for ratio in inside[:: -(-len(inside) // 6) or 1]:
        axes.plot([left, right], [left / ratio, right / ratio], color="white", lw=0.9, ls="--", zorder=3)
        low, high = max(left, bottom * ratio), min(right, top * ratio)
        x = low**0.4 * high**0.6
        text = f"{ratio:g}" if ratio >= 1 else f"1/{round(1 / ratio)}"
        axes.text(
            x, x / ratio, f"${depth}/n={text}$", color="white", fontsize=7, ha="center", va="center", zorder=4,
            rotation=np.degrees(np.arctan(1 / ratio)), rotation_mode="anchor", transform_rotates_text=True,
            bbox={"boxstyle": "square,pad=0.1", "fc": "black", "ec": "none", "alpha": 0.6},
        )  # fmt: skip


@styled
def collapse(found: xr.Dataset, *, ax: Axes | None = None) -> Figure:
    """E[K^2]/E[K]^2 of all widths over beta, the sum of 1/n over the hidden layers, beside the paper's exp(5 beta).

    Of residual networks over the number of blocks over the stream's width; the paper has no forms of them, nor of
    networks that are known to first order in 1/width. Where the store has quantiles and no exact values,
    (q84 - q16)/(2 median) of K in its place.  With ``ax`` it is drawn into these axes of Matplotlib.
    """
    need_depth_and_width(found)
    names, quantiles = axis_names(found), only_quantiles(found)
    values = RouteValues(None, *_spread(found)) if quantiles else _relative(found, "K^2", 2)
    beta = (found.depth - names.first) / found.width
    figure, axes = new_axes(ax, height=3.4)
    draw_curves(axes, beta, values)
    ylabel = _SPREADS[True] if quantiles else r"$\mathbb{E}[K^2]\,/\,\mathbb{E}[K]^2$"
    axes.set(xlabel=names.beta, ylabel=ylabel, yscale="log", title=sweep_title(found))
    if names.of_paper and not quantiles:
        last = min(float(beta.max()), 2.0)
        _paper_growth(axes, found, beta, last)
        axes.set_xlim(0, 1.02 * last)  # the last marker as a whole
        axes.set_ylim(0.9 * _lowest(values, 1.0), 1.5 * np.exp(5 * last))
    else:
        axes.set_xscale("log")
        plain_ticks(axes.xaxis, *axes.get_xlim())
    if not (quantiles or names.of_paper) and axes.get_ylim()[1] < _LITTLE:
        axes.set_yscale("linear")
    else:
        plain_ticks(axes.yaxis, *axes.get_ylim())
    axes.legend(ncols=2)
    return figure


def _paper_growth(axes: Axes, found: xr.Dataset, beta: xr.DataArray, last: float) -> None:
    """The paper's exp(5 beta), up to the last beta, and where the store has it the whole form of its Theorem 1."""
    line = np.linspace(0, last, 200)
    axes.plot(line, np.exp(5 * line), color="black", lw=1.2, ls="--", label=r"paper: $e^{5\beta}$", zorder=3)
    if "bounds_log_form" in found:
        reach = found.width.where(beta.max("depth") >= last)
        widest = {"width": reach.max() if reach.notnull().any() else found.width.min()}
        axes.plot(
            beta.sel(widest),
            _relative_form(found, "K^2", 2).sel(widest),
            color="black",
            lw=1.2,
            ls=":",
            label="paper: Theorem 1",
            zorder=3,
        )


@styled
def update_collapse(found: xr.Dataset, *, ax: Axes | None = None) -> Figure:
    """abs(E[Delta K])/E[K] per unit learning rate of all widths over d^2 |x|^2/(n n_0), beside the paper's forms.

    The paper's form, (d beta |x|^2/n_0) exp(5 beta) up to constants, is the same for all widths where beta is small,
    and a curve for each beyond.  Of residual networks, and of medians, over the depth.  With ``ax`` it is drawn into
    these axes of Matplotlib.
    """
    need_depth_and_width(found)
    names, quantiles = axis_names(found), only_quantiles(found)
    values = RouteValues(None, *_median_move(found)) if quantiles else _relative(found, "dK", 1)
    figure, axes = new_axes(ax, height=3.4)
    axes.set(ylabel=_MOVES[quantiles], xscale="log", yscale="log", title=sweep_title(found))
    if names.of_paper and not quantiles:
        _update_beside_paper(axes, found, values)
    else:
        draw_curves(axes, found.depth.broadcast_like(found.width), values)
        axes.set_xlabel(names.depth)
    plain_ticks(axes.xaxis, *axes.get_xlim())
    plain_ticks(axes.yaxis, *axes.get_ylim())
    if names.of_paper:
        axes.legend(ncols=2, loc="lower right", fontsize=7, handlelength=1.4, columnspacing=1.0)
    else:
        axes.legend(ncols=2)
    return figure


def _update_beside_paper(axes: Axes, found: xr.Dataset, values: RouteValues) -> None:
    beta = (found.depth - 1) / found.width
    size = found.squared_norm / found.n_0
    x = found.depth**2 / found.width * size
    norm = "" if np.isclose(found.squared_norm, 1) else r"\,|x|^2"
    form = found.depth * beta * size * np.exp(np.minimum(5 * beta, _LARGEST_LOG))
    for width, colour, _ in drawn_widths(found):
        shown = form.sel(width=width).where(lambda each: each > 0)  # one layer has no update
        axes.plot(x.sel(width=width), shown, color=colour, lw=0.9, ls="--", zorder=1)
    draw_curves(axes, x, values)
    axes.plot([], [], color="black", lw=0.9, ls="--", label=rf"paper: $(d\beta{norm}/n_0)\,e^{{5\beta}}$")
    axes.set_xlabel(rf"$d^2{norm}/(n\,n_0)$")
    top = min(axes.get_ylim()[1], 1e4)
    inside = form.where((form < top) & (form > 0))
    axes.set_ylim(0.5 * _lowest(values, float(inside.min())), top)
    inside = x.where(inside.notnull())
    axes.set_xlim(0.7 * float(inside.min()), 1.4 * float(inside.max()))


def _lowest(values: RouteValues, other: float) -> float:
    """The lower one of this and of all values without draws: the paper's forms alone may be below what is usual."""
    return other if values.exact is None else min(other, float(values.exact.min()))


def _relative(found: xr.Dataset, moment: str, power: int) -> RouteValues:
    """abs(E[moment]) / E[K]^power; where E[K] is sampled too, the relative errors add up, for the two depend."""
    exact = sampled = error = trust = None
    if "exact_mean" in found:
        log = found.exact_log_second_moment if moment == "K^2" else found.exact_log_dK
        exact = np.exp(np.minimum(log - power * np.log(found.exact_mean), _LARGEST_LOG))
        exact = exact.where(exact > 0)  # one layer has no update
    elif "expansion_mean" in found:
        exact = 1 + found.expansion_cv**2 if moment == "K^2" else abs(found.expansion_dK / found.expansion_mean)
        exact = exact.where(found.expansion_serves & (exact > 0))
    if "sampled_mean" in found:
        mean, se = abs(found.sampled_mean.sel(moment=moment)), found.sampled_se.sel(moment=moment)
        K = found.exact_mean if "exact_mean" in found else found.sampled_mean.sel(moment="K")
        of_K = 0.0 if "exact_mean" in found else power * found.sampled_se.sel(moment="K") / K
        sampled = mean / K**power
        error = sampled * (se / mean + of_K)
        trust = found.sampled_trust.sel(moment=moment)
    if exact is None and sampled is None and "bounds_log_form" in found:
        exact = _relative_form(found, moment, power)
    if exact is None and sampled is None:
        raise FinwidthError(f"the store has none of {', '.join(_PANELS)}; of others there are gram and training")
    return RouteValues(exact, sampled, error, trust)


PICTURES: dict[str, Callable[..., Figure]] = {
    "phase": phase,
    "collapse": collapse,
    "update": update_collapse,
    "moments": moments_over_depth,
    "gram": matrix_over_depth,
    "training": training_curves,
}
