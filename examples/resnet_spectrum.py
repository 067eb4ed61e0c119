"""The spectrum of a ResNet over training, on scikit-learn's digits, by products with its kernel.

A convolutional ResNet of ten outputs learns images of digits by gradient descent on sum |N(x) - y|^2 / 2.  Its kernel
of all outputs is followed as an operator: the largest eigenvalues, the part of the error in their directions, and the
loss beside the one that a fixed kernel would have (`finwidth.empirical.predict`, from the kernel at the start).

    python examples/resnet_spectrum.py [--images 60] [--steps 1024] [--output spectrum.png]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from finwidth.empirical import KernelOperator, ntk, predict
from finwidth.plots.style import BLUE, GREY, VERMILION, plain_ticks, save_as, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHANNELS, BLOCKS, EIGENVALUES = 16, 3, 12


class Block(nn.Module):
    """x + a branch of two convolutions, normalised by groups."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.GroupNorm(4, CHANNELS), nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)]
        layers += [nn.GroupNorm(4, CHANNELS), nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)]
        self.branch = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the same shape."""
        found: torch.Tensor = x + self.branch(x)
        return found


def resnet() -> nn.Module:
    """A stem, blocks, and ten outputs of the mean over positions."""
    torch.manual_seed(0)
    blocks = [Block() for _ in range(BLOCKS)]
    head = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 10)]
    return nn.Sequential(nn.Conv2d(1, CHANNELS, 3, padding=1), *blocks, *head)


def digits(images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of shape (images, 1, 8, 8), centred, and their classes as vectors of length 10, centred."""
    data, target = load_digits(return_X_y=True)
    chosen = np.random.default_rng(0).permutation(len(data))[:images]
    X = torch.tensor(data[chosen], dtype=torch.float32).reshape(-1, 1, 8, 8)
    return (X - X.mean()) / X.std(), nn.functional.one_hot(torch.tensor(target[chosen]), 10).float() - 0.1


def record(module: nn.Module, X: torch.Tensor, error: torch.Tensor) -> tuple[np.ndarray, float]:
    """The largest eigenvalues, and the part of the error's square that is in their directions."""
    found = KernelOperator(module, X).eigenpairs(EIGENVALUES, tol=1e-3)
    along = np.einsum("aok,ao->k", found.eigenvector, error.numpy())
    return found.eigenvalue.to_numpy(), float((along**2).sum() / error.square().sum())


def main(images: int, steps: int, output: str) -> None:
    """Train, print a table, and draw the figure."""
    module, (X, y) = resnet(), digits(images)
    start = module(X).detach()
    recorded = [0, *[2**k for k in range(20) if 2**k < steps], steps]
    rows, losses = [], []
    lr = 1 / float(KernelOperator(module, X).eigenpairs(1, tol=1e-2).eigenvalue[0])
    fixed = predict(ntk(module, X), y, steps=range(steps + 1), lr=lr, f0=start).loss
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    print(
        "| step | loss | at a fixed kernel | largest eigenvalue | 12th | error along the 12 | s |\n"
        "|---|---|---|---|---|---|---|"
    )
    for step in range(steps + 1):
        error = module(X) - y
        loss = error.square().sum() / 2
        losses.append(loss.item())
        if step in recorded:
            began = time.perf_counter()
            values, share = record(module, X, error.detach())
            rows.append(values)
            told = [step, f"{losses[-1]:.3f}", f"{float(fixed[step]):.3f}", f"{values[0]:.1f}", f"{values[-1]:.2f}"]
            print(
                "|",
                *[f"{each} |" for each in [*told, f"{share:.0%}", f"{time.perf_counter() - began:.1f}"]],
                flush=True,
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = figure(np.array(recorded), np.array(rows), np.array(losses), fixed.to_numpy(), 2 / lr)
    save_as(drawn, Path(output))


@styled
def figure(recorded: np.ndarray, rows: np.ndarray, losses: np.ndarray, fixed: np.ndarray, edge: float) -> Figure:
    """The eigenvalues over steps, the spectrum before and after, and both losses."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9, 2.9))
    left, middle, right = drawn.subplots(1, 3)
    for k in range(rows.shape[1]):
        left.plot(recorded, rows[:, k], color=BLUE, alpha=1 - 0.065 * k, lw=1.2)
    left.axhline(edge, color=VERMILION, ls="--", lw=1, label="2 / rate")
    left.legend(loc="lower right")
    left.set(xlabel="step", ylabel="eigenvalue of the kernel", yscale="log", title=f"the {rows.shape[1]} largest")
    ranks = np.arange(1, rows.shape[1] + 1)
    for place, colour, name in ((0, GREY, "step 0"), (-1, VERMILION, f"step {recorded[-1]}")):
        middle.plot(ranks, rows[place] / rows[place][0], "o-", ms=3, color=colour, label=name)
    middle.set(xlabel="rank", ylabel="over the largest", yscale="log", title="the spectrum's shape")
    middle.set_xticks(ranks[::2])
    middle.legend()
    right.plot(losses, color=BLUE, label="network")
    right.plot(fixed, color=GREY, ls="--", label="kernel of step 0, fixed")
    right.set(xlabel="step", ylabel="loss", yscale="log", title="learning")
    plain_ticks(right.yaxis, *right.get_ylim())
    right.legend()
    for axes in (left, right):
        axes.set_xscale("symlog", linthresh=1, linscale=0.3)
        axes.set_xlim(0, recorded[-1])
    return drawn


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--steps", type=int, default=1024)
    parser.add_argument("-o", "--output", default="spectrum.png")
    options = parser.parse_args()
    main(options.images, options.steps, options.output)
