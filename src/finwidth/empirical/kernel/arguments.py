"""Checks of the arguments of `ntk` and related functions: module, inputs, parameters, outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from finwidth.arguments import index, items, real, real_array, running, table
from finwidth.empirical.kernel.calls import copies, differentiable, untouched
from finwidth.errors import FinwidthError, shown

Parameters: TypeAlias = Collection[str] | Callable[[str, nn.Parameter], bool]
Scale: TypeAlias = Mapping[str, float] | Callable[[str, nn.Parameter], float]


def check_module(module: object, *, coupled: bool = False) -> nn.Module:
    """The module, unless it is none that torch.func can call, or a layer draws, or mixes the samples of a batch.

    That it may where the samples are ``coupled``.
    """
    if not isinstance(module, nn.Module):
        raise FinwidthError(f"the module is {shown(module)}; give a torch.nn.Module")
    kind = type(module).__name__
    if any(isinstance(layer, torch.jit.ScriptModule) for layer in module.modules()):
        raise FinwidthError(
            f"{kind} is compiled by torch.jit, and its layers are closed; give the module it was made of"
        )
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise FinwidthError(f"the module is a {kind}, which splits its batch over devices; give its .module")
    check_materialised(module)
    for name, parameter in module.named_parameters():
        if parameter.is_meta:
            raise FinwidthError(
                f'parameter {name!r} is on the device "meta" and has no numbers; call module.to_empty(device="cpu") '
                "and initialise it first"
            )
        if torch._C._functorch.is_functorch_wrapped_tensor(parameter):
            raise FinwidthError(
                f"parameter {name!r} is of a transform of torch.func that has ended, and none of the module: where one "
                "layer has two names, torch.func.functional_call leaves there what it was given; make the module "
                "anew, and where its forward uses functional_call, give that tie_weights=False and every parameter by "
                "one name"
            )
    for name, layer in module.named_modules():
        told = f"layer {name or 'itself'!r}, a {type(layer).__name__},"
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training and not coupled:
            raise FinwidthError(
                f"{told} is in training mode and mixes the samples of a batch, so that no sample has a gradient of its "
                "own; call module.eval() first, or give ntk coupled=True for the kernel of the batch as a whole"
            )
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is None and not coupled:
            raise FinwidthError(
                f"{told} keeps no running statistics (track_running_stats=False) and mixes the samples of a batch in "
                "every mode; make it with track_running_stats=True, or use GroupNorm or LayerNorm"
            )
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.training and layer.p > 0:
            raise FinwidthError(f"{told} is active and draws a new network each time; call module.eval() first")
    return module


def check_materialised(module: nn.Module) -> None:
    """Raise FinwidthError if a parameter has no shape yet."""
    for name, each in module.named_parameters():
        if isinstance(each, nn.parameter.UninitializedParameter):
            raise FinwidthError(
                f"parameter {name!r} has no shape yet (a lazy layer); call the module once on inputs first"
            )


def check_parameters(module: nn.Module, parameters: Parameters | None, scale: Scale | None) -> dict[str, float]:
    """The parameters that count, by name, with the multiplier of each.

    A parameter counts once under its first name, and only if it requires a gradient.
    """
    trained = {name: each for name, each in module.named_parameters() if each.requires_grad}
    aliases = dict(module.named_parameters(remove_duplicate=False))
    if parameters is not None:
        trained = _select(parameters, trained, aliases)
    if not trained:
        raise FinwidthError("no parameter counts: none of the module's is chosen and requires a gradient")
    if any(each.is_complex() for each in trained.values()):
        raise FinwidthError("the module has complex parameters; its kernel is not defined here")
    return _scales(scale, trained, aliases)


def _select(
    parameters: Parameters, trained: dict[str, nn.Parameter], aliases: dict[str, nn.Parameter]
) -> dict[str, nn.Parameter]:
    if callable(parameters) and not isinstance(parameters, type):
        with running("parameters="):
            return {name: each for name, each in trained.items() if parameters(name, each)}
    names = "names of parameters, or a function of name and parameter"
    wanted = [parameters] if isinstance(parameters, str) else items("parameters", parameters, names)
    _known("parameters", wanted, aliases)
    for name in wanted:
        if not aliases[name].requires_grad:
            raise FinwidthError(f"parameters names {name!r}, which does not require a gradient; leave it out")
    chosen = {id(aliases[name]) for name in wanted}
    return {name: each for name, each in trained.items() if id(each) in chosen}


def _scales(
    scale: Scale | None, trained: dict[str, nn.Parameter], aliases: dict[str, nn.Parameter]
) -> dict[str, float]:
    if scale is None:
        return dict.fromkeys(trained, 1.0)
    found: dict[str, object]
    if callable(scale) and not isinstance(scale, type):
        with running("scale="):
            found = {name: scale(name, each) for name, each in trained.items()}
    else:
        scale = table("scale", scale, "numbers by name of the parameter, or a function of name and parameter")
        _known("scale", list(scale), aliases)
        given = {id(aliases[name]): value for name, value in scale.items()}
        found = {name: given.get(id(each), 1.0) for name, each in trained.items()}
    return {
        name: real(f"the scale of {name!r}", value, "a finite number, 0 or more", lambda each: 0 <= each < math.inf)
        for name, value in found.items()
    }


def _known(argument: str, names: list[str], aliases: dict[str, nn.Parameter]) -> None:
    for name in names:
        if not isinstance(name, str) or name not in aliases:
            some = ", ".join(list(aliases)[:6]) + (", ..." if len(aliases) > 6 else "")
            raise FinwidthError(f"{argument} names {shown(name)}, which is no parameter of the module; it has {some}")


def check_tensor(x: object, name: str, allowed: str) -> torch.Tensor:
    """A tensor; of Python's numbers in double precision, as they are."""
    try:
        whole = isinstance(x, torch.Tensor) or (
            isinstance(x, list | tuple) and any(isinstance(each, torch.Tensor) for each in x)
        )
        found = torch.as_tensor(x if whole else _as_array(x))
    except Exception:  # whatever looking at the user's object raises
        raise FinwidthError(f"{name} is {shown(x)}; give {allowed}") from None
    if found.is_nested or found.layout != torch.strided or found.is_quantized or found.is_meta:
        kind = "nested" if found.is_nested else "quantized" if found.is_quantized else found.layout
        raise FinwidthError(
            f"{name} is a tensor with {'no numbers (meta)' if found.is_meta else f'another layout ({kind})'}; give "
            f"{allowed}, of numbers one after the other: x.to_dense(), or x.dequantize(), makes one"
        )
    return found


