"""Products with a kernel that is not formed: `KernelOperator` beside vjp and jvp of torch.func by hand, and a formed K.

    OMP_NUM_THREADS=1 python benchmarks/kernel_operator.py [--cases MLP CNN] [--few]

Output 0 of an MLP 784-512-512-10 at 10,000 inputs and of a convolutional network at 2,000 of shape (3, 32, 32), in
float32. Every way is a process of its own; its products are first held against `ntk` in float64 on a few inputs.
Times are those of the processor (all threads together), which other work on the machine changes least; peak memory is
that of the process, torch included. --few: a hundredth of the inputs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn

from finwidth.empirical import KernelOperator, ntk

Tensor = torch.Tensor
Product = Callable[[Tensor], Tensor]
CASES = {"MLP": 10_000, "CNN": 2_000}
BLOCK = {"MLP": 1000, "CNN": 32}  # inputs of a pass, by hand; others take longer
WAYS = ("KernelOperator", "torch.func by hand", "ntk, formed")


def problem(case: str, n: int, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if case == "MLP":
        layers: list[nn.Module] = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
        return nn.Sequential(*layers).to(dtype), alike(torch.randn(n, 784)).to(dtype)
    layers = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3136, 10)]
    return nn.Sequential(*layers).to(dtype), alike(torch.randn(n, 3072)).view(n, 3, 32, 32).to(dtype)


def alike(x: Tensor) -> Tensor:
    """Inputs whose covariance has eigenvalues as 1/k, as images have; of white noise no ten eigenvalues stand out."""
    d = x.shape[1]
    x = x / torch.arange(1.0, d + 1).sqrt()
    basis, _ = torch.linalg.qr(torch.randn(d, 64, generator=torch.Generator().manual_seed(1)))
    found: Tensor = (x[:, :64] @ basis.T + x.roll(7, 1)) * d**0.5 / x.norm(dim=1).mean()
    return found


def by_hand(module: nn.Module, x: Tensor, block: int) -> Product:
    """J (J^T v) as one writes it with torch.func."""
    parameters = {name: each.detach() for name, each in module.named_parameters()}

    def outputs(rows: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
        return lambda given: torch.func.functional_call(module, given, (rows,))[:, 0]

    def product(v: Tensor) -> Tensor:
        total = {name: torch.zeros_like(each) for name, each in parameters.items()}
        blocks = [slice(start, start + block) for start in range(0, len(x), block)]
        for some in blocks:
            (found,) = torch.func.vjp(outputs(x[some]), parameters)[1](v[some])
            total = {name: total[name] + each for name, each in found.items()}
        return torch.cat([torch.func.jvp(outputs(x[some]), (parameters,), (total,))[1] for some in blocks])

    return product


def make(way: str, case: str, module: nn.Module, x: Tensor) -> Product:
    if way == "ntk, formed":
        K = ntk(module, x, outputs=0)
        return lambda v: K @ v
    if way == "torch.func by hand":
        return by_hand(module, x, BLOCK[case])
    return KernelOperator(module, x, outputs=0).dot  # type: ignore[return-value]


def peak() -> int:
    """Most memory so far, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def measure(way: str, case: str, n: int) -> dict[str, float]:
    """Seconds of the first product, of one more, and of ten eigenvalues; the peak of the process, in MiB."""
    module, x = problem(case, 12, torch.float64)
    v = torch.sin(torch.arange(12.0)).double()
    right = ntk(module, x, outputs=0) @ v
    assert torch.allclose(make(way, case, module, x)(v), right, rtol=1e-9)
    module, x = problem(case, n)
    v = torch.sin(torch.arange(float(n)))
    start = time.process_time()
    product = make(way, case, module, x)
    product(v)
    first = time.process_time() - start
    times = []
    for _ in range(3):
        start = time.process_time()
        product(v)
        times.append(time.process_time() - start)
    start = time.process_time()
    if way == "KernelOperator":
        top = KernelOperator(module, x, outputs=0).eigenpairs(10).eigenvalue.to_numpy()
    else:  # by hand it takes as many products
        whole = LinearOperator((n, n), lambda u: product(torch.from_numpy(u)).numpy(), dtype=np.float32)
        top = eigsh(whole, 10, which="LA", tol=1e-4)[0] if way == "ntk, formed" else np.array([np.nan])
    seconds = time.process_time() - start
    return {
        "first": first,
        "product": sorted(times)[1],
        "ten": seconds,
        "peak": peak(),
        "largest": float(top.max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--few", action="store_true")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, case, n = options.one
        print(json.dumps(measure(way, case, int(n))))
        return
    print(
        "| network | way | first K v, s | K v, s | ten eigenvalues, s | the largest | MiB |\n"
        "|---|---|---|---|---|---|---|"
    )
    for case in options.cases:
        n = CASES[case] // (100 if options.few else 1)
        for way in WAYS:
            command = [sys.executable, __file__, "--one", way, case, str(n)]
            found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
            if not np.isfinite(found["largest"]):
                found["ten"] = np.nan
            numbers = " | ".join(f"{found[name]:.3g}" for name in ("first", "product", "ten", "largest"))
            print(f"| {case}, N = {n:,} | {way} | {numbers} | {found['peak']} |", flush=True)


if __name__ == "__main__":
    main()
