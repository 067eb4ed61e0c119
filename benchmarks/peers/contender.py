"""What every contender of ntk.py does: read a problem, compute its kernel, write it with times and peak memory.

Needs NumPy and nothing else, so that it runs in the environments of the peers too.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float32]]

_LONGEST = 4.0  # seconds after which nothing is repeated
_ENOUGH = 1.5  # seconds of repetitions that suffice


@dataclass(frozen=True)
class Problem:
    """Inputs x, (N, features) or (N, channels, height, width); weights and biases as torch keeps them; what is asked.

    Weights with four dimensions are convolutions 3 x 3, padding 1; all but the first of them have stride 2. The
    activation is ReLU, and the last layer has none.
    """

    x: Array
    layers: list[tuple[Array, Array]]
    outputs: str
    method: str


Compute = Callable[[], Array]


def serve(prepare: Callable[[Problem], tuple[Compute, str]]) -> None:
    """Answer: arguments are the problem's file, the result's and the method.

    ``prepare`` gives a function that has been warmed up, and the version of the library.
    """
    source, target, method = sys.argv[1:]
    with np.load(source) as stored:
        layers = [(stored[f"W{i}"], stored[f"b{i}"]) for i in range(int(stored["depth"]))]
        problem = Problem(stored["x"], layers, str(stored["outputs"]), method)
    start = time.perf_counter()
    compute, version = prepare(problem)
    prepared = time.perf_counter() - start
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _memory("VmRSS")
    K, *first = _timed(compute)
    peak, runs = _memory("VmHWM") - before, [first]
    if first[0] < _LONGEST:
        runs = []
        while len(runs) < 3 or (sum(wall for wall, _ in runs) < _ENOUGH and len(runs) < 30):
            del K
            K, *taken = _timed(compute)
            runs.append(taken)
    seconds, cpu = np.median(runs, axis=0)
    found = {"seconds": seconds, "cpu": cpu, "repeats": len(runs), "prepared": prepared, "peak": peak}
    np.savez(target, K=K, version=version, **found)


def _timed(compute: Compute) -> tuple[Array, float, float]:
    """The kernel, and what it took: time, and that of all threads together."""
    wall, cpu = time.perf_counter(), time.process_time()
    K = compute()
    return K, time.perf_counter() - wall, time.process_time() - cpu


def _memory(name: str) -> float:
    """A line of the process's status, in MiB; not ru_maxrss, which begins with the parent's."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) / 2**10
