"""Seconds from the start of a command to its end, beside those of Python, NumPy and Matplotlib alone.

    python benchmarks/start.py

Processor time of all threads, user and system, and the time on the clock: medians of five runs of each, in turn.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

PYTHON = {
    "Python": "pass",
    "NumPy": "import numpy",
    "Matplotlib": "import matplotlib.figure, matplotlib.backends.backend_agg, matplotlib.backends.backend_pdf",
    "import finwidth": "import finwidth",
    "import finwidth; finwidth.moments": "import finwidth; finwidth.moments",
}
COMMANDS = ("--help", "report --help", "moments 16,64x8,1 -i ones", "report 64,64x16,1 -i digits:17 -o report/")
REPEATS = 5


def measured(command: list[str], folder: str) -> tuple[float, float]:
    """Processor time and time of one run."""
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return processor, time.perf_counter() - start


def main() -> None:
    """Print the table."""
    programs = {name: [sys.executable, "-c", code] for name, code in PYTHON.items()}
    programs |= {f"finwidth {line}": [sys.executable, "-m", "finwidth", *line.split()] for line in COMMANDS}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(REPEATS):
            for name, command in programs.items():
                found[name].append(measured(command, folder))
    print("| | processor time, s | time, s |\n|---|---|---|")
    for name, each in found.items():
        processor, clock = (statistics.median(column) for column in zip(*each, strict=True))
        print(f"| `{name}` | {processor:.2f} | {clock:.2f} |")


if __name__ == "__main__":
    main()
