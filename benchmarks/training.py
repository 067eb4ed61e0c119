"""Training in law against training that holds its weights.

    python benchmarks/training.py [--wide]

Both train full batch with float64 on all threads of the BLAS; the kernel is recorded at the first and the last step.
The law is checked first, by the means of loss and kernel of small networks.  Times are medians of runs taken in turns;
peak memory is that of a process of its own, above that of one that only imports.  --wide adds n = 10^6.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import finwidth
from finwidth import MLP
from finwidth.networks.laws import FloatArray
from finwidth.sampling.training.spec import training_bytes, training_spec
from timing import seconds

DEPTH, LR = 6, 0.02


def inputs(m: int) -> FloatArray:
    """M inputs of squared norm 64."""
    X = np.random.default_rng(0).standard_normal((m, 64))
    scaled: FloatArray = X * (64 / np.square(X).sum(axis=1, keepdims=True)) ** 0.5
    return scaled


def network(n: int, depth: int = DEPTH) -> MLP:
    """ReLU, the paper's parameterization, biases trained."""
    return MLP([64, *[n] * (depth - 1), 1])


def in_law(n: int, m: int, steps: int, seed: int = 0, depth: int = DEPTH) -> tuple[FloatArray, FloatArray]:
    """Losses and kernels of the first and the last step."""
    run = finwidth.train(network(n, depth), inputs(m), np.ones(m), steps, LR, 1, seed, record=[0])
    return run.loss.to_numpy()[0], run.K.to_numpy()[0]


def by_weights(n: int, m: int, steps: int, seed: int = 0, depth: int = DEPTH) -> tuple[FloatArray, FloatArray]:
    """The same from weights that are drawn and moved."""
    rng, layers, X = np.random.default_rng(seed), network(n, depth).layers, inputs(m)
    W = [rng.standard_normal((each.fan_out, each.fan_in)) * float(each.weight_variance) ** 0.5 for each in layers]
    b = [np.zeros(each.fan_out) for each in layers]
    losses, kernels = [], []
    for step in range(steps + 1):
        A, Y = [X], []
        for weight, bias in zip(W, b, strict=True):
            Y.append(A[-1] @ weight.T + bias)
            A.append(np.maximum(Y[-1], 0))
        J = [np.ones((m, 1))]
        for i in reversed(range(1, len(W))):
            J.insert(0, (J[0] @ W[i]) * (Y[i - 1] > 0))
        r = Y[-1] - 1
        if step in {0, steps}:
            losses.append(0.5 * np.square(r).sum())
            shares = [float(each.weight_multiplier) * (a @ a.T) + 1 for each, a in zip(layers, A, strict=False)]
            kernels.append(sum(share * (j @ j.T) for share, j in zip(shares, J, strict=True)))
        for i, (each, a, j) in enumerate(zip(layers, A, J, strict=False)):
            W[i] -= (LR * float(each.weight_multiplier) * (r * j)).T @ a
            b[i] -= LR * (r * j).sum(axis=0)
    return np.array(losses), np.array(kernels)


def check() -> None:
    """Means of loss and kernel by both within five standard errors."""
    draws = [[np.concatenate([part.ravel() for part in run(12, 2, 5, seed, 3)]) for seed in range(1500)]
             for run in (in_law, by_weights)]  # fmt: skip
    one, other = (np.array(each) for each in draws)
    errors = np.sqrt((one.var(axis=0) + other.var(axis=0)) / len(one))
    z = np.abs(one.mean(axis=0) - other.mean(axis=0)) / errors
    if z.max() > 5:
        sys.exit(f"wrong law: means differ by {z.max():.1f} standard errors")


def _measure(
    run: Callable[..., object] | None, arguments: tuple[int, ...], queue: multiprocessing.Queue[float]
) -> None:
    if run is not None:
        run(*arguments)
    status = Path("/proc/self/status").read_text()  # ru_maxrss would begin with the parent's
    queue.put(int(status.partition("VmHWM:")[2].split()[0]) / 2**20)


def peak(run: Callable[..., object] | None, *arguments: int) -> float:
    """Peak memory of a process that runs this, in GiB."""
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[float] = context.Queue()
    process = context.Process(target=_measure, args=(run, arguments, queue))
    process.start()
    found = queue.get()
    process.join()
    return found


def compare(base: float) -> None:
    """Both side by side."""
    print(f"\nwidths 64, n x {DEPTH - 1}, 1: time and peak memory of one training")
    print("     n   m    T   m T      in law             by weights         ratio")
    for n, m, steps in ((1000, 4, 6), (1000, 8, 25), (4000, 4, 6), (4000, 8, 12), (4000, 8, 25)):
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(3):
            for run, taken in zip((in_law, by_weights), times, strict=True):
                start = time.perf_counter()
                run(n, m, steps)
                taken.append(time.perf_counter() - start)
        law, weights = (sorted(taken)[1] for taken in times)
        memories = [peak(run, n, m, steps) - base for run in (in_law, by_weights)]
        print(
            f"{n:6} {m:3} {steps:4} {m * steps:5} {law:8.3f} s {memories[0]:6.2f} GiB {weights:8.2f} s "
            f"{memories[1]:6.2f} GiB {weights / law:7.1f}"
        )
    n = 16_000
    needed = (DEPTH - 2) * n * n * 8 / 2**30
    print(f"{n:6}: the weights alone take {needed:.1f} GiB; in law m T = 24 {seconds(lambda: in_law(n, 4, 6)):.3f} s")


def growth() -> None:
    """Time against n at fixed m T, and against m T at fixed n, with the exponents."""
    for name, runs in (
        ("n (m T = 24)", [(n, 4, 6) for n in (10_000, 30_000, 100_000, 300_000)]),
        ("m T (n = 20,000)", [(20_000, 8, steps) for steps in (6, 12, 25, 50)]),
    ):
        times = [seconds(lambda run=run: in_law(*run, depth=4), 2) for run in runs]  # type: ignore[misc]
        sizes = [run[0] if name.startswith("n") else run[1] * run[2] for run in runs]
        print(f"\ngrowth in {name}: " + ", ".join(f"{s:,}: {t:.2f} s" for s, t in zip(sizes, times, strict=True)))
        slopes = np.diff(np.log(times)) / np.diff(np.log(sizes))
        print("exponents " + ", ".join(f"{slope:.2f}" for slope in slopes))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--wide", action="store_true", help="also n = 10^6, which takes some minutes")
    wide = parser.parse_args().wide
    check()
    print(f"finwidth {finwidth.__version__}, Python {platform.python_version()}, NumPy {np.__version__}")
    base = peak(None)
    compare(base)
    growth()
    if wide:
        start = time.perf_counter()
        used = peak(in_law, 10**6, 4, 5) - base
        taken = time.perf_counter() - start
        promised = training_bytes(training_spec(network(10**6), inputs(4), np.ones(4), 5, LR, record=[0])) / 2**30
        print(f"\nn = 10^6, d = 6, m = 4, T = 5: {taken:.0f} s, peak {used:.1f} GiB, promised {promised:.1f} GiB")


if __name__ == "__main__":
    main()
