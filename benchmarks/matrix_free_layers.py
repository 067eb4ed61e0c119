"""A residual network with matrix-free layers against the same network with nn.Linear.

    python benchmarks/matrix_free_layers.py [--wide]

Full-batch SGD with momentum on m inputs, float64, all threads of torch.  First the outputs of a training in law are
compared with those of nn.Linear from the matrices that it revealed.  Times include making the network; "steps" does
not.  They are medians of runs taken in turns; peak memory is that of a process of its own, above that of one that only
imports.  --wide adds n = 10^6.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import finwidth
from finwidth import MatrixFreeLinear

BLOCKS, FEATURES, M, STEPS = 3, 64, 4, 6
COMPARED = (1000, 4000)


class Residual(nn.Module):
    """Blocks h + down(relu(up(normalised h))) of width n between a first and a last layer."""

    def __init__(self, make: Callable[[int, int], nn.Module], n: int) -> None:
        super().__init__()
        self.n, self.first, self.last = n, make(FEATURES, n), make(n, 1)
        self.blocks = nn.ModuleList([make(n, n) for _ in range(2 * BLOCKS)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        for up, down in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            h = h + down(up(functional.layer_norm(h, (self.n,))).relu())
        out: torch.Tensor = self.last(h)
        return out.squeeze(-1)


def drawn(fan_in: int, fan_out: int) -> nn.Module:
    """nn.Linear with the weights and biases that MatrixFreeLinear has in law."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out)  # type: ignore[no-untyped-call]
    nn.init.normal_(layer.weight, std=fan_in**-0.5)
    nn.init.zeros_(layer.bias)
    return layer


def train(module: nn.Module, m: int, steps: int) -> torch.Tensor:
    """Outputs at the inputs before each step."""
    x = torch.randn(m, FEATURES, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(
        module.parameters(), lr=0.1 / sum(p.shape[-1] for p in module.parameters()), momentum=0.9
    )
    outputs = []
    for _ in range(steps):
        out = module(x)
        outputs.append(out.detach())
        optimizer.zero_grad()
        (out - 1).square().mean().backward()
        optimizer.step()
    return torch.stack(outputs)


def run(make: Callable[[int, int], nn.Module], n: int, m: int = M, steps: int = STEPS) -> tuple[float, float]:
    """Seconds of a training, with and without making the network."""
    start = time.perf_counter()
    module = Residual(make, n)
    made = time.perf_counter()
    train(module, m, steps)
    return time.perf_counter() - start, time.perf_counter() - made


def in_law(n: int, m: int = M, steps: int = STEPS) -> tuple[float, float]:
    """A training with MatrixFreeLinear."""
    return run(MatrixFreeLinear, n, m, steps)


def by_weights(n: int, m: int = M, steps: int = STEPS) -> tuple[float, float]:
    """A training with nn.Linear."""
    return run(drawn, n, m, steps)


def check() -> None:
    """nn.Linear from the initial matrices that a training in law revealed gives its outputs."""
    module = Residual(MatrixFreeLinear, 300)
    layers: dict[str, Any] = {name: each for name, each in module.named_modules() if isinstance(each, MatrixFreeLinear)}
    initial = {name: each.weight.combination.copy() for name, each in layers.items()}
    outputs = train(module, M, STEPS)
    usual = Residual(drawn, 300)
    for name, each in initial.items():
        columns = each.matrix.right(torch.eye(each.matrix.shape[1])[None])
        usual.get_parameter(f"{name}.weight").data.copy_(each.from_right(columns)[0].T)
    far = float((train(usual, M, STEPS) - outputs).abs().max())
    moved = float((outputs[-1] - outputs[0]).abs().max())
    if not (far < 1e-10 and moved > 1e-3):
        sys.exit(f"wrong: outputs differ by {far:.1e} from those of the revealed matrices (moved by {moved:.1e})")
    print(f"outputs are those of nn.Linear from the revealed matrices to {far:.0e}; training moved them by {moved:.2f}")


def _measure(task: Callable[..., object] | None, n: int, queue: multiprocessing.Queue[float]) -> None:
    torch.set_default_dtype(torch.float64)
    if task is not None:
        task(n)
    queue.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def peak(task: Callable[..., object] | None, n: int = 0) -> float:
    """Peak memory of a process that runs this, in GiB."""
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[float] = context.Queue()
    process = context.Process(target=_measure, args=(task, n, queue))
    process.start()
    found = queue.get()
    process.join()
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--wide", action="store_true", help="also n = 10^6")
    wide = parser.parse_args().wide
    torch.set_default_dtype(torch.float64)
    check()
    print(f"finwidth {finwidth.__version__}, Python {platform.python_version()}, torch {torch.__version__}")
    print(
        f"residual network, {2 * BLOCKS} matrices n x n, m = {M}, T = {STEPS}, momentum; seconds (of them steps), peak"
    )
    # Peaks before anything large runs here: a new process begins with the peak of the one that starts it.
    wider = (16_000, 100_000, *([10**6] if wide else []))
    base = peak(None)
    in_gib = {n: peak(in_law, n) - base for n in (*COMPARED, *wider)}
    weights_gib = {n: peak(by_weights, n) - base for n in COMPARED}
    for n in COMPARED:
        runs = [(in_law(n), by_weights(n)) for _ in range(3)]
        law, weights = ([statistics.median(each[i][k] for each in runs) for k in (0, 1)] for i in (0, 1))
        ratios = [of_weights / of_law for of_law, of_weights in zip(law, weights, strict=True)]
        print(
            f"n = {n:9,}: in law {law[0]:7.3f} ({law[1]:7.3f}), {in_gib[n]:5.2f} GiB; nn.Linear {weights[0]:6.2f} "
            f"({weights[1]:5.2f}), {weights_gib[n]:5.2f} GiB; ratio {ratios[0]:5.1f} ({ratios[1]:.1f})"
        )
    for n in wider:
        total, steps = in_law(n)
        needed = 2 * BLOCKS * n * n * 8 * 3 / 2**30
        print(
            f"n = {n:9,}: in law {total:7.3f} ({steps:7.3f}), {in_gib[n]:5.2f} GiB; "
            f"nn.Linear would need {needed:,.0f} GiB for weights, gradients and momentum"
        )


if __name__ == "__main__":
    main()
