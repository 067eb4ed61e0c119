"""Kernels beyond memory: time, memory promised and measured, and disk, of kernels that `ntk` computes into a store.

    python benchmarks/kernel_store.py            a Markdown table
    python benchmarks/kernel_store.py --quick    the small kernels only

Each kernel is computed by a process of its own, whose address space is limited (RLIMIT_AS) to what it has when its
libraries are loaded, and ``LIMIT`` beside: less than the largest kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIMIT = 3 * 2**29  # bytes
MEMORY = {
    "mlp": "1GiB",
    "mlp, small memory": "100MB",
    "mlp, 10 outputs": "400MB",
    "cnn": "1GiB",
    "pinn": "100MB",
    "batch norm": "400MB",
    "large": "1GiB",
}
LARGE = ("large",)


def _kernel(name: str) -> tuple[Any, list[Any], dict[str, Any]]:
    """Module or functions, inputs of each, and arguments of `ntk`."""
    import torch
    from torch import nn

    torch.manual_seed(0)

    def perceptron(outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, outputs)
        )  # fmt: skip

    def network() -> nn.Module:
        layers: list[nn.Module] = []
        for c, d in ((3, 32), (32, 64), (64, 64)):
            layers += [nn.Conv2d(c, d, 3, padding=1, stride=2), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 1))

    def field() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))

    def with_residual(u: nn.Module) -> list[Callable[..., Any]]:
        """A field u and u_x + u_yy, by differentiating it."""

        def residual(x: Any) -> Any:
            x = x.requires_grad_()
            (slope,) = torch.autograd.grad(u(x).sum(), x, create_graph=True)
            return slope[:, 0] + torch.autograd.grad(slope[:, 1].sum(), x, create_graph=True)[0][:, 1]

        return [u, residual]

    def normalised() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 256), nn.Linear(256, 4))

    trace: dict[str, Any] = {"outputs": "trace"}
    makers: dict[str, Callable[[], tuple[Any, list[Any], dict[str, Any]]]] = {
        "mlp": lambda: (perceptron(1), [torch.randn(5000, 64)], trace),
        "mlp, small memory": lambda: (perceptron(1), [torch.randn(5000, 64)], trace),
        "mlp, 10 outputs": lambda: (perceptron(10), [torch.randn(1000, 64)], {}),
        "cnn": lambda: (network(), [torch.randn(500, 3, 32, 32)], trace),
        "pinn": lambda: (with_residual(field()), [torch.rand(600, 2), torch.rand(2400, 2)], trace),
        "batch norm": lambda: (normalised(), [torch.randn(150, 64)], {"coupled": True}),
        "large": lambda: (perceptron(1), [torch.randn(20_000, 64)], trace),
    }
    return makers[name]()


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def measured(name: str, workers: int | None = None) -> dict[str, Any]:
    """In this process: seconds, bytes of memory and of disk, and the most that was promised."""
    import distributed  # noqa: F401 - as many libraries as may be loaded
    import xarray  # noqa: F401
    import zarr  # noqa: F401

    from finwidth.empirical import ntk
    from finwidth.empirical.kernel_store import fill
    from finwidth.memory import check_memory

    module, sets, options = _kernel(name)
    x, few = (sets, [each[:4] for each in sets]) if isinstance(module, list) else (sets[0], sets[0][:4])
    with tempfile.TemporaryDirectory() as folder:  # what libraries load when they are first used
        ntk(module, few, store=Path(folder) / "K.zarr", **options)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far does not count
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + LIMIT,) * 2)
    promised: list[int] = []
    original = fill.workforce

    def noting(*given: Any) -> fill.Workforce:
        found = original(*given)
        promised.append(found.bytes)
        return found

    vars(fill)["workforce"] = noting
    with tempfile.TemporaryDirectory(dir=os.environ.get("STORES")) as folder:
        began = time.monotonic()
        K = ntk(module, x, store=Path(folder) / "K.zarr", memory=MEMORY[name], workers=workers, **options)
        seconds = time.monotonic() - began
        disk = sum(file.stat().st_blocks * 512 for file in Path(folder).rglob("*"))
    return {
        "shape": list(K.shape),
        "kernel": K.nbytes,
        "seconds": seconds,
        "memory": check_memory(MEMORY[name]),
        "promised": promised[0],
        "measured": _status("VmHWM") - before,
        "disk": disk,
    }


def run(name: str, workers: int | None = None) -> dict[str, Any]:
    """`measured` in a process of its own."""
    command = [sys.executable, __file__, "--only", name, *([] if workers is None else ["--workers", str(workers)])]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help="print one as JSON")
    parser.add_argument("--workers", type=int)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measured(given.only, given.workers)))
        return
    print(
        "| kernel | shape | size | seconds | memory= | promised | measured | disk |\n|---|---|---|---|---|---|---|---|"
    )
    for name in MEMORY:
        if given.quick and name in LARGE:
            continue
        found = run(name, given.workers)
        sizes = [f"{found[key] / 2**20:.0f} MiB" for key in ("kernel", "memory", "promised", "measured", "disk")]
        shape = " x ".join(map(str, found["shape"]))
        print(f"| {name} | {shape} | {sizes[0]} | {found['seconds']:.1f} | {' | '.join(sizes[1:])} |", flush=True)


if __name__ == "__main__":
    main()
