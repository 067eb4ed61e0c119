"""Memory of kernels: what `explain` promises, and the peak of `ntk`, in MiB, with its check at run time.

    OMP_NUM_THREADS=1 python benchmarks/kernel_memory.py [--models NAME ...] [--inputs N ...] [--memory SIZE ...]

Needs the libraries of the group "zoo" (docs/zoo.md). Every kernel, in float32 with all pairs of outputs, is a process
of its own, which loads what is needed by the kernel of two inputs. Measured is its peak above what it held before; both
include the kernel itself.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import subprocess
import sys
import warnings

import torch
from torch import nn

from finwidth.empirical import explain, ntk
from real_models import MODELS, images, subject
from timing import forget_peak, status_memory

_MIB = 2**20


class MeanOfWords(nn.Module):
    """The mean of 20 words' rows of a large table, and a perceptron of it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30_000, 128)
        self.layers = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(self.table(x).mean(1))
        return found


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


def convolutions() -> nn.Module:
    first, second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, stride=2, padding=1)
    third = nn.Conv2d(32, 64, 3, stride=2, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third, nn.ReLU(), nn.Flatten(), nn.Linear(4096, 10))


MODELS |= {
    "MLP": (perceptron, lambda n: torch.randn(n, 784), 16, "784-512-512-10"),
    "CNN": (convolutions, images, 16, "32-32-64 channels, 32 x 32 images, 10 outputs"),
    "large table": (MeanOfWords, lambda n: torch.randint(30_000, (n, 20)), 16, "30,000 rows of 128"),
}


def measure(name: str, n: int, memory: str) -> dict[str, float]:
    """MiB of the parameters, promised and measured, in this process."""
    module, x = subject(name, n, torch.float32)
    ntk(module, x[:2])
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free goes back, so that it counts when it is used again
    forget_peak()
    before = status_memory("VmRSS")
    ntk(module, x, memory=memory)
    measured = status_memory("VmHWM") - before
    told = explain(module, x, memory=memory)
    own = sum(each.numel() * each.element_size() for each in module.parameters())
    return {
        "own": own / _MIB,
        "promised": (told.kernel_bytes + told.working_bytes) / _MIB,
        "measured": measured,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--inputs", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--memory", nargs="+", default=["1GiB", "100MiB", "30MiB"])
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # those of other libraries
    if given.one:
        print(json.dumps(measure(given.models[0], given.inputs[0], given.memory[0])))
        return
    print("| model | parameters, MiB | N | memory= | promised, MiB | measured, MiB | promised / measured |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, n, memory in itertools.product(given.models, given.inputs, given.memory):
        one = [sys.executable, __file__, "--one", "--models", name, "--inputs", str(n), "--memory", memory]
        done = subprocess.run(one, capture_output=True, text=True, check=False)
        if done.returncode:
            told = done.stderr.splitlines()[-1].partition(": ")[2]
            print(f"| {name} | | {n} | {memory} | {told} | | |", flush=True)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        own, promised, measured = found["own"], found["promised"], found["measured"]
        cells = [name, f"{own:.2g}", n, memory, f"{promised:.0f}", f"{measured:.0f}", f"{promised / measured:.1f}"]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
