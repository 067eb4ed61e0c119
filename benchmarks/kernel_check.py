"""What the run-time check of `ntk` costs: processor time with it over that without, in float32.

    python benchmarks/kernel_check.py

One thread; medians of seven runs that alternate, after a warm-up.  "Alone" is the least that any check by the module
itself takes: one forward and one backward pass of three samples, and of one, with nothing of finwidth.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

import finwidth
from finwidth.empirical import ntk

RUNS = 7


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


def convolutions() -> nn.Module:
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4096, 10))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(16 * 64, 10)).eval()


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "784-512-512-10": (perceptron, (784,)),
    "CNN": (convolutions, (3, 32, 32)),
    "transformer layer": (encoder, (16, 64)),
}


def passes(module: nn.Module, x: torch.Tensor) -> None:
    for some in (x[:3], x[:1]):
        torch.autograd.grad(module(some).sum(), list(module.parameters()))


def milliseconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return 1e3 * (time.process_time() - start)


def main() -> None:
    torch.set_num_threads(1)
    print(f"finwidth {finwidth.__version__}, torch {torch.__version__}, Python {platform.python_version()}\n")
    print("| network | N | outputs | without, ms | with, ms | more | alone |\n|---|---|---|---|---|---|---|")
    for name, (make, shape) in CASES.items():
        for N in (64, 256):
            torch.manual_seed(0)
            module, x = make(), torch.randn(N, *shape)
            for outputs in ("full", "trace", 0):
                runs: list[Callable[[], object]] = [partial(passes, module, x)]
                runs += [partial(ntk, module, x, outputs=outputs, check=check) for check in (False, True)]
                times: list[list[float]] = [[] for _ in runs]
                for _ in range(RUNS + 1):
                    for run, some in zip(runs, times, strict=True):
                        some.append(milliseconds(run))
                alone, without, with_ = (statistics.median(some[1:]) for some in times)
                more, least = (f"{100 * each / without:.0f}%" for each in (with_ - without, alone))
                print(f"| {name} | {N} | {outputs} | {without:.1f} | {with_:.1f} | {more} | {least} |", flush=True)


if __name__ == "__main__":
    main()
