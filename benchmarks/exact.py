"""Cost of the exact engine: against depth and order, of a large network, of a grid.

    python benchmarks/exact.py

One thread, in processor time.  Each figure is the median of repeats that first check the result they time.
"""

from __future__ import annotations

import platform
import sys
import time
from functools import partial

import numpy as np

import finwidth
from finwidth import MLP
from finwidth.exact import partitions, transfer
from finwidth.exact.grid import moments_grid
from timing import seconds as median_time

seconds = partial(median_time, clock=time.process_time)


def check() -> None:
    """The value to recognise, and a cell of the grid against one network."""
    if str(finwidth.moments(MLP([2, 3, 3, 1]), [1, 2], exact=True).update["dK"]) != "-1510/9":
        sys.exit("the engine is wrong")
    cell = float(moments_grid([7], [5], [1.0]).log_second_moment[0, 0])
    if abs(cell - finwidth.moments(MLP([1, 7, 7, 7, 7, 1]), [1.0]).log_second_moment) > 1e-12:
        sys.exit("the grid is wrong")


def main() -> None:
    """Print the tables."""
    check()
    print(f"finwidth {finwidth.__version__}, Python {platform.python_version()}, NumPy {np.__version__}")
    for order in finwidth.exact.moments.ORDERS:
        for cached in (partitions._block_splits, partitions._smallest, transfer._compiled):
            cached.cache_clear()
        first = seconds(partial(finwidth.moments, MLP([1, 8, 1]), [1.0], order=order), 1)
        print(f"order {order}: first use {first:.2f} s, then", end="")
        for depth in (10, 100, 1000, *([10_000, 100_000] if order == 2 else [])):
            net = MLP([8] * depth + [1])
            took = seconds(partial(finwidth.moments, net, [1.0] * 8, order=order), 1 if depth > 1000 else 3)
            print(f"  d={depth:,}: {took * 1e3:,.1f} ms", end="", flush=True)
        print()
    million = MLP([1000] * 1001 + [1])
    print(f"a million neurons (1000 x 1000): {seconds(lambda: finwidth.moments(million, [1.0] * 1000)):.2f} s")
    widths = np.unique(np.geomspace(1, 10**6, 400).astype(int)).tolist()
    took = seconds(lambda: moments_grid(widths, range(1, 301), [1.0]))
    print(f"grid of {len(widths)} x 300 = {300 * len(widths):,} networks: {took:.2f} s")


if __name__ == "__main__":
    main()
