"""Draws per second of the chains of normalised networks, beside drawing the weights and beside their own generators.

    python benchmarks/normalised_chain.py

RMSNorm before the activation of an MLP, before the blocks of a residual network, and LayerNorm after its sums.  The
chain on one thread and on all cores; NumPy's generators, making the same random numbers and nothing else, on one;
drawing the weights, one forward and one backward pass (K without dK) on all cores.  Checked for correctness (K of
narrow networks by both) before anything is timed.  Medians of repeated runs that take turns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from scipy import stats

from chain import rates, versions
from finwidth import MLP, Norm, ResNet
from finwidth.networks.description import Network
from finwidth.networks.laws import FloatArray
from finwidth.networks.norm import Norm as NormKind
from finwidth.sampling.one_input.sample import one_input_sampler
from finwidth.sampling.random.streams import check_threads, stream
from finwidth.sampling.sampler import collect, draw_chunks

X = [1.0] * 4
KINDS: dict[str, Callable[[int, int], MLP | ResNet]] = {
    "MLP, rms": lambda n, depth: MLP([4, *[n] * depth, 1], norm="rms"),
    "pre-norm, rms": lambda n, depth: ResNet([4, n, 1], depth, norm="rms"),
    "post-norm, layer": lambda n, depth: ResNet([4, n, 1], depth, norm=Norm("layer", "after")),
}


def chain_of(net: Network, threads: int) -> Callable[[], int]:
    """Some chunks of draws, as `finwidth.sample` makes them."""
    sampler = one_input_sampler(net, X)
    draws = 8 * sampler.chunk_size

    def run() -> int:
        for _ in draw_chunks(sampler, draws, threads=threads):
            pass
        return draws

    return run


def generators_of(net: MLP | ResNet) -> Callable[[], int]:
    """The random numbers of one chunk of the chain for ReLU, and nothing else."""
    size, rng = one_input_sampler(net, X).chunk_size, stream(0, 1)
    out, n = np.empty(size), net.widths[1]
    half, groups = rng.binomial(n, 0.5, size) / 2, 2 if isinstance(net, MLP) else 1
    normals = 5 if isinstance(net, MLP) else 10

    def run() -> int:
        for _ in range(net.depth):
            rng.binomial(n, 0.5, size)
            for _ in range(3 * groups):  # chi2 of each group, of one and two fewer
                rng.standard_gamma(half, out=out)
            for less in (1, 2, 3, 4, 3) if isinstance(net, ResNet) else ():
                rng.standard_gamma((n - less) / 2, out=out)
            for _ in range(normals):
                rng.standard_normal(out=out)
        return size

    return run


def normed(norm: NormKind, x: FloatArray) -> tuple[FloatArray, Callable[[FloatArray], FloatArray]]:
    """Vectors (networks, n, 1) normalised, and how gradients pass."""
    centred = x - x.mean(1, keepdims=True) if norm.centred else x
    length = np.maximum(np.sqrt(np.square(centred).sum(1, keepdims=True)), 1e-300)
    unit, factor = centred / length, x.shape[1] ** 0.5 / length

    def back(G: FloatArray) -> FloatArray:
        across: FloatArray = G - unit * (unit * G).sum(1, keepdims=True)
        passed: FloatArray = factor * (across - across.mean(1, keepdims=True) if norm.centred else across)
        return passed

    return x.shape[1] ** 0.5 * unit, back


def matrices(rng: np.random.Generator, shape: tuple[int, int, int], gain: float) -> FloatArray:
    """Weights of networks, shape (networks, fan-out, fan-in)."""
    drawn: FloatArray = rng.standard_normal(shape) * (gain / shape[2]) ** 0.5
    return drawn


def squared(x: FloatArray) -> FloatArray:
    """|x|^2 of each network."""
    total: FloatArray = np.square(x).sum((1, 2))
    return total


def by_weights(net: MLP | ResNet, batch: int, rng: np.random.Generator) -> FloatArray:
    """K of a batch of fresh networks with ReLU by plain batched NumPy, shape (batch,)."""
    return _mlps(net, batch, rng) if isinstance(net, MLP) else _resnets(net, batch, rng)


def _mlps(net: MLP, batch: int, rng: np.random.Generator) -> FloatArray:
    assert net.norm is not None
    x: FloatArray = np.ones((batch, len(X), 1))
    kept = []
    for n in net.widths[1:-1]:
        W = matrices(rng, (batch, n, x.shape[1]), 2)
        u, back = normed(net.norm, W @ x)
        kept.append((W, u > 0, back, 2 / x.shape[1] * squared(x) + 1))
        x = np.maximum(u, 0)
    K: FloatArray = squared(x) / x.shape[1] + 1
    G = matrices(rng, (batch, 1, x.shape[1]), 1).transpose(0, 2, 1)
    for W, gates, back, size in reversed(kept):
        J = back(gates * G)
        K += size * squared(J)
        G = W.transpose(0, 2, 1) @ J
    return K


def _resnets(net: ResNet, batch: int, rng: np.random.Generator) -> FloatArray:
    assert net.norm is not None
    n, pre, kept = net.widths[1], net.norm.position == "before", []
    x: FloatArray = matrices(rng, (batch, n, len(X)), 1) @ np.ones((batch, len(X), 1))
    for _ in range(net.depth):
        u, read = normed(net.norm, x) if pre else (x, unchanged)
        V, W = matrices(rng, (batch, n, n), 2), matrices(rng, (batch, n, n), 1)
        y = V @ u
        z = np.maximum(y, 0)
        x, back = (x + W @ z, unchanged) if pre else normed(net.norm, x + W @ z)
        kept.append((V, W, y > 0, 2 / n * squared(u) + 1, squared(z) / n + 1, read, back))
    head, back = normed(net.norm, x) if pre else (x, unchanged)
    K: FloatArray = squared(head) / n + 1
    G = back(matrices(rng, (batch, 1, n), 1).transpose(0, 2, 1))
    for V, W, gates, inner, outer, read, back in reversed(kept):
        G = back(G)
        J = gates * (W.transpose(0, 2, 1) @ G)
        K += inner * squared(J) + outer * squared(G)
        G = G + read(V.transpose(0, 2, 1) @ J)
    K += 2 * squared(G)  # the stem: |x|^2 / n_0 + 1
    return K


def unchanged(G: FloatArray) -> FloatArray:
    """A gradient that meets no norm."""
    return G


def weights_of(net: MLP | ResNet) -> Callable[[], int]:
    """Batches of `by_weights`."""
    batch, rng = max(1, 2**21 // net.widths[1] ** 2), np.random.Generator(np.random.SFC64(0))

    def run() -> int:
        by_weights(net, batch, rng)
        return batch

    return run


def check(net: MLP | ResNet) -> None:
    """Leave the program unless the chain and drawn weights have one law of K."""
    drawn = collect(one_input_sampler(net, X), 20_000)["K"]
    p = stats.ks_2samp(drawn, by_weights(net, 20_000, np.random.default_rng(1))).pvalue
    if p < 1e-6:
        sys.exit(f"the chain is wrong: {net}, p = {p}")


def main() -> None:
    """Print the table."""
    print(versions())
    cores = check_threads(None)
    columns = ("generators/s", "chain/s", "times", f"chain on {cores}/s", "by weights/s", "times")
    print(f"{'':>16} {'n x depth':>9} " + " ".join(f"{column:>13}" for column in columns))
    for kind, make in KINDS.items():
        check(make(8, 3))
        for n, depth in ((64, 8), (512, 32)):
            net = make(n, depth)
            runs = generators_of(net), chain_of(net, 1), chain_of(net, cores), weights_of(net)
            alone, one, several, weights = rates(*runs)
            print(
                f"{kind:>16} {n:>4} x {depth:<2} {alone:>13,.0f} {one:>13,.0f} {one / alone:>13.2f} {several:>13,.0f} "
                f"{weights:>13,.3g} {several / weights:>13,.0f}"
            )


if __name__ == "__main__":
    main()
