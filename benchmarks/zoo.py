"""The empirical kernel of public architectures: finwidth against a loop of autograd.grad and against torch.func.

    python benchmarks/zoo.py [NAME ...]

Needs the libraries of the group "zoo" (docs/zoo.md).  float32; the trace of up to three outputs, or one output of a
wide head, and the kernel of all pairs of outputs, at N = 16 inputs, and at 64 where a round of all takes less than two
seconds.  The loop is a forward pass a sample and a backward pass an output, then K = J J^T; torch.func is vmap of
jacrev.  All three are first held against autograd of the whole batch, float64 and N = 3, and then timed in turn, round
by round: medians of seven rounds, three where one takes over two seconds, one where it takes over a minute; with
--quick of three at N = 16, and one at 64.  Times are
of the processor, all threads together, which other work on the machine changes least.  "full" is beside a loop that
does the same but for the last product.  "general" counts the parameters without a rule, which
`finwidth.empirical.explain` lists.  Peak memory is that of the first run above what the process held before.
--together measures all in one process; --summary FILE reads a table and says how many rows are as fast as the fastest
peer; --into FILE puts the rows that were measured, and the summary, in the place of those of a page.
docs/zoo.md anew: `python benchmarks/zoo.py --together --quick --into docs/zoo.md`, twenty minutes of one
processor, with the building of the models.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
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
from finwidth.empirical.kernel.calls import measuring
from finwidth.empirical.kernel.preparation import prepare
from finwidth.errors import FinwidthError
from timing import forget_peak, status_memory
from timing import seconds as median_time

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from architectures import ENTRIES, Entry, truth

Tensor = torch.Tensor
Kernel = Callable[[torch.nn.Module, Tensor], Tensor]

SIZES = 16, 64
HEADER = (
    "| architecture | parameters | general | error | finwidth, ms | loop, ms | torch.func, ms | / fastest "
    "| full / loop | N = 64: finwidth, ms | loop, ms | torch.func, ms | / fastest | full / loop "
    "| peak, MiB | of the loop |"
)
LONGEST = 900  # seconds for one architecture
ROUNDS = ((2, 7), (60, 3), (LONGEST, 1))  # seconds that a round takes at the most, and how many there are


def measure(name: str, quick: bool = False) -> dict[str, Any]:
    """Times and memory of one architecture, in float32, after a check in float64."""
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
    taking_part = {who: kernel for who, kernel in contenders.items() if "error" in found[who]}
    if which == "trace" and "error" in found["finwidth"]:
        taking_part["full"] = ntk
    rows: dict[str, Any] = {"parameters": parameters, "found": found, "general": _general(entry, which)}
    for N in SIZES:
        rows[str(N)], round_ = _times(entry, N, taking_part, quick)
        if round_ > ROUNDS[0][0] / 4:
            break
    return rows


def _general(entry: Entry, which: str | int) -> int | None:
    """How many parameters take a general way."""
    module, x = entry.subject(4, torch.float32)
    try:
        with measuring(module) as stack:
            return len(prepare(stack, module, x, None, which, "full", "1GiB", None, None, at_once=True).plan.general)
    except FinwidthError:
        return None


def _times(entry: Entry, N: int, taking_part: dict[str, Kernel], quick: bool) -> tuple[dict[str, Any], float]:
    """Medians and peaks of all that take part, timed in turn; and the seconds of a round."""
    # Each has a module of its own: torch.func leaves one with a layer of two names with other tensors than it had.
    runs_of = {who: partial(kernel, *entry.subject(N, torch.float32)) for who, kernel in taking_part.items()}
    found = {who: _first(run) for who, run in runs_of.items()}
    whole = sum(each["first"] for each in found.values())
    rounds = next((count for most, count in ROUNDS if whole < most), 1)
    if quick:  # at 64 inputs everything has run before
        rounds = 2 if SIZES[0] == N else 0
    runs = {who: [each["first"]] if quick else [] for who, each in found.items()}
    for _ in range(rounds):
        for who, run in runs_of.items():
            runs[who].append(_timed(run))
    for who, taken in runs.items():
        found[who]["seconds"] = statistics.median(taken)
    return found, sum(each["seconds"] for each in found.values())


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
    forget_peak()
    before = status_memory("VmRSS")
    seconds = _timed(compute)
    return {"first": seconds, "peak": max(0.0, status_memory("VmHWM") - before)}


def _timed(compute: Callable[[], Tensor]) -> float:
    return median_time(compute, 1, time.process_time)


def row(name: str, measured: dict[str, Any]) -> str:
    """A line of the table."""
    checks, general = measured["found"], measured["general"]
    error = checks["finwidth"].get("error")
    cells = [name, _count(measured["parameters"]), "-" if general is None else str(general)]
    cells.append("-" if error is None else f"{error:.0e}")
    for N in SIZES:
        times = {who: each["seconds"] for who, each in measured.get(str(N), {}).items()}
        cells += [_told(checks[who], times.get(who)) for who in ("finwidth", "loop", "func")]
        peers = [times[who] for who in ("loop", "func") if who in times]
        cells.append(f"{times['finwidth'] / min(peers):.2f}" if peers and "finwidth" in times else "-")
        cells.append(f"{times['full'] / times['loop']:.2f}" if {"full", "loop"} <= times.keys() else "-")
    first = measured[str(SIZES[0])]
    cells += [f"{first[who]['peak']:.0f}" if who in first else "-" for who in ("finwidth", "loop")]
    return f"| {' | '.join(cells)} |"


def _told(check: dict[str, Any], seconds: float | None) -> str:
    if seconds is None:
        return "-" if "error" in check else next(iter(check))
    return f"{1e3 * seconds:.{0 if seconds > 0.03 else 1}f}"


def summary(table: str) -> str:
    """How many rows are as fast as the fastest peer, the median of how many times, and the slowest."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    rows = [each for each in rows if len(each) == HEADER.count("|") - 1]
    columns = [cell.strip() for cell in HEADER.split("|")[1:-1]]
    lines = []
    for N, at in zip(SIZES, [i for i, each in enumerate(columns) if each == "/ fastest"], strict=True):
        for what, times in (("the fastest peer", _ratios(rows, at)), ("a loop", _beside_loop(rows, at))):
            if times:
                slowest, which = max((each, name) for name, each in times.items())
                fast = sum(each <= 1 for each in times.values())
                lines.append(
                    f"N = {N}: {fast} of {len(times)} at least as fast as {what}; median "
                    f"{1 / statistics.median(times.values()):.2f} times as fast; slowest {slowest:.2f} ({which})"
                )
    return "\n".join(lines)


