"""First order in 1/width beside exact values and draws in law: where it holds, how it fails, what it tells.

    python examples/expansion.py [-o docs/images/expansion.png] [--draws 20000]

Prints the figures of docs/expansion.md and draws its picture; about four minutes on two cores.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

import finwidth
from finwidth import MLP, Activation
from finwidth.networks.laws import FloatArray
from finwidth.plots import STYLE

COLOURS = {"relu": "#000000", "gelu": "#D55E00", "silu": "#E69F00", "tanh": "#0072B2", "erf": "#56B4E9"}
WIDTHS, DEPTHS = (8, 16, 32, 64), {3: "o", 5: "s", 9: "^"}
OPAQUE: dict[str, Any] = {"frameon": True, "framealpha": 1.0, "edgecolor": "none"}  # over the dotted line
LEAKY = Activation("leaky 0.1", 1, 0.1)


def at_angles(*degrees: float) -> FloatArray:
    """Inputs of squared norm n_0 = 2 at these angles."""
    angles = np.radians(degrees)
    found: FloatArray = math.sqrt(2) * np.stack([np.cos(angles), np.sin(angles)], 1)
    return found


def estimate(values: FloatArray) -> tuple[float, float]:
    """Mean and standard error."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


# ---- a table: means off the diagonal, by expansion and by draws


def off_diagonal(draws: int) -> None:
    """Relative shifts of E[K_ab] from infinite width at two angles; 0 on the diagonal."""
    X = at_angles(0, 60, 180)
    for phi in ("relu", LEAKY):
        for n in (20, 80):
            net = MLP([2, n, n, n, 1], activation=phi, bias="none")
            start = time.perf_counter()
            wide = finwidth.expansion(net, X).K.to_numpy()
            middle = time.perf_counter()
            K = finwidth.sample_gram(net, X, draws, seed=1).K.to_numpy()
            end = time.perf_counter()
            shifts = 100 * wide[1] / wide[0]
            told = []
            for a, b in ((0, 0), (0, 1), (1, 2)):
                value, error = estimate(100 * (K[:, a, b] / wide[0, a, b] - 1))
                told.append(f"{shifts[a, b]:6.2f} {value:6.2f} +- {error:.2f}")
            took = f"{middle - start:.2f} s, {end - middle:.1f} s"
            print(f"  {net.activation.name:>9} n = {n}: {'; '.join(told)}   {took}", flush=True)


# ---- how far first order serves


def ratios(name: str, draws: int) -> Iterator[tuple[int, int, float, dict[str, tuple[float, float]]]]:
    """Depth, width, what first order may leave out of Var K, and draws over first order of three quantities."""
    X = at_angles(0, 90)
    for depth in DEPTHS:
        for n in WIDTHS:
            net = MLP([2, *[n] * (depth - 1), 1], activation=name)
            wide = finwidth.expansion(net, X, [0, 0])
            drawn = finwidth.sample_gram(net, X, draws, seed=depth * n, y=[0, 0])
            K, dK = drawn.K[:, 0, 0].to_numpy(), drawn.dK[:, 0, 0].to_numpy()
            known = {
                "E[K]": (K, wide.K[:, 0, 0].sum()),
                "Var K": ((K - K.mean()) ** 2, wide.K_covariance[1, 0, 0, 0, 0]),
                "E[dK]": (dK, wide.dK[1, 0, 0]),
            }
            found = {key: estimate(values / float(value)) for key, (values, value) in known.items()}
            yield depth, n, wide.attrs["left_out"], found


def draw_reach(axes: Any, draws: int) -> None:
    """Panels (a) and (b): draws over first order against what it may leave out."""
    print("draws over first order, by what it may leave out: E[K], Var K, E[dK]")
    for name, colour in COLOURS.items():
        for depth, n, left_out, found in ratios(name, draws):
            for panel, key in zip(axes, ("Var K", "E[dK]"), strict=True):
                value, error = found[key]
                face = colour if depth != max(DEPTHS) else "white"
                panel.errorbar(left_out, value, 2 * error, fmt=DEPTHS[depth], ms=4, color=colour, mfc=face, lw=1)
            told = ", ".join(f"{value:.3f} +- {error:.3f}" for value, error in found.values())
            print(f"  {name:>5} d = {depth}, n = {n:>2}: {left_out:.3f}: {told}", flush=True)
    for panel, key in zip(axes, (r"$\mathrm{Var}\,K$", r"$\mathbb{E}[\Delta K]$"), strict=True):
        panel.axhspan(0.9, 1.1, color="#dddddd", lw=0)
        panel.axvline(0.1, color="#555555", lw=0.8, ls=":")
        panel.set(xscale="log", yscale="log", ylim=(0.8, 25), yticks=[1, 2, 5, 10, 20])
        panel.set_yticklabels(["1", "2", "5", "10", "20"])
        panel.minorticks_off()
        panel.set(xlabel="left out at most: $r + 16\\,q + 1/n$", ylabel=f"{key}, draws over first order")
        most = np.geomspace(0.03, 20, 60)
        panel.plot(most, 1 + most, color="#555555", lw=0.8, ls="--")
    axes[0].plot(*exact_over_first(), color="#000000", lw=0.8, label="relu, exact, $d = 5$")
    for name, colour in COLOURS.items():
        axes[0].plot([], [], "o", color=colour, ms=4, label=name)
    axes[0].legend(loc="upper left", **OPAQUE)
    axes[0].set_title("(a) the variance of the kernel", loc="left")
    for depth, marker in DEPTHS.items():
        axes[1].plot([], [], marker, color="#555555", ms=4, label=f"$d = {depth}$")
    axes[1].legend(loc="upper left", **OPAQUE)
    axes[1].set_title("(b) its first move", loc="left")


