"""Sweeps: exact cells in bulk, draws in many cells, what a cell costs beside its own work, and Dask workers.

    python benchmarks/sweep.py [--full]

The numbers are checked before anything is timed. Without --full the draws are 10^5 in each of 400 cells rather than
10^6, and the table says so.
"""

from __future__ import annotations

import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import finwidth
from finwidth.sampling.random.streams import check_threads
from finwidth.sweeps.execution.run import run

CELLS = [round(8 * 2 ** (i / 4)) for i in range(20)]  # 8 to 215
DEPTHS = [2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 23, 26, 29, 32, 36, 40]


def timed(config: dict[str, Any], **how: Any) -> float:
    """Seconds to compute and store a grid."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run(config, Path(folder) / "a.zarr", **how)
        return time.perf_counter() - start


def sampled(draws: int, depths: list[int], widths: list[int]) -> dict[str, Any]:
    """A config of samples at fixed numbers of draws."""
    axes = {"depth": depths, "width": widths, "n_0": 16}
    return {"quantities": ["sampled"], "axes": axes, "sampled": {"draws": draws}}


def check() -> None:
    """Exact cells against single networks; samples against exact values, within five standard errors."""
    axes = {"depth": [2, 17], "width": [40, 90], "n_0": 16}
    config = sampled(20_000, [2, 17], [40, 90]) | {"quantities": ["exact", "sampled"], "axes": axes}
    found = finwidth.sweep(config)
    for depth in (2, 17):
        for width in (40, 90):
            here = found.sel(depth=depth, width=width)
            exact = finwidth.moments(finwidth.MLP([16, *[width] * (depth - 1), 1]), [1.0] * 16)
            sample = here.sel(moment="K")
            far = abs(float(sample.sampled_mean) - float(exact.mean)) > 5 * float(sample.sampled_se)
            if far or not np.isclose(float(here.exact_cv), exact.cv, rtol=1e-10):
                sys.exit(f"wrong numbers at depth {depth}, width {width}")


def exact_cells() -> None:
    """The phase diagram of examples/phase-diagram.toml."""
    axes = {"depth": {"from": 1, "to": 200}, "width": {"from": 1, "to": 200}, "n_0": 16}
    seconds = timed({"quantities": ["exact"], "axes": axes})
    print(f"40,000 exact cells: {seconds:.2f} s (aim: under 10)")


def many_draws(draws: int) -> None:
    """Draws in each of 400 cells, on all cores."""
    config = sampled(draws, DEPTHS, CELLS)
    seconds = timed(config)
    layers = sum(DEPTHS) * len(CELLS) * draws
    print(
        f"{draws:,} draws in each of 400 cells (depth 2 to 40): {seconds:.1f} s, {400 * draws / seconds:.3g} draws "
        f"and {layers / seconds:.3g} layers of draws a second"
    )


def overhead(scheduler: str | None, name: str) -> None:
    """Many tiny cells: what is left of the time once their own work, measured apart, is taken off."""
    from finwidth.sweeps.config import cell_at, read_config
    from finwidth.sweeps.quantities.base import CellBatch, Settings
    from finwidth.sweeps.quantities.registry import QUANTITIES

    config = sampled(16, [2, 3], list(range(4, 204)))
    checked, vectors = read_config(config)
    settings = Settings(0, {}, checked.quantities["sampled"])
    cells = [cell_at(checked.axes, (0, 0, 0, 0, 0, i, j)) for i in range(2) for j in range(200)]
    start = time.perf_counter()
    QUANTITIES["sampled"].compute(CellBatch(cells, settings, vectors), lambda: None)
    own = time.perf_counter() - start
    how: dict[str, Any] = {"workers": 1} if scheduler is None else {"scheduler": scheduler}
    seconds = timed(config, **how)
    each, work = 1e3 * seconds / len(cells), 1e3 * own / len(cells)
    print(f"a tiny cell, {name}: {each:.2f} ms, its own work {work:.2f} ms; overhead {each - work:.2f} ms (aim: 5)")


def dask() -> None:
    """A LocalCluster of processes: speed-up from one worker to two, and the overhead of a cell."""
    from distributed import LocalCluster

    make: Any = LocalCluster
    config = sampled(200_000, [8, 12, 16, 24], CELLS[::2])
    times = {}
    for workers in (1, 2):
        with make(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster:
            address = cluster.scheduler_address
            timed(sampled(1000, [2], CELLS), scheduler=address)  # imports, and the first compilation of programs
            times[workers] = timed(config, scheduler=address)
            if workers == 1:
                overhead(address, "Dask, 1 worker")
    print(
        f"Dask, 40 cells of 200,000 draws: 1 worker {times[1]:.1f} s, 2 workers {times[2]:.1f} s, "
        f"speed-up {times[1] / times[2]:.2f} (aim: 1.8)"
    )


def main() -> None:
    """Print the table."""
    check()
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "zarr", "distributed"))
    print(
        f"finwidth {finwidth.__version__}, Python {platform.python_version()}, {packages}, {check_threads(None)} cores"
    )
    exact_cells()
    overhead(None, "1 thread")
    dask()
    many_draws(10**6 if "--full" in sys.argv else 10**5)


if __name__ == "__main__":
    main()
