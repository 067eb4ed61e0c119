"""Figures of a kernel in training, from a dataset of a tracker, of an ensemble or of `finwidth.train`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from finwidth.arguments import text
from finwidth.errors import FinwidthError
from finwidth.plots.style import BLUE, GREEN, GREY, ORANGE, VERMILION, plain_ticks, styled

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SPECTRUM = 8  # eigenvalues that are drawn


@styled
def kernel_in_training(found: xr.Dataset, title: str = "") -> Figure:
    """Loss, movement, alignment and spectrum over the steps of training; over networks, the median and the middle 68%.

    Steps are on a scale that is linear up to 1 and logarithmic from there, so that step 0 is seen.

    Examples
    --------
    >>> import finwidth, torch
    >>> from finwidth.plots import kernel_in_training
    >>> module = finwidth.empirical.MLP(finwidth.MLP([2, 8, 1]))
    >>> tracker = finwidth.empirical.Tracker(module, torch.eye(2, dtype=torch.float64), record=1)
    >>> for _ in range(3):
    ...     measured = tracker.step()
    >>> figure = kernel_in_training(tracker.dataset())
    """
    import xarray as xr
    from matplotlib.figure import Figure

    title = text("title", title, "a text")
    if not isinstance(found, xr.Dataset) or "step" not in found.dims or "drift" not in found:
        raise FinwidthError(
            "this dataset holds no training; give one of a Tracker, of Ensemble.train or of finwidth.train"
        )
    figure = Figure(figsize=(7.2, 4.8))
    (top_left, top_right), (bottom_left, bottom_right) = figure.subplots(2, 2, sharex=True)
    _loss(top_left, found)
    _curve(top_right, found, "drift", BLUE, r"drift $|K-K_0|/|K_0|$")
    _curve(top_right, found, "rotation", ORANGE, "rotation, 1 - cosine")
    if "cv" in found:
        top_right.plot(found.step, found.cv, color=GREY, lw=1.2, ls="--", label="spread over draws, CV")
    top_right.set(ylabel="movement of the kernel", ylim=(0, max(1.4 * top_right.get_ylim()[1], 1e-3)))  # for the legend
    if "alignment" in found:
        _curve(bottom_left, found, "alignment", GREEN, "with the targets")
        _curve(bottom_left, found, "centred_alignment", VERMILION, "the same, centred")
        bottom_left.set(ylabel="alignment")
    else:
        _curve(bottom_left, found, "effective_rank", GREEN, "effective rank")
        bottom_left.set(ylabel="effective rank")
    _spectrum(bottom_right, found)
    for axes in (bottom_left, bottom_right):
        axes.set_xlabel("step")
    for axes in (top_left, top_right, bottom_left):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper left" if axes is top_right else "best")
    bottom_left.set_xscale("symlog", linthresh=1, linscale=0.3)
    bottom_left.set_xlim(0, max(1, int(found.step[-1])))
    if title:
        figure.suptitle(title, fontsize=9)
    return figure


def _loss(axes: Axes, found: xr.Dataset) -> None:
    """The loss at the steps at which it is known; on a logarithmic axis if it is positive."""
    if "loss" not in found or not np.isfinite(found.loss).any():
        axes.text(0.5, 0.5, "no loss was given", ha="center", transform=axes.transAxes, color=GREY)
        axes.set_yticks([])
        return
    _curve(axes, found, "loss", BLUE)
    if float(found.loss.min()) > 0:
        axes.set_yscale("log")
        plain_ticks(axes.yaxis, *axes.get_ylim())
    axes.set_ylabel("loss")


def _curve(axes: Axes, found: xr.Dataset, name: str, colour: str, label: str | None = None) -> None:
    values = found[name]
    if "draw" in values.dims:
        living = values.dropna("draw")  # a kernel of zeros has no drift and no alignment
        if label and 0 < living.sizes["draw"] < values.sizes["draw"]:
            label += f" ({values.sizes['draw'] - living.sizes['draw']} dead left out)"
            values = living
        low, values, high = (values.quantile(q, "draw", skipna=False) for q in (0.16, 0.5, 0.84))
        axes.fill_between(found.step, low, high, color=colour, alpha=0.2, lw=0)
    axes.plot(found.step, values, color=colour, lw=1.5, label=label, marker=".", ms=3)


def _spectrum(axes: Axes, found: xr.Dataset) -> None:
    """The largest eigenvalues, darker the larger; over draws their medians."""
    values = found.eigenvalues.median("draw") if "draw" in found.eigenvalues.dims else found.eigenvalues
    shown = min(_SPECTRUM, values.sizes["eigenvalue"])
    for place in range(shown):
        line = values.isel(eigenvalue=place)
        axes.plot(found.step, line.where(line > 0), color=BLUE, alpha=1 - 0.85 * place / max(shown - 1, 1), lw=1.3)
    axes.set_yscale("log")
    plain_ticks(axes.yaxis, *axes.get_ylim())
    axes.set_ylabel(f"{shown} largest eigenvalues" if shown > 1 else "eigenvalue")
