"""How near the kernel's law is to a log-normal one: the figure, and the command that draws it as PNG.

python -m finwidth.plots.lognormal docs/images/lognormal.png
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.plots.style import BLUE, GREEN, GREY, ORANGE, VERMILION, new_panels, save_as, styled
from finwidth.sampling.one_input.sample import sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from finwidth.plots.style import Panels

_COLOURS = (BLUE, GREEN, ORANGE, VERMILION, GREY)
_DASHES = ("-", (0, (6, 1)), (0, (3, 1)), "-.", (0, (1, 1)))  # with the colours
_BETAS = (0.1, 0.5, 1, 2, 4)
_INPUT = 16  # its width; |x|^2 = n_0
_GRID = np.linspace(-4.5, 4.5, 91)


def standardised_log(K: FloatArray) -> tuple[FloatArray, float]:
    """The logarithm of the draws with K > 0, less its mean and over its standard deviation; and that deviation."""
    logs = np.log(K[K > 0])
    deviation = float(logs.std())
    return (logs - logs.mean()) / deviation, deviation


@styled
def law_against_log_normal(
    betas: Sequence[float] = _BETAS,
    width: int = 40,
    draws: int = 400_000,
    seed: int = 0,
    *,
    ax: Panels | None = None,
) -> Figure:
    """The standardised laws of log K_w and log K for growing beta, depth over width, against the normal law.

    Above, densities; below, quantiles less normal quantiles. The weight part tends to a log-normal law;
    K does not, since the output bias keeps it above 1.

    Parameters
    ----------
    betas
        Values of sum 1/n_i over the hidden layers, at most five; the depth is the nearest to beta times the width.
    width
        The hidden width n.
    draws, seed
        Draws in law for each network, as in `finwidth.sample`.
    ax
        Four axes of Matplotlib to draw into, such as those of ``plt.subplots(2, 2)``; the figure is theirs.

    Examples
    --------
    >>> from finwidth.plots.lognormal import law_against_log_normal
    >>> figure = law_against_log_normal([0.5, 1], width=8, draws=2000)
    """
    figure, drawn_into = new_panels(ax, 2, 2, 7.0, 5.0)
    panels = np.array(drawn_into, dtype=object).reshape(2, 2)
    for beta, colour, dash in zip(betas, _COLOURS, _DASHES, strict=False):
        line = {"color": colour, "ls": dash}
        net = MLP([_INPUT, *[width] * max(1, round(beta * width)), 1])
        drawn = sample(net, np.ones(_INPUT), draws, seed)
        for part, (density, quantiles) in zip(("K_w", "K"), panels.T, strict=True):
            _add_law(density, quantiles, drawn[part].to_numpy(), rf"$\beta = {float(net.beta_hidden):.3g}$", line)
    for part, (density, quantiles) in zip(("K_w", "K"), panels.T, strict=True):
        density.plot(
            _GRID, np.exp(-(_GRID**2) / 2) / np.sqrt(2 * np.pi), color="black", lw=1.2, ls="--", label="normal"
        )
        quantiles.axhline(0, color="black", lw=1.2, ls="--")
        density.set(xlabel=rf"$\log {part}$, standardised", xlim=(-4.5, 4.5), ylim=(0, 0.56))
        quantiles.set(xlabel="quantile of the normal law", xlim=(-3.2, 3.2))
        density.legend(loc="upper right", handlelength=1.2, fontsize=7.5)
    panels[0, 0].set(ylabel="density", title="the weight part $K_w$")
    panels[0, 1].set(title="the kernel $K$, every bias trained")
    panels[1, 0].set(ylabel="quantile less the normal law's")
    return figure


def _add_law(density: Axes, quantiles: Axes, K: FloatArray, label: str, line: dict[str, Any]) -> None:
    """One law in both panels of a column; its standard deviation goes into the legend."""
    from scipy.stats import norm

    standardised, deviation = standardised_log(K)
    counts, edges = np.histogram(standardised, _GRID)
    label += rf",  $\sigma = {deviation:.2f}$"
    density.stairs(counts / len(standardised) / np.diff(edges), edges, lw=1.2, label=label, **line)
    normal = np.linspace(-3.2, 3.2, 129)
    quantiles.plot(normal, np.quantile(standardised, norm.cdf(normal)) - normal, lw=1.3, **line)


if __name__ == "__main__":
    save_as(law_against_log_normal(), Path(sys.argv[1]))
