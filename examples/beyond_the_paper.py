"""What the paper leaves open, by draws in law: off the diagonal, larger batches, other activations.

    python examples/beyond_the_paper.py [-o docs/images/beyond-the-paper.png]

Prints the figures of docs/beyond-the-paper.md and draws its picture; about two minutes on two cores.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

import finwidth
from finwidth import MLP, Estimate
from finwidth.networks.laws import FloatArray
from finwidth.plots import STYLE
from finwidth.sampling.statistics.estimates import Accumulator

N_0 = 16
ANGLES = {"same input": 0.0, "45°": math.pi / 4, "90°": math.pi / 2, "180°": math.pi}
ACTIVATIONS = ("relu", "gelu", "silu", "linear", "erf", "tanh")
COLOURS = ("#000000", "#D55E00", "#E69F00", "#009E73", "#0072B2", "#56B4E9")


def network(width: int, depth: int, **more: Any) -> MLP:
    """(16, n, ..., n, 1) with d weight layers."""
    return MLP([N_0, *[width] * (depth - 1), 1], **more)


def directions(m: int) -> FloatArray:
    """Inputs of squared norm n_0 in m random directions."""
    X = np.random.default_rng(0).standard_normal((m, N_0))
    scaled: FloatArray = X * np.sqrt(N_0 / np.square(X).sum(1, keepdims=True))
    return scaled


def at_angles() -> FloatArray:
    """An input of squared norm n_0 turned by each of ANGLES."""
    X = np.zeros((len(ANGLES), N_0))
    X[:, 0], X[:, 1] = np.cos(list(ANGLES.values())), np.sin(list(ANGLES.values()))
    return math.sqrt(N_0) * X


def mean(values: FloatArray) -> Estimate:
    """Mean with its error and verdict."""
    total = Accumulator()
    total.add(values)
    return total.estimate()


def off_the_diagonal(width: int, depth: int, draws: int) -> Iterator[tuple[str, Estimate, float]]:
    """For each angle E[K_ab] over the infinite-width value, and E[K_ab^2]/E[K_ab]^2."""
    net, X = network(width, depth), at_angles()
    K, limit = finwidth.sample_gram(net, X, draws, seed=1).K[:, 0].to_numpy(), finwidth.infinite_width_gram(net, X)[0]
    for column, angle in enumerate(ANGLES):
        values = K[:, column]
        yield angle, mean(values / limit[column]), float((values**2).mean() / values.mean() ** 2)


def batch(width: int, depth: int, m: int, draws: int) -> Estimate:
    """-E[tr dK]/(tr K_inf lambda_max(K_inf)): the relative move at the learning rate 1/lambda_max, target 0."""
    net, X = network(width, depth), directions(m)
    limit = finwidth.infinite_width_gram(net, X)
    dK = finwidth.sample_gram(net, X, draws, seed=2, y=np.zeros(m)).dK.to_numpy()
    return mean(-np.trace(dK, axis1=1, axis2=2) / np.trace(limit) / np.linalg.eigvalsh(limit)[-1])


def other_activation(name: str, width: int, depth: int, draws: int) -> tuple[float, Estimate]:
    """Var[K]/E[K]^2 and -E[dK]/E[K]^2 at one input of squared norm n_0, target 0."""
    net, X = network(width, depth, activation=name), directions(1)
    drawn = finwidth.sample_gram(net, X, draws, seed=3, y=[0.0])
    K = drawn.K[:, 0, 0].to_numpy()
    return float(K.var() / K.mean() ** 2), mean(-drawn.dK[:, 0, 0].to_numpy() / K.mean() ** 2)


def point(axes: Any, x: float, found: Estimate, colour: str, marker: str = "o") -> None:
    """An estimate with two standard errors; hollow if it cannot be trusted."""
    face = colour if found.trust else "white"
    axes.errorbar(x, found.value, 2 * found.se, fmt=marker, ms=4, color=colour, mfc=face, capsize=2, lw=1)


def draw_diagonal(axes: Any) -> None:
    """Panel (a)."""
    print("E[K_ab]/K_inf and E[K_ab^2]/E[K_ab]^2")
    for width, depths, marker in ((64, (2, 4, 8, 12, 16, 24), "o"), (128, (4, 8, 16, 24, 32), "s")):
        for depth in depths:
            for (angle, found, spread), colour in zip(off_the_diagonal(width, depth, 20_000), COLOURS, strict=False):
                point(axes, depth / width, found, colour, marker)
                line = (
                    f"  n = {width:>3}, d = {depth:>2}, {angle:>10}: {found.value:.3f} +- {found.se:.3f}, {spread:.3f}"
                )
                print(line + ("" if found.trust else "  not to be trusted"), flush=True)
    for angle, colour in zip(ANGLES, COLOURS, strict=False):
        axes.plot([], [], "o", color=colour, ms=4, label=angle)
    axes.set(xlabel="$d/n$ (circles $n=64$, squares $n=128$)", ylabel=r"$\mathbb{E}[K_{ab}]\,/\,K_\infty$")
    axes.set_title("(a) off the diagonal", loc="left")
    axes.legend()


def draw_batches(axes: Any) -> None:
    """Panel (b)."""
    print("-E[tr dK]/(tr K_inf lambda_max), n = 64")
    for depth, colour in zip((4, 8, 12), COLOURS, strict=False):
        for m in (1, 2, 4, 8, 16):
            found = batch(64, depth, m, 40_000)
            point(axes, m, found, colour)
            note = "" if found.trust else "  not to be trusted"
            print(f"  d = {depth:>2}, m = {m:>2}: {found.value:.4f} +- {found.se:.4f}{note}", flush=True)
        axes.plot([], [], "o", color=colour, ms=4, label=f"$d = {depth}$")
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axes.set(
        xlabel="batch size $m$", ylim=(0, None), ylabel="relative move of tr $K$ at $\\lambda = 1/\\lambda_{\\max}$"
    )
    axes.set_title("(b) larger batches, $n=64$", loc="left")
    axes.legend(ncols=3)


def draw_activations(spreads: Any, moves: Any) -> None:
    """Panels (c) and (d)."""
    print("Var[K]/E[K]^2 and -E[dK]/E[K]^2, n = 64")
    for name, colour in zip(ACTIVATIONS, COLOURS, strict=True):
        depths, variances = (2, 4, 8, 12, 16), []
        for depth in depths:
            variance, found = other_activation(name, 64, depth, 40_000)
            variances.append(variance)
            point(moves, depth, found, colour)
            note = "" if found.trust else "  not to be trusted"
            print(f"  {name:>6}, d = {depth:>2}: {variance:.3f}, {found.value:.4f} +- {found.se:.4f}{note}", flush=True)
        spreads.plot(depths, variances, "o-", color=colour, ms=4, lw=1, label=name)
    spreads.set(xlabel="depth $d$", ylabel=r"$\mathrm{Var}[K]\,/\,\mathbb{E}[K]^2$", yscale="log")
    spreads.set_title("(c) other activations, $n=64$", loc="left")
    spreads.legend(ncols=2)
    moves.axhline(0, color="black", lw=0.6)
    moves.set_yscale("symlog", linthresh=0.01)
    moves.set(xlabel="depth $d$", ylabel=r"$-\mathbb{E}[\Delta K]\,/\,(\lambda\,\mathbb{E}[K]^2)$")
    moves.set_title("(d) the first move, $n=64$", loc="left")


def main() -> None:
    """Print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("beyond-the-paper.png"))
    output = parser.parse_args().output
    print(f"finwidth {finwidth.__version__}; paper's parameterization, biases trained from zero, |x|^2 = n_0 = {N_0}")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 6.0))
        axes = figure.subplots(2, 2)
        draw_diagonal(axes[0, 0])
        draw_batches(axes[0, 1])
        draw_activations(axes[1, 0], axes[1, 1])
        for path in (output, output.with_suffix(".pdf")):
            figure.savefig(path, dpi=200)
    print(f"Wrote {output} and {output.with_suffix('.pdf')}.")


if __name__ == "__main__":
    main()
