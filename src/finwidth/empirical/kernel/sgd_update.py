"""How the kernel of a torch module moves under one step of SGD, to first order: `sgd_update`.

dK is the derivative of K along the step. Every operation of `ntk` is carried out on dual numbers (forward-mode
differentiation of its forward and backward passes) whose tangents begin as the step; what torch cannot differentiate
forward is differentiated backward twice more. Nothing is a finite difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeAlias, overload

import torch
from torch import nn
from torch.autograd import forward_ad

from finwidth import arguments
from finwidth.arguments import flag, function, real
from finwidth.empirical.kernel.arguments import Parameters, Scale, check_module, check_tensor
from finwidth.empirical.kernel.batch import Batch
from finwidth.empirical.kernel.calls import (
    MeasuredModule,
    ModuleError,
    call_module,
    differentiable,
    first_line,
    gradient,
    measuring,
    rescales,
    telling,
    tensor_of,
    unpack_dual,
    untouched,
)
from finwidth.empirical.kernel.check import checked
from finwidth.empirical.kernel.computation import KernelJob, compute
from finwidth.empirical.kernel.forming import ALONE, mix_of
from finwidth.empirical.kernel.inputs import InDims, read_batch
from finwidth.empirical.kernel.ntk import label
from finwidth.empirical.kernel.outputs import Outputs
from finwidth.empirical.kernel.preparation import prepare
from finwidth.errors import FinwidthError

if TYPE_CHECKING:
    import xarray as xr

Tensor = torch.Tensor
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def half_squares(output: Tensor, y: Tensor) -> Tensor:
    """sum_a |N(x_a) - y_a|^2 / 2, a sum over the batch and not a mean."""
    if output.shape != y.shape:
        raise FinwidthError(
            f"the targets have shape {tuple(y.shape)} and the module's output {tuple(output.shape)}; give targets of "
            "the output's shape, or a loss= of your own, such as torch.nn.functional.cross_entropy for classes"
        )
    return (output - y).square().sum() / 2


@overload
def sgd_update(
    module: nn.Module,
    x: object,
    y: object = ...,
    lr: float | None = ...,
    *,
    probe: object = ...,
    loss: Loss = ...,
    outputs: Outputs = ...,
    entries: str = ...,
    memory: str | int = ...,
    parameters: Parameters | None = ...,
    scale: Scale | None = ...,
    in_dims: InDims = ...,
    check: bool = ...,
    labelled: Literal[False] = ...,
    progress: Callable[[int], object] | None = ...,
) -> Tensor: ...


@overload
def sgd_update(
    module: nn.Module,
    x: object,
    y: object = ...,
    lr: float | None = ...,
    *,
    probe: object = ...,
    loss: Loss = ...,
    outputs: Outputs = ...,
    entries: str = ...,
    memory: str | int = ...,
    parameters: Parameters | None = ...,
    scale: Scale | None = ...,
    in_dims: InDims = ...,
    check: bool = ...,
    labelled: Literal[True],
    progress: Callable[[int], object] | None = ...,
) -> xr.DataArray: ...


def sgd_update(
    module: nn.Module,
    x: object,
    y: object = None,
    lr: float | None = None,
    *,
    probe: object = None,
    loss: Loss = half_squares,
    outputs: Outputs = "full",
    entries: str = "full",
    memory: str | int = "1GiB",
    parameters: Parameters | None = None,
    scale: Scale | None = None,
    in_dims: InDims = 0,
    check: bool = True,
    labelled: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Tensor | xr.DataArray:
    """The first-order change of the kernel on a probe set under one SGD step on a batch, exact to rounding.

    dK = sum_p (dK/dp) v_p along the step v_p = -lr s_p dL/dp, where s_p is the parameter's scale: the kernel with these
    scales is the one whose SGD moves each parameter at its own rate lr s_p.

    Parameters
    ----------
    module, outputs, entries, memory, parameters, scale, in_dims, check, labelled, progress
        As for `ntk`. Parameters that do not count do not move. Dual numbers double the memory.
    x, y
        The batch of the step: inputs as for `ntk`, and what the loss compares the module's output with; y may be left
        out where x has pairs of inputs and targets.
    lr
        Learning rate; by default dK is per unit learning rate.
    probe
        Inputs between which the kernel is taken; by default x.
    loss
        ``loss(module(x), y)``, one differentiable number; by default `half_squares`.

    Returns
    -------
    torch.Tensor or xarray.DataArray
        dK, of the shape that ``ntk(module, probe, outputs=outputs, entries=entries)`` has.

    Raises
    ------
    FinwidthError
        As for `ntk`, and if the loss is not one differentiable finite number.

    Examples
    --------
    One linear layer has a kernel that does not depend on its weights; a product of two has one that does.

    >>> import torch
    >>> from finwidth.empirical import sgd_update
    >>> deep = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)).double()
    >>> for layer in deep:
    ...     _ = torch.nn.init.ones_(layer.weight)
    >>> sgd_update(deep, torch.ones(1, 1), torch.zeros(1, 1), outputs="trace")    # K = a^2 + b^2, v = -(b, a)
    tensor([[-4.]], dtype=torch.float64)
    """
    check, labelled, tell = flag("check", check), flag("labelled", labelled), arguments.progress(progress)
    with measuring(check_module(module)) as stack:
        if any(map(rescales, module.modules())):
            raise FinwidthError(
                "an embedding has max_norm=, so that a step may take rows to where they are scaled back: the kernel is "
                "not differentiable there; make it with max_norm=None, or compare the kernels before and after a step"
            )
        function("loss", loss, "a function of the output and y, such as torch.nn.functional.cross_entropy")
        batch = read_batch(module, x, "x", in_dims)
        inputs = batch if probe is None else probe
        job = prepare(
            stack, module, inputs, None, outputs, entries, memory, parameters, scale, in_dims=in_dims, copies=6
        )
        direction = _step(job.network, batch, _targets(batch, y, job.plan.dtype), loss, _check_rate(lr))
        job = replace(
            job,
            network=replace(job.network, direction=direction),
            plan=replace(job.plan, ways=[ALONE]),  # the others know of no direction
            sizes=replace(job.sizes, memory=job.sizes.memory // 2),
            progress=tell,
        )
        dK = checked(job, _compute_tangent, check=check)
    return label(dK, "dK", job) if labelled else dK


def _check_rate(lr: object) -> float:
    wanted = "the learning rate as a number, or leave it out for dK per unit of it"
    return 1.0 if lr is None else real("lr", lr.item() if isinstance(lr, Tensor) and lr.numel() == 1 else lr, wanted)


_Y = "a tensor of targets, or pairs of inputs and targets as x"


def _targets(batch: Batch, y: object, dtype: torch.dtype) -> Tensor:
    targets = check_tensor(batch.target if y is None else y, "y", _Y).detach().to(batch.device)
    return targets.to(dtype) if targets.is_floating_point() else targets


def _step(network: MeasuredModule, x: Batch, y: Tensor, loss: Loss, lr: float) -> dict[str, Tensor]:
    """The change of each parameter in one SGD step."""
    with untouched(network.module), differentiable():
        with telling(network.module, x):
            output = tensor_of(call_module(network.module, x))
        try:
            value = loss(output, y)
        except FinwidthError:
            raise
        except Exception as error:
            raise FinwidthError(f"the loss raises {type(error).__name__}: {first_line(error)}") from error
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise FinwidthError(
                "the loss is not one number that depends on the parameters by differentiable operations"
            )
        if not torch.isfinite(value):
            raise FinwidthError(f"the loss is {value.item()} on this batch; rescale the inputs or the targets")
        found = gradient(value.reshape(()), list(network.parameters.values()))
        return {name: -lr * network.scales[name] * each for name, each in zip(network.parameters, found, strict=True)}


def _compute_tangent(job: KernelJob) -> tuple[Tensor, KernelJob]:
    """The derivative of the kernel along the network's direction; and the job, by a more general plan if need be.

    Where torch cannot differentiate the module forward, G dG^T + dG G^T is found as a difference of kernels,
    ((G + t dG)(G + t dG)^T - (G - t dG)(G - t dG)^T) / 2t, which is exact for any t.
    """
    try:
        with forward_ad.dual_level():
            K, done = compute(job)
            primal, tangent = unpack_dual(K)
            dK = torch.zeros_like(primal) if tangent is None else tangent.detach().clone()
        job = done
    except Exception as error:  # torch cannot differentiate an operation, or the module, forward
        if isinstance(error, FinwidthError) and not isinstance(error, ModuleError):
            raise
        job = job.generalised()
        with telling(job.network.module, job.x1[:1]):
            t = mix_of(job.network, job.x1)
            one, other = (compute(replace(job, network=replace(job.network, mix=mix)))[0] for mix in (t, -t))
            dK = (one - other) / (2 * t)
    if not torch.isfinite(dK).all():
        raise FinwidthError(
            f"the change of the kernel overflows {dK.dtype}, or is not defined; rescale the inputs or the targets, or "
            "give module.double()"
        )
    return dK, job
