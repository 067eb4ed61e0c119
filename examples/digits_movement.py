"""Does the kernel move more, and align better with the task, as depth over width grows?  scikit-learn's digits.

Hanin and Nica (ICLR 2020) show that at initialization the first change of the kernel under SGD grows with d/n, and
conjecture that deep and narrow networks learn features that depend on the data.  This trains ensembles of ReLU networks
(64, n, ..., n, 1) in the paper's parameterization, for several depths d and d/n from 0.02 to 0.5, on odd against even
digits, and follows their kernels.

    python examples/digits_movement.py [--draws 24] [--steps 1024] [--images 100] [--output movement]

Learning rate: each network has 0.5 / (largest eigenvalue of its own initial kernel on the data), a quarter of where
gradient descent on a fixed kernel would diverge.  Full-batch gradient descent on sum (N(x) - y)^2 / 2, y = +-1.
Networks are compared at the end, and at equal loss: at the first measurement with a quarter of the loss of N = 0.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits

import finwidth
from finwidth import MLP, plots
from finwidth.documents import plain
from finwidth.empirical import Ensemble

NETWORKS = {3: (150, 60, 30, 12, 6), 6: (120, 60, 24, 12), 12: (120, 48, 24)}  # depth: hidden widths
FRACTION = 0.5  # learning rate times the largest eigenvalue
EQUAL = 0.25  # loss, over that of the zero function, at which networks are compared
COLOURS = {3: plots.BLUE, 6: plots.VERMILION, 12: plots.GREEN}


def digits(images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images of squared norm 64 (= n_0), shape (images, 64), and +1 for odd digits, -1 for even ones."""
    data, target = load_digits(return_X_y=True)
    chosen = np.random.default_rng(seed).permutation(len(data))[:images]
    X = data[chosen] * (8 / np.linalg.norm(data[chosen], axis=1, keepdims=True))
    return X, np.where(target[chosen] % 2, 1.0, -1.0)


def run(depth: int, width: int, X: np.ndarray, y: np.ndarray, *, draws: int, steps: int) -> dict[str, Any]:
    """Train one ensemble; medians and the middle 68% of its members."""
    net = MLP([64, *[width] * (depth - 1), 1])
    ensemble = Ensemble(net, draws, seed=0, dtype=torch.float32)
    largest = torch.linalg.eigvalsh(ensemble.kernels(X).double())[:, -1]
    found = ensemble.train(X, y, steps, FRACTION / largest)
    loss = (found.loss / (np.square(y).sum() / 2)).to_numpy()
    reached = loss <= EQUAL
    place = np.where(reached.any(axis=1), reached.argmax(axis=1), 0)
    inside = reached.any(axis=1)
    exact = finwidth.moments(net, X[0])
    rows: dict[str, Any] = {
        "depth": depth,
        "width": width,
        "ratio": depth / width,
        "cv": exact.cv,
        "reached": int(inside.sum()),
        "movement": abs(float(exact.update["dK"])) / float(exact.mean) ** 2,
    }
    rows["loss at the end"] = spread(loss[:, -1])
    rows["drift after one step"] = spread(found.drift[:, 1].to_numpy())
    rows["centred_alignment at initialization"] = spread(found.centred_alignment[:, 0].to_numpy())
    for name in ("drift", "rotation", "centred_alignment"):
        values = found[name].to_numpy()
        rows[f"{name} at the end"] = spread(values[:, -1])
        rows[f"{name} at equal loss"] = spread(values[np.arange(draws), place][inside])
    return rows


def spread(values: np.ndarray) -> tuple[float, float, float]:
    """Median, and the quantiles 0.16 and 0.84."""
    if not len(values):
        return (float("nan"),) * 3
    low, middle, high = np.quantile(values, [0.16, 0.5, 0.84])
    return float(middle), float(low), float(high)


def draw(rows: list[dict[str, Any]], stem: Path) -> list[Path]:
    """Movement and alignment over d/n, bars from the 16th to the 84th percentile of the networks."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(plots.STYLE):
        figure = Figure(figsize=(7.2, 5.2))
        panels = figure.subplots(2, 2, sharex=True).ravel()
        names = (
            "drift after one step",
            "drift at equal loss",
            "rotation at equal loss",
            "centred_alignment at equal loss",
        )
        for axes, name in zip(panels, names, strict=True):
            for depth, colour in COLOURS.items():
                here = [row for row in rows if row["depth"] == depth]
                ratio = np.array([row["ratio"] for row in here]) * {3: 0.96, 6: 1.0, 12: 1.04}[depth]  # side by side
                middle, low, high = np.array([row[name] for row in here]).T
                bars = [middle - low, high - middle]
                axes.errorbar(
                    ratio, middle, bars, color=colour, marker="o", ms=4, lw=1.2, capsize=2, label=f"$d = {depth}$"
                )
                if name.startswith("centred"):
                    start = [row["centred_alignment at initialization"][0] for row in here]
                    axes.plot(ratio, start, color=colour, marker="o", ms=4, mfc="white", lw=0.8, ls=":")
                elif name == "drift after one step":
                    axes.plot(ratio, [row["movement"] for row in here], color=colour, lw=0.8, ls="--")
            axes.set_xscale("log")
            axes.set_ylabel(name.replace("centred_alignment", "centred alignment"))
            axes.set_yscale("linear" if name.startswith("centred") else "log")
        panels[0].plot([], [], color="black", lw=0.8, ls="--", label="exact: one input,\none step of $1/E[K]$")
        panels[3].plot([], [], color="black", marker="o", ms=4, mfc="white", lw=0.8, ls=":", label="at initialization")
        panels[3].set_ylim(bottom=0)
        for axes in (panels[0], panels[3]):
            axes.legend()
        for axes in panels[2:]:
            axes.set_xticks([0.02, 0.05, 0.1, 0.2, 0.5], ["0.02", "0.05", "0.1", "0.2", "0.5"])
            axes.set_xticks([], minor=True)
            axes.set_xlabel("depth over width, $d/n$")
        return plots.save(figure, stem)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    names = [
        "drift after one step",
        "drift at equal loss",
        "rotation at equal loss",
        "centred_alignment at initialization",
    ]
    names += ["centred_alignment at equal loss", "drift at the end", "centred_alignment at the end", "loss at the end"]
    lines = ["| d | n | d/n | exact CV of K | reached | " + " | ".join(names) + " |", "|" + "---|" * (5 + len(names))]
    for row in sorted(rows, key=lambda row: (row["depth"], row["ratio"])):
        cells = ["{:.3g} ({:.2g} to {:.2g})".format(*row[name]) for name in names]
        start = f"| {row['depth']} | {row['width']} | {row['ratio']:.2f} | {row['cv']:.2f} | {row['reached']} | "
        lines.append(start + " | ".join(cells) + " |")
    return "\n".join(lines).replace("centred_alignment", "centred alignment")


def main() -> None:
    """Run, print the table, and write the figure and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--draws", type=int, default=24)
    parser.add_argument("--steps", type=int, default=1024)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path("movement"))
    options = parser.parse_args()
    X, y = digits(options.images)
    rows, began = [], time.process_time()
    for depth, widths in NETWORKS.items():
        for width in widths:
            rows.append(run(depth, width, X, y, draws=options.draws, steps=options.steps))
            print(f"d = {depth}, n = {width} done, {time.process_time() - began:.0f} s of processor time", flush=True)
    print(table(rows))
    draw(rows, options.output)
    options.output.with_suffix(".json").write_text(json.dumps(plain(rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
