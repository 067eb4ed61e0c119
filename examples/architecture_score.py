"""A score of architectures from the kernel of one batch at initialization: its error bars, and why it varies.

    python examples/architecture_score.py [-o docs/images/architecture-score.png] [--inits 24] [--batches 4]

Prints the figures of docs/architecture-score.md and draws its picture; about three minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from finwidth.empirical import ntk
from finwidth.networks.laws import FloatArray
from finwidth.plots import STYLE
from finwidth.plots.style import BLUE, GREEN, GREY, VERMILION

N = 12  # images of a batch


class Block(nn.Module):
    """Convolution, batch normalisation, ReLU; with a skip connection or without."""

    def __init__(self, width: int, skip: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.skip = skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.body(x)
        return x + y if self.skip else y


def network(depth: int, width: int, skip: bool) -> nn.Module:
    """So many blocks of this width between a convolution and a linear layer."""
    blocks = [Block(width, skip) for _ in range(depth)]
    first = nn.Conv2d(3, width, 3, padding=1, bias=False)
    return nn.Sequential(first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


ARCHITECTURES = {
    "2 plain": (2, 16, False),
    "4 plain": (4, 16, False),
    "8 plain": (8, 16, False),
    "2 skip": (2, 16, True),
    "4 skip": (4, 16, True),
    "8 skip": (8, 16, True),
}


def images(seed: int) -> torch.Tensor:
    """A batch of smooth random images."""
    torch.manual_seed(1000 + seed)
    return nn.functional.interpolate(torch.randn(N, 3, 4, 4), size=(8, 8), mode="bilinear").double()


def scores(build: Callable[[], nn.Module], inits: int, batches: int) -> FloatArray:
    """The logarithms of condition number and trace of the kernel, shape (2, inits, batches).

    As architecture search uses it: of the sum of the logits, the batch normalised by its own statistics.
    """
    found = np.zeros((2, inits, batches))
    for i in range(inits):
        torch.manual_seed(i)
        module = build().double().train()
        for b in range(batches):
            K = ntk(module, images(b), outputs=lambda logits, _: logits.sum(1), coupled=True)
            values = np.linalg.eigvalsh(K.numpy())
            found[:, i, b] = np.log(values[-1] / values[0]), np.log(values.sum())
    return found


def parts(table: FloatArray) -> tuple[float, float, float]:
    """The variance between initializations, between batches, and what is left, of a table (inits, batches)."""
    inits, batches = table.shape
    rows, columns = table.mean(1), table.mean(0)
    rest = table - rows[:, None] - columns + table.mean()
    left = float((rest**2).sum() / ((inits - 1) * (batches - 1)))
    return float(rows.var(ddof=1)) - left / batches, float(columns.var(ddof=1)) - left / inits, left


def told(name: str, table: FloatArray) -> None:
    """Print a score with its error bar, and the parts of its variance."""
    rows = table.mean(1)
    error = rows.std(ddof=1) / np.sqrt(len(rows))
    shares = np.array(parts(table)) / sum(parts(table))
    print(
        f"{name:10} log condition number {rows.mean():6.2f} +- {error:.2f}, one network +- {table.std(ddof=1):.2f}; "
        f"of the variance {shares[0]:4.0%} initialization, {shares[1]:4.0%} batch, {shares[2]:4.0%} both together"
    )


def draw_scores(axes: Any, tables: dict[str, FloatArray]) -> None:
    """Panel (a): every network, and means with standard errors."""
    for place, (name, table) in enumerate(tables.items()):
        colour = BLUE if "skip" in name else VERMILION
        rows = table.mean(1)
        shift = np.linspace(-0.25, 0.25, len(rows))
        axes.plot(place + shift, rows, ".", ms=3, color=colour, alpha=0.5)
        axes.errorbar(place, rows.mean(), rows.std(ddof=1) / np.sqrt(len(rows)), fmt="o", ms=4, color="k", capsize=3)
    axes.set_xticks(range(len(tables)), tables)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_ylabel("log condition number")
    axes.set_title("(a) score of each network; mean and standard error", loc="left")


def draw_shares(axes: Any, tables: dict[str, FloatArray]) -> None:
    """Panel (b): where the variance comes from."""
    shares = np.array([parts(table) for table in tables.values()]).clip(min=0)
    start = np.zeros(len(shares))
    for column, label, colour in zip(shares.T, ("initialization", "batch", "both"), (BLUE, GREEN, GREY), strict=True):
        axes.bar(range(len(shares)), column, 0.6, start, color=colour, label=label)
        start += column
    axes.set_xticks(range(len(tables)), tables)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_ylabel("variance of the score")
    axes.legend()
    axes.set_title("(b) why it varies", loc="left")


def draw_ranks(axes: Any, tables: dict[str, FloatArray]) -> None:
    """Panel (c): how often the better one of two architectures wins, by the number of networks averaged."""
    counts = [each for each in (1, 2, 4, 8, 16, 32) if each <= min(len(table) for table in tables.values())]
    rng = np.random.default_rng(0)
    pairs = [("4 plain", "2 plain", VERMILION), ("4 skip", "2 skip", BLUE), ("8 skip", "8 plain", GREEN)]
    for one, other, colour in pairs:
        first, second = tables[one].mean(1), tables[other].mean(1)
        right = np.sign(first.mean() - second.mean())
        wins = []
        for count in counts:
            drawn = [rng.choice(each, (4000, count)).mean(1) for each in (first, second)]
            wins.append(float((np.sign(drawn[0] - drawn[1]) == right).mean()))
        axes.plot(counts, wins, "o-", ms=3, lw=1, color=colour, label=f"{one} against {other}")
        print(f"{one} against {other}: {', '.join(f'{c} networks {w:.0%}' for c, w in zip(counts, wins, strict=True))}")
    axes.axhline(0.5, color="#999999", lw=0.6)
    axes.set(
        xscale="log", xlabel="networks of each that are averaged", ylabel="ranked as all of them", ylim=(0.4, 1.02)
    )
    axes.set_xticks(counts, map(str, counts))
    axes.minorticks_off()
    axes.legend()
    axes.set_title("(c) how often two are ranked alike", loc="left")


def draw_widths(axes: Any, widths: Sequence[int], inits: int) -> None:
    """Panel (d): the spread of the kernel's size over initializations, by width and depth."""
    for depth, colour in ((2, VERMILION), (8, BLUE)):
        spreads = []
        for width in widths:
            found = scores(partial(network, depth, width, False), inits, 1)[1, :, 0]
            spreads.append(found.std(ddof=1))
        error = np.array(spreads) / np.sqrt(2 * (inits - 1))
        axes.errorbar(widths, spreads, error, fmt="o", ms=3, color=colour, capsize=2, label=f"{depth} plain blocks")
        scale = np.mean(np.array(spreads) * np.sqrt(widths))
        axes.plot(widths, scale / np.sqrt(widths), color=colour, lw=0.8)
        listed = ", ".join(f"{width}: {each:.3f}" for width, each in zip(widths, spreads, strict=True))
        print(f"{depth} plain: spread of log trace by width {listed}")
    axes.set(xscale="log", yscale="log", xlabel="width", ylabel="standard deviation of log trace")
    axes.set_xticks(widths, map(str, widths))
    axes.set_yticks([0.2, 0.3, 0.5, 0.8], ["0.2", "0.3", "0.5", "0.8"])
    axes.minorticks_off()
    axes.legend()
    axes.set_title(r"(d) spread of the kernel; lines: $1/\sqrt{\mathrm{width}}$", loc="left")


def main() -> None:
    """Print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("architecture-score.png"))
    parser.add_argument("--inits", type=int, default=24)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--widths", type=int, nargs="+", default=[4, 8, 16, 32])
    given = parser.parse_args()
    torch.set_num_threads(1)
    tables = {}
    for name, shape in ARCHITECTURES.items():
        tables[name] = scores(partial(network, *shape), given.inits, given.batches)[0]
        told(name, tables[name])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 6.2))
        axes = figure.subplots(2, 2)
        draw_scores(axes[0, 0], tables)
        draw_shares(axes[0, 1], tables)
        draw_ranks(axes[1, 0], tables)
        draw_widths(axes[1, 1], given.widths, 2 * given.inits)
        figure.savefig(given.output, dpi=200)
    print(f"Wrote {given.output}.")


if __name__ == "__main__":
    main()
