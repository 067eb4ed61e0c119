"""The timer of the benchmarks, and the memory of their process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path


def seconds(run: Callable[[], object], repeats: int = 3, clock: Callable[[], float] = time.perf_counter) -> float:
    """Median time of ``run``."""
    times = []
    for _ in range(repeats):
        start = clock()
        run()
        times.append(clock() - start)
    return statistics.median(times)


def forget_peak() -> None:
    """Have the peak of memory begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def status_memory(name: str) -> float:
    """A line of the process's status, in MiB: what it holds now ("VmRSS"), or the peak ("VmHWM")."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) / 2**10