def _as_array(x: object) -> npt.NDArray[np.generic]:
    """An array that torch takes, in memory of its own: of complex numbers, or those of `real_array`."""
    array = real_array(x)
    return np.array(x if array is None else array)


def numpy_of(values: object) -> npt.NDArray[np.generic]:
    """An array of what may be a tensor on some device; NumPy has no bfloat16, so that becomes float32."""
    found = real_array(values)
    if found is None:
        raise FinwidthError(f"{shown(values)} is no array of real numbers; its rows must be equally long")
    return found


def check_batch(module: nn.Module, x: object, name: str = "x1", *, trial: bool = True) -> torch.Tensor:
    """Inputs on the module's device, in a dtype that it takes; shape (N, ...), N at least 1.

    Without a ``trial`` whole numbers are left as they are, and `as_taken` is for where the module does not take them.
    """
    inputs = check_tensor(x, name, "one tensor of shape (N, ...)")
    if inputs.ndim < 1 or not len(inputs):
        raise FinwidthError(f"{name} has shape {tuple(inputs.shape)}; give a tensor of shape (N, ...), N at least 1")
    first = next(module.parameters(), torch.zeros(()))
    inputs = inputs.detach().to(first.device)
    if trial or inputs.is_floating_point() or inputs.is_complex():
        inputs = as_taken(module, inputs)
    if not torch.isfinite(inputs).all():
        raise FinwidthError(f"{name} holds numbers that are not finite")
    return inputs


def as_taken(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Inputs in a dtype that the module takes: their own if it can be.

    Floating inputs of a module with one floating dtype are cast to that. Where parameters have several, and for whole
    numbers, which may be words or stored images, the module is tried.
    """
    floating = {each.dtype: None for each in module.parameters() if each.is_floating_point()}
    if x.is_floating_point() and len(floating) == 1:
        return x.to(next(iter(floating)))
    precise = sorted(floating, key=lambda dtype: torch.finfo(dtype).eps)
    others = precise if x.is_floating_point() else [torch.long, *precise]
    if x.is_complex() or (x.is_floating_point() and x.dtype not in floating):
        return x if x.is_complex() or not precise else x.to(precise[0])
    return next((each for each in (x, *map(x.to, others)) if _takes(module, each[:2])), x)


def _takes(module: nn.Module, x: torch.Tensor) -> bool:
    """Whether the module can be called with these inputs, on copies of its parameters, which it may change."""
    with untouched(module), differentiable():
        try:
            torch.func.functional_call(module, copies(dict(module.named_parameters())), (x.clone(),))
        except Exception:  # it is told when the module is called in earnest
            return False
        return True


def check_outputs(outputs: object) -> str | int:
    """Check that it is "full", "trace", "diagonal", or the number of an output."""
    if isinstance(outputs, str) and outputs in {"full", "trace", "diagonal"}:
        return outputs
    number = index(outputs)
    if number is None or number < 0:
        raise FinwidthError(
            f'outputs is {shown(outputs)}; choose "full", "trace", "diagonal", or the number of one output, from 0'
        )
    return number


def check_entries(entries: object) -> str:
    """Check that it is "full" or "diagonal"."""
    if not isinstance(entries, str) or entries not in {"full", "diagonal"}:
        raise FinwidthError(f'entries is {shown(entries)}; choose "full" or "diagonal"')
    return str(entries)
