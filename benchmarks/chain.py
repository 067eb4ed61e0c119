"""Draws per second of the norm chain, beside backpropagation through real networks and beside its own generators.

    python benchmarks/chain.py

The chain on one thread and on all cores; NumPy's generators, making the same random numbers and nothing else, on one;
backpropagation on all cores.  Checked for correctness (mean of K against the exact value) before anything is timed.
Medians of repeated runs that take turns, so that ratios see the same machine.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import scipy

import finwidth
from finwidth import ResNet
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.sampling.one_input.sample import one_input_sampler
from finwidth.sampling.random.streams import check_threads, stream
from finwidth.sampling.sampler import draw_chunks

REPEATS = 9


def rates(*runs: Callable[[], int]) -> list[float]:
    """Things done per second by each run, medians over repeats of at least 0.2 s that take turns.

    A run does some and tells how many; taking turns, all of them see the same machine.
    """
    measured: list[list[float]] = [[] for _ in runs]
    for _ in range(REPEATS):
        for run, found in zip(runs, measured, strict=True):
            done, start = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < 0.2 or not done:
                done += run()
            found.append(done / elapsed)
    return [statistics.median(found) for found in measured]


def chain(net: MLP | ResNet, threads: int) -> Callable[[], int]:
    """Some chunks of draws, as `finwidth.sample` makes them: output, K_w, K_b, K and dK."""
    x = [1.0] + [0.0] * (net.widths[0] - 1)
    sampler = one_input_sampler(net, x)
    draws = 8 * sampler.chunk_size
    exact = finwidth.moments(net, x)
    K = [piece["K"] for piece in draw_chunks(sampler, draws, threads=threads)]
    mean, error = np.concatenate(K).mean(), float(exact.cv) * float(exact.mean) / draws**0.5
    if abs(mean - float(exact.mean)) > 6 * error:
        sys.exit(f"the chain is wrong: mean K {mean}, exact {exact.mean}")

    def run() -> int:
        for _ in draw_chunks(sampler, draws, threads=threads):
            pass
        return draws

    return run


def generators(net: MLP) -> Callable[[], int]:
    """The random numbers of one chunk of the chain, and nothing else."""
    size = one_input_sampler(net, [1.0] * net.widths[0]).chunk_size
    rng, out = stream(0, 1), np.empty(size)
    halves = [rng.binomial(n, 0.5, size) / 2 for n in net.widths[1:-1]]

    def run() -> int:
        for i, (n, half) in enumerate(zip(net.widths[1:-1], halves, strict=True)):
            rng.binomial(n, 0.5, size)
            for _ in range(3 if i else 2):  # chi2 of m, m - 1 and, above the first layer, m - 2
                rng.standard_gamma(half, out=out)
            if i:
                rng.standard_normal(out=out)
        rng.standard_normal(out=out)
        return size

    return run


def numpy_backprop(net: MLP) -> Callable[[], int]:
    """K of a batch of fresh networks by plain batched NumPy (no dK)."""
    batch = max(1, 2**21 // max(a * b for a, b in zip(net.widths, net.widths[1:], strict=False)))
    rng = np.random.Generator(np.random.SFC64(0))

    def run() -> int:
        x: FloatArray = np.ones((batch, net.widths[0], 1)) / net.widths[0] ** 0.5
        weights, slopes, norms = [], [], []
        for layer in net.layers:
            weight = rng.standard_normal((batch, layer.fan_out, layer.fan_in)) * float(layer.weight_variance) ** 0.5
            norms.append(np.square(x).sum((1, 2)))
            y = weight @ x
            slopes.append(y > 0)
            x = np.maximum(y, 0)
            weights.append(weight)
        gradient: FloatArray = np.ones((batch, 1, 1))
        K = np.zeros(batch)
        for i in reversed(range(net.depth)):
            K += (float(net.layers[i].weight_multiplier) * norms[i] + 1) * np.square(gradient).sum((1, 2))
            if i:
                gradient = (weights[i].transpose(0, 2, 1) @ gradient) * slopes[i - 1]
        return batch

    return run


def torch_backprop(net: MLP) -> Callable[[], int] | None:
    """The same by batched torch in float32, or None without torch."""
    try:
        import torch
    except ImportError:
        return None
    batch = max(1, 2**22 // max(a * b for a, b in zip(net.widths, net.widths[1:], strict=False)))

    def run() -> int:
        x = torch.ones(batch, net.widths[0], 1) / net.widths[0] ** 0.5
        weights, slopes, norms = [], [], []
        for layer in net.layers:
            weight = torch.randn(batch, layer.fan_out, layer.fan_in).mul_(float(layer.weight_variance) ** 0.5)
            norms.append(x.square().sum((1, 2)))
            y = torch.bmm(weight, x)
            slopes.append(y > 0)
            x = y.relu()
            weights.append(weight)
        gradient = torch.ones(batch, 1, 1)
        K = torch.zeros(batch)
        for i in reversed(range(net.depth)):
            K += (float(net.layers[i].weight_multiplier) * norms[i] + 1) * gradient.square().sum((1, 2))
            if i:
                gradient = torch.bmm(weights[i].transpose(1, 2), gradient) * slopes[i - 1]
        return batch

    return run


def versions() -> str:
    """What the figures depend on."""
    try:
        import torch

        torch_version = f"torch {torch.__version__} ({torch.get_num_threads()} threads)"
    except ImportError:
        torch_version = "no torch"
    return (
        f"finwidth {finwidth.__version__}, Python {platform.python_version()}, NumPy {np.__version__}, "
        f"SciPy {scipy.__version__}, {torch_version}, {platform.machine()}"
    )


def main() -> None:
    """Print the table."""
    print(versions())
    cores = check_threads(None)
    columns = ("generators/s", "chain/s", "times", f"chain on {cores}/s", "times", "backprop/s", "times")
    print(f"{'n x d':>11} " + " ".join(f"{column:>{max(12, len(column))}}" for column in columns))
    for n, d in ((64, 8), (512, 32), (4096, 128)):
        net = MLP([n, *[n] * (d - 1), 1])
        # A network of width 4096 and depth 128 has 2e9 weights: one takes minutes, so it is scaled from four layers.
        timed, scale = (net, 1.0) if n < 4096 else (MLP([n, *[n] * 3, 1]), 3 / (d - 1))
        alone, one, all_cores, *networks = rates(
            generators(net),
            chain(net, 1),
            chain(net, cores),
            *[run for run in (numpy_backprop(timed), torch_backprop(timed)) if run],
        )
        backprop = scale * max(networks)
        note = "" if scale == 1 else " (backprop scaled from 4 layers)"
        print(
            f"{n:>5} x {d:<3} {alone:>12,.0f} {one:>12,.0f} {one / alone:>12.2f} {all_cores:>12,.0f} "
            f"{all_cores / alone:>12.2f} {backprop:>12,.3g} {all_cores / backprop:>12,.0f}{note}"
        )


if __name__ == "__main__":
    main()
