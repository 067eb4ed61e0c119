"""The empirical kernel of any torch module: `ntk`."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from finwidth.empirical import jacobian
from finwidth.empirical.arguments import (
    Parameters,
    Scale,
    check_entries,
    check_memory,
    check_module,
    check_outputs,
)
from finwidth.errors import FinwidthError

if TYPE_CHECKING:
    import xarray as xr

_OUTPUT_DIMS = {"full": ("output", "output_"), "diagonal": ("output",)}


def ntk(
    module: nn.Module,
    x1: Any,
    x2: Any = None,
    outputs: str | int = "full",
    *,
    entries: str = "full",
    memory: str | int = "1GiB",
    parameters: Parameters | None = None,
    scale: Scale | None = None,
    labelled: bool = False,
) -> torch.Tensor | xr.DataArray:
    """K."""
    outputs, entries = check_outputs(outputs), check_entries(entries)
    check_memory(memory)
    check_module(module)
    if entries == "diagonal" and x2 is not None:
        raise FinwidthError('entries="diagonal" is K(x_a, x_a) of one set of inputs; leave x2 out')
    K = jacobian.kernel(module, x1, x2, parameters, scale)
    if isinstance(outputs, int):
        if outputs >= K.shape[-1]:
            raise FinwidthError(f"outputs is {outputs}, and the module has {K.shape[-1]}, numbered from 0")
        K = K[..., outputs, outputs]
    elif outputs != "full":
        K = K.diagonal(dim1=2, dim2=3)
        K = K.sum(-1) if outputs == "trace" else K
    if entries == "diagonal":
        K = K.diagonal(dim1=0, dim2=1).movedim(-1, 0)
    return _label(K, outputs, entries) if labelled else K


def _label(K: torch.Tensor, outputs: str | int, entries: str) -> xr.DataArray:
    """The kernel with the names of its dimensions."""
    import xarray as xr

    inputs = ("input",) if entries == "diagonal" else ("input", "input_")
    dims = (*inputs, *_OUTPUT_DIMS.get(str(outputs), ()))
    attrs = {
        "finwidth_version": version("finwidth"),
        "method": "empirical",
        "outputs": outputs,
        "entries": entries,
        "long_name": "neural tangent kernel",
        "units": "1",
    }
    return xr.DataArray(K.cpu().numpy(), dims=dims, name="K", attrs=attrs)
