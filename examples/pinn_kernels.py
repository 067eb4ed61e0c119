"""The kernel of a physics-informed network's boundary and residual terms, and what it says about training.

    python examples/pinn_kernels.py [-o docs/images/pinn-kernels.png] [--steps 4000]

Prints the figures of docs/pinn-kernels.md and draws its picture; about a minute on one core.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from torch import nn

from finwidth.empirical import ntk
from finwidth.plots import STYLE
from finwidth.plots.style import BLUE, GREEN, GREY, ORANGE, VERMILION

FREQUENCY = 4  # of the solution, sin(4 pi x)


class Residual(nn.Module):
    """-u''(x) - f(x) of the equation -u'' = f, of which u = sin(4 pi x) is the solution."""

    def __init__(self, u: nn.Module) -> None:
        super().__init__()
        self.u = u

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.requires_grad_()
        (slope,) = torch.autograd.grad(self.u(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        return -second - (FREQUENCY * math.pi) ** 2 * torch.sin(FREQUENCY * math.pi * x)


def network(seed: int = 0) -> nn.Sequential:
    """u: two hidden layers of 64, tanh."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)).double()


def points() -> tuple[torch.Tensor, torch.Tensor]:
    """The boundary, and the inner points at which the equation is asked for."""
    return torch.tensor([[0.0], [1.0]]).double(), torch.linspace(0, 1, 66).double()[1:-1, None]


def kernel(u: nn.Module, by: str | None = None) -> Any:
    """The block matrix of u at the boundary and of the residual inside, of points and functions by name."""
    boundary, inside = points()
    return ntk({"u": u, "r": Residual(u)}, [boundary, inside], outputs="trace", by=by, labelled=True)


def block(K: Any, one: str, other: str) -> Any:
    """The kernel between two of the functions."""
    return K.isel(input=(K.function == one).to_numpy(), input_=(K.function_ == other).to_numpy())


def trained(weighted: bool, steps: int) -> list[tuple[float, ...]]:
    """Steps, error of the solution and of its boundary values, as Adam minimises both terms.

    With weights that make the traces of both blocks equal, renewed ten times.
    """
    u, (boundary, inside) = network(), points()
    residual, weight = Residual(u), 1.0
    optimizer = torch.optim.Adam(u.parameters(), 1e-3)
    right = torch.sin(FREQUENCY * math.pi * inside)
    told: list[tuple[float, ...]] = []
    for step in range(steps + 1):
        if weighted and step % max(1, steps // 10) == 0:
            K = kernel(u)
            weight = float(np.trace(block(K, "r", "r")) / np.trace(block(K, "u", "u")))
        if step % max(1, steps // 40) == 0:
            with torch.no_grad():
                errors = (u(inside) - right).square().mean().sqrt(), u(boundary).abs().max()
            told.append((step, *map(float, errors)))
        optimizer.zero_grad()
        loss = weight * u(boundary).square().mean() + residual(inside.clone()).square().mean()
        loss.backward()
        optimizer.step()
    return list(zip(*told, strict=True))


def draw_matrix(figure: Figure, axes: Any, K: Any) -> None:
    """Panel (a): the block matrix; the two boundary points are as wide as eight of the others."""
    order = np.repeat([0, 1, *range(2, len(K))], [8, 8, *[1] * (len(K) - 2)])
    values = K.to_numpy()[np.ix_(order, order)]
    size = float(np.abs(values).max())
    image = axes.imshow(values, cmap="RdBu_r", norm=SymLogNorm(size / 1e4, vmin=-size, vmax=size))
    axes.set_xticks([8, 16 + (len(K) - 2) / 2], ["u", "residual"])
    axes.set_yticks([8, 16 + (len(K) - 2) / 2], ["u", "residual"])
    axes.axhline(15.5, color="k", lw=0.6)
    axes.axvline(15.5, color="k", lw=0.6)
    figure.colorbar(image, ax=axes, shrink=0.85)
    axes.set_title("(a) the kernel at initialization", loc="left")


def draw_spectrum(axes: Any, K: Any) -> None:
    """Panel (b): eigenvalues of the blocks."""
    for name, colour, label in (("r", BLUE, "$K_{rr}$, residual"), ("u", VERMILION, "$K_{uu}$, boundary")):
        values = np.linalg.eigvalsh(block(K, name, name).to_numpy())[::-1]
        shown = values[values > 1e-12 * values[0]]
        axes.plot(range(1, len(shown) + 1), shown, "o-", ms=3, lw=0.8, color=colour, label=label)
        print(f"eigenvalues of K_{name}{name}: {', '.join(f'{each:.3g}' for each in values[:4])}, ...")
    axes.set(yscale="log", xlabel="number", ylabel="eigenvalue")
    axes.legend()
    axes.set_title("(b) spectra of the diagonal blocks", loc="left")


def draw_layers(axes: Any) -> None:
    """Panel (c): the part of each layer in the traces."""
    K = kernel(network(), by="layer")
    layers = K.group.to_numpy().tolist()
    places = np.arange(len(layers))
    for shift, name, colour, label in ((-0.2, "u", VERMILION, "boundary"), (0.2, "r", BLUE, "residual")):
        traces = np.array([np.trace(block(K.sel(group=each), name, name)) for each in layers])
        axes.bar(places + shift, traces / traces.sum(), 0.4, color=colour, label=label)
        told = ", ".join(f"{each:.1%}" for each in traces / traces.sum())
        print(f"parts of the layers in the trace of K_{name}{name}: {told}")
    axes.set_xticks(places, [f"layer {i}" for i in range(1, len(layers) + 1)])
    axes.set_ylabel("part of the trace")
    axes.legend()
    axes.set_title("(c) contributions of the layers", loc="left")


def draw_training(axes: Any, steps: int) -> None:
    """Panel (d): training with equal weights, and with weights from the traces."""
    for weighted, colour, label in ((False, GREY, "equal weights"), (True, GREEN, "equal traces")):
        step, error, edge = trained(weighted, steps)
        axes.plot(step, error, color=colour, lw=1.2, label=label)
        axes.plot(step, edge, "--", color=colour, lw=0.9)
        print(f"{label}: after {step[-1]} steps the error of u is {error[-1]:.3g}, at the boundary {edge[-1]:.3g}")
    axes.axhline(math.sqrt(0.5), color=ORANGE, lw=0.8, label="u = 0")
    axes.set(yscale="log", xlabel="step", ylabel="error of u")
    axes.legend()
    axes.set_title("(d) training; dashed: at the boundary", loc="left")


def main() -> None:
    """Print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("pinn-kernels.png"))
    parser.add_argument("--steps", type=int, default=4000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    K = kernel(network())
    traces = {name: float(np.trace(block(K, name, name))) for name in "ur"}
    print(f"trace of K_uu {traces['u']:.4g}, of K_rr {traces['r']:.4g}: ratio {traces['r'] / traces['u']:.4g}")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 6.2))
        axes = figure.subplots(2, 2)
        draw_matrix(figure, axes[0, 0], K)
        draw_spectrum(axes[0, 1], K)
        draw_layers(axes[1, 0])
        draw_training(axes[1, 1], given.steps)
        figure.savefig(given.output, dpi=200)
    print(f"Wrote {given.output}.")


if __name__ == "__main__":
    main()
