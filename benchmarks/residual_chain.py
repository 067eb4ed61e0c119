"""Draws per second of the residual chains, beside networks that draw their weights and beside their own generators.

    python benchmarks/residual_chain.py

Of blocks of two matrices, by scalars, and of one, with random signs and without, by vectors.  The chain on one thread
and on all cores; NumPy's generators, making the same random numbers and nothing else, on one; drawing the weights, one
forward and one backward pass (K without dK) on all cores.  Checked for correctness (mean of K against the exact value,
or its law against that by weights) before anything is timed.  Medians of repeated runs that take turns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from scipy import stats

from chain import chain, rates, versions
from finwidth import BalancedResNet, ResNet
from finwidth.networks.laws import FloatArray
from finwidth.sampling.one_input.sample import one_input_sampler
from finwidth.sampling.random.streams import check_threads, stream
from finwidth.sampling.sampler import collect
from normalised_chain import chain_of

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


def vector_generators(net: BalancedResNet) -> Callable[[], int]:
    """The same for blocks of one matrix: three vectors of normals, and coins if there are signs."""
    sampler, rng = one_input_sampler(net, X), stream(0, 1)
    out = np.empty((sampler.chunk_size, net.widths[1]))

    def run() -> int:
        for _ in range(net.depth):
            for _ in range(3):
                rng.standard_normal(out=out)
            if net.signs:
                rng.integers(0, 2, out.shape, dtype=np.bool_)
        return len(out)

    return run


def one_matrix_kernels(net: BalancedResNet, batch: int, rng: np.random.Generator) -> FloatArray:
    """K of a batch of fresh networks of one matrix a block by plain batched NumPy (no dK)."""
    n, kept = net.widths[1], []
    x: FloatArray = rng.standard_normal((batch, n, 1))
    for block in net.blocks:
        a, b = float(block.skip_squared) ** 0.5, float(block.branch_squared) ** 0.5
        W = rng.standard_normal((batch, n, n)) * float(block.outer.weight_variance) ** 0.5
        signs = 2.0 * rng.integers(0, 2, x.shape) - 1 if net.signs else np.ones(x.shape)
        slopes = signs * (signs * x > 0)
        z = slopes * x
        kept.append((a, b, W, slopes, b * b * (float(block.outer.weight_multiplier) * np.square(z).sum((1, 2)) + 1)))
        x = a * x + b * (W @ z)
    G: FloatArray = rng.standard_normal((batch, n, 1)) / n**0.5
    K: FloatArray = np.square(x).sum((1, 2)) / n + 1
    for a, b, W, slopes, share in reversed(kept):
        K += share * np.square(G).sum((1, 2))
        G = a * G + b * slopes * (W.transpose(0, 2, 1) @ G)
    K += 2 * np.square(G).sum((1, 2))  # the stem: |x|^2 / n_0 + 1
    return K


def vector_runs(net: BalancedResNet) -> list[Callable[[], int]]:
    """Generators, the chain on one thread and on all cores, and by weights; the laws of K are compared first."""
    small = BalancedResNet([4, 8, 1], 3, branch="1/sqrt(depth)", signs=net.signs)
    drawn = collect(one_input_sampler(small, X), 20_000)["K"]
    if (p := stats.ks_2samp(drawn, one_matrix_kernels(small, 20_000, np.random.default_rng(1))).pvalue) < 1e-6:
        sys.exit(f"the chain is wrong: {small}, p = {p}")
    batch, rng = max(1, 2**21 // net.widths[1] ** 2), np.random.Generator(np.random.SFC64(0))
    chains = [chain_of(net, threads) for threads in (1, check_threads(None))]
    return [vector_generators(net), *chains, lambda: len(one_matrix_kernels(net, batch, rng))]


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
    columns = ("generators/s", "chain/s", "times", f"chain on {cores}/s", "by weights/s", "times")
    print(f"{'':>14} {'n x blocks':>11} " + " ".join(f"{column:>12}" for column in columns))
    sizes = ((64, 8), (512, 32), (4096, 64))
    for n, blocks in sizes:
        net = ResNet([4, n, 1], blocks, branch="1/sqrt(depth)")
        # A network of width 4096 with 64 blocks has 2e9 weights: it is scaled from two blocks.
        timed, scale = (net, 1.0) if n < 4096 else (ResNet([4, n, 1], 2), 2 / blocks)
        runs = generators(net), chain(net, 1), chain(net, cores), numpy_backprop(timed)
        note = "" if scale == 1 else " (by weights scaled from 2 blocks)"
        print(row("two matrices", n, blocks, rates(*runs), scale) + note, flush=True)
    for kind, signs in (("one, signs", True), ("one, no signs", False)):
        for n, blocks in sizes[:2]:
            one = BalancedResNet([4, n, 1], blocks, branch="1/sqrt(depth)", signs=signs)
            print(row(kind, n, blocks, rates(*vector_runs(one))), flush=True)


def row(kind: str, n: int, blocks: int, found: list[float], scale: float = 1.0) -> str:
    """A line of the table: rates of generators, one thread, all cores, and by weights."""
    alone, one, all_cores, weights = found
    weights *= scale
    return (
        f"{kind:>14} {n:>6} x {blocks:<3} {alone:>12,.0f} {one:>12,.0f} {one / alone:>12.2f} {all_cores:>12,.0f} "
        f"{weights:>12.3g} {all_cores / weights:>12,.0f}"
    )


if __name__ == "__main__":
    main()
