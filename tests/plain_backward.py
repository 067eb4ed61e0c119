"""The kernel of a module by plain backward passes of its own batch, which know nothing of finwidth."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from architectures import truth

Tensor = Any


def near(one: Tensor, other: Tensor, tolerance: float = 1e-9) -> bool:
    """Whether two results are of one shape and the same, but for so much of the largest number."""
    return one.shape == other.shape and bool((one - other).abs().max() <= tolerance * other.abs().max())


def kernel(module: nn.Module, x: Tensor) -> Tensor:
    """K, shape (N, N, O, O)."""
    J = truth.jacobians(module, x.clone())
    return truth.kernel(J, dict.fromkeys(J, 1.0))


def update(module: nn.Module, x: Tensor, y: Tensor, step: float = 1e-5) -> Tensor:
    """The change of K per unit rate under a step on sum |N - y|^2 / 2, by a central difference, shape (N, N, O, O)."""
    parameters = list(module.parameters())
    loss = (module(x.clone()).reshape(len(x), -1) - y).square().sum() / 2
    gradient = torch.autograd.grad(loss, parameters, materialize_grads=True)
    before = [each.detach().clone() for each in parameters]
    size = sum(float(each.square().sum()) for each in gradient) ** 0.5
    found = []
    for sign in (-step, step):
        for parameter, start, each in zip(parameters, before, gradient, strict=True):
            parameter.data = start + sign / size * (each.to_dense() if each.is_sparse else each)
        found.append(kernel(module, x))
    for parameter, start in zip(parameters, before, strict=True):
        parameter.data = start
    return (found[0] - found[1]) * size / (2 * step)
