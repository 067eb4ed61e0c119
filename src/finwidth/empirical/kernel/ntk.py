"""The empirical kernel of any torch module: `ntk`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import nn

from finwidth import arguments
from finwidth.arguments import flag
from finwidth.empirical.kernel.arguments import (
    Parameters,
    Scale,
    check_batch,
    check_entries,
    check_module,
    check_outputs,
    check_parameters,
    numpy_of,
)
from finwidth.empirical.kernel.calls import (
    MeasuredModule,
    ModuleError,
    Snapshot,
    apply,
    differentiable,
    measuring,
    settled,
)
from finwidth.empirical.kernel.check import checked
from finwidth.empirical.kernel.computation import KernelJob, check_affordable, compute
from finwidth.empirical.kernel.gradients import plan_gradients
from finwidth.empirical.kernel_store.fill import check_store, stored_ntk
from finwidth.errors import FinwidthError
from finwidth.memory import check_memory
from finwidth.quantities import KERNEL_DRAWS

if TYPE_CHECKING:
    import xarray as xr

Tensor = torch.Tensor

_OUTPUT_DIMS = {"full": ("output", "output_"), "diagonal": ("output",)}


@overload
def ntk(
    module: nn.Module,
    x1: object,
    x2: object = ...,
    outputs: str | int = ...,
    *,
    entries: str = ...,
    memory: str | int = ...,
    parameters: Parameters | None = ...,
    scale: Scale | None = ...,
    check: bool = ...,
    labelled: Literal[False] = ...,
    progress: Callable[[int], object] | None = ...,
) -> Tensor: ...


@overload
def ntk(
    module: nn.Module,
    x1: object,
    x2: object = ...,
    outputs: str | int = ...,
    *,
    entries: str = ...,
    memory: str | int = ...,
    parameters: Parameters | None = ...,
    scale: Scale | None = ...,
    check: bool = ...,
    labelled: Literal[True],
    progress: Callable[[int], object] | None = ...,
) -> xr.DataArray: ...


@overload
def ntk(
    module: nn.Module,
    x1: object,
    x2: object = ...,
    outputs: str | int = ...,
    *,
    entries: str = ...,
    memory: str | int = ...,
    parameters: Parameters | None = ...,
    scale: Scale | None = ...,
    check: bool = ...,
    labelled: bool = ...,
    progress: Callable[[int], object] | None = ...,
    store: str | Path,
    workers: int | None = ...,
    scheduler: str | None = ...,
) -> xr.DataArray: ...


def ntk(
    module: nn.Module,
    x1: object,
    x2: object = None,
    outputs: str | int = "full",
    *,
    entries: str = "full",
    memory: str | int = "1GiB",
    parameters: Parameters | None = None,
    scale: Scale | None = None,
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
        A module that takes one tensor of shape (N, ...) and returns one of shape (N,) or (N, ...), the samples first
        and independent of each other; the O outputs of a sample are all its numbers, in order, and 1 for shape (N,).
        It is used in the mode it is in; batch normalisation and dropout must be in eval mode.
    x1, x2
        Inputs, shapes (N1, ...) and (N2, ...); x2 is x1 by default, for half the work. They are moved to the module's
        device and, if floating, to its dtype, which is that of the computation: ``module.double()`` gives float64.
    outputs
        ``"full"``: all pairs of outputs; ``"diagonal"``: every output with itself; ``"trace"``: the sum of those, not
        their mean; or the number of one output, from 0.
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
    """
    check, labelled, tell = flag("check", check), flag("labelled", labelled), arguments.progress(progress)
    where = check_store(store, workers, scheduler)
    with measuring(check_module(module), alone=where is None) as stack:
        job = prepare(stack, module, x1, x2, outputs, entries, memory, parameters, scale, held=where is None)
        job = replace(job, progress=tell)
        if where is not None:
            return stored_ntk(job, where, stack, _attributes("K", job), _dims(job), check=check)
        check_affordable(job.x1, job.bytes // job.plan.dtype.itemsize, job.bytes + job.working_bytes)
        K = checked(job, compute) if check else compute(job)[0]
    return label(K, "K", job) if labelled else K


def prepare(  # noqa: PLR0917 - the arguments of ntk
    stack: ExitStack,
    module: nn.Module,
    x1: object,
    x2: object,
    outputs: object,
    entries: object,
    memory: object,
    parameters: Parameters | None,
    scale: Scale | None,
    *,
    held: bool = True,
) -> KernelJob:
    """The kernel to compute, all arguments checked and the gradients planned, while the stack is open.

    ``held``: it has to fit the memory.
    """
    outputs, entries, memory = check_outputs(outputs), check_entries(entries), check_memory(memory)
    if entries == "diagonal" and x2 is not None:
        raise FinwidthError('entries="diagonal" is K(x_a, x_a) of one set of inputs; leave x2 out')
    scales = check_parameters(module, parameters, scale)
    counted = {name: each for name, each in module.named_parameters() if name in scales}
    inputs = check_batch(module, x1)
    others = None if x2 is None else check_batch(module, x2, "x2")
    pairs = len(inputs) * (1 if entries == "diagonal" else len(inputs if others is None else others))
    if held:  # before the module is called; K has at least those
        check_affordable(inputs, pairs, pairs * inputs.element_size())
    changing = stack.enter_context(settled(module, [inputs] if others is None else [inputs, others]))
    network = MeasuredModule(module, counted, scales, Snapshot(module, hooks=False), changing=changing)
    alike = others is not None and inputs.shape[1:] == others.shape[1:] and inputs.dtype == others.dtype
    with _told_from_a_fixed_batch(network, inputs):
        few = _three(torch.cat([inputs[:64], others[:64]]) if others is not None and alike else inputs)
        plan, sizes = plan_gradients(network, few)
    o = plan.outputs
    if isinstance(outputs, int) and outputs >= o:
        raise FinwidthError(f"outputs is {outputs}, and the module has {o}, numbered from 0")
    all_pairs = outputs == "full" and o > 1  # otherwise every output meets only itself
    sizes = replace(sizes, all_pairs=all_pairs, diagonal_only=entries == "diagonal", memory=memory)
    return KernelJob(network, inputs, others, outputs, plan, sizes)


@contextlib.contextmanager
def _told_from_a_fixed_batch(network: MeasuredModule, whole: Tensor) -> Iterator[None]:
    """Where a module cannot be called with a few of the inputs, say so if it can be called with all of them."""
    try:
        yield
    except ModuleError as error:
        try:
            with differentiable():
                apply(network, whole, network.parameters)
        except FinwidthError:
            raise error from None
        raise FinwidthError(
            f"{error}; it does take all {len(whole)} inputs at once, and must take any number of them: samples must "
            "not need each other (batch statistics: call module.eval() first), nor the batch have a fixed size (write "
            "x.view(len(x), -1) and the like)"
        ) from None


def _three(x: Tensor) -> Tensor:
    """Three inputs, different if possible: equal ones would hide how samples affect each other."""
    chosen = [0]
    for i, row in enumerate(x):
        if len(chosen) < 3 and not any(torch.equal(row, x[j]) for j in chosen):
            chosen.append(i)
        if len(chosen) == 3 or i > 10_000:
            break
    return x[(chosen + [i for i in range(len(x)) if i not in chosen][: 3 - len(chosen)] + chosen * 2)[:3]]


def label(K: Tensor, name: str, job: KernelJob) -> xr.DataArray:
    """A result with the names of its dimensions and where it comes from."""
    import xarray as xr

    return xr.DataArray(numpy_of(K), dims=_dims(job), name=name, attrs=_attributes(name, job))


def _dims(job: KernelJob) -> tuple[str, ...]:
    inputs = ("input",) if job.sizes.diagonal_only else ("input", "input_")
    return (*inputs, *_OUTPUT_DIMS.get(str(job.outputs), ()))


def _attributes(name: str, job: KernelJob) -> dict[str, object]:
    return {
        **KERNEL_DRAWS[name].attrs,
        "long_name": "neural tangent kernel" if name == "K" else "first-order change of the kernel under one SGD step",
        "finwidth_version": version("finwidth"),
        "method": "empirical",
        "module": type(job.network.module).__name__,
        "outputs": job.outputs,
    }
