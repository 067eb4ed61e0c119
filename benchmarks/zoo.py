"""The empirical kernel of public architectures: finwidth against a loop of autograd.grad and against torch.func.

    python benchmarks/zoo.py [NAME ...]

Needs the libraries of the group "zoo" (docs/zoo.md).  N = 16 inputs, float32, the trace of up to three outputs, or one
output of a wide head.  The loop is a forward pass a sample and a backward pass an output, then K = J J^T; torch.func is
vmap of jacrev.  Every architecture is a process of its own, in which all three are first held against autograd of the
whole batch, float64 and N = 3, and then timed in turn: medians of seven rounds, three if one takes over two seconds,
one if it takes over a minute.  Times are of the processor, all threads together, which other work on the machine
changes least; "full" is the kernel of all pairs of outputs, for which a loop does the same but for the last product.
Peak memory is that of the first run above what the process held before.  With --together one process measures all.
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
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import finwidth
from finwidth.empirical import ntk
from finwidth.errors import FinwidthError

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from architectures import ENTRIES, Entry, truth

Tensor = torch.Tensor
Kernel = Callable[[torch.nn.Module, Tensor], Tensor]

N = 16
HEADER = (
    "| architecture | parameters | error | finwidth, ms | loop, ms | torch.func, ms | / loop | / torch.func "
    "| full / loop | peak, MiB | of the loop |"
)
LONGEST = 900  # seconds for one architecture
ROUNDS = ((2, 7), (60, 3), (LONGEST, 1))  # seconds that a round takes at the most, and how many there are


def measure(name: str) -> dict[str, Any]:
    """Times and memory of one architecture, N inputs, in float32, after a check in float64."""
    entry = ENTRIES[name]
    which = entry.outputs if isinstance(entry.outputs, int) else "trace"
    contenders: dict[str, Kernel] = {
        "finwidth": lambda module, x: ntk(module, x, outputs=which),
        "loop": lambda module, x: truth.loop(module, x, which),
        "func": lambda module, x: truth.by_torch_func(module, x, which),
    }
    module, x = entry.subject(3, torch.float64)
    J = truth.jacobians(module, x, entry.outputs)
    right = truth.kernel(J, dict.fromkeys(J, 1.0)).diagonal(dim1=2, dim2=3).sum(2)
    found = {
        who: _check(entry, partial(kernel, *entry.subject(3, torch.float64)), right)
        for who, kernel in contenders.items()
    }
    parameters = sum(each[0, 0].numel() for each in J.values())
    del J, module
    subject = entry.subject(N, torch.float32)
    taking_part = {who: kernel for who, kernel in contenders.items() if "error" in found[who]}
    if which == "trace" and "error" in found["finwidth"]:
        taking_part["full"], found["full"] = ntk, {}
    firsts = {who: _first(partial(kernel, *subject)) for who, kernel in taking_part.items()}
    whole = sum(each["first"] for each in firsts.values())
    rounds = next((count for most, count in ROUNDS if whole < most), 1)
    runs: dict[str, list[float]] = {who: [] for who in taking_part}
    for _ in range(rounds):
        for who, kernel in taking_part.items():
            runs[who].append(_timed(partial(kernel, *subject)))
    for who, taken in runs.items():
        found[who] |= {**firsts[who], "seconds": statistics.median(taken)}
    return {"parameters": parameters, **found}


def _check(entry: Entry, compute: Callable[[], Tensor], right: Tensor) -> dict[str, Any]:
    """A contender's error, or why it does not take part."""
    try:
        error = float((compute() - right).abs().max() / right.abs().max())
    except FinwidthError as refusal:
        return {"refused": " ".join(str(refusal).split())}
    except Exception as failure:
        return {"fails": type(failure).__name__}
    return {"error": error} if error < entry.tolerance else {f"wrong by {error:.0e}": error}


def _first(compute: Callable[[], Tensor]) -> dict[str, Any]:
    """The first run: its time and its peak memory in MiB."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _memory("VmRSS")
    seconds = _timed(compute)
    return {"first": seconds, "peak": _memory("VmHWM") - before}


def _timed(compute: Callable[[], Tensor]) -> float:
    start = time.process_time()
    compute()
    return time.process_time() - start


def _memory(name: str) -> float:
    """A line of the process's status, in MiB."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) / 2**10


def row(name: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    ours, loop, func = (found[who] for who in ("finwidth", "loop", "func"))
    error = f"{ours['error']:.0e}" if "error" in ours else "-"
    cells = [name, _count(found["parameters"]), error, *(_told(each) for each in (ours, loop, func))]
    for one, other in ((ours, loop), (ours, func), (found.get("full", {}), loop)):
        both = "seconds" in one and "seconds" in other
        cells.append(f"{one['seconds'] / other['seconds']:.2f}" if both else "-")
    cells += [f"{each['peak']:.0f}" if "peak" in each else "-" for each in (ours, loop)]
    return f"| {' | '.join(cells)} |"


def _told(found: dict[str, Any]) -> str:
    if "seconds" in found:
        return f"{1e3 * found['seconds']:.{0 if found['seconds'] > 0.03 else 1}f}"
    return next(iter(found))


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
    parser.add_argument("--together", action="store_true", help="in one process, without its limit of time")
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # those of other libraries
    if given.one:
        print(json.dumps(measure(given.one)))
        return
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm", "transformers"))
    print(f"finwidth {finwidth.__version__}, Python {platform.python_version()}, {libraries}, float32, N = {N}")
    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}\n")
    print(HEADER)
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for name in ENTRIES:
        if not given.names or any(name.startswith(each) for each in given.names):
            print(row(name, measure(name)) if given.together else _in_process(name), flush=True)


if __name__ == "__main__":
    main()