def exact_over_first() -> tuple[list[float], list[float]]:
    """What first order may leave out of ReLU networks at d = 5, by width, and the exact Var K over its first order."""
    x, left_out, found = [math.sqrt(2), 0.0], [], []
    for n in (5, 6, 7, 8, 10, 12, 16, 24, 32, 64, 128, 256):
        net = MLP([2, *[n] * 4, 1])
        known, exact = finwidth.expansion(net, [x]), finwidth.moments(net, x)
        left_out.append(float(known.attrs["left_out"]))
        found.append(float(exact.variance) / known.K_covariance[1].item())
    return left_out, found


# ---- what it tells


def draw_angles(axes: Any) -> None:
    """Panel (c): the shift off the diagonal over the angle."""
    angles = np.linspace(4, 176, 44)
    for depth, style in ((3, ":"), (5, "--"), (9, "-")):
        for name in ("relu", "gelu", "tanh"):
            net = MLP([2, *[1] * (depth - 1), 1], activation=name)
            each = [finwidth.expansion(net, at_angles(0, angle)).K.to_numpy() for angle in angles]
            shifts = [K[1, 0, 1] / np.sqrt(K[0, 0, 0] * K[0, 1, 1]) / (depth - 1) for K in each]
            axes.plot(angles, shifts, style, color=COLOURS[name], lw=1.2, label=f"{name}, $d = {depth}$")
    axes.axhline(0, color="#555555", lw=0.6)
    axes.set(xlabel="angle between the inputs, degrees", xticks=[0, 45, 90, 135, 180])
    axes.set_ylabel(r"$n\,(\mathbb{E}[K_{12}] - \Theta_{12})\,/\,(d-1)\,\Theta_{11}$")
    axes.set_ylim(-0.12, 0.75)
    axes.legend(ncols=3, fontsize=6.5)
    axes.set_title("(c) the mean off the diagonal", loc="left")


def first_move(name: str, size: float, depth: int, bias: str) -> float:
    """Coefficient of 1/n of E[dK]/(lambda K^2) at one input with |x|^2/n_0 = size."""
    net = MLP([1, *[1] * (depth - 1), 1], activation=name, bias=bias)
    found = finwidth.expansion(net, [[math.sqrt(size)]], [0.0])
    return float(found.dK[1].item() / found.K[0].item() ** 2)


def turning_point(name: str, depth: int) -> float:
    """|x|^2/n_0 where E[dK] changes sign in networks without biases."""
    from scipy.optimize import brentq

    return float(brentq(lambda size: first_move(name, size, depth, "none"), 1e-6, 2))


def draw_signs(axes: Any) -> None:
    """Panel (d): the sign of the first move over the size of the input, and where it turns."""
    sizes = np.geomspace(0.01, 30, 40)
    for bias, style in (("none", "--"), ("trained", "-")):
        for name in ("relu", "gelu", "tanh", "erf"):
            moves = [first_move(name, size, 4, bias) / 3 for size in sizes]
            axes.plot(sizes, moves, style, color=COLOURS[name], lw=1.2, label=name if bias == "trained" else None)
    axes.axhline(0, color="#555555", lw=0.6)
    axes.set(xscale="log", xlabel="$|x|^2/n_0$", ylabel=r"$n\,\mathbb{E}[\Delta K]\,/\,3\lambda K^2$, $d = 4$")
    axes.legend()
    axes.set_title("(d) the first move; dashed: no biases", loc="left")
    print("|x|^2/n_0 where E[dK] turns, no biases")
    for name in ("tanh", "erf"):
        turns = [turning_point(name, depth) for depth in (2, 3, 4, 8, 16)]
        print(f"  {name}, d = 2, 3, 4, 8, 16: {', '.join(f'{each:.4f}' for each in turns)}")


def main() -> None:
    """Print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("expansion.png"))
    parser.add_argument("--draws", type=int, default=20_000)
    given = parser.parse_args()
    print("shift of E[K_ab], in %, on the diagonal, at 60 and at 120 degrees: first order, draws; time of each")
    off_diagonal(20 * given.draws)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 6.0))
        axes = figure.subplots(2, 2)
        draw_angles(axes[1, 0])
        draw_signs(axes[1, 1])
        draw_reach(axes[0], given.draws)
        figure.savefig(given.output, dpi=200)
    print(f"Wrote {given.output}.")


if __name__ == "__main__":
    main()
