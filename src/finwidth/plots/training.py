"""Figures of a kernel in training, from a dataset of a tracker, of an ensemble or of `finwidth.train`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from finwidth.arguments import text
from finwidth.errors import FinwidthError
from finwidth.networks.widths import format_widths
from finwidth.plots.style import BLUE, GREEN, GREY, ORANGE, VERMILION, new_panels, plain_ticks, styled

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from finwidth.plots.style import Panels

_SPECTRUM = 8  # eigenvalues that are drawn
_DECADES = 9  # below the largest movement, that are drawn: what is less is rounding


@styled
def kernel_in_training(found: xr.Dataset, title: str = "", *, ax: Panels | None = None) -> Figure:
    """Loss, movement, alignment and spectrum over the steps of training; over networks, the median and the middle 68%.

    Steps are on a scale that is linear up to 1 and logarithmic from there, so that step 0 is seen; movement is on a
    logarithmic one, as drift and rotation differ by orders of magnitude.  By default the title is what the dataset
    says of the network.  With ``ax``, four axes of Matplotlib such as
    those of ``plt.subplots(2, 2)``, it is drawn into these, and the figure and its title are theirs.

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

    title = text("title", title, "a text")
    if not isinstance(found, xr.Dataset) or "step" not in found.dims or "drift" not in found:
        raise FinwidthError(
            "this dataset holds no training; give one of a Tracker, of Ensemble.train or of finwidth.train"
        )
    figure, panels = new_panels(ax, 2, 2, 7.2, 4.8, sharex=True)
    loss, movement, alignment, spectrum = panels
    _loss(loss, found)
    _movement(movement, found)
    if "alignment" in found:
        _curve(alignment, found, "alignment", GREEN, "with the targets")
        _curve(alignment, found, "centred_alignment", VERMILION, "the same, centred", marker="^")
        alignment.set_ylabel("alignment")
    else:
        _curve(alignment, found, "effective_rank", GREEN, "effective rank")
        alignment.set_ylabel("effective rank")
    _spectrum(spectrum, found)
    for axes in panels:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper left" if axes is movement else "best")
        axes.set_xscale("symlog", linthresh=1, linscale=0.3)
        axes.set_xlim(0, max(1, int(found.step[-1])))
    for axes in panels if ax is not None else (alignment, spectrum):
        axes.set_xlabel("step")
    if ax is None:
        figure.suptitle(title or _network_of(found), fontsize=9)
    return figure


def _network_of(found: xr.Dataset) -> str:
    """The module's class, or kind (but for an MLP), widths, activation and law of a network that was drawn."""
    if "module" in found.attrs:
        return str(found.attrs["module"])
    net = json.loads(found.attrs.get("network", "{}"))
    if not net:
        return ""
    kind = "" if net["kind"] == "MLP" else f"{net['kind']} "
    return f"{kind}{format_widths(net['widths'])} {net['activation']}, {net['weight_law']} weights"


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


def _movement(axes: Axes, found: xr.Dataset) -> None:
    """Drift and rotation; over draws their spread beside them."""
    _curve(axes, found, "drift", BLUE, r"drift $|K-K_0|/|K_0|$")
    _curve(axes, found, "rotation", ORANGE, "rotation, 1 - cosine", marker="^")
    if "cv" in found:
        axes.plot(found.step, found.cv, color=GREY, lw=1.2, ls="--", label="spread over draws, CV")
    axes.set_ylabel("movement of the kernel")
    if not (found.drift > 0).any():  # it has not moved
        axes.set_ylim(0, 1e-3)
        return
    axes.set_yscale("log", nonpositive="mask")
    bottom, top = axes.get_ylim()
    bottom = max(bottom, top / 10**_DECADES)
    axes.set_ylim(bottom, top * (top / bottom) ** 0.4)  # room for the legend
    plain_ticks(axes.yaxis, *axes.get_ylim())


def _curve(
    axes: Axes, found: xr.Dataset, name: str, colour: str, label: str | None = None, *, marker: str = "."
) -> None:
    values = found[name]
    if "draw" in values.dims:
        living = values.dropna("draw")  # a kernel of zeros has no drift and no alignment
        if label and 0 < living.sizes["draw"] < values.sizes["draw"]:
            label += f" ({values.sizes['draw'] - living.sizes['draw']} dead left out)"
            values = living
        low, values, high = (values.quantile(q, "draw", skipna=False) for q in (0.16, 0.5, 0.84))
        axes.fill_between(found.step, low, high, color=colour, alpha=0.2, lw=0)
    axes.plot(found.step, values, color=colour, lw=1.5, label=label, marker=marker, ms=3)


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
