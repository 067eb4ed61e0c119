"""Memory of kernels: what is promised is what is used, the check included, and nothing is kept after a call."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from contextlib import ExitStack
from dataclasses import replace

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from finwidth.empirical import explain, ntk
from finwidth.empirical.kernel import calls
from finwidth.empirical.kernel.batch import Batch
from finwidth.empirical.kernel.calls import measuring
from finwidth.empirical.kernel.check import discrepancies, worst
from finwidth.empirical.kernel.computation import KernelJob, compute
from finwidth.empirical.kernel.preparation import prepare
from finwidth.empirical.kernel.working_memory import parameters_at_once

PEAK = """
import ctypes, json, torch
from pathlib import Path
from torch import nn
from finwidth.empirical import explain, ntk
torch.set_num_threads(1)

def held(name):
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) / 2**10

class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.u = nn.Sequential(nn.Linear(2, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 1))

    def forward(self, x):
        def slope(u):
            def of(z):
                values, pull = torch.func.vjp(u, z)
                return pull(torch.ones_like(values))[0].sum(1, keepdim=True)

            return of

        return slope(slope(self.u))(x)

module, x = MODEL
ntk(module, x[:2])
ctypes.CDLL("libc.so.6").malloc_trim(0)
Path("/proc/self/clear_refs").write_text("5")
before = held("VmRSS")
K = ntk(module, x, memory=MEMORY)
used = held("VmHWM") - before
found = explain(module, x, memory=MEMORY)
print(json.dumps([used, (found.kernel_bytes + found.working_bytes) / 2**20]))
"""
PERCEPTRON = "nn.Sequential(nn.Linear(3000, 2000), nn.ReLU(), nn.Linear(2000, 2)), torch.randn(16, 3000)"
EIGHT_LAYERS = "nn.Sequential(*(nn.Linear(1000, 1000) for _ in range(8)), nn.Linear(1000, 2)), torch.randn(16, 1000)"


def used_and_promised(model: str, memory: str) -> tuple[float, float]:
    """Growth of a process's peak, and what `explain` promises, in MiB."""
    code = PEAK.replace("MODEL", model).replace("MEMORY", repr(memory))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    used, promised = json.loads(done.stdout)
    return used, promised


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize("model", [PERCEPTRON, "Residual(), torch.randn(128, 2)"])
def test_the_promise_counts_the_check_and_transforms(model: str) -> None:
    """Two gradients of all parameters are most of what the perceptron takes: 46 MiB of 60."""
    used, promised = used_and_promised(model, "1GiB")
    assert used < 1.25 * promised
    assert promised < 2 * used


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_the_check_keeps_to_the_bound() -> None:
    """Of eight layers with 31 MiB of parameters, which are copied once, no two gradients are there at once."""
    used, promised = used_and_promised(EIGHT_LAYERS, "30MiB")
    assert used < 1.25 * promised
    assert promised < 40


def prepared(stack: ExitStack, module: nn.Module, x: torch.Tensor, memory: str) -> KernelJob:
    return prepare(stack, module, x, None, "full", "full", memory, None, None, at_once=True)


def test_parameters_in_parts_are_checked_as_all_at_once() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(40, 60), nn.Tanh(), nn.Linear(60, 40), nn.Tanh(), nn.Linear(40, 3)).double()
    x = torch.randn(9, 40, dtype=torch.float64)
    with measuring(module) as stack:
        job, few = prepared(stack, module, x, "1GiB"), prepared(stack, module, x, "60KB")
        assert len(parameters_at_once(job, 2, 4)) == 1
        parts = parameters_at_once(few, 2, 4)
        assert len(parts) > 2
        assert [name for part in parts for name in part] == [name for name, _ in module.named_parameters()]
        K = compute(few)[0]
        for one, other in zip(
            discrepancies(job, job.network, K, []), discrepancies(few, few.network, K, []), strict=True
        ):
            assert one.right == pytest.approx(other.right, rel=1e-12)
            assert one.size == pytest.approx(other.size, rel=1e-12)
        assert worst(few, K, []) is None
        without = replace(few, network=replace(few.network, scales={**few.network.scales, "2.bias": 1.01}))
        assert worst(few, compute(without)[0], []) is not None


def test_no_call_keeps_a_copy_of_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result of an operation that autograd keeps must not keep its own graph, which has the copies."""
    copies: list[weakref.ref[torch.Tensor]] = []
    apply = calls.apply

    def noting(network: calls.MeasuredModule, x: Batch, parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        copies.extend(map(weakref.ref, parameters.values()))
        return apply(network, x, parameters)

    monkeypatch.setattr(calls, "apply", noting)
    module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Sigmoid())
    for call in (ntk, explain):
        copies.clear()
        call(module, torch.randn(5, 3))
        gc.collect()
        assert len(copies) == 4
        assert all(each() is None for each in copies)
