"""The kernels of several functions that share parameters, as one block matrix: `block_kernel`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import TypeAlias

import torch
from torch import nn

from finwidth.empirical.kernel.batch import Batch
from finwidth.empirical.kernel.check import Weighted, check_sum
from finwidth.empirical.kernel.computation import KernelJob, check_affordable
from finwidth.empirical.kernel.gradients import unequal_outputs
from finwidth.empirical.kernel.inputs import read_batch
from finwidth.errors import FinwidthError, shown

Tensor = torch.Tensor
_FEW, _OUTPUTS = 3, 16  # inputs of a function, and outputs of a trace, that are held against backward passes
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


def block_kernel(
    sets: list[list[Batch]],
    ask: Callable[..., KernelJob],
    find: Callable[[KernelJob], Tensor],
    progress: Callable[[int], object] | None,
    *,
    diagonal: bool,
    check: bool,
) -> tuple[Tensor, KernelJob]:
    """The block matrix of the kernels between functions, along the inputs; and the job of its first block.

    ``sets`` are the inputs x1, or x1 and x2, of every function; ``ask`` makes the job of two of them, ``find`` does it.
    Of a symmetric matrix the blocks above the diagonal are found.
    """
    K = torch.empty(0)
    first: KernelJob | None = None
    done = 0
    for i, j, mine, theirs in _block_places(sets, diagonal=diagonal):
        alone = len(sets) == 1 and i == j
        job = ask(x1=sets[0][i], x2=None if alone else sets[-1][j])
        lead = bool(job.groups)
        if first is None:
            first = job
            shape = _whole_shape(job, sets)
            check_affordable(job.x1, shape.numel(), shape.numel() * job.plan.dtype.itemsize)
            K = torch.empty(shape, dtype=job.plan.dtype, device=job.x1.device)
        elif job.plan.outputs != first.plan.outputs:
            raise FinwidthError(unequal_outputs(first.plan.outputs, job.plan.outputs))
        block, whole = find(job), K.movedim(0, -1) if lead else K
        block = block.movedim(0, -1) if lead else block
        whole[mine if diagonal else (mine, theirs)] = block
        mirrored = not diagonal and len(sets) == 1 and i != j
        if mirrored:
            turned = block.transpose(0, 1)
            whole[theirs, mine] = turned.transpose(2, 3) if job.outputs == "full" else turned
        done += job.entries.pairs * (2 if mirrored else 1)
        if progress is not None:
            progress(done)
    assert first is not None
    if check and not diagonal and (first.outputs != "trace" or first.plan.outputs <= _OUTPUTS):
        _check_assembled(K, first, sets)
    return K, first


def _check_assembled(K: Tensor, job: KernelJob, sets: list[list[Batch]]) -> None:
    """Hold a sum over entries of all blocks against backward passes."""
    generator, o = torch.Generator().manual_seed(8), job.plan.outputs
    sides = [_some_of_each(batches, generator) for batches in sets]
    (rows, _, s), (columns, _, t) = sides[0], sides[-1]
    K = K if job.groups else K[None]
    entries = K[:, rows[:, None].to(K.device), columns.to(K.device)].double().cpu()
    if job.outputs == "full":
        outputs = [torch.randn(o, generator=generator, dtype=torch.float64)]
        entries = entries @ outputs[0] @ outputs[0]
    else:
        first = job.outputs if isinstance(job.outputs, int) else 0
        outputs = list(torch.eye(o, dtype=torch.float64)[first : o if job.outputs == "trace" else first + 1])
        entries = entries[..., 0] if job.outputs == "diagonal" else entries
    weighted = [[_probe_sum(*side[1:], c) for side in sides] for c in outputs]
    check_sum(job, [(each[0], each[-1]) for each in weighted], torch.einsum("gab,a,b->g", entries, s, t))


def _some_of_each(batches: list[Batch], generator: torch.Generator) -> tuple[Tensor, list[Batch], Tensor]:
    """Numbers of some inputs of every function among those of all; these inputs; and a weight for each."""
    chosen = [torch.randperm(len(each), generator=generator)[:_FEW] for each in batches]
    starts = [each.start for each in _slices(batches)]
    rows = torch.cat([each + start for each, start in zip(chosen, starts, strict=True)])
    weights = torch.randn(len(rows), generator=generator, dtype=torch.float64)
    return rows, [batch[each] for batch, each in zip(batches, chosen, strict=True)], weights


def _probe_sum(batches: list[Batch], weights: Tensor, c: Tensor) -> Weighted:
    """The inputs of every function with the weights of their outputs."""
    parts = torch.split(weights, list(map(len, batches)))
    return [(batch, part[:, None] * c) for batch, part in zip(batches, parts, strict=True)]


def _whole_shape(job: KernelJob, sets: list[list[Batch]]) -> torch.Size:
    """The shape of the block matrix, by the job of one block."""
    sizes = [sum(map(len, each)) for each in (sets[0], sets[-1])][: 1 if job.sizes.diagonal_only else 2]
    outputs = {"full": 2, "diagonal": 1}.get(str(job.outputs), 0)
    return torch.Size([*([len(job.groups)] if job.groups else []), *sizes, *[job.plan.outputs] * outputs])


def function_labels(
    functions: Functions, sets: list[list[Batch]], dims: Collection[object]
) -> dict[str, tuple[str, list[str] | list[int]]]:
    """For every input of a block matrix the function that it is an input of, and its number among those."""
    found: dict[str, tuple[str, list[str] | list[int]]] = {}
    for mark, each in zip(("", "_"), (sets[0], sets[-1]), strict=True):
        if f"input{mark}" in dims:
            names = [name for name, batch in zip(functions.names, each, strict=True) for _ in range(len(batch))]
            found[f"function{mark}"] = f"input{mark}", names
            found[f"number{mark}"] = f"input{mark}", [i for batch in each for i in range(len(batch))]
    return found


def _block_places(sets: list[list[Batch]], *, diagonal: bool) -> Iterator[tuple[int, int, slice, slice]]:
    """The blocks that are found: numbers of two functions, and where their inputs are."""
    rows, columns = _slices(sets[0]), _slices(sets[-1])
    for i, mine in enumerate(rows):
        for j, theirs in enumerate(columns):
            if (i == j) if diagonal else (len(sets) > 1 or j >= i):
                yield i, j, mine, theirs


def _slices(batches: list[Batch]) -> list[slice]:
    return [slice(*each) for each in pairwise(accumulate(map(len, batches), initial=0))]
