"""Kernel matrices of several inputs: drawing them in law against drawing the weights.

    python benchmarks/gram.py

Of every kind of network, with 8 matrices, or 10 of residual ones.  In law on as many threads as there are cores, as
`finwidth.sample_gram` does.  By weights both as one writes it, a network at a time with random numbers on one thread
and BLAS on all, and a network on each core at once, which keeps the cores busy.  The laws of a diagonal entry are
compared first.  Medians; peak memory is of the whole process.
"""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
from scipy import stats
from threadpoolctl import threadpool_limits

import finwidth
from finwidth import MLP, BalancedResNet, Norm, ResNet
from finwidth.networks.description import Fork, Join, Layer, Network, Signs, Skip, Step, weight_layers
from finwidth.networks.laws import FloatArray
from finwidth.sampling.kernel_matrix.sample_gram import bytes_per_draw, kernel_matrix_sampler
from finwidth.sampling.random.streams import check_threads, in_order, stream
from finwidth.sampling.sampler import Chunk, draw_chunks
from timing import seconds

INPUTS = 8
KINDS: dict[str, Callable[[int], Network]] = {
    "MLP": lambda n: MLP([n, *[n] * 7, 1]),
    "MLP, rms": lambda n: MLP([n, *[n] * 7, 1], norm="rms"),
    "ResNet": lambda n: ResNet([n, n, 1], 4, branch="1/sqrt(depth)"),
    "ResNet, layer before blocks": lambda n: ResNet([n, n, 1], 4, norm="layer"),
    "ResNet, rms after sums": lambda n: ResNet([n, n, 1], 4, norm=Norm("rms", "after")),
    "BalancedResNet": lambda n: BalancedResNet([n, n, 1], 8, branch="1/sqrt(depth)"),
}


def inputs(n_0: int) -> FloatArray:
    """INPUTS inputs of squared norm n_0."""
    X = np.random.default_rng(0).standard_normal((INPUTS, n_0))
    scaled: FloatArray = X * (n_0 / np.square(X).sum(axis=1, keepdims=True)) ** 0.5
    return scaled


Back = Callable[[FloatArray], FloatArray]  # gradients by what enters, (neurons, m), from those by what leaves


def by_weights(net: Network, X: FloatArray, rng: np.random.Generator) -> FloatArray:
    """K of one network that draws its weights, step by step: matrices forward, their transposes back."""
    parts: list[FloatArray] = []
    _, back = _through([step for stage in net.stages for step in stage], X.T, rng, parts)
    back(np.ones((1, len(X))))
    total: FloatArray = np.sum(parts, axis=0)
    return total


def _through(
    steps: Iterable[Step], x: FloatArray, rng: np.random.Generator, K: list[FloatArray]
) -> tuple[FloatArray, Back]:
    """What steps make of x, and the way back, on which each weight layer's part of the kernel is appended to K."""
    ways: list[Back] = []
    streams: list[FloatArray] = []  # of the branches that a pass is in
    for step in steps:
        x, way = _step(step, x, rng, K, streams)
        ways.append(way)

    def back(G: FloatArray) -> FloatArray:
        for way in reversed(ways):
            G = way(G)
        return G

    return x, back


def _step(
    step: Step, x: FloatArray, rng: np.random.Generator, K: list[FloatArray], streams: list[FloatArray]
) -> tuple[FloatArray, Back]:
    if isinstance(step, Layer):
        weight = rng.standard_normal((step.fan_out, step.fan_in)) * float(step.weight_variance) ** 0.5
        c, e, gram = float(step.weight_multiplier), float(step.bias_multiplier), x.T @ x

        def layer_back(G: FloatArray) -> FloatArray:
            K.append((c * gram + e) * (G.T @ G))
            below: FloatArray = weight.T @ G
            return below

        return weight @ x, layer_back
    if isinstance(step, Fork):
        streams.append(x)
        return x, lambda G: streams.pop() + G
    if isinstance(step, Join):

        def join_back(G: FloatArray) -> FloatArray:
            streams.append(step.skip * G)
            return G

        return step.skip * streams.pop() + x, join_back
    if isinstance(step, Skip):
        return step.factor * x, lambda G: step.factor * G
    if isinstance(step, Norm):
        return _normed(step, x)
    factors = 2.0 * rng.integers(0, 2, (len(x), 1)) - 1 if isinstance(step, Signs) else (x > 0).astype(float)  # or relu
    return factors * x, lambda G: factors * G


