"""What makes a kernel this one: the numbers of module and inputs, what the module computes, and the arguments."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from finwidth.empirical.kernel.batch import Batch
from finwidth.empirical.kernel.calls import MeasuredModule, Snapshot, apply, coarsest, differentiable, gradient
from finwidth.empirical.kernel.computation import KernelJob
from finwidth.empirical.kernel.coupled import CoupledKernel
from finwidth.empirical.kernel.joint import Functions
from finwidth.empirical.kernel.layout import pieces
from finwidth.empirical.kernel.parts import KernelInParts
from finwidth.errors import FinwidthError, shown
from finwidth.stores.description import digest

Tensor = torch.Tensor
_ROWS = 2**24  # bytes of inputs that are hashed at once
_SUMS = 64  # of the values of a user's function, that are kept in a store
_OUTPUTS = 6  # of the first input, that are kept in a store
_CHANGED = {  # what is told of a part of the identity that differs
    "numbers": "the module's parameters or buffers have other numbers",
    "counted": "other parameters count, or with other scales",
    "groups": "by tells other groups of parameters apart",
    "chosen": "outputs chooses or combines other outputs of the module",
    "values": "the function outputs= gives something else",
    "x1": "x1 has other inputs",
    "x2": "x2 has other inputs",
    "function": "the module computes something else of the same parameters",
    "coupled": "one of the two is of a whole batch, by coupled=True",
}


def identity(kernel: KernelInParts) -> dict[str, object]:
    """What makes a kernel this one, in plain types.

    Of several functions it has their names, and the hashes of inputs are of those of every function; of a whole batch
    it says that it is one.
    """
    job = kernel.first
    network, module = job.network, job.network.module
    x1, *x2 = [[_batch_digest(each) for each in sides] for sides in kernel.sets]
    several = [*module.names] if isinstance(module, Functions) else None
    more = {"functions": several} if several else {"coupled": True} if isinstance(kernel, CoupledKernel) else {}
    numbers = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        "module": type(module).__name__,
        "numbers": _tensors_digest(numbers),
        "counted": digest(dict(network.scales)),
        "x1": digest(x1) if several else x1[0],
        "x2": None if not x2 else digest(x2[0]) if several else x2[0][0],
        "groups": digest([list(job.groups), dict(network.groups)]) if network.groups else None,
        "outputs": job.outputs,
        "chosen": None if network.combinations is None else _rows_digest(network.combinations.rows),
        "values": [] if network.function is None else [_value_sums(job, x) for sides in kernel.sets for x in sides],
        "entries": "diagonal" if job.sizes.diagonal_only else "full",
        "check": kernel.check,
        "function": [_few_values(each) for each in every_function(kernel)],
        **more,
    }


def _few_values(values: list[list[float]]) -> list[float]:
    """Of `function_values` the first outputs, and how long the gradient is."""
    outputs, *slopes = values
    return [*outputs[:_OUTPUTS], math.hypot(*(each for some in slopes for each in some))]


def every_function(kernel: KernelInParts, *, substituted: bool = False) -> list[list[list[float]]]:
    """The `function_values` of every function at its first input."""
    return [function_values(kernel.first.network, x[:1], substituted=substituted) for x in kernel.sets[0]]


def identity_differences(there: Mapping[str, object], here: Mapping[str, object], rounding: float) -> list[str]:
    """In messages, in what two kernels differ; numbers that the modules compute may differ by rounding."""
    if there.get("coupled") != here.get("coupled"):  # whose inputs have no hash in common
        return [_CHANGED["coupled"]]
    found = []
    for name in dict.fromkeys([*here, *there]):
        value = here.get(name)
        if name in {"function", "values"}:
            one, other = (cast("list[list[float]]", each.get(name, [])) for each in (there, here))
            if near_values(one, other, rounding):
                continue
        elif there.get(name) == value:
            continue
        found.append(_CHANGED.get(name, f"{name} was {shown(there.get(name))} and is {shown(value)}"))
    # A module with other numbers, or on other inputs, computes something else; that need not be told.
    follows = [_CHANGED["values"], _CHANGED["function"]]
    return [each for each in found if each not in follows] or found[:1]


def function_values(network: MeasuredModule, x: Batch, *, substituted: bool = False) -> list[list[float]]:
    """The outputs at inputs x, and the length of the gradient of a combination of them by each counted parameter.

    With ``substituted`` equal tensors take the place of the parameters.
    """
    parameters = network.parameters
    if substituted:
        parameters = {name: each.detach().clone().requires_grad_() for name, each in parameters.items()}
    with differentiable():
        output = apply(network, x, parameters)
        weights = torch.cos(torch.arange(1.0, output.numel() + 1)).reshape(output.shape).to(output)
        slopes = gradient(output, list(parameters.values()), weights)
    lengths = [math.sqrt(float(each.double().square().sum())) for each in slopes]
    return [output.detach().double().flatten().tolist(), lengths]


def _value_sums(job: KernelJob, x: Batch) -> list[float]:
    """What a user's function gives at all inputs: sums over some of them at a time, with weights that tell them apart.

    A function has no numbers of its own to compare, and may differ at a few of the inputs only.
    """
    found = []
    for some in pieces(range(len(x)), -(-len(x) // _SUMS)):
        total = 0.0
        for few in pieces(some, job.layout.inputs_per_pass):
            with differentiable():
                values = apply(job.network, x[few.start : few.stop], job.network.parameters).detach().double()
            places = torch.arange(few.start, few.stop)[:, None] * values.shape[1] + torch.arange(values.shape[1])
            total += float((values.cpu() * torch.cos(places.double() + 1)).sum())
        found.append(total)
    return found


def near_values(one: list[list[float]], other: list[list[float]], rounding: float) -> bool:
    """Whether `function_values` are equal up to rounding, relative to the largest of each list."""
    return len(one) == len(other) and all(
        len(a) == len(b)
        and max((abs(u - v) for u, v in zip(a, b, strict=True)), default=0.0)
        <= rounding * max(map(abs, a), default=0.0)
        for a, b in zip(one, other, strict=True)
    )


def function_rounding(kernel: KernelInParts) -> float:
    """How far `function_values` of the same functions on two machines may be apart."""
    with differentiable():
        return math.sqrt(max(coarsest(kernel.first.network, x[:2]) for x in kernel.sets[0]))


def _tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    return digest([[name, _rows_digest(each.detach())] for name, each in sorted(tensors.items())])


def _batch_digest(x: Batch) -> str:
    """A hash of samples: of their one tensor, or of all arguments and how the module is called with them."""
    form = x.form
    if form.plain:
        return _rows_digest(x.tensors[0])
    strange = [each for each in x.shared if not isinstance(each, Tensor | str | int | float | bool | None)]
    if strange or form.collate is not None:
        told = "graphs" if form.collate is not None else f"{shown(strange[0])} among its inputs"
        raise FinwidthError(
            f"a store keeps no kernel of {told}, which it could not tell from others; leave store= out, or give tensors"
        )
    shared = [_rows_digest(each) if isinstance(each, Tensor) else repr(each) for each in x.shared]
    return digest([str(form.spec), [*form.dims], form.paired, [*map(_rows_digest, x.tensors)], shared])


def _rows_digest(x: Tensor) -> str:
    """A hash of the type, shape and numbers of a tensor."""
    found = hashlib.blake2b(f"{x.dtype} {tuple(x.shape)}".encode(), digest_size=16)
    for rows in _parts_of(x):
        found.update(rows.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _parts_of(x: Tensor) -> Iterator[Tensor]:
    """A tensor in parts that do not take much memory."""
    x = x if x.layout == torch.strided else x.to_dense()
    rows = x if x.ndim else x.reshape(1)
    size = max(1, _ROWS * len(rows) // max(1, rows.numel() * x.element_size()))
    yield from (rows[i : i + size] for i in range(0, len(rows), size))


def rebuilt(kernel: KernelInParts, module: nn.Module) -> KernelInParts:
    """The kernel with a copy of the module in the place of its own."""
    scales, snapshot = kernel.first.network.scales, Snapshot(module, hooks=False)
    counted = {name: each for name, each in module.named_parameters() if name in scales}
    return kernel.with_networks(lambda each: replace(each, module=module, parameters=counted, snapshot=snapshot))
