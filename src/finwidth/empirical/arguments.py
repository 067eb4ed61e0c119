"""Checks of the arguments of `ntk` and related functions: module, inputs, parameters, outputs."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from finwidth.empirical.forward import differentiable, untouched
from finwidth.errors import FinwidthError

Parameters: TypeAlias = Collection[str] | Callable[[str, nn.Parameter], bool]
Scale: TypeAlias = Mapping[str, float] | Callable[[str, nn.Parameter], float]


def check_module(module: Any) -> nn.Module:
    """The module, unless it is none that torch.func can call, or a layer mixes the samples of a batch or draws."""
    if not isinstance(module, nn.Module):
        raise FinwidthError(f"the module is a {type(module).__name__}; give a torch.nn.Module")
    kind = type(module).__name__
    if any(isinstance(layer, torch.jit.ScriptModule) for layer in module.modules()):
        raise FinwidthError(
            f"{kind} is compiled by torch.jit, and its layers are closed; give the module it was made of"
        )
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise FinwidthError(f"the module is a {kind}, which splits its batch over devices; give its .module")
    _check_numbers(module)
    for name, layer in module.named_modules():
        told = f"layer {name or 'itself'!r}, a {type(layer).__name__},"
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training:
            raise FinwidthError(
                f"{told} is in training mode and mixes the samples of a batch, so that no sample has a gradient of its "
                "own; call module.eval() first"
            )
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is None:
            raise FinwidthError(
                f"{told} keeps no running statistics (track_running_stats=False) and mixes the samples of a batch in "
                "every mode; make it with track_running_stats=True, or use GroupNorm or LayerNorm"
            )
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.training and layer.p > 0:
            raise FinwidthError(f"{told} is active and draws a new network each time; call module.eval() first")
    return module


def _check_numbers(module: nn.Module) -> None:
    """Raise FinwidthError if a parameter has no numbers yet."""
    for name, each in module.named_parameters():
        if isinstance(each, nn.parameter.UninitializedParameter):
            raise FinwidthError(
                f"parameter {name!r} has no shape yet (a lazy layer); call the module once on inputs first"
            )
        if each.is_meta:
            raise FinwidthError(
                f'parameter {name!r} is on the device "meta" and has no numbers; call module.to_empty(device="cpu") '
                "and initialise it first"
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
    if callable(parameters):
        return {name: each for name, each in trained.items() if parameters(name, each)}
    wanted = [parameters] if isinstance(parameters, str) else list(parameters)
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
    found: dict[str, Any]
    if callable(scale):
        found = {name: scale(name, each) for name, each in trained.items()}
    else:
        _known("scale", list(scale), aliases)
        given = {id(aliases[name]): value for name, value in scale.items()}
        found = {name: given.get(id(each), 1.0) for name, each in trained.items()}
    for name, value in found.items():
        if not isinstance(value, numbers.Real) or not math.isfinite(value) or value < 0:
            raise FinwidthError(f"scale gives {value!r} for {name!r}; every multiplier must be a number, 0 or more")
    return {name: float(value) for name, value in found.items()}


def _known(argument: str, names: list[str], aliases: dict[str, nn.Parameter]) -> None:
    for name in names:
        if name not in aliases:
            some = ", ".join(list(aliases)[:6]) + (", ..." if len(aliases) > 6 else "")
            raise FinwidthError(f"{argument} names {name!r}, which is no parameter of the module; it has {some}")


def check_tensor(x: Any, name: str, allowed: str) -> torch.Tensor:
    """A tensor; of Python's numbers in double precision, as they are."""
    try:
        plain = isinstance(x, list | tuple) and not any(isinstance(each, torch.Tensor) for each in x)
        return torch.as_tensor(np.asarray(x) if plain else x)
    except (TypeError, ValueError, RuntimeError):
        raise FinwidthError(f"{name} is a {type(x).__name__}; give {allowed}") from None


def numpy_of(values: Any) -> Any:
    """An array, from a tensor on any device too; NumPy has no bfloat16, so that becomes float32."""
    if not hasattr(values, "detach"):
        try:
            return np.asarray(values)
        except ValueError:
            raise FinwidthError(f"{str(values)[:40]} is no array of numbers; its rows differ in length") from None
    tensor = values.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def check_inputs(module: nn.Module, x: Any, name: str = "x1") -> torch.Tensor:
    """Inputs on the module's device, in a dtype that it takes; shape (N, ...), N at least 1."""
    inputs = check_tensor(x, name, "one tensor of shape (N, ...)")
    if inputs.ndim < 1 or not len(inputs):
        raise FinwidthError(f"{name} has shape {tuple(inputs.shape)}; give a tensor of shape (N, ...), N at least 1")
    first = next(module.parameters(), torch.zeros(()))
    inputs = _as_taken(module, inputs.detach().to(first.device))
    if not torch.isfinite(inputs).all():
        raise FinwidthError(f"{name} holds numbers that are not finite")
    return inputs


def _as_taken(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
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
    """Whether the module can be called with these inputs."""
    with untouched(module), differentiable():
        try:
            return isinstance(module(x.clone()), torch.Tensor)
        except Exception:  # it is told when the module is called in earnest
            return False


def check_outputs(outputs: Any) -> str | int:
    """Check that it is "full", "trace", "diagonal", or the number of an output."""
    if isinstance(outputs, str) and outputs in {"full", "trace", "diagonal"}:
        return outputs
    try:
        number = -1 if isinstance(outputs, bool | np.bool_) else operator.index(outputs)
    except (TypeError, ValueError):
        number = -1
    if number < 0:
        raise FinwidthError(
            f'outputs is {outputs!r}; choose "full", "trace", "diagonal", or the number of one output, from 0'
        )
    return number


def check_entries(entries: Any) -> str:
    """Check that it is "full" or "diagonal"."""
    if not isinstance(entries, str) or entries not in {"full", "diagonal"}:
        raise FinwidthError(f'entries is {entries!r}; choose "full" or "diagonal"')
    return str(entries)