def _normed(norm: Norm, x: FloatArray) -> tuple[FloatArray, Back]:
    x = x - x.mean(0) if norm.centred else x
    length = np.maximum(np.sqrt(np.square(x).mean(0)), 1e-300)
    u: FloatArray = x / length

    def back(G: FloatArray) -> FloatArray:
        across = G - u * (u * G).mean(0)
        below: FloatArray = (across - across.mean(0) if norm.centred else across) / length
        return below

    return u, back


def check(net: Network) -> None:
    """Leave the program unless drawing in law and drawing weights have one law of K_00."""
    X, rng = inputs(net.widths[0]), np.random.default_rng(1)
    sampler = kernel_matrix_sampler(net, X)
    law = np.concatenate([drawn["K"][:, 0, 0] for drawn in draw_chunks(sampler, 3000)])
    weights = [by_weights(net, X, rng)[0, 0] for _ in range(3000)]
    if (p := stats.ks_2samp(law, weights).pvalue) < 1e-6:
        sys.exit(f"wrong law: {net}, p = {p}")


def weights_on_threads(net: Network, X: FloatArray, networks: int) -> None:
    """Kernels of some networks that draw their weights."""
    for _ in in_order(lambda number: by_weights(net, X, stream(3, number)), range(networks), check_threads(None)):
        pass


def law_on_threads(net: Network, X: FloatArray, draws: int, targets: FloatArray | None = None) -> None:
    """Kernels of some draws in law."""
    for _ in draw_chunks(kernel_matrix_sampler(net, X, targets), draws):
        pass


def normals(net: Network, draws: int) -> None:
    """As many normal numbers as some draws in law need, by NumPy's own method on one thread, and nothing else."""
    rng, out = stream(4, 0), np.empty(2 * INPUTS * sum(layer.fan_out for layer in weight_layers(net)))
    for _ in range(draws):
        rng.standard_normal(out=out)


def times(net: Network, repeats: int, networks: int) -> str:
    """Milliseconds a network: in law, with dK, normals, by weights and the ratio, a network on each core and that."""
    X, draws = inputs(net.widths[0]), 32 * kernel_matrix_sampler(net, inputs(net.widths[0])).chunk_size
    with threadpool_limits(1):
        law = seconds(partial(law_on_threads, net, X, draws), repeats) / draws
        moved = seconds(partial(law_on_threads, net, X, draws, np.zeros(INPUTS)), repeats) / draws
        alone = seconds(partial(normals, net, draws), repeats) / draws
        each = seconds(partial(weights_on_threads, net, X, networks), repeats) / networks
    weights = seconds(partial(by_weights, net, X, stream(2, 1)), repeats)
    told = f"{1e3 * law:8.3f} {1e3 * moved:8.3f} {1e3 * alone:8.3f} {1e3 * weights:9.2f} {weights / law:6.0f}"
    return f"{told} {1e3 * each:9.2f} {each / law:6.0f}"


def main() -> None:
    """Print the tables."""
    print(f"finwidth {finwidth.__version__}, Python {platform.python_version()}, NumPy {np.__version__}")
    print(f"m = {INPUTS} inputs, {check_threads(None)} threads")
    for n, d in ((10**5, 8), (10**6, 8), (10**6, 16)):  # before any weight matrix: the peak is of the process so far
        net, X = MLP([64, *[n] * (d - 1), 1]), inputs(64)
        law = seconds(partial(kernel_matrix_sampler(net, X).draw, Chunk(2, 0, 1)), 1)
        peak, promised = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, bytes_per_draw(net, 8) / 2**30
        print(f"n = {n:>9,}, d = {d:>2}: {law:.2f} s, peak {peak:.2f} GiB, promised {promised:.2f} over the start's")
    for make in KINDS.values():
        check(make(30))
    print("milliseconds a network; normals: as many by NumPy's own, one thread; weights: see the docstring")
    head = f"{'in law':>8} {'with dK':>8} {'normals':>8} {'weights':>9} {'ratio':>6} {'each core':>9} {'ratio':>6}"
    print(f"{'':>28} {'n':>5} {head}")
    for name, make in KINDS.items():
        for n, repeats, networks in ((256, 15, 64), (1024, 9, 8), (4096, 5, 2)):
            if n < 4096 or name == "MLP":
                print(f"{name:>28} {n:>5} {times(make(n), repeats, networks)}", flush=True)


if __name__ == "__main__":
    main()
