"""Gradients of functions of one sample by plain backward passes, which know nothing of finwidth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

Tensor = Any


def rows(values: Iterable[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """The gradients of all numbers of some tensors, one row for each number."""
    found = []
    for value in values:
        for number in value.flatten():
            each = torch.autograd.grad(number, parameters, retain_graph=True, materialize_grads=True)
            found.append(torch.cat([gradient.flatten() for gradient in each]))
    return torch.stack(found)


def kernel_of(
    sample: Callable[[int], Tensor], n: int, module: Any, others: Callable[[int], Tensor] | None = None
) -> Any:
    """K, shape (n, n, O, O), of what a function returns for each of n samples by itself."""
    one = rows(map(sample, range(n)), list(module.parameters()))
    other = one if others is None else rows(map(others, range(n)), list(module.parameters()))
    return (one @ other.T).unflatten(1, (n, -1)).unflatten(0, (n, -1)).transpose(1, 2)


def close(found: Tensor, right: Tensor, tolerance: float = 1e-11) -> bool:
    return found.shape == right.shape and bool((found - right).abs().max() <= tolerance * right.abs().max())
