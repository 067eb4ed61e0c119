"""The kernel of a module whose samples meet, such as in batch statistics: of all outputs of one batch, as one function.

With J the derivatives of all N O outputs of the one batch, K = J S J^T. The batch is then one sample of that many
outputs, and everything else is as in any kernel (docs/empirical-ntk.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import nn

from finwidth.empirical.kernel.arguments import Parameters, Scale, check_entries
from finwidth.empirical.kernel.batch import Batch
from finwidth.empirical.kernel.calls import Combinations
from finwidth.empirical.kernel.check import check_sum
from finwidth.empirical.kernel.computation import KernelJob, check_affordable
from finwidth.empirical.kernel.gradients import plan_whole
from finwidth.empirical.kernel.inputs import read_batch
from finwidth.empirical.kernel.outputs import read_outputs
from finwidth.empirical.kernel.parts import KernelInParts, KernelPart
from finwidth.empirical.kernel.preparation import measured, returned
from finwidth.empirical.kernel.working_memory import bytes_of_call
from finwidth.errors import FinwidthError
from finwidth.memory import check_memory

Tensor = torch.Tensor
_CHECKED = 3  # copies of the kernel between rows while a sum of it is checked


@dataclass(frozen=True, eq=False)
class CoupledKernel(KernelInParts):
    """The kernel of all outputs of one batch of ``samples``; rows of the batch's output take the place of inputs.

    There is a job for all pairs of the wanted outputs, or, if no pairs of them are wanted, one for each. ``named`` is a
    job that says which outputs these are.
    """

    named: KernelJob
    samples: int

    @property
    def first(self) -> KernelJob:
        """A job that says of the whole which module, parameters and outputs it is of."""
        return self.named

    @property
    def inputs(self) -> tuple[int, ...]:
        """Numbers of rows of the batch's output along each of their dimensions."""
        return (self.samples,) * (1 if self.named.sizes.diagonal_only else 2)

    @property
    def met(self) -> tuple[int, ...]:
        """Numbers of rows that jobs take pairs of, which all of them do."""
        return self.samples, self.samples

    def side(self, which: int, some: range) -> list[Batch]:
        """The batch, with some of the rows of its output."""
        (whole,) = self.sets[which]
        return [whole if len(some) == self.samples else replace(whole, form=replace(whole.form, rows=some))]

    def parts(self, one: list[Batch], other: list[Batch] | None) -> Iterator[KernelPart]:
        """The kernel of these rows, output by output where no pairs of them are wanted."""
        rows, columns = self._rows(one[0]), self._rows(other[0] if other else one[0])
        s = max(len(rows), len(columns))
        x1, x2 = (self.side(0, range(each.stop - s, each.stop))[0] for each in (rows, columns))  # equally many
        pairs, jobs = len(rows) if len(self.inputs) == 1 else len(rows) * len(columns), len(self.jobs)
        for i, (kind, job) in enumerate(self.jobs.items()):
            own = replace(_of_rows(job, s), x1=x1, x2=x2 if other else None)
            done = pairs * (i + 1) // jobs - pairs * i // jobs
            yield KernelPart(own, kind, slice(s - len(rows), s), slice(s - len(columns), s), done)

    def joined(self, K: Tensor | None, part: KernelPart, found: Tensor, sides: list[list[Batch]]) -> Tensor:
        """The kernel, K so far, with a part that is found, in the shape that `ntk` gives."""
        kind, lead = self.named.outputs, int(bool(self.named.groups))
        n, k = _numbers(part.job).times, len(_numbers(part.job).rows)
        found = torch.unflatten(torch.unflatten(found[..., 0, 0, :, :], -1, (n, k)), -3, (n, k)).transpose(-3, -2)
        if self.check:
            c = torch.randn(n, k, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(found.device)
            weighted = [[(x, c.reshape(1, -1))] for x in part.job.sets]
            total = torch.einsum("...abij,ai,bj->...", found.double(), c, c).reshape(-1)
            check_sum(part.job, [(weighted[0], weighted[-1])], total)
        found = found[..., part.rows, part.columns, :, :]
        found = found if kind == "full" else found[..., 0, 0]
        if self.named.sizes.diagonal_only:
            found = found.diagonal(dim1=lead, dim2=lead + 1).movedim(-1, lead).contiguous()
        if kind == "diagonal":
            K = found.new_empty((*found.shape, len(self.jobs))) if K is None else K
            K[..., part.kind[0]] = found
            return K
        return found if K is None else K.add_(found)

    def check_joined(self, K: Tensor, sides: list[list[Batch]]) -> None:
        """Nothing more: every part is held against backward passes as it is joined."""

    def at_most(self, inputs: tuple[int, ...]) -> list[KernelJob]:
        """The jobs of a block of so many rows."""
        (x,) = self.side(0, range(inputs[0]))
        x2 = x if len(inputs) == 2 else None
        return [replace(_of_rows(job, inputs[0]), x1=x, x2=x2) for job in self.jobs.values()]

    @property
    def kinds(self) -> int:
        """In parts of how many kinds a row is: in all."""
        return len(self.jobs)

    def joining_bytes(self, jobs: list[KernelJob]) -> int:
        """What it takes to put the parts of these jobs in order and to hold them against backward passes."""
        return _CHECKED * max(each.bytes for each in jobs)

    def with_jobs(self, change: Callable[[KernelJob], KernelJob]) -> Self:
        """The same kernel by other jobs."""
        jobs = {kind: change(each) for kind, each in self.jobs.items()}
        return replace(self, jobs=jobs, named=change(self.named))

    def _rows(self, x: Batch) -> range:
        return range(self.samples) if x.form.rows is None else x.form.rows


def coupled_kernel(  # noqa: PLR0917 - the arguments of ntk
    stack: ExitStack,
    module: nn.Module,
    x: object,
    outputs: object,
    entries: object,
    memory: object,
    parameters: Parameters | None,
    scale: Scale | None,
    by: object,
    *,
    check: bool,
    formed: bool,
) -> CoupledKernel:
    """The kernel of all outputs of one batch, in the parts that jobs compute; if it is to be ``formed``, it fits.

    Only what is wanted of each sample meets: the outputs one by one, if no pairs of them are wanted.
    """
    wanted, entries, memory = read_outputs(outputs), check_entries(entries), check_memory(memory)
    whole = read_batch(module, x, coupled=True)
    network, groups, _ = measured(stack, module, [whole], wanted, parameters, scale, by)
    output = returned(network, whole)
    if not output.ndim or not output.numel():
        raise FinwidthError(
            f"with coupled=True the module's output has shape {tuple(output.shape)}; it must be (N,) or (N, ...), one "
            "row for each sample"
        )
    n, o = len(output), output.numel() // len(output)
    kind = 0 if wanted.function is not None and output.ndim < 2 else wanted.kind
    own = wanted.combinations(o, output)
    if formed:
        check_affordable(whole, n * n, n * n * output.element_size())
    plan, sizes = plan_whole(network, whole)
    sizes = replace(sizes, memory=memory, all_pairs=True)
    job = KernelJob(network, whole, None, "full", plan, sizes, groups=groups)
    every = own.rows if own is not None else torch.arange(o, device=output.device)
    parts = [every] if kind == "full" else [every[[kind]]] if isinstance(kind, int) else torch.split(every, 1)
    jobs: dict[tuple[int, int], KernelJob] = {
        (i, i): _of_rows(replace(job, network=replace(network, combinations=Combinations(rows))), n)
        for i, rows in enumerate(parts)
    }
    if formed:
        one = jobs[0, 0]
        check_affordable(whole, one.bytes // plan.dtype.itemsize, one.bytes + bytes_of_call(one))
    named = replace(
        job,
        network=replace(network, combinations=own),
        outputs=kind,
        plan=replace(plan, outputs=len(every)),
        sizes=replace(sizes, diagonal_only=entries == "diagonal"),
    )
    return CoupledKernel([[whole]], jobs, check, named, n)


def _of_rows(job: KernelJob, n: int) -> KernelJob:
    """The job of the same numbers of so many rows."""
    numbers = replace(_numbers(job), times=n)
    return replace(
        job, network=replace(job.network, combinations=numbers), plan=replace(job.plan, outputs=len(numbers))
    )


def _numbers(job: KernelJob) -> Combinations:
    found = job.network.combinations
    assert found is not None
    return found
