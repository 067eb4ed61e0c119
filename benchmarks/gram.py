"""Kernel matrices of several inputs: drawing them in law against drawing the weights.

    python benchmarks/gram.py

Both use all threads of the BLAS.  The law is checked first, on the mean of the diagonal.  Medians, one draw at a time;
peak memory is of the whole process.
"""

from __future__ import annotations

import platform
import resource
import sys
from functools import partial

import numpy as np

import finwidth
from finwidth import MLP
from finwidth.laws import FloatArray
from finwidth.sampling import gram
from finwidth.sampling.streams import stream
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
        gram.draw(net, X, 2000, stream(0, 0))["K"][:, 0, 0],
        np.array([by_weights(net, X, rng)[0, 0] for _ in range(2000)]),
    ):
        if abs(K.mean() - float(exact.mean)) > 5 * exact.cv * float(exact.mean) / 2000**0.5:
            sys.exit(f"wrong law: mean {K.mean()}, exact {exact.mean}")


def main() -> None:
    """Print the table."""
    check()
    print(f"finwidth {finwidth.__version__}, Python {platform.python_version()}, NumPy {np.__version__}")
    print(f"m = {INPUTS} inputs, d = {DEPTH} layers")
    rng = np.random.default_rng(2)
    for n, d in ((10**5, 8), (10**6, 8), (10**6, 16)):  # before any weight matrix: the peak is of the process so far
        net, X = MLP([64, *[n] * (d - 1), 1]), inputs(64)
        law = seconds(partial(gram.draw, net, X, 1, rng), 1)
        peak, promised = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, gram.memory(net, 8) / 2**30
        print(f"n = {n:>9,}, d = {d:>2}: {law:.2f} s, peak {peak:.2f} GiB, promised {promised:.2f} over the start's")
    for n in (256, 1024, 4096):
        net, X = MLP([n, *[n] * (DEPTH - 1), 1]), inputs(n)
        repeats = 20 if n < 4096 else 5
        size = gram.chunk_size(net, INPUTS)
        law = seconds(partial(gram.draw, net, X, size, rng), repeats) / size
        weights = seconds(partial(by_weights, net, X, rng), repeats)
        print(
            f"n = {n:>5}: in law {1e3 * law:8.3f} ms, by weights {1e3 * weights:10.2f} ms, ratio {weights / law:7.1f}"
        )


if __name__ == "__main__":
    main()
