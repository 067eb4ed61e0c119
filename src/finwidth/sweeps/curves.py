"""Pictures of a sweep as curves: every moment and every entry of a kernel matrix over depth, training over steps."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from finwidth.errors import FinwidthError
from finwidth.plots.style import new_panels, plain_ticks, styled
from finwidth.sweeps.panels import (
    RouteValues,
    axis_names,
    draw_curves,
    draw_samples,
    drawn_widths,
    label_samples,
    need_depth_and_width,
    only_quantiles,
    sweep_title,
)

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from finwidth.plots.style import Panels

_MOST_PANELS = 3  # of entries of a matrix side by side, and of depths one below another
_FEW = 6  # depths, which are then on the axis
_LARGEST = 1e250  # past it Matplotlib's axes overflow
_LABELS = {
    "K": r"$\mathbb{E}[K]$",
    "K_w": r"$\mathbb{E}[K_w]$",
    "K_b": r"$\mathbb{E}[K_b]$",
    "K^2": r"$\mathbb{E}[K^2]$",
    "K_w^2": r"$\mathbb{E}[K_w^2]$",
    "K_b^2": r"$\mathbb{E}[K_b^2]$",
    "K_w*K_b": r"$\mathbb{E}[K_w K_b]$",
    "dK": r"$|\mathbb{E}[\Delta K]|\,/\,\lambda$",
}


@styled
def moments_over_depth(found: xr.Dataset, *, ax: Panels | None = None) -> Figure:
    """E[K], E[K^2], E[Delta K] and what else of moments the store has, over depth: a curve for each width, at most six.

    Exact values, or what first order in 1/width says where it serves, are lines; samples have bars of two standard
    errors, and are hollow where they are not to be trusted.  Of sampled quantiles, as of normalised networks, medians
    take the place of means.  With ``ax``, as many axes of Matplotlib as there are moments, it is drawn into these.
    """
    need_depth_and_width(found)
    values = {name: each for name in _LABELS if (each := _moment(found, name)) is not None}
    if not values:
        raise FinwidthError("the store has no exact, expansion or sampled values, so there are no moments to draw")
    columns = min(len(values), 4)
    rows = -(-len(values) // columns)
    figure, panels = new_panels(ax, rows, columns, 0.6 + 2.3 * columns, 0.9 + 2.1 * rows)
    medians = only_quantiles(found)
    for axes, (name, each) in zip(panels, values.items(), strict=True):
        draw_curves(axes, found.depth.broadcast_like(found.width), each)
        axes.set(yscale="log", title=_label(name, medians=medians))
        _depth_axis(axes, found)
        plain_ticks(axes.yaxis, *axes.get_ylim())
    _legend(figure, panels, ax)
    if ax is None:
        figure.suptitle(sweep_title(found), fontsize="medium")
    return figure


def _label(name: str, *, medians: bool) -> str:
    return re.sub(r"\\mathbb{E}\[(.*)\]", r"\\mathrm{median}(\1)", _LABELS[name]) if medians else _LABELS[name]


def _moment(found: xr.Dataset, name: str) -> RouteValues | None:
    """One moment by the routes that the store has; None if by none."""
    if only_quantiles(found):
        middle, error = (
            found[f"sampled_{each}"].sel(moment=name, quantile=0.5) for each in ("quantile", "quantile_se")
        )
        return RouteValues(None, abs(middle), error, _finite(error))
    exact = _without_draws(found, name)
    if "sampled_mean" in found:
        mean, error, trust = (found[f"sampled_{each}"].sel(moment=name) for each in ("mean", "se", "trust"))
        return RouteValues(exact, _drawable(abs(mean)), error, trust)
    return None if exact is None else RouteValues(exact, None, None)


def _without_draws(found: xr.Dataset, name: str) -> xr.DataArray | None:
    """A moment without draws: exactly, or to first order where that serves."""
    known: dict[str, xr.DataArray] = {}
    if "exact_mean" in found:
        known = {"K": found.exact_mean, "K^2": np.exp(found.exact_log_second_moment), "dK": abs(found.exact_dK)}
    elif "expansion_mean" in found:
        mean = found.expansion_mean
        known = {"K": mean, "K^2": mean**2 * (1 + found.expansion_cv**2), "dK": abs(found.expansion_dK)}
        known = {each: values.where(found.expansion_serves) for each, values in known.items()}
    return _drawable(known[name]) if name in known else None


def _finite(error: xr.DataArray) -> xr.DataArray:
    """Whether a quantile is to be trusted."""
    return error.notnull() & (abs(error) < _LARGEST)


def _drawable(values: xr.DataArray) -> xr.DataArray:
    """What a logarithmic axis takes; one layer has no update."""
    return values.where((values > 0) & (values < _LARGEST))


def _depth_axis(axes: Axes, found: xr.Dataset) -> None:
    """A logarithmic axis with the depths themselves, if they are few."""
    depths = found.depth.to_numpy()
    axes.set(xscale="log", xlabel=axis_names(found).depth)
    plain_ticks(axes.xaxis, *axes.get_xlim())
    if len(depths) <= _FEW:
        axes.set_xticks(depths, [f"{depth:g}" for depth in depths])
        axes.xaxis.set_tick_params(which="minor", length=0)


def _legend(figure: Figure, panels: list[Axes], ax: Panels | None) -> None:
    """One for all panels: below them, or in the first one of those that are given."""
    if ax is not None:
        panels[0].legend(fontsize=7)
        return
    lines = {
        label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }  # what only some panels have too
    figure.legend(
        lines.values(), lines.keys(), loc="outside lower center", ncols=4 if len(panels) <= _MOST_PANELS else 8
    )


# ---- kernel matrices


@styled
def matrix_over_depth(found: xr.Dataset, *, ax: Panels | None = None) -> Figure:
    """The kernel matrix of several inputs over depth: a column for each entry, at most three, a curve a width.

    Rows are E[K_ab]; E[K_ab^2] over E[K_aa] E[K_bb]; and, if the store has it, E[Delta K_ab] over lambda and the root
    of E[K_aa] E[K_bb]; all with two standard errors, those of ratios as if the errors of their parts added up.  Where
    the store has quantiles, as of normalised networks, medians take the place of means, and (q84 - q16) / 2 over the
    root that of the second moment.  A part of the dataset, ``found.isel(gram_input=[1, 2], gram_input_=[1, 2])``, shows
    other entries.  With ``ax``, axes of Matplotlib row by row, it is drawn into these.
    """
    need_depth_and_width(found)
    if "gram_mean" not in found:
        raise FinwidthError("the store has no kernel matrices; the quantity gram of a sweep computes them")
    pairs = sorted(combinations_with_replacement(range(found.sizes["gram_input"]), 2), key=max)
    shown = pairs[:_MOST_PANELS]
    rows = _rows_of_matrix(found)
    width, height = 1.1 + 2.2 * len(shown), 1.0 + 1.9 * len(rows)
    figure, panels = new_panels(ax, len(rows), len(shown), width, height)
    inputs = found.gram_input.to_numpy()
    for row, (label, values) in enumerate(rows.items()):
        for column, (a, b) in enumerate(shown):
            axes = panels[row * len(shown) + column]
            draw_curves(axes, found.depth.broadcast_like(found.width), values(found, a, b))
            _depth_axis(axes, found)
            axes.set(ylabel="" if column else label, title="" if row else f"a: {inputs[a]}, b: {inputs[b]}")
    _legend(figure, panels, ax)
    if ax is None:
        some = f"{len(shown)} of {len(pairs)} entries, " * (len(shown) < len(pairs))
        centre = "median" if "gram_quantile" in found else "mean"
        figure.suptitle(f"{sweep_title(found, one_input=False)}\n{some}$m$: {centre} of $K$", fontsize="medium")
    return figure


_OfEntry: TypeAlias = "Callable[[xr.Dataset, int, int], RouteValues]"


def _rows_of_matrix(found: xr.Dataset) -> dict[str, _OfEntry]:
    """What is drawn of each entry, by label."""
    if "gram_quantile" in found:
        rows: dict[str, _OfEntry] = {"median $K_{ab}$": partial(_of_matrix, "K", 0.0)}
        rows[r"$(q_{84} - q_{16})\,/\,2\sqrt{m_{aa} m_{bb}}$"] = _spread_of_entry
        moved = r"median $\Delta K_{ab}\,/\,\lambda\sqrt{m_{aa} m_{bb}}$"
    else:
        rows = {r"$\mathbb{E}[K_{ab}]$": partial(_of_matrix, "K", 0.0)}
        rows[r"$\mathbb{E}[K_{ab}^2]\,/\,m_{aa} m_{bb}$"] = partial(_of_matrix, "K^2", 1.0)
        moved = r"$\mathbb{E}[\Delta K_{ab}]\,/\,\lambda\sqrt{m_{aa} m_{bb}}$"
    return rows | ({moved: partial(_of_matrix, "dK", 0.5)} if "dK" in found.gram_moment else {})


def _middle(found: xr.Dataset, moment: str, a: int, b: int) -> RouteValues:
    """The mean of an entry, or its median where the store has quantiles."""
    place = found.sel(gram_moment=moment).isel(gram_input=a, gram_input_=b)
    if "gram_quantile" in found:
        of_median = place.sel(quantile=0.5)
        error = of_median.gram_quantile_se
        return RouteValues(None, of_median.gram_quantile, error, _finite(error))
    return RouteValues(None, place.gram_mean, place.gram_se, place.gram_trust)


def _of_matrix(moment: str, power: float, found: xr.Dataset, a: int, b: int) -> RouteValues:
    """The mean of an entry, or its median, over a power of those of K_aa and K_bb."""
    return _over_diagonal(_middle(found, moment, a, b), power, found, a, b)


def _spread_of_entry(found: xr.Dataset, a: int, b: int) -> RouteValues:
    """(q84 - q16) / 2 of K_ab over the root of the medians of K_aa and K_bb."""
    place = found.sel(gram_moment="K").isel(gram_input=a, gram_input_=b)
    low, high = (place.sel(quantile=share) for share in (0.16, 0.84))
    error = (low.gram_quantile_se**2 + high.gram_quantile_se**2) ** 0.5 / 2
    half = RouteValues(None, (high.gram_quantile - low.gram_quantile) / 2, error, _finite(error))
    return _over_diagonal(half, 0.5, found, a, b)


def _over_diagonal(top: RouteValues, power: float, found: xr.Dataset, a: int, b: int) -> RouteValues:
    """Over (K_aa K_bb)^power; the relative errors add up, for the parts depend."""
    assert top.sampled is not None
    assert top.error is not None
    value, error, trust = top.sampled, top.error, top.trust
    for place in (a, b):
        K = _middle(found, "K", place, place)
        assert K.sampled is not None
        assert K.error is not None
        scale = K.sampled**power
        value, error = value / scale, error / scale + abs(value / scale) * power * K.error / K.sampled
        if power and trust is not None and K.trust is not None:
            trust = trust & K.trust
    return RouteValues(None, value.where(abs(value) < _LARGEST), error, trust)


# ---- training


@styled
def training_curves(found: xr.Dataset, *, ax: Panels | None = None) -> Figure:
    """Loss, drift and alignment over the steps of training: a row for each depth, at most three, a curve a width.

    Means over networks, or medians where the store has quantiles, with two standard errors; hollow where they are not
    to be trusted.  Steps are on a scale that is linear up to 1 and logarithmic from there, so that step 0 is seen.
    With ``ax``, axes of Matplotlib row by row, it is drawn into these.
    """
    need_depth_and_width(found)
    if "training_mean" not in found:
        raise FinwidthError("the store has no training; the quantity training of a sweep computes it")
    depths = found.depth.to_numpy()
    chosen = np.unique(np.linspace(0, len(depths) - 1, _MOST_PANELS).round().astype(int))
    names = [str(name) for name in found.followed.to_numpy()]
    figure, panels = new_panels(ax, len(chosen), len(names), 1.0 + 2.2 * len(names), 0.9 + 1.9 * len(chosen))
    for row, place in enumerate(chosen):
        for column, name in enumerate(names):
            axes = panels[row * len(names) + column]
            _trajectories(axes, found.isel(depth=place).sel(followed=name))
            axes.set_xscale("symlog", linthresh=1, linscale=0.3)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set(xlim=(-0.2, 1.2 * max(1, int(found.step[-1]))), xlabel="step" if row == len(chosen) - 1 else "")
            axes.set(title=f"{'median ' if 'training_quantile' in found else ''}{name}" if not row else "")
            if not column and len(depths) > 1:
                axes.set_ylabel(f"{axis_names(found).depth}: {depths[place]}")
    _legend(figure, panels, ax)
    if ax is None:
        figure.suptitle(sweep_title(found, one_input=False), fontsize="medium")
    return figure


def _trajectories(axes: Axes, found: xr.Dataset) -> None:
    """One quantity over the steps, a curve for each width."""
    if "training_quantile" in found:
        values, errors = (each.sel(quantile=0.5) for each in (found.training_quantile, found.training_quantile_se))
        trust = _finite(errors)
    else:
        values, errors, trust = found.training_mean, found.training_se, found.training_trust
    values, steps = values.where(abs(values) < _LARGEST), found.step.to_numpy()
    if not bool(np.isfinite(values).any()):
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no finite number", transform=axes.transAxes, ha="center", va="center")
    for width, colour, marker in drawn_widths(found):
        y, bars, sound = (each.sel(width=width).to_numpy() for each in (values, errors, trust))
        axes.plot(steps, y, color=colour, lw=1.2, zorder=2)
        draw_samples(axes, steps, y, bars, sound, colour=colour, marker=marker, size=3.5, label=f"$n={width}$")
    label_samples(axes, trust)
