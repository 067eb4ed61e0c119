"""Does the kernel move and align more as d/n grows?  Training in law on handwritten digits, n from 100 to 100,000.

    python examples/weak_feature_learning.py [--quick] [-o FIGURE.png]

24 images of scikit-learn's digits, centred and scaled to |x|^2 = n_0; targets +1 for even and -1 for odd digits; full
batch, squared loss, 8 steps.  The learning rate is 1 / (largest eigenvalue of the mean initial kernel), which
`sample_gram` gives.  Prints a table, and draws the figure of docs/weak-feature-learning.md.  About ten minutes on two
cores, half a minute with --quick.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import finwidth
from finwidth import MLP
from finwidth.networks.laws import FloatArray
from finwidth.plots import BLUE, GREEN, GREY, STYLE, VERMILION

IMAGES, STEPS = 24, 8
DEPTHS = (3, 5, 9)
DRAWS = {100: 100, 316: 60, 1_000: 20, 3_162: 10, 10_000: 6, 31_623: 4, 100_000: 3}
DEEPEST_TO = 10_000  # of the deepest networks: wider ones take long
COLOURS = dict(zip(DEPTHS, (BLUE, GREEN, VERMILION), strict=True))


@dataclass
class Cell:
    """Means over draws, with standard errors, for one network."""

    activation: str
    depth: int
    width: int
    lr: float
    loss_left: float
    drift: tuple[float, float]
    alignment: tuple[float, float]
    aligned_by: tuple[float, float]


def digits() -> tuple[FloatArray, FloatArray]:
    """Images, shape (IMAGES, 64), and their parity."""
    data = load_digits()
    X = data.data[:IMAGES] - data.data[:IMAGES].mean(axis=0)
    X *= (64 / np.square(X).sum(axis=1, keepdims=True)) ** 0.5
    return X, 1.0 - 2.0 * (data.target[:IMAGES] % 2)


def mean(values: FloatArray) -> tuple[float, float]:
    """Mean and standard error."""
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def cell(activation: str, depth: int, width: int, draws: int) -> Cell:
    """Train ``draws`` networks."""
    X, y = digits()
    net = MLP([64, *[width] * (depth - 1), 1], activation=activation)
    initial = finwidth.sample_gram(net, X, draws=max(3, min(50, 10**5 // width)), seed=1).K.mean("draw")
    lr = 1 / float(np.linalg.eigvalsh(initial)[-1])
    run = finwidth.train(net, X, y, STEPS, lr, draws, seed=0)
    aligned = run.alignment.to_numpy()
    return Cell(
        activation,
        depth,
        width,
        lr,
        float((run.loss[:, -1] / run.loss[:, 0]).median()),
        mean(run.drift[:, -1].to_numpy()),
        mean(aligned[:, 0]),
        mean(aligned[:, -1] - aligned[:, 0]),
    )


def cells(quick: bool) -> Iterator[Cell]:
    """All of them, told as they come."""
    print("activation  d       n     d/n    loss left   |K_T - K_0|/|K_0|      alignment at 0     its change      time")
    for width, draws in DRAWS.items():
        for activation in ("gelu", "relu"):
            for depth in DEPTHS:
                if (depth == DEPTHS[-1] and width > DEEPEST_TO) or (quick and width > 1000):
                    continue
                start = time.perf_counter()
                found = cell(activation, depth, width, max(3, draws // 4) if quick else draws)
                ratio = f"{depth / width:.1e} {found.loss_left:9.2f}"
                pairs = [f"{value:9.5f} +- {error:.5f}" for value, error in (found.drift, found.alignment)]
                change = f"{found.aligned_by[0]:+.5f} +- {found.aligned_by[1]:.5f}"
                seconds = f"{time.perf_counter() - start:6.1f} s"
                print(
                    f"{activation:10} {depth:2} {width:7} {ratio} {pairs[0]} {pairs[1]} {change} {seconds}", flush=True
                )
                yield found


def exponents(found: list[Cell]) -> None:
    """Print how the drift falls with the width, a fit for each activation and depth."""
    print("\nexponents of the drift in n, least squares on logarithms")
    for activation in ("gelu", "relu"):
        for depth in DEPTHS:
            row = [each for each in found if (each.activation, each.depth) == (activation, depth)]
            widths, drifts = np.log([[each.width, each.drift[0]] for each in row]).T
            print(f"{activation} d = {depth}: {np.polyfit(widths, drifts, 1)[0]:.2f}")


def first_step(width: int, activation: str, draws: int) -> tuple[tuple[float, float], float]:
    """E[K_1 - K_0] / (lr E[K_0]) measured at one image with target 0, and E[dK] / E[K] of the exact theory."""
    x = digits()[0][:1]
    net = MLP([64, *[width] * 2, 1], activation=activation)
    exact = finwidth.moments(net, x[0])
    lr = 0.1 / float(exact.mean)
    K = finwidth.train(net, x, [0.0], 1, lr, draws, seed=2).K.to_numpy()[:, :, 0, 0]
    value, error = mean((K[:, 1] - K[:, 0]) / (lr * float(exact.mean)))
    return (value, error), float(exact.update["dK"]) / float(exact.mean)


def flips(depth: int, width: int) -> float:
    """What gates that flip add to E[K_1 - K_0] / lr, to leading order in 1/n, at |x|^2 = n_0 and target 0.

    The formula of docs/theory/training.md with kappa = 3.
    """
    total = 0.0
    for i in range(1, depth):
        t = (i - 1) * i * (2 * i - 1) / 6
        total += i * ((3 - i * i / (i * i + t)) * (i * i + t) ** 0.5 - t**0.5)
    return float(-9 * total / (2 * np.pi**1.5 * width**0.5))


def figure(found: list[Cell], steps: dict[str, dict[int, tuple[tuple[float, float], float]]]) -> Figure:
    """Drift for both activations, alignment, and the mean first step against E[dK]."""
    made = Figure(figsize=(7.2, 5.6))
    (top, bottom) = made.subplots(2, 2)
    for axes, activation in ((top[0], "gelu"), (top[1], "relu")):
        _drift(axes, [each for each in found if each.activation == activation], activation)
    top[1].sharey(top[0])
    _alignment(bottom[0], found)
    _first_steps(bottom[1], steps)
    return made


def _points(axes: Axes, some: list[Cell], name: str, **style: Any) -> None:
    for depth, colour in COLOURS.items():
        row = [each for each in some if each.depth == depth]
        values, errors = np.array([getattr(each, name) for each in row]).T
        ratios = [each.depth / each.width for each in row]
        axes.errorbar(
            ratios, values, 2 * errors, color=colour, ms=4, lw=1.2, capsize=2, label=f"$d = {depth}$", **style
        )


def _drift(axes: Axes, some: list[Cell], activation: str) -> None:
    _points(axes, some, "drift", fmt="o-")
    ratios = np.array([min(each.depth / each.width for each in some), 0.09])
    start = next(each for each in some if each.depth == DEPTHS[1] and each.width == 1000)
    for slope, style, name in ((1.0, "--", "$d/n$"), (0.5, ":", "$(d/n)^{1/2}$")):
        line = start.drift[0] * (ratios / (start.depth / start.width)) ** slope
        axes.plot(ratios, line, style, color=GREY, lw=1.0, label=name)
    names = {"gelu": "GELU", "relu": "ReLU"}
    axes.set(xscale="log", yscale="log", xlabel="$d/n$", title=f"{names[activation]}: the kernel moves")
    axes.set_ylabel(r"$|K_T - K_0|\,/\,|K_0|$ after training")
    axes.legend()


def _alignment(axes: Axes, found: list[Cell]) -> None:
    for activation, style, fill in (("gelu", "o-", "full"), ("relu", "s--", "none")):
        _points(
            axes, [each for each in found if each.activation == activation], "aligned_by", fmt=style, fillstyle=fill
        )
    axes.axhline(0, color=GREY, lw=0.8)
    axes.set(xscale="log", xlabel="$d/n$", ylabel="change of the alignment", title="alignment with the targets")
    handles = [axes.plot([], [], "o-", color="black", ms=4, label="GELU")[0]]
    handles += axes.plot([], [], "s--", color="black", fillstyle="none", ms=4, label="ReLU")
    axes.legend(handles=handles, loc="upper left")


def _first_steps(axes: Axes, steps: dict[str, dict[int, tuple[tuple[float, float], float]]]) -> None:
    for (activation, rows), colour, marker in zip(steps.items(), (VERMILION, BLUE), "os", strict=True):
        widths = list(rows)
        values, errors = -np.array([rows[n][0][0] for n in widths]), np.array([rows[n][0][1] for n in widths])
        name = {"relu": "ReLU", "linear": "linear"}[activation]
        axes.errorbar(widths, values, 2 * errors, fmt=marker, color=colour, ms=4, capsize=2, label=f"{name}, measured")
        axes.plot(widths, [-rows[n][1] for n in widths], color=colour, lw=1.2, label=f"{name}, exact $-E[\\Delta K]$")
    mean = float(finwidth.moments(MLP([64, 100, 100, 1]), digits()[0][0]).mean)
    rows = steps["relu"]
    total = [-rows[n][1] - flips(3, n) / mean for n in rows]
    axes.plot(list(rows), total, "--", color=VERMILION, lw=1.2, label="ReLU, and gates that flip")
    axes.set(xscale="log", yscale="log", xlabel="width $n$", title="first step, one image, $d = 3$")
    axes.set_ylabel(r"$-E[K_1 - K_0]\,/\,(\lambda\,E[K_0])$")
    axes.set_ylim(top=3)  # room for the legend
    axes.legend()


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(description="Kernel drift and alignment over training against d/n.")
    parser.add_argument("-o", "--output", type=Path, default=Path("weak_feature_learning.png"))
    parser.add_argument("--quick", action="store_true", help="widths up to 1000, few draws")
    arguments = parser.parse_args()
    found = list(cells(arguments.quick))
    exponents(found)
    widths = {100: 30_000, 316: 12_000, 1000: 5_000, 3162: 2_000}
    print("\none image, target 0, first step, d = 3: (K_1 - K_0) / (lr E[K]) and exact E[dK] / E[K]")
    steps: dict[str, dict[int, tuple[tuple[float, float], float]]] = {}
    for activation in ("relu", "linear"):
        for width, draws in widths.items():
            step = first_step(width, activation, draws // 20 if arguments.quick else draws)
            steps.setdefault(activation, {})[width] = step
            print(
                f"{activation:8} n = {width:5}: {step[0][0]:.5f} +- {step[0][1]:.5f}, exact {step[1]:.5f}", flush=True
            )
    with mpl.rc_context(STYLE):
        figure(found, steps).savefig(arguments.output, dpi=200)
    print(f"Wrote {arguments.output}.")


if __name__ == "__main__":
    main()
