"""What skip connections and normalisation do to the kernel, and to its first move, at equal numbers of matrices.

    python examples/skip_and_norm.py [-o docs/images/skip-and-norm.png]

Prints the figures of docs/skip-and-norm.md and draws its picture; about five minutes on two cores. Needs PyTorch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

import finwidth
from finwidth import MLP, Norm, ResNet, module_law
from finwidth.networks.description import Network
from finwidth.networks.laws import FloatArray
from finwidth.plots import STYLE
from finwidth.sampling.statistics.quantile_sketch import QuantileSketch
from finwidth.sampling.training.first_step import sampled_first_step

N_0, WIDTH = 16, 64
X = np.ones(N_0)  # |x|^2 = n_0


class Kind(NamedTuple):
    """A kind of network, and how its line is drawn."""

    make: Callable[[int], Network]  # of so many weight matrices, an even number
    style: dict[str, Any]
    norm: bool = False


def residual(branch: float | str, norm: Norm | None = None) -> Callable[[int], Network]:
    """ResNets of so many matrices: stem, head, and two in each block."""
    return lambda matrices: ResNet([N_0, WIDTH, 1], (matrices - 2) // 2, branch=branch, norm=norm)


def connected(norm: Norm | None = None) -> Callable[[int], Network]:
    """Fully connected networks."""
    return lambda matrices: MLP([N_0, *[WIDTH] * (matrices - 1), 1], norm=norm)


KINDS = {
    "MLP": Kind(connected(), {"color": "#000000", "marker": "o"}),
    "ResNet, $b = 1$": Kind(residual(1), {"color": "#D55E00", "marker": "s"}),
    "ResNet, $b = 1/2$": Kind(residual(0.5), {"color": "#E69F00", "marker": "^"}),
    "ResNet, $b = 1/\\sqrt{L}$": Kind(residual("1/sqrt(depth)"), {"color": "#009E73", "marker": "v"}),
    "MLP, norm": Kind(connected(Norm("rms")), {"color": "#555555", "marker": "o", "ls": "--"}, norm=True),
    "ResNet, pre-norm": Kind(residual(1, Norm("rms")), {"color": "#0072B2", "marker": "s", "ls": "--"}, norm=True),
    "ResNet, post-norm": Kind(
        residual(1, Norm("rms", "after")), {"color": "#56B4E9", "marker": "D", "ls": "--"}, norm=True
    ),
}


@cache
def torch_kernels(name: str, matrices: int, networks: int) -> FloatArray:
    """K of torch networks of a kind, shape (networks,)."""
    ensemble = finwidth.empirical.Ensemble(KINDS[name].make(matrices), networks, seed=matrices)
    found: FloatArray = ensemble.kernels(X[None]).numpy()[:, 0, 0]
    return found


def torch_moves(name: str, matrices: int, networks: int, rate: float) -> FloatArray:
    """|K_1 - K_0|/K_0 of torch networks, one by one, after a step of torch.optim.SGD with target 0."""
    net, x = KINDS[name].make(matrices), torch.ones(1, N_0, dtype=torch.float64)
    made = finwidth.empirical.MLP(net) if isinstance(net, MLP) else finwidth.empirical.ResNet(net)
    law = module_law.law_of_network(net, made.double())
    before = module_law.kernels_of_draws(law, x, networks, matrices)
    after = module_law.kernels_after_step(law, x, np.zeros(1), rate, networks, matrices)
    return np.asarray(abs(after - before) / before)


def spread(K: FloatArray) -> tuple[float, float]:
    """Standard deviation of log K of networks that live, and its standard error."""
    logs = np.log(K[K > 0])
    deviations = logs - logs.mean()
    variance = float(np.square(deviations).mean())
    error = float(np.square(deviations).std()) / (2 * variance**0.5 * len(logs) ** 0.5)
    return variance**0.5, error


def draw_moments(axes: Any, matrices: Sequence[int], draws: int, networks: int) -> None:
    """Panel (a): exact E[K^2]/E[K]^2, and those of draws and of torch networks where few do not carry it."""
    print("E[K^2]/E[K]^2: exact, of draws, and of torch networks")
    for name, kind in KINDS.items():
        if kind.norm:
            continue
        exact = [1 + finwidth.moments(kind.make(count), X).cv ** 2 for count in matrices]
        axes.plot(matrices, exact, color=kind.style["color"], lw=1.2)
        for count, value in zip(matrices, exact, strict=True):
            found = finwidth.summarize(kind.make(count), X, draws=draws, seed=1).estimates["K^2"]
            mean = float(finwidth.moments(kind.make(count), X).mean)
            ratio, of_torch = found.value / mean**2, ""
            if found.trust:
                axes.plot(count, ratio, kind.style["marker"], color=kind.style["color"], ms=2.5)
            if count in matrices[1::2]:
                square = np.square(torch_kernels(name, count, networks) / mean)
                error = float(square.std()) / networks**0.5
                of_torch = f", {square.mean():.3g} +- {error:.2g}"
                if found.trust:
                    open_marker = {"fmt": kind.style["marker"], "color": kind.style["color"], "mfc": "white", "ms": 6}
                    axes.errorbar(count, square.mean(), 2 * error, lw=1, zorder=1, **open_marker)
            trust = "" if found.trust else "  not to be trusted"
            print(f"  {plain(name):>20}, {count:>3} matrices: {value:.4g}, {ratio:.4g}{of_torch}{trust}", flush=True)
    axes.set(xscale="log", yscale="log", ylabel=r"$\mathbb{E}[K^2]\,/\,\mathbb{E}[K]^2$", ylim=(0.95, 30))
    axes.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    axes.set_title("(a) second moment", loc="left")


def draw_spreads(axes: Any, matrices: Sequence[int], draws: int, networks: int) -> None:
    """Panel (b): the spread of log K, of draws (lines) and of torch networks (points)."""
    print("standard deviation of log K: draws in law, and torch networks")
    for name, kind in KINDS.items():
        drawn = [spread(finwidth.sample(kind.make(count), X, draws, seed=2).K.to_numpy())[0] for count in matrices]
        axes.plot(matrices, drawn, lw=1.2, color=kind.style["color"], ls=kind.style.get("ls", "-"))
        axes.plot([], [], **kind.style, ms=4, lw=1.2, label=name)
        for count in matrices[1::2]:
            value, error = spread(torch_kernels(name, count, networks))
            axes.errorbar(count, value, 2 * error, fmt=kind.style["marker"], ms=4, lw=1, color=kind.style["color"])
            line = f"  {plain(name):>20}, {count:>3} matrices: {drawn[list(matrices).index(count)]:.4f}"
            print(f"{line}, {value:.3f} +- {error:.3f}", flush=True)
    axes.set(xscale="log", yscale="log", ylabel=r"standard deviation of $\log K$")
    axes.set_yticks([0.2, 0.5, 1, 2], ["0.2", "0.5", "1", "2"])
    axes.set_title("(b) spread", loc="left")


def draw_moves(axes: Any, matrices: Sequence[int], draws: int, networks: int) -> None:
    """Panel (c): the move of K in a step at the rate 1/median K with target 0: real steps, and the derivative's."""
    print("median of |K_1 - K_0|/K_0 at the rate 1/median K, target 0: steps taken, by the derivative, torch networks")
    for name, kind in KINDS.items():
        taken, derived = [], []
        for count in matrices:
            net = kind.make(count)
            first = finwidth.sample(net, X, draws, seed=3)
            rate = 1 / float(np.median(first.K))
            before, after = sampled_first_step(net, X, np.zeros(1), rate, draws, seed=4)
            derived.append(float(np.median(rate * abs(first.dK) / first.K)))
            taken.append(float(np.median(abs(after - before) / before)))
            line = f"  {plain(name):>20}, {count:>3} matrices: {taken[-1]:.4f}, {derived[-1]:.4f}"
            if count in matrices[1::2]:
                middle = QuantileSketch.of(torch_moves(name, count, networks // 2, rate)).quantile(0.5)
                marker = {"fmt": kind.style["marker"], "color": kind.style["color"], "ms": 4}
                axes.errorbar(count, middle.value, 2 * middle.se, lw=1, **marker)
                line += f", {middle.value:.3f} +- {middle.se:.3f}"
            print(line, flush=True)
        axes.plot(matrices, taken, lw=1.2, color=kind.style["color"], ls=kind.style.get("ls", "-"))
        axes.plot(matrices, derived, lw=0.8, color=kind.style["color"], ls=":")
    axes.set(xscale="log", yscale="log", ylabel=r"median of $|K_1 - K_0|\,/\,K_0$")
    axes.set_title("(c) first step; dotted: by the derivative", loc="left")


def plain(name: str) -> str:
    """A name without its mathematics."""
    return name.replace("$", "").replace("\\sqrt{L}", "sqrt(L)")


def main() -> None:
    """Print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("skip-and-norm.png"))
    parser.add_argument("--draws", type=int, default=100_000)
    parser.add_argument("--networks", type=int, default=400)
    parser.add_argument("--matrices", type=int, nargs="+", default=[4, 6, 10, 18, 34, 66, 130])
    given = parser.parse_args()
    print(f"finwidth {finwidth.__version__}; n_0 = {N_0}, n = m = {WIDTH}, ReLU, NTK parameterization, |x|^2 = n_0")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.2, 3.6))
        left, middle, right = figure.subplots(1, 3)
        draw_moments(left, given.matrices, given.draws, given.networks)
        draw_spreads(middle, given.matrices, given.draws, given.networks)
        draw_moves(right, given.matrices, max(10, given.draws // 50), given.networks)
        for axes in (left, middle, right):
            axes.set_xlabel("weight matrices")
            axes.set_xticks(given.matrices, list(map(str, given.matrices)))
            axes.minorticks_off()
        figure.legend(*middle.get_legend_handles_labels(), loc="outside lower center", ncols=len(KINDS))
        for path in (given.output, given.output.with_suffix(".pdf")):
            figure.savefig(path, dpi=200)
    print(f"Wrote {given.output} and {given.output.with_suffix('.pdf')}.")


if __name__ == "__main__":
    main()
