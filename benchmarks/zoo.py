"""The empirical kernel of public architectures: finwidth against a loop of autograd.grad and against torch.func.

    python benchmarks/zoo.py [NAME ...]

Needs the libraries of the group "zoo" (docs/zoo.md).  N = 16 inputs, float32, the trace of up to three outputs, or one
output of a wide head.  The loop is a forward pass a sample and a backward pass an output, then K = J J^T; torch.func is
vmap of jacrev.  Every architecture is a process of its own, in which all three kernels are held against the loop in
float64 and then timed in turn: medians of three rounds, or one if a round takes over a minute.  CPU is the time of all
threads together.  Peak memory is that of the first run above what the process held before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import finwidth
from finwidth.empirical import ntk
from finwidth.errors import FinwidthError

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from architectures import ENTRIES, truth

Tensor = torch.Tensor

N = 16
HEADER = (
    "| architecture | parameters | finwidth, ms | loop, ms | torch.func, ms | / loop | / torch.func | CPU / loop "
    "| peak, MiB | of the loop |"
)
TOLERANCE = 1e-2  # of the largest entry, in float32: deep networks enlarge its rounding, and gates may flip
LONGEST = 900  # seconds for one architecture
ROUND = 60  # seconds after which nothing is repeated


def measure(name: str) -> dict[str, Any]:
    """Times, memory and errors of one architecture, N inputs."""
    entry = ENTRIES[name]
    which = entry.outputs if isinstance(entry.outputs, int) else "trace"
    double, x = entry.subject(N, torch.float64)
    right = truth.loop(double, x, which)
    module, x = entry.subject(N, torch.float32)
    contenders: dict[str, Callable[[], Tensor]] = {
        "finwidth": lambda: ntk(module, x, outputs=which),
        "loop": lambda: truth.loop(module, x, which),
        "func": lambda: truth.by_torch_func(module, x, which),
    }
    found: dict[str, Any] = {"parameters": sum(each.numel() for each in truth.trained(module).values())}
    for who, compute in contenders.items():
        found[who] = _first(compute, right)
    runs: dict[str, list[tuple[float, float]]] = {who: [] for who in contenders if "error" in found[who]}
    for _ in range(3 if sum(found[who]["first"] for who in runs) < ROUND else 1):
        for who, taken in runs.items():
            taken.append(_timed(contenders[who])[1:])
    for who, taken in runs.items():
        found[who] |= {"seconds": _median(taken, 0), "cpu": _median(taken, 1)}
    return found


def _first(compute: Callable[[], Tensor], right: Tensor) -> dict[str, Any]:
    """The first run: its error and its peak memory in MiB, or why there is none."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _memory("VmRSS")
    try:
        K, wall, _ = _timed(compute)
    except FinwidthError as refusal:
        return {"refused": " ".join(str(refusal).split())}
    except Exception as failure:
        return {"fails": type(failure).__name__}
    error = float((K.double() - right).abs().max() / right.abs().max())
    if not error < TOLERANCE:
        return {"wrong": error}
    return {"error": error, "peak": _memory("VmHWM") - before, "first": wall}


def _timed(compute: Callable[[], Tensor]) -> tuple[Tensor, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    K = compute()
    return K, time.perf_counter() - wall, time.process_time() - cpu


def _median(runs: list[tuple[float, float]], which: int) -> float:
    return statistics.median(run[which] for run in runs)


def _memory(name: str) -> float:
    """A line of the process's status, in MiB."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) / 2**10


def row(name: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    ours, loop, func = (found[who] for who in ("finwidth", "loop", "func"))
    cells = [name, _count(found["parameters"]), *(_told(each) for each in (ours, loop, func))]
    for other in (loop, func):
        both = "seconds" in ours and "seconds" in other
        cells.append(f"{ours['seconds'] / other['seconds']:.2f}" if both else "-")
    cells += [f"{ours['cpu'] / loop['cpu']:.2f}" if "cpu" in ours else "-"]
    cells += [f"{each['peak']:.0f}" if "peak" in each else "-" for each in (ours, loop)]
    return f"| {' | '.join(cells)} |"


def _told(found: dict[str, Any]) -> str:
    if "seconds" in found:
        return f"{1e3 * found['seconds']:.{0 if found['seconds'] > 0.03 else 1}f}"
    return next(iter(found)) if "fails" not in found else "fails"


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:.1f}M" if parameters >= 1e6 else f"{parameters / 1e3:.1f}k"


def _in_process(name: str) -> str:
    """The row of an architecture that is measured in a process of its own."""
    command = [sys.executable, __file__, "--one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
    except subprocess.TimeoutExpired:
        return f"| {name} | over {LONGEST} s |"
    if done.returncode:
        return f"| {name} | {(done.stderr.strip().splitlines() or ['no message'])[-1][:100]} |"
    return row(name, json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", metavar="NAME", help="entries, or how their names begin; by default all")
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        warnings.simplefilter("ignore")  # those of other libraries
        print(json.dumps(measure(given.one)))
        return
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm", "transformers"))
    print(f"finwidth {finwidth.__version__}, Python {platform.python_version()}, {libraries}, float32, N = {N}")
    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}\n")
    print(HEADER)
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for name in ENTRIES:
        if not given.names or any(name.startswith(each) for each in given.names):
            print(_in_process(name), flush=True)


if __name__ == "__main__":
    main()
