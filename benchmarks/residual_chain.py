"""Draws per second of the residual chain, beside networks that draw their weights and beside its own generators.

    python benchmarks/residual_chain.py

The chain on one thread and on all cores; NumPy's generators, making the same random numbers and nothing else, on one;
drawing the weights, one forward and one backward pass (K without dK) on all cores.  Checked for correctness (mean of K
against the exact value) before anything is timed.  Medians of repeated runs that take turns.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from chain import chain, rates, versions
from finwidth import ResNet
from finwidth.networks.laws import FloatArray
from finwidth.sampling.one_input.sample import one_input_sampler
from finwidth.sampling.random.streams import check_threads, stream

X = [1.0] * 4


def generators(net: ResNet) -> Callable[[], int]:
    """The random numbers of one chunk of the chain for ReLU, and nothing else."""
    size, rng = one_input_sampler(net, X).chunk_size, stream(0, 1)
    out, n = np.empty(size), net.widths[1]
    halves = {m: rng.binomial(m, 0.5, size) / 2 for m in set(net.hidden)}

    def run() -> int:
        for m in net.hidden:
            rng.binomial(m, 0.5, size)
            for _ in range(3):  # chi2 of the open neurons, one fewer and two fewer
                rng.standard_gamma(halves[m], out=out)
            for less in (1, 2, 3, 4, 3):  # and of directions of the stream
                rng.standard_gamma((n - less) / 2, out=out)
            for _ in range(10):
                rng.standard_normal(out=out)
        return size

    return run


def numpy_backprop(net: ResNet) -> Callable[[], int]:
    """K of a batch of fresh networks by plain batched NumPy (no dK)."""
    n = net.widths[1]
    batch = max(1, 2**21 // n**2)
    rng = np.random.Generator(np.random.SFC64(0))
    a, b = float(net.skip_squared[0]) ** 0.5, float(net.branch_squared[0]) ** 0.5

    def run() -> int:
        x: FloatArray = rng.standard_normal((batch, n, 1))
        matrices, slopes, norms = [], [], []
        for block in net.blocks:
            V = rng.standard_normal((batch, block.inner.fan_out, n)) * float(block.inner.weight_variance) ** 0.5
            W = rng.standard_normal((batch, n, block.inner.fan_out)) * float(block.outer.weight_variance) ** 0.5
            y = V @ x
            slopes.append(y > 0)
            z = np.maximum(y, 0)
            norms.append((np.square(x).sum((1, 2)), np.square(z).sum((1, 2))))
            matrices.append((V, W))
            x = a * x + b * (W @ z)
        G: FloatArray = rng.standard_normal((batch, n, 1)) / n**0.5
        K = np.square(x).sum((1, 2)) / n
        for block, (V, W), slope, (R, Z) in reversed(list(zip(net.blocks, matrices, slopes, norms, strict=True))):
            c_V, c_W = float(block.inner.weight_multiplier), float(block.outer.weight_multiplier)
            J = b * (W.transpose(0, 2, 1) @ G) * slope
            K += (c_V * R + 1) * np.square(J).sum((1, 2)) + b * b * (c_W * Z + 1) * np.square(G).sum((1, 2))
            G = a * G + V.transpose(0, 2, 1) @ J
        return batch

    return run


def main() -> None:
    """Print the table."""
    print(versions())
    cores = check_threads(None)
    columns = ("generators/s", "chain/s", "times", f"chain on {cores}/s", "times", "by weights/s", "times")
    print(f"{'n x blocks':>11} " + " ".join(f"{column:>12}" for column in columns))
    for n, blocks in ((64, 8), (512, 32), (4096, 64)):
        net = ResNet([4, n, 1], blocks, branch="1/sqrt(depth)")
        # A network of width 4096 with 64 blocks has 2e9 weights: it is scaled from two blocks.
        timed, scale = (net, 1.0) if n < 4096 else (ResNet([4, n, 1], 2), 2 / blocks)
        alone, one, all_cores, weights = rates(generators(net), chain(net, 1), chain(net, cores), numpy_backprop(timed))
        weights *= scale
        note = "" if scale == 1 else " (by weights scaled from 2 blocks)"
        print(
            f"{n:>6} x {blocks:<3} {alone:>12,.0f} {one:>12,.0f} {one / alone:>12.2f} {all_cores:>12,.0f} "
            f"{all_cores / alone:>12.2f} {weights:>12.3g} {all_cores / weights:>12,.0f}{note}"
        )


if __name__ == "__main__":
    main()
