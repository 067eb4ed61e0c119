"""The empirical kernel of torch modules: finwidth against torch.func, nngeometry and neural-tangents.

    python benchmarks/ntk.py [--nngeometry PYTHON] [--neural-tangents PYTHON]

PYTHON are interpreters of environments of their own, NNG and NT, made outside the repository (Python 3.11 or 3.12);
without them the peers' rows are left out:

    python -m venv NT && NT/bin/pip install -r benchmarks/peers/neural-tangents.txt    (or neural-tangents-head.txt)
    python -m venv NNG && NNG/bin/pip install --no-deps -r benchmarks/peers/nngeometry.txt

First finwidth is checked against torch.func in float64; then everyone's kernel, in float32, against finwidth's before
its time is reported, at all inputs but those that have a ReLU within rounding of 0.  Every
measurement is a process of its own with all cores: the median of at least three runs after
a warm-up (one, if it takes over four seconds), and peak memory above that before the first of them.  CPU is the time of
all threads together, which other work on the machine changes least; on a busy one, `taskset -c 0` before the command
spares threads from waiting for each other.  Compilation is told apart.  NTK-vector products of more than a few inputs
take minutes and tens of GB: they are run for 4 inputs, and the time is scaled by the number of pairs ("~").
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import finwidth
from finwidth.empirical import ntk
from peers.by_torch_func import jacobian
from peers.contender import Problem
from peers.networks import module

HERE = Path(__file__).parent
TOLERANCE = 1e-4  # of the largest entry, in float32
JACOBIAN_LIMIT = 4.0  # GiB
NEAR = 1e-6  # of the largest number before a ReLU
LONGEST = 60  # seconds of a measurement
FEW = 4  # inputs of the NTK-vector products


class Network(NamedTuple):
    """The shapes of one input and of the weights."""

    name: str
    input: tuple[int, ...]
    weights: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Case:
    """A network of ten outputs, and what is asked of it on N inputs."""

    network: Network
    N: int
    outputs: str

    def problem(self, N: int) -> Problem:
        """Random weights and inputs."""
        rng = np.random.default_rng(0)

        def normal(shape: tuple[int, ...], std: float) -> Any:
            return (std * rng.standard_normal(shape)).astype(np.float32)

        shapes = self.network.weights
        layers = [(normal(shape, (2 / math.prod(shape[1:])) ** 0.5), normal(shape[:1], 0.1)) for shape in shapes]
        return Problem(normal((N, *self.network.input), 1.0), layers, self.outputs, "")

    @property
    def jacobian(self) -> float:
        """Size of the Jacobian, in GiB."""
        return self.N * 10 * sum(math.prod(shape) + shape[0] for shape in self.network.weights) * 4 / 2**30


MLP = Network("MLP 784-512-512-10", (784,), ((512, 784), (512, 512), (10, 512)))
DEEP = Network("MLP 256x16-10", (256,), (*[(256, 256)] * 15, (10, 256)))
CNN = Network("CNN", (3, 32, 32), ((32, 3, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3), (10, 4096)))
CASES = [
    Case(DEEP, 64, "full"),
    Case(CNN, 32, "full"),
    *(Case(net, N, outputs) for net in (MLP, CNN) for N in (64, 256) for outputs in ("full", "trace")),
    *(Case(MLP, 2000, outputs) for outputs in ("trace", "full")),
]


def check() -> None:
    """Compare finwidth with torch.func in float64."""
    for network in (MLP, DEEP, CNN):
        for outputs in ("full", "trace"):
            problem = Case(network, 4, outputs).problem(4)
            net, x = module(problem).double(), torch.tensor(problem.x).double()
            found, wanted = ntk(net, x, outputs=outputs), jacobian(net, x, outputs)
            assert isinstance(found, torch.Tensor)
            error = float((found - wanted).abs().max() / wanted.abs().max())
            if not error < 1e-10:
                sys.exit(
                    f"{network.name}, {outputs}: finwidth and torch.func differ by {error:.1e} of the largest entry"
                )


@dataclass(frozen=True)
class Contender:
    """A script with a method, and the interpreter that runs it."""

    name: str
    script: str
    method: str
    python: str = sys.executable

    def measure(self, problem: Problem, folder: Path) -> dict[str, Any] | str:
        """What `peers.contender.serve` wrote, or why there is nothing."""
        source, target = folder / "problem.npz", folder / "result.npz"
        stored: dict[str, Any] = {"x": problem.x, "depth": len(problem.layers), "outputs": problem.outputs}
        for i, (W, b) in enumerate(problem.layers):
            stored |= {f"W{i}": W, f"b{i}": b}
        np.savez(source, **stored)
        threads = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
        command = [self.python, "-m", f"peers.{self.script}", str(source), str(target), self.method]
        try:
            done = subprocess.run(
                command, cwd=HERE, env=threads, capture_output=True, text=True, timeout=LONGEST, check=False
            )
        except subprocess.TimeoutExpired:
            return f"over {LONGEST} s"
        if done.returncode:
            return "fails: " + (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:70]
        with np.load(target) as found:
            return {name: found[name] for name in found.files}


def decided(problem: Problem) -> Any:
    """Which inputs have no ReLU within rounding of 0, where float32 may switch it and change the kernel by more."""
    x = torch.tensor(problem.x).double()
    sure = torch.ones(len(x), dtype=torch.bool)
    with torch.no_grad():
        for layer in module(problem).double():
            if isinstance(layer, torch.nn.ReLU):
                sure &= x.abs().flatten(1).amin(1) > NEAR * x.abs().max()
            x = layer(x)
    return sure.numpy()


def skipped(case: Case, contender: Contender) -> str:
    """Why a contender is not run; empty if it is."""
    if contender.method == "jacobian" and case.jacobian > JACOBIAN_LIMIT:
        return f"not run: its Jacobian takes {case.jacobian:.1f} GiB"
    if case.N > 256 and contender.method == "products":
        return "not run"
    if case.N > 256 and case.outputs == "full" and contender.method != "finwidth":
        return "not run: the kernel alone takes 1.5 GiB, and only finwidth keeps to a budget beside it"
    return ""


def report(case: Case, contenders: list[Contender], folder: Path) -> Iterator[str]:
    """Lines of the table; finwidth's first."""
    ours: dict[str, Any] = {}
    for contender in contenders:
        few = contender.method == "products"
        start = f"{case.network.name:<18} {case.N:>5} {case.outputs:<5} {contender.name:<31}"
        problem = case.problem(FEW if few else case.N)
        found = skipped(case, contender) or contender.measure(problem, folder)
        if isinstance(found, str):
            yield f"{start}   {found}"
            continue
        ours = ours or found
        wanted = contenders[0].measure(problem, folder) if few else ours
        assert isinstance(wanted, dict)
        sure = decided(problem)
        difference = np.abs(found["K"] - wanted["K"])[sure][:, sure]
        error = float(difference.max() / np.abs(wanted["K"]).max())
        if not error < TOLERANCE:
            yield f"{start}   WRONG: differs by {error:.1e} of the largest entry"
            continue
        factor = (case.N / FEW) ** 2 if few else 1
        seconds, cpu = factor * float(found["seconds"]), factor * float(found["cpu"])
        text = f"{'~' if few else ' '}{1e3 * seconds:10.1f} {seconds / ours['seconds']:9.2f} {1e3 * cpu:10.1f}"
        if not few:
            text += f" {found['peak']:9.1f} {found['peak'] / ours['peak']:9.2f}"
        if contender.script not in ("by_finwidth", "by_torch_func"):
            text += f"  {found['version']}"
        if contender.script == "by_neural_tangents":
            text += f", after {found['prepared']:.1f} s of compilation"
        yield f"{start} {text}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--nngeometry", metavar="PYTHON")
    parser.add_argument("--neural-tangents", metavar="PYTHON")
    given = parser.parse_args()
    check()
    contenders = [
        Contender("finwidth", "by_finwidth", "finwidth"),
        Contender("torch.func, Jacobian", "by_torch_func", "jacobian"),
        Contender("torch.func, NTK-vector products", "by_torch_func", "products"),
    ]
    if given.nngeometry:
        contenders.append(Contender("nngeometry", "by_nngeometry", "gram", given.nngeometry))
    if given.neural_tangents:
        name, method = "neural-tangents, structured", "STRUCTURED_DERIVATIVES"
        contenders.append(Contender(name, "by_neural_tangents", method, given.neural_tangents))
    print(f"finwidth {finwidth.__version__}, Python {platform.python_version()}, torch {torch.__version__}, float32")
    print(f"{len(os.sched_getaffinity(0))} cores, and as many threads, for everyone; load {os.getloadavg()[0]:.1f}")
    print("CNN: 3x32x32, Conv 3->32, 32->32 and 32->64 (3x3; the latter two stride 2), ReLU, flatten, Linear 4096->10")
    columns = f"{'ms':>11} {'ratio':>9} {'CPU ms':>10} {'peak MiB':>9} {'ratio':>9}"
    print(f"{'network':<18} {'N':>5} {'which':<5} {'contender':<31} {columns}")
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            for each in report(case, contenders, Path(folder)):
                print(each, flush=True)


if __name__ == "__main__":
    main()
