"""Memory of kernels: nothing is kept after a call."""

from __future__ import annotations

import gc
import weakref

import pytest

pytest.importorskip("torch")

import torch

from finwidth.empirical import explain, ntk
from finwidth.empirical.kernel import calls
from finwidth.empirical.kernel.batch import Batch


def test_no_call_keeps_a_copy_of_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result of an operation that autograd keeps must not keep its own graph, which has the copies."""
    copies: list[weakref.ref[torch.Tensor]] = []
    apply = calls.apply

    def noting(network: calls.MeasuredModule, x: Batch, parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        copies.extend(map(weakref.ref, parameters.values()))
        found: torch.Tensor = apply(network, x, parameters)
        return found

    monkeypatch.setattr(calls, "apply", noting)
    module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8), torch.nn.Sigmoid())
    for call in (ntk, explain):
        copies.clear()
        call(module, torch.randn(5, 3))
        gc.collect()
        assert len(copies) == 4
        assert all(each() is None for each in copies)