def replaced(page: str, measured: list[str]) -> str:
    """A page with new rows of its table, those of older tables below left out, and with the summary of all rows."""
    new = {_name(each): each for each in measured}
    top, below = page.split(HEADER)
    ruler, *lines = below.strip().splitlines()
    own = list(itertools.takewhile(_name, lines))
    rest = [line for line in lines[len(own) :] if _name(line) not in new]
    rows = {_name(line): line for line in own} | new
    before = [_name(line) for line in lines]
    order = sorted(rows, key=lambda name: before.index(name) if name in before else len(before))
    table = "\n".join([HEADER, ruler, *(rows[name] for name in order)])
    told = "\n".join(f"- {line}" for line in summary(table).splitlines())
    top = re.sub(r"(^- N = [^\n]*\n)+", lambda _: f"{told}\n", top, flags=re.MULTILINE)
    return "\n".join([top + table, *rest]) + "\n"


def _name(line: str) -> str:
    """The name of a row of a table."""
    return line.split("|")[1].strip() if line.startswith("| ") else ""


def _ratios(rows: list[list[str]], at: int) -> dict[str, float]:
    return {each[0]: float(each[at]) for each in rows if each[at][0].isdigit()}


def _beside_loop(rows: list[list[str]], at: int) -> dict[str, float]:
    """Finwidth's time over that of the loop, from the columns before the one of ratios."""
    pairs = ((each[0], each[at - 3], each[at - 2]) for each in rows)
    return {name: float(one) / float(other) for name, one, other in pairs if one[0].isdigit() and other[0].isdigit()}


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


def _together(name: str, quick: bool) -> str:
    try:
        return row(name, measure(name, quick))
    except Exception as error:  # told in its row; the others are measured
        return f"| {name} | {type(error).__name__}: {str(error)[:100]} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", metavar="NAME", help="entries, or how their names begin; by default all")
    parser.add_argument("--together", action="store_true", help="in one process, without its limit of time")
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="with --together: fewer rounds")
    parser.add_argument("--into", metavar="FILE", type=Path, help="put the rows into the table of a page")
    parser.add_argument("--summary", metavar="FILE", type=Path, help="say what a table shows")
    given = parser.parse_args()
    if given.summary:
        print(summary(given.summary.read_text()))
        return
    warnings.simplefilter("ignore")  # those of other libraries
    if given.one:
        print(json.dumps(measure(given.one)))
        return
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm", "transformers"))
    print(f"finwidth {finwidth.__version__}, Python {platform.python_version()}, {libraries}, float32")
    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}\n")
    print(HEADER)
    print("|---|" + "--:|" * (HEADER.count("|") - 2))
    rows = []
    for name in ENTRIES:
        if not given.names or any(name.startswith(each) for each in given.names):
            rows.append(_together(name, given.quick) if given.together else _in_process(name))
            print(rows[-1], flush=True)
    if given.into:
        given.into.write_text(replaced(given.into.read_text(), rows))


if __name__ == "__main__":
    main()
