"""From the arguments of `ntk` and related functions to the job to do: everything checked, and gradients planned."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import nn

from finwidth.empirical.kernel.arguments import Parameters, Scale, as_taken, check_entries, check_parameters
from finwidth.empirical.kernel.batch import Batch
from finwidth.empirical.kernel.calls import (
    FirstPass,
    MeasuredModule,
    ModuleError,
    Snapshot,
    apply,
    differentiable,
    settled,
)
from finwidth.empirical.kernel.computation import KernelJob, check_affordable, wanted_outputs
from finwidth.empirical.kernel.gradients import GradientPlan, Whole, between_functions, plan_gradients
from finwidth.empirical.kernel.groups import read_groups
from finwidth.empirical.kernel.inputs import read_batch
from finwidth.empirical.kernel.layout import Sizes
from finwidth.empirical.kernel.outputs import Wanted, read_outputs
from finwidth.empirical.kernel.working_memory import bytes_of_call
from finwidth.errors import FinwidthError
from finwidth.memory import check_memory

Tensor = torch.Tensor


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
    in_dims: object = 0,
    by: object = None,
    copies: int = 1,
    at_once: bool = False,
) -> KernelJob:
    """The kernel to compute, all arguments checked and the gradients planned, while the stack is open.

    So many copies of it have to fit what memory there is, with what the computation needs besides; of none, none.
    ``at_once``: the plan may be for these outputs only, and made by a pass of all inputs x1, if these are few.
    """
    wanted, entries, memory = read_outputs(outputs), check_entries(entries), check_memory(memory)
    if entries == "diagonal" and x2 is not None:
        raise FinwidthError('entries="diagonal" is K(x_a, x_a) of one set of inputs; leave x2 out')
    inputs = read_batch(module, x1, "x1", in_dims, trial=False)
    others = None if x2 is None else read_batch(module, x2, "x2", in_dims, trial=False)
    pairs = len(inputs) * (1 if entries == "diagonal" else len(inputs if others is None else others))
    if copies:  # before the module is called; K has at least those
        check_affordable(inputs, pairs, pairs * inputs.itemsize)
    if others is not None and others.dtype != inputs.dtype:  # of which the first pass, of x1, tells nothing
        others = _as_taken_if_whole(module, others)
    sets = [inputs] if others is None else [inputs, others]
    network, groups, first = measured(stack, module, sets, wanted, parameters, scale, by)
    if first.failed and any(map(_whole_numbers, sets)):  # stored images, perhaps
        sets = [_as_taken_if_whole(module, each) for each in sets]
        inputs, others = sets[0], None if others is None else sets[1]
        network, groups, first = measured(stack, module, sets, wanted, parameters, scale, by)
    together = [inputs[:64].join(others[:64])] if others is not None and inputs.alike(others) else sets
    planned = together if _different_functions(sets) else together[:1]
    threes = [*map(_three, planned)]
    two = planned[-1][threes[-1][:2]]
    plans: list[tuple[GradientPlan, Sizes]] = []
    known = trial = None
    if at_once and first.output is not None:
        kind, network = chosen(network, wanted, two, first.output.shape[1])
        o = len(network.combinations) if network.combinations else first.output.shape[1]
        trial = Whole(wanted_outputs(kind, o), memory, others is None)
    for whole, three in zip(planned, threes, strict=True):
        with _told_from_a_fixed_batch(network, whole):
            plan, sizes, known = plan_gradients(network, whole, three, None if plans else first, trial)
            plans.append((plan, sizes))
    if len(together) > len(plans):
        _check_outputs_alike(network, together[1], plans[0][0].outputs)
    if trial is None:
        kind, network = chosen(network, wanted, two, plans[0][0].outputs)
    plan, sizes = plans[0] if len(plans) == 1 else between_functions(network, *plans)
    plan = replace(plan, outputs=len(network.combinations) if network.combinations else plan.outputs)
    all_pairs = kind == "full" and plan.outputs > 1  # otherwise every output meets only itself
    sizes = replace(sizes, all_pairs=all_pairs, diagonal_only=entries == "diagonal", memory=memory)
    job = KernelJob(network, inputs, others, kind, plan, sizes, groups=groups, known=known)
    if copies:
        check_affordable(inputs, job.bytes // plan.dtype.itemsize, copies * job.bytes + bytes_of_call(job))
    return job


def measured(  # noqa: PLR0917
    stack: ExitStack,
    module: nn.Module,
    inputs: list[Batch],
    wanted: Wanted,
    parameters: Parameters | None,
    scale: Scale | None,
    by: object,
) -> tuple[MeasuredModule, tuple[str, ...], FirstPass]:
    """The module with the parameters that count, the names of their groups, and a pass; while the stack is open."""
    scales = check_parameters(module, parameters, scale)
    counted = {name: each for name, each in module.named_parameters() if name in scales}
    groups = read_groups(module, by, counted)
    network = MeasuredModule(
        module,
        counted,
        scales,
        Snapshot(module, hooks=False),
        function=wanted.function,
        groups=groups.of if groups else None,
    )
    network, first = stack.enter_context(settled(network, inputs))
    return network, groups.names if groups else (), first


def chosen(network: MeasuredModule, wanted: Wanted, two: Batch, outputs: int) -> tuple[str | int, MeasuredModule]:
    """The kind of kernel, and the module with the combinations of its outputs that count.

    A function that gives one number for a sample has a kernel as of one output; of ``two`` samples it returns two.
    """
    one = wanted.function is not None and returned(network, two).ndim < 2
    first = next(iter(network.parameters.values()))
    return 0 if one else wanted.kind, replace(network, combinations=wanted.combinations(outputs, first))


def returned(network: MeasuredModule, x: Batch) -> Tensor:
    """The module's outputs, or the values of their function, in the shape in which they are returned."""
    with differentiable():
        return apply(network, x, network.parameters, flat=False)


def _whole_numbers(x: Batch) -> bool:
    """Whether a module is called with one tensor of them and nothing else."""
    return x.form.plain and not x.dtype.is_floating_point and not x.dtype.is_complex


def _as_taken_if_whole(module: nn.Module, x: Batch) -> Batch:
    """The same samples; whole numbers of one tensor in a dtype that the module takes."""
    return x.like([as_taken(module, x.tensors[0])]) if _whole_numbers(x) else x


def _check_outputs_alike(network: MeasuredModule, x2: Batch, outputs: int) -> None:
    """Raise FinwidthError unless the module has as many outputs at x2, whose samples are not like those of x1."""
    with differentiable():
        others = apply(network, x2[:2], network.parameters).shape[1]
    if others != outputs:
        raise FinwidthError(
            f"the module has {outputs} outputs at x1 and {others} at x2, whose samples have other shapes; give the "
            "same kind of inputs"
        )


def _different_functions(sets: list[Batch]) -> bool:
    return len({each.form.function for each in sets}) > 1


@contextlib.contextmanager
def _told_from_a_fixed_batch(network: MeasuredModule, whole: Batch) -> Iterator[None]:
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


def _three(x: Batch) -> Tensor:
    """The places of three inputs, different if possible: equal ones would hide how samples affect each other."""
    chosen = [0]
    for i in range(min(len(x), 10_000)):
        if len(chosen) < 3 and not any(x.same(i, j) for j in chosen):
            chosen.append(i)
        if len(chosen) == 3:
            break
    others = [i for i in range(len(x)) if i not in chosen][: 3 - len(chosen)]
    return torch.tensor((chosen + others + chosen * 2)[:3], device=x.device)
