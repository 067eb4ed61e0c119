"""The kernel of a module by plain backward passes of its own batch, which know nothing of finwidth."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

Tensor = Any


def jacobian(module: nn.Module, x: Tensor) -> Tensor:
    """Gradients of every output at every input by all parameters, shape (N, O, P)."""
    output = module(x.clone())
    parameters = [each for each in module.parameters() if each.requires_grad]
    rows = [
        torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True) for value in output.flatten()
    ]
    dense = [torch.cat([(g.to_dense() if g.is_sparse else g).flatten() for g in row]) for row in rows]
    return torch.stack(dense).view(len(x), -1, len(dense[0]))


def kernel(module: nn.Module, x: Tensor) -> Tensor:
    """K, shape (N, N, O, O)."""
    J = jacobian(module, x)
    return torch.einsum("aip,bjp->abij", J, J)


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
