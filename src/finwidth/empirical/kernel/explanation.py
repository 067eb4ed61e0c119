"""How `ntk` would find the kernel of a module, in what time and memory: `explain`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from finwidth.documents import plain
from finwidth.empirical.kernel.arguments import Parameters, Scale, check_module
from finwidth.empirical.kernel.calls import measuring
from finwidth.empirical.kernel.computation import KernelJob, compute, tiles_of
from finwidth.empirical.kernel.gradients import GradientPlan
from finwidth.empirical.kernel.inputs import InDims
from finwidth.empirical.kernel.outputs import Outputs
from finwidth.empirical.kernel.preparation import prepare
from finwidth.empirical.kernel.working_memory import bytes_of_call
from finwidth.tables import Result, Table, Told

Tensor = torch.Tensor
T = TypeVar("T")
_TRIAL = 64  # inputs at the most


@dataclass(frozen=True)
class Route:
    """How the gradients by one parameter are found.

    Attributes
    ----------
    parameter
        Its name.
    numbers
        How many it has.
    route
        ``"products"``: not formed, but for layers where that is quicker; one pass gives those at many inputs.
        ``"pulled back"``: in the same pass the gradients by a weight that is made of the parameter are formed, and from
        them those by the parameter. ``"torch.func"``: formed, input by input, under vmap. Where torch.func cannot
        follow, ``"traced"``: formed by one pass, in which it is found out which sample every row of an operation
        belongs to; or ``"few at once"``: by passes of a few inputs. ``"one by one"``: formed by a backward pass for
        every input and output.
    reason
        Why it is not ``"products"``; empty where it is.
    """

    parameter: str
    numbers: int
    route: str
    reason: str


@dataclass(frozen=True, repr=False)
class Explanation(Result):
    """What `explain` found; printed, it is a table.

    Attributes
    ----------
    routes
        One for each parameter that counts.
    kernel_bytes, working_bytes
        Memory of the kernel itself, and the most beside it, the check included.
    seconds
        The time to expect, from trials on a few of the inputs.
    block, inputs_at_once
        How many inputs a block has, and how many of them a pass.
    """

    routes: tuple[Route, ...]
    kernel_bytes: int
    working_bytes: int
    seconds: float
    block: int
    inputs_at_once: int

    def content(self) -> dict[str, object]:
        """The attributes."""
        found: dict[str, object] = plain(asdict(self))
        return found

    def _table(self) -> Table:
        """A row for each parameter, and time and memory."""
        reasons = any(each.reason for each in self.routes)
        table = Table("Routes to the kernel", ("parameter", "numbers", "route", *["reason"] * reasons))
        for each in self.routes:
            table.add(each.parameter, Told(each.numbers, f"{each.numbers:,}"), each.route, *[each.reason] * reasons)
        table.notes = (
            f"about {self.seconds:.2g} s; {_size(self.kernel_bytes)} for the kernel and at most "
            f"{_size(self.working_bytes)} beside it; blocks of {self.block} inputs, {self.inputs_at_once} at a time"
        )
        return table

    def _headline(self) -> str:
        return (
            f"{len(self.routes)} parameters: about {self.seconds:.2g} s, {_size(self.kernel_bytes)} for the kernel "
            f"and at most {_size(self.working_bytes)} beside it"
        )


def explain(
    module: nn.Module,
    x1: object,
    x2: object = None,
    outputs: Outputs = "full",
    *,
    entries: str = "full",
    memory: str | int = "1GiB",
    parameters: Parameters | None = None,
    scale: Scale | None = None,
    in_dims: InDims = 0,
) -> Explanation:
    """Which parameters of a module take which route to the kernel and why, and the time and memory to expect.

    Parameters
    ----------
    module, x1, x2, outputs, entries, memory, parameters, scale, in_dims
        As for `finwidth.empirical.ntk`.

    Raises
    ------
    FinwidthError
        As `finwidth.empirical.ntk` before it computes anything, but for a kernel that memory does not hold: it is told
        how large that is.

    Examples
    --------
    >>> import torch
    >>> from finwidth.empirical import explain
    >>> module = torch.nn.Sequential(torch.nn.EmbeddingBag(10, 3, mode="max"), torch.nn.Linear(3, 2))
    >>> found = explain(module, torch.randint(10, (50, 4)), outputs="trace")
    >>> for each in found.routes:
    ...     print(", ".join([each.parameter, each.route, each.reason or "-"]))
    0.weight, torch.func, used in EmbeddingBag, for which there is no rule
    1.weight, products, -
    1.bias, products, -
    """
    with measuring(check_module(module)) as stack:
        ask = partial(prepare, stack, module, x1, x2, outputs, entries, memory, parameters, scale, in_dims=in_dims)
        job = replace(ask(copies=0, at_once=True), known=None)  # so that the passes of trials are timed
        seconds, job = _seconds(job)
        layout, working = job.layout, bytes_of_call(job)
    routes = tuple(_route(job.plan, name, each) for name, each in job.network.parameters.items())
    return Explanation(routes, job.bytes, working, seconds, layout.inputs, layout.inputs_per_pass)


def _route(plan: GradientPlan, name: str, parameter: Tensor) -> Route:
    if name in plan.general:
        return Route(name, parameter.numel(), plan.ways[0], plan.general[name])
    if name in plan.pulled and name not in plan.rows:
        return Route(name, parameter.numel(), "pulled back", "a weight is made of it, or operations share it")
    return Route(name, parameter.numel(), "products", "")


def _seconds(job: KernelJob) -> tuple[float, KernelJob]:
    """The time to expect, from a few of the inputs; and the job, by a plan that works.

    Passes take time in proportion to the inputs, and products to the pairs of them.
    """
    N, others = len(job.x1), len(job.x1 if job.x2 is None else job.x2)
    rows = torch.arange(min(_TRIAL, N))
    _, part = compute(job.among(rows, None if job.x2 is None else rows[:others], job.outputs))  # once in a process
    job = replace(job, plan=part.plan)
    layout = part.layout
    blocks = [each for group in layout.groups for each in layout.blocks(group)]
    whole = _fastest(compute, [part])
    passes = _fastest(partial(tiles_of, part, passed={}), blocks) / len(rows)
    pairs = max(0.0, whole - passes * len(rows)) / len(rows) ** 2
    if job.sizes.diagonal_only:
        return whole / len(rows) * N, job
    many = -(-N // job.layout.inputs)
    return passes * (N + others) / 2 * max(1.0, 1 / many + (many - 1) / 2) + pairs * N * others, job


def _fastest(call: Callable[[T], object], arguments: Sequence[T]) -> float:
    """The shorter of two times of calls one after another, as other work of the machine only adds to them."""
    times = []
    for _ in range(2):
        began = time.perf_counter()
        for each in arguments:
            call(each)
        times.append(time.perf_counter() - began)
    return min(times)


def _size(bytes_: int) -> str:
    return f"{bytes_ / 2**20:.3g} MiB" if bytes_ < 2**30 else f"{bytes_ / 2**30:.3g} GiB"
