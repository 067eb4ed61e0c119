"""The kernel by plain autograd: what everybody would write, and nothing of finwidth."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

Tensor = torch.Tensor


def trained(module: nn.Module) -> dict[str, Tensor]:
    """Parameters that require a gradient."""
    return {name: each for name, each in module.named_parameters() if each.requires_grad}


def jacobians(module: nn.Module, x: Tensor, outputs: str | int = "full") -> dict[str, Tensor]:
    """The gradients of every output at every input, shapes (N, O, P), from one forward pass of the whole batch."""
    parameters = trained(module)
    values = module(x).reshape(len(x), -1)
    values = values if isinstance(outputs, str) else values[:, outputs, None]
    rows = [
        torch.autograd.grad(value, list(parameters.values()), retain_graph=True, materialize_grads=True)
        for value in values.flatten()
    ]
    dense = ([each.to_dense() if each.is_sparse else each for each in row] for row in rows)
    columns = (torch.stack(column).reshape(*values.shape, -1) for column in zip(*dense, strict=True))
    return dict(zip(parameters, columns, strict=True))


def equal_shares(J: Mapping[str, Tensor]) -> dict[str, float]:
    """Scales by which every parameter has the same part of the kernel's trace; 0 for those that cancel to rounding.

    Without them a fault in a layer of small gradients would drown.
    """
    parts = {name: float(each.square().sum()) for name, each in J.items()}
    most = max(parts.values())
    return {name: 1 / part if part > 1e-12 * most else 0.0 for name, part in parts.items()}


def kernel(J: Mapping[str, Tensor], scales: Mapping[str, float]) -> Tensor:
    """K, shape (N, N, O, O)."""
    return sum(scales[name] * torch.einsum("aip,bjp->abij", each, each) for name, each in J.items())  # type: ignore[return-value]


def loop(module: nn.Module, x: Tensor, outputs: str | int = "trace") -> Tensor:
    """The trace of the kernel, or that of one output, by a plain loop: forward by sample, backward by output."""
    parameters = list(trained(module).values())
    rows = []
    for sample in torch.split(x, 1):
        values = module(sample).flatten()
        chosen = values if isinstance(outputs, str) else values[outputs, None]
        found = [torch.autograd.grad(v, parameters, retain_graph=True, materialize_grads=True) for v in chosen]
        rows.append(torch.cat([each.to_dense().flatten() for gradients in found for each in gradients]))
    J = torch.stack(rows)
    del rows
    return J @ J.T


def by_torch_func(module: nn.Module, x: Tensor, outputs: str | int = "trace") -> Tensor:
    """The same by torch.func: vmap of jacrev."""
    parameters = {name: each.detach() for name, each in trained(module).items()}

    def values(given: dict[str, Tensor], sample: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(module, given, (sample[None],)).flatten()
        return found if isinstance(outputs, str) else found[outputs, None]

    J = torch.func.vmap(torch.func.jacrev(values), (None, 0))(parameters, x)
    rows = torch.cat([each.flatten(1) for each in J.values()], dim=1)
    K: Tensor = rows @ rows.T
    return K
