"""Several functions that share parameters, and the inputs of each, as a user gives them for a block matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from torch import nn

from finwidth.empirical.kernel.batch import Batch
from finwidth.empirical.kernel.inputs import read_batch
from finwidth.errors import FinwidthError, shown

Function: TypeAlias = "nn.Module | Callable[..., object]"


class Functions(nn.Module):
    """Modules, and functions that call them, as one module that is told which to call.

    Parameters are named as in a `torch.nn.ModuleList` or `ModuleDict` of them; those of several have the first name.
    """

    def __init__(self, functions: Mapping[str, Callable[..., object]]) -> None:
        super().__init__()
        self.names, self.functions = tuple(functions), tuple(functions.values())
        for name, each in functions.items():
            if isinstance(each, nn.Module):
                self.add_module(name, each)

    def forward(self, which: int, *args: object, **kwargs: object) -> object:
        """Call one of them."""
        return self.functions[which](*args, **kwargs)


def read_functions(given: object) -> Functions:
    """The functions that a user gave in a list, or in a dict by name."""
    if isinstance(given, Mapping):
        functions = dict(given)
    else:
        functions = {str(i): each for i, each in enumerate(given)} if isinstance(given, Sequence) else {}
    names = [each for each in functions if not isinstance(each, str) or not each or "." in each]
    strange = [each for each in functions.values() if not callable(each) or isinstance(each, type)]
    if strange or names or not functions:
        raise FinwidthError(
            f"the module is {shown(given)}; give a torch.nn.Module, or a list (or a dict by name) of modules and of "
            "functions that call them"
        )
    if not any(isinstance(each, nn.Module) for each in functions.values()):
        raise FinwidthError("none of the functions is a module; give the module whose parameters they share among them")
    taken = [each for each in functions if hasattr(Functions({}), each)]
    if taken:
        raise FinwidthError(f"a function is named {taken[0]!r}, as is a part of torch.nn.Module; give it another name")
    return Functions(functions)


def read_sets(module: Functions, x: object, name: str, in_dims: object) -> list[Batch]:
    """The inputs of every function."""
    names = module.names
    if isinstance(x, Mapping) and set(x) == set(names):
        sets = [x[each] for each in names]
    elif isinstance(x, list | tuple) and len(x) == len(names):
        sets = list(x)
    else:
        raise FinwidthError(
            f"{name} is {shown(x)}; give the inputs of each of the {len(names)} functions: a list, or a dict by the "
            "same names"
        )
    found = [read_batch(module, each, f"{name}[{key!r}]", in_dims) for key, each in zip(names, sets, strict=True)]
    return [replace(each, form=replace(each.form, function=i)) for i, each in enumerate(found)]
