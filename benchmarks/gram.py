"""Kernel matrices of several inputs: drawing them in law against drawing the weights.

    python benchmarks/gram.py

In law on as many threads as there are cores, as `finwidth.sample_gram` does.  By weights both as one writes it, a
network at a time with random numbers on one thread and BLAS on all, and a network on each core at once, which keeps the
cores busy.  The law is checked first, on the mean of the diagonal.  Medians; peak memory is of the whole process.
"""

from __future__ import annotations

import platform
import resource
import sys
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

import finwidth
from finwidth import MLP
from finwidth.networks.laws import FloatArray
from finwidth.sampling.kernel_matrix.sample_gram import bytes_per_draw, kernel_matrix_sampler
from finwidth.sampling.random.streams import check_threads, in_order, stream
from finwidth.sampling.sampler import Chunk, draw_chunks
from timing import seconds

INPUTS, DEPTH = 8, 8


def inputs(n_0: int) -> FloatArray:
    """INPUTS inputs of squared norm n_0."""
    X = np.random.default_rng(0).standard_normal((INPUTS, n_0))
    scaled: FloatArray = X * (n_0 / np.square(X).sum(axis=1, keepdims=True)) ** 0.5
    return scaled


def by_weights(net: MLP, X: FloatArray, rng: np.random.Generator) -> FloatArray:
    """K of one network that draws its weights, layer by layer: matrices forward, their transposes back."""
    A, weights, pre, products = X.T, [], [], []
    for layer in net.layers:
        weight = rng.standard_normal((layer.fan_out, layer.fan_in)) * float(layer.weight_variance) ** 0.5
        products.append(A.T @ A)
        weights.append(weight)
        pre.append(weight @ A)
        A = np.maximum(pre[-1], 0)
    J: FloatArray = np.ones((1, len(X)))
    K: FloatArray = np.zeros((len(X), len(X)))
    for i in reversed(range(net.depth)):
        layer = net.layers[i]
        K += (float(layer.weight_multiplier) * products[i] + float(layer.bias_multiplier)) * (J.T @ J)
        if i:
            J = (weights[i].T @ J) * (pre[i - 1] > 0)
    return K


def check() -> None:
    """Means of the diagonal by both against the exact mean, within five standard errors."""
    net, X = MLP([4, 30, 30, 1]), inputs(4)
    exact = finwidth.moments(net, X[0])
    rng = np.random.default_rng(1)
    for K in (
        kernel_matrix_sampler(net, X).draw(Chunk(0, 0, 2000))["K"][:, 0, 0],
        np.array([by_weights(net, X, rng)[0, 0] for _ in range(2000)]),
    ):
        if abs(K.mean() - float(exact.mean)) > 5 * exact.cv * float(exact.mean) / 2000**0.5:
            sys.exit(f"wrong law: mean {K.mean()}, exact {exact.mean}")


def weights_on_threads(net: MLP, X: FloatArray, networks: int) -> None:
    """Kernels of some networks that draw their weights."""
    for _ in in_order(lambda number: by_weights(net, X, stream(3, number)), range(networks), check_threads(None)):
        pass


def law_on_threads(net: MLP, X: FloatArray, draws: int, targets: FloatArray | None = None) -> None:
    """Kernels of some draws in law."""
    for _ in draw_chunks(kernel_matrix_sampler(net, X, targets), draws):
        pass


def normals(net: MLP, draws: int) -> None:
    """As many normal numbers as some draws in law need, by NumPy's own method on one thread, and nothing else."""
    rng, out = stream(4, 0), np.empty(2 * INPUTS * sum(net.widths[1:]))
    for _ in range(draws):
        rng.standard_normal(out=out)


def main() -> None:
    """Print the tables."""
    check()
    print(f"finwidth {finwidth.__version__}, Python {platform.python_version()}, NumPy {np.__version__}")
    print(f"m = {INPUTS} inputs, {check_threads(None)} threads")
    for n, d in ((10**5, 8), (10**6, 8), (10**6, 16)):  # before any weight matrix: the peak is of the process so far
        net, X = MLP([64, *[n] * (d - 1), 1]), inputs(64)
        law = seconds(partial(kernel_matrix_sampler(net, X).draw, Chunk(2, 0, 1)), 1)
        peak, promised = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, bytes_per_draw(net, 8) / 2**30
        print(f"n = {n:>9,}, d = {d:>2}: {law:.2f} s, peak {peak:.2f} GiB, promised {promised:.2f} over the start's")
    print("milliseconds a network, d = 8; normals: as many by NumPy's own, one thread; weights: see the docstring")
    print(f"{'n':>5} {'in law':>8} {'with dK':>8} {'normals':>8} {'weights':>9} {'ratio':>6} {'each core':>9} ratio")
    for n, repeats, networks in ((256, 15, 64), (1024, 9, 8), (4096, 5, 2)):
        net, X = MLP([n, *[n] * (DEPTH - 1), 1]), inputs(n)
        draws = 32 * kernel_matrix_sampler(net, X).chunk_size
        with threadpool_limits(1):
            law = seconds(partial(law_on_threads, net, X, draws), repeats) / draws
            moved = seconds(partial(law_on_threads, net, X, draws, np.zeros(INPUTS)), repeats) / draws
            alone = seconds(partial(normals, net, draws), repeats) / draws
            each = seconds(partial(weights_on_threads, net, X, networks), repeats) / networks
        weights = seconds(partial(by_weights, net, X, stream(2, 1)), repeats)
        times = f"{1e3 * law:8.3f} {1e3 * moved:8.3f} {1e3 * alone:8.3f} {1e3 * weights:9.2f} {weights / law:6.0f}"
        print(f"{n:>5} {times} {1e3 * each:9.2f} {each / law:6.0f}")


if __name__ == "__main__":
    main()
