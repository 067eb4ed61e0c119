"""The empirical kernel of any torch module: `ntk`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import nn

from finwidth import arguments
from finwidth.arguments import flag
from finwidth.empirical.kernel.arguments import Parameters, Scale, check_entries, check_module, numpy_of
from finwidth.empirical.kernel.batch import Batch
from finwidth.empirical.kernel.calls import measuring
from finwidth.empirical.kernel.check import checked
from finwidth.empirical.kernel.computation import KernelJob, compute
from finwidth.empirical.kernel.coupled import coupled_kernel
from finwidth.empirical.kernel.groups import By
from finwidth.empirical.kernel.inputs import InDims
from finwidth.empirical.kernel.joint import Function, Functions, read_functions, read_sets
from finwidth.empirical.kernel.outputs import Outputs
from finwidth.empirical.kernel.parts import KernelInParts, in_functions
from finwidth.empirical.kernel.preparation import prepare
from finwidth.empirical.kernel_store.array import function_coordinates
from finwidth.empirical.kernel_store.fill import ArrayLabels, check_store, stored_ntk
from finwidth.errors import FinwidthError
from finwidth.quantities import KERNEL_DRAWS

if TYPE_CHECKING:
    import xarray as xr

Tensor = torch.Tensor

_OUTPUT_DIMS = {"full": ("output", "output_"), "diagonal": ("output",)}


@overload
def ntk(
    module: nn.Module | Sequence[Function] | Mapping[str, Function],
    x1: object,
    x2: object = ...,
    outputs: Outputs = ...,
    *,
    entries: str = ...,
    memory: str | int = ...,
    parameters: Parameters | None = ...,
    scale: Scale | None = ...,
    in_dims: InDims = ...,
    by: By | None = ...,
    coupled: bool = ...,
    check: bool = ...,
    labelled: Literal[False] = ...,
    progress: Callable[[int], object] | None = ...,
) -> Tensor: ...


@overload
def ntk(
    module: nn.Module | Sequence[Function] | Mapping[str, Function],
    x1: object,
    x2: object = ...,
    outputs: Outputs = ...,
    *,
    entries: str = ...,
    memory: str | int = ...,
    parameters: Parameters | None = ...,
    scale: Scale | None = ...,
    in_dims: InDims = ...,
    by: By | None = ...,
    coupled: bool = ...,
    check: bool = ...,
    labelled: Literal[True],
    progress: Callable[[int], object] | None = ...,
) -> xr.DataArray: ...


@overload
def ntk(
    module: nn.Module | Sequence[Function] | Mapping[str, Function],
    x1: object,
    x2: object = ...,
    outputs: Outputs = ...,
    *,
    entries: str = ...,
    memory: str | int = ...,
    parameters: Parameters | None = ...,
    scale: Scale | None = ...,
    in_dims: InDims = ...,
    by: By | None = ...,
    coupled: bool = ...,
    check: bool = ...,
    labelled: bool = ...,
    progress: Callable[[int], object] | None = ...,
    store: str | Path,
    workers: int | None = ...,
    scheduler: str | None = ...,
) -> xr.DataArray: ...


def ntk(
    module: nn.Module | Sequence[Function] | Mapping[str, Function],
    x1: object,
    x2: object = None,
    outputs: Outputs = "full",
    *,
    entries: str = "full",
    memory: str | int = "1GiB",
    parameters: Parameters | None = None,
    scale: Scale | None = None,
    in_dims: InDims = 0,
    by: By | None = None,
    coupled: bool = False,
    check: bool = True,
    labelled: bool = False,
    progress: Callable[[int], object] | None = None,
    store: str | Path | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
) -> Tensor | xr.DataArray:
    """The empirical neural tangent kernel of any torch module, K_ij(x_a, x_b) = sum_p s_p <dN_i(x_a)/dp, dN_j(x_b)/dp>.

    The sum runs over the parameters p, s_p is the scale of each. No Jacobian is formed for the usual layers: K is a sum
    over layers of products of their inputs and of the outputs' gradients by their results (docs/empirical-ntk.md).
    Parameters used in any other way are found out and left to torch.func, so that any module works.

    Parameters
    ----------
    module
        A module that returns one tensor of shape (N,) or (N, ...), the samples first and independent of each other; the
        O outputs of a sample are all its numbers, in order, and 1 for shape (N,). Of a mapping, such as transformers'
        ModelOutput, ``logits`` are taken. It is used in the mode it is in; batch normalisation and dropout must be in
        eval mode. A list, or a dict by name, of modules and functions that share parameters gives the block matrix of
        their kernels along the inputs (docs/inputs.md).
    x1, x2
        Inputs: a tensor of shape (N, ...); a tuple, for ``module(*x1)``, or a dict, for ``module(**x1)``, of tensors
        and other arguments; a Dataset, a DataLoader that does not shuffle, or a list of samples, where a pair is an
        input and its target; a batch of graphs. Of several functions, a list or dict of the inputs of each. x2 is x1
        by default, for half the work. Tensors are moved to the module's device and, if floating, to its dtype, which is
        that of the computation: ``module.double()`` gives float64.
    outputs
        ``"full"``: all pairs of outputs; ``"diagonal"``: every output with itself; ``"trace"``: the sum of those, not
        their mean; the number of one output, from 0. A list or slice of numbers: all pairs of these. A matrix (k, O):
        all pairs of the k combinations that its rows are; a vector (O,) is one. A function of what the module returns
        and the samples: all pairs of the numbers that it returns for each sample, or one.
    entries
        ``"full"``: all pairs of inputs; ``"diagonal"``: K(x_a, x_a) only.
    memory
        Most working memory beside the kernel itself, a text such as ``"200MB"`` or bytes; inputs, and if need be
        outputs, are taken in blocks that keep to it. The kernel itself has to fit what there is (`finwidth.memory`).
    parameters
        Which parameters count: their names, or a function of name and parameter that says so; by default all. Those
        that do not require a gradient never count.
    scale
        A multiplier for each parameter: a dict by name, 1 where it says nothing, or a function of name and parameter.
        With the weights' variance 1/fan_in, for instance, the kernel is that of the NTK parameterization.
    in_dims
        The dimension of the samples in the inputs, as for `torch.func.vmap`: a number, or a tuple or dict like the
        inputs; None for what all samples share. Numbers, texts and the like are shared in any case.
    by
        Tell the contributions of groups of parameters apart, in the first dimension; they add up to K. ``"layer"``:
        each module that has parameters of its own; ``"module"``: each child of the module; or a dict from names to
        parameters' names, or modules, where the parameters of none are the last group, "rest".
    coupled
        The kernel of the outputs of one batch as one function, for a module whose samples meet, such as by batch
        normalisation in training mode: J S J^T, J the derivatives of all N O outputs of this batch.
    check
        Hold numbers of the kernel against plain backward passes of the module itself (docs/empirical-ntk.md says what
        that finds and costs). Where they do not agree, K is found again, one sample and output at a time.
    labelled
        Return a DataArray with named dimensions.
    progress
        Called with the number of pairs of inputs finished, each time some are; in the end N1 N2.
    store
        A Zarr store that keeps the kernel, block by block as they are done, so that it may be larger than the memory; a
        call that was stopped, in whatever way, goes on to the same bits (docs/kernel-store.md).
    workers
        With a store, how many blocks are computed at once; by default one for each core, as far as ``memory`` allows.
    scheduler
        The address of a Dask scheduler whose workers compute the blocks instead, such as ``"tcp://host:8786"``.

    Returns
    -------
    torch.Tensor or xarray.DataArray
        On the module's device and in its dtype, not differentiable. With a store a DataArray of what is in it, whose
        numbers are read when they are needed.

        | outputs | entries="full" | entries="diagonal" |
        |---|---|---|
        | "full" | (N1, N2, O, O): input, input_, output, output_ | (N1, O, O): input, output, output_ |
        | "diagonal" | (N1, N2, O): input, input_, output | (N1, O): input, output |
        | "trace" or a number | (N1, N2): input, input_ | (N1,): input |

        A list, a slice, a matrix and a function are like "full", a vector or a function that gives one number like a
        number. With ``by`` there is one more dimension before all others, group.

    Raises
    ------
    FinwidthError
        If an argument is not allowed; if the module draws random numbers or mixes the samples of a batch, by layer
        where one can be named; if ``memory`` does not suffice for one input; if a store is that of another kernel,
        damaged, in use or full.

    Examples
    --------
    >>> import torch
    >>> from finwidth.empirical import ntk
    >>> module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).double()
    >>> x = torch.randn(5, 3, dtype=torch.float64)
    >>> K = ntk(module, x)
    >>> K.shape
    torch.Size([5, 5, 2, 2])
    >>> weights = ntk(module, x, parameters=lambda name, p: p.ndim > 1)
    >>> biases = ntk(module, x, parameters=["0.bias", "2.bias"])
    >>> torch.allclose(weights + biases, K)
    True
    >>> ntk(module, x, outputs="trace", labelled=True).dims
    ('input', 'input_')
    >>> ntk(module, x, outputs="trace", by="layer", labelled=True).sel(group="0").shape
    (5, 5)
    """
    check, labelled, tell = flag("check", check), flag("labelled", labelled), arguments.progress(progress)
    where = check_store(store, workers, scheduler)
    functions = None if isinstance(module, nn.Module) else read_functions(module)
    if flag("coupled", coupled) and (functions is not None or x2 is not None):
        raise FinwidthError("coupled=True is the kernel of one module at one batch; give one module, and leave x2 out")
    whole = check_module(module if functions is None else functions, coupled=coupled)
    find = partial(checked, compute=compute, check=check)
    K: Tensor | None = None
    with measuring(whole, alone=where is None) as stack:
        ask = partial(prepare, stack, whole, outputs=outputs, entries=entries, memory=memory, by=by)
        ask = partial(ask, parameters=parameters, scale=scale, in_dims=in_dims, copies=int(where is None))
        if coupled:
            options = outputs, entries, memory, parameters, scale, by
            kernel: KernelInParts = coupled_kernel(stack, whole, x1, *options, check=check, formed=where is None)
        elif functions is None:
            job = replace(ask(x1=x1, x2=x2, at_once=where is None), progress=None if where else tell)
            kernel = KernelInParts([[each] for each in job.sets], {(0, 0): job}, check)
        else:
            given = [("x1", x1)] if x2 is None else [("x1", x1), ("x2", x2)]
            sets = [read_sets(functions, each, name, in_dims) for name, each in given]
            kernel = in_functions(sets, ask, diagonal=check_entries(entries) == "diagonal", check=check)
        named = partial(_array_labels, "K", kernel.first, functions, kernel.sets)  # which takes half a millisecond
        if where is not None:
            return stored_ntk(kernel, where, stack, named(), tell)
        one, other = kernel.whole()
        done = 0
        for part in kernel.parts(one, other):
            K = kernel.joined(K, part, find(part.job), kernel.sets)
            done += part.pairs
            if tell is not None and part.job.progress is None:
                tell(done)
        assert K is not None
        kernel.check_joined(K, kernel.sets)
    return _with_names(K, "K", named()) if labelled else K


def label(K: Tensor, name: str, job: KernelJob) -> xr.DataArray:
    """A result with the names of its dimensions and where it comes from."""
    return _with_names(K, name, _array_labels(name, job))


def _with_names(K: Tensor, name: str, named: ArrayLabels) -> xr.DataArray:
    import xarray as xr

    coordinates = {**named.labels, **function_coordinates(named.functions)}
    return xr.DataArray(numpy_of(K), coordinates, named.dims, name, named.attrs)


def _array_labels(
    name: str, job: KernelJob, functions: Functions | None = None, sets: Sequence[Sequence[Batch]] = ()
) -> ArrayLabels:
    dims = _dims(job)
    sizes: dict[str, dict[str, int]] = {}
    if functions is not None:
        of_dims = {"input": sets[0], "input_": sets[-1]}
        sizes = {
            dim: dict(zip(functions.names, map(len, each), strict=True)) for dim, each in of_dims.items() if dim in dims
        }
    return ArrayLabels(_attributes(name, job), dims, _labels(job), sizes)


def _dims(job: KernelJob) -> tuple[str, ...]:
    groups = ("group",) if job.groups else ()
    inputs = ("input",) if job.sizes.diagonal_only else ("input", "input_")
    return (*groups, *inputs, *_OUTPUT_DIMS.get(str(job.outputs), ()))


def _labels(job: KernelJob) -> dict[str, list[str] | list[int]]:
    """The names of groups, and the numbers of outputs where some are chosen."""
    combinations, outputs = job.network.combinations, _OUTPUT_DIMS.get(str(job.outputs), ())
    found: dict[str, list[str] | list[int]] = {"group": list(job.groups)} if job.groups else {}
    if combinations is not None and not combinations.rows.is_floating_point():
        found |= dict.fromkeys(outputs, combinations.rows.tolist())
    return found


def _attributes(name: str, job: KernelJob) -> dict[str, object]:
    function = job.network.function
    return {
        **KERNEL_DRAWS[name].attrs,
        "long_name": "neural tangent kernel" if name == "K" else "first-order change of the kernel under one SGD step",
        "finwidth_version": version("finwidth"),
        "method": "empirical",
        "module": type(job.network.module).__name__,
        "outputs": job.outputs if function is None else getattr(function, "__name__", type(function).__name__),
    }
