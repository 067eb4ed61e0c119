"""Ground truth: the whole Jacobian of a torch module, one backward pass for every sample and output.

It is slow and needs N x O x P numbers; it is meant to be read, and checked against.  Each sample goes through the
module alone, so nothing here depends on what a layer does with a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from finwidth.empirical.kernel.arguments import Parameters, Scale, check_batch, check_module, check_parameters
from finwidth.empirical.kernel.calls import check_output, telling
from finwidth.errors import FinwidthError
from finwidth.memory import afford


def jacobian(module: nn.Module, x: object, parameters: Parameters | None = None) -> dict[str, torch.Tensor]:
    """Derivatives of every output at every input by every parameter that counts, by the parameter's name.

    Parameters
    ----------
    module, x, parameters
        As for `finwidth.empirical.ntk`.

    Returns
    -------
    dict of tensors of shape (N, O, *shape of the parameter)

    Examples
    --------
    >>> import torch
    >>> from finwidth.empirical.reference.jacobian import jacobian
    >>> J = jacobian(torch.nn.Linear(3, 2), torch.ones(4, 3))
    >>> J["weight"].shape, J["bias"].shape
    (torch.Size([4, 2, 2, 3]), torch.Size([4, 2, 2]))
    """
    chosen = check_parameters(check_module(module), parameters, None)
    inputs = check_batch(module, x)
    by_name = dict(module.named_parameters())
    tensors = [by_name[name] for name in chosen]
    rows: list[Sequence[torch.Tensor]] = []
    with torch.enable_grad():
        for sample in torch.split(inputs, 1):
            with telling(module, sample):
                outputs = check_output(module(sample), 1).flatten()
            if not rows:
                numbers = len(inputs) * len(outputs) * sum(each.numel() for each in tensors)
                afford(2 * numbers * inputs.element_size(), f"a Jacobian of {numbers} numbers", "give fewer inputs")
            for output in outputs:
                rows.append(
                    torch.autograd.grad(output, tensors, retain_graph=True, materialize_grads=True)
                    if output.requires_grad
                    else [torch.zeros_like(each) for each in tensors]
                )
    columns = [torch.stack(column) for column in zip(*rows, strict=True)]
    if not all(torch.isfinite(each).all() for each in columns):
        raise FinwidthError("a derivative is not finite; rescale the inputs, or give module.double()")
    return {
        name: each.reshape(len(inputs), -1, *each.shape[1:]).detach()
        for name, each in zip(chosen, columns, strict=True)
    }


def reference_ntk(
    module: nn.Module, x1: object, x2: object = None, parameters: Parameters | None = None, scale: Scale | None = None
) -> torch.Tensor:
    """K(x_a, x_b) = sum_p scale_p <dN_i(x_a)/dp, dN_j(x_b)/dp>, shape (N1, N2, O, O), from the two Jacobians.

    Examples
    --------
    >>> import torch
    >>> from finwidth.empirical.reference.jacobian import reference_ntk
    >>> reference_ntk(torch.nn.Linear(3, 2), torch.ones(4, 3))[0, 1]     # x_a . x_b + 1, for each output by itself
    tensor([[4., 0.],
            [0., 4.]])
    """
    scales = check_parameters(check_module(module), parameters, scale)
    one = jacobian(module, x1, parameters)
    other = one if x2 is None else jacobian(module, x2, parameters)
    return sum(  # type: ignore[return-value]
        factor * torch.einsum("aip,bjp->abij", one[name].flatten(2), other[name].flatten(2))
        for name, factor in scales.items()
    )
