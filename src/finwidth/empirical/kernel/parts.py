"""A kernel as the parts that jobs compute: that of one module at once, of several functions block by block.

What a part is of, and where it belongs, is said here once, for a kernel that is formed and for the blocks of a store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import NamedTuple, Self

import torch

from finwidth.empirical.kernel.batch import Batch
from finwidth.empirical.kernel.calls import MeasuredModule
from finwidth.empirical.kernel.check import Weighted, check_sum
from finwidth.empirical.kernel.computation import KernelJob, check_affordable
from finwidth.empirical.kernel.gradients import unequal_outputs
from finwidth.errors import FinwidthError

Tensor = torch.Tensor
_FEW, _OUTPUTS = 3, 16  # inputs of a function, and outputs of a trace, that are held against backward passes


class KernelPart(NamedTuple):
    """What one job computes of a kernel at some inputs, and where in it.

    ``kind`` is the key of the job that it was made of: parts of one kind may share gradients. ``pairs`` of inputs are
    done with it. ``mirrored``: the place with rows and columns exchanged has the mirror image.
    """

    job: KernelJob
    kind: tuple[int, int]
    rows: slice
    columns: slice
    pairs: int
    mirrored: bool = False


@dataclass(frozen=True, eq=False)
class KernelInParts:
    """The kernel of one module, or the block matrix of those between functions that share parameters.

    ``sets`` are the inputs x1, or x1 and x2, of every function; ``jobs`` are the kernels between two functions, by
    their numbers. With ``check``, what is computed is held against backward passes.
    """

    sets: list[list[Batch]]
    jobs: Mapping[tuple[int, int], KernelJob]
    check: bool

    @property
    def first(self) -> KernelJob:
        """A job that says of the whole which module, parameters and outputs it is of."""
        return next(iter(self.jobs.values()))

    @property
    def inputs(self) -> tuple[int, ...]:
        """Numbers of inputs along each of their dimensions."""
        return self._counts([self.sets[0], self.sets[-1]])

    @property
    def met(self) -> tuple[int, ...]:
        """Numbers of inputs that jobs take pairs of, along each dimension."""
        return self.inputs

    @property
    def symmetric(self) -> bool:
        """Whether the kernel is that of all pairs of the same inputs."""
        return len(self.inputs) == 2 and len(self.sets) == 1

    def shape(self, inputs: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the kernel at so many inputs."""
        outputs = {"full": 2, "diagonal": 1}.get(str(self.first.outputs), 0)
        groups = [len(self.first.groups)] if self.first.groups else []
        return (*groups, *inputs, *[self.first.plan.outputs] * outputs)

    def side(self, which: int, some: range) -> list[Batch]:
        """Some of the inputs x1 (0) or x2 (1), counted over all functions: those of every function that has some."""
        found = []
        for each, place in zip(self.sets[which], _slices(self.sets[which]), strict=True):
            start, stop = max(some.start, place.start) - place.start, min(some.stop, place.stop) - place.start
            if start < stop:
                found.append(each if stop - start == len(each) else each[start:stop])
        return found

    def whole(self) -> tuple[list[Batch], list[Batch] | None]:
        """All inputs, as `parts` takes them."""
        return self.sets[0], self.sets[1] if len(self.sets) == 2 else None

    def parts(self, one: list[Batch], other: list[Batch] | None) -> Iterator[KernelPart]:
        """The parts of the kernel of these inputs, from `side`; ``other`` is None if they are the same."""
        sides = [one] if other is None else [one, other]
        for i, j, rows, columns in _block_places(sides, diagonal=self.first.sizes.diagonal_only):
            x1, x2 = sides[0][i], sides[-1][j]
            alone, kind = other is None and i == j, (_function(x1), _function(x2))
            job, mirrored = replace(self.jobs[kind], x1=x1, x2=None if alone else x2), other is None and i != j
            yield KernelPart(job, kind, rows, columns, job.entries.pairs * (2 if mirrored else 1), mirrored)

    def joined(self, K: Tensor | None, part: KernelPart, found: Tensor, sides: list[list[Batch]]) -> Tensor:
        """The kernel between the inputs of two sides, K so far, with a part that is found."""
        if all(len(each) == 1 for each in sides):
            return found
        first, lead = self.first, bool(self.first.groups)
        if K is None:
            shape = torch.Size(self.shape(self._counts(sides)))
            check_affordable(first.x1, shape.numel(), shape.numel() * first.plan.dtype.itemsize)
            K = torch.empty(shape, dtype=first.plan.dtype, device=first.x1.device)
        whole, block = (each.movedim(0, -1) if lead else each for each in (K, found))
        if first.sizes.diagonal_only:
            whole[part.rows] = block
            return K
        whole[part.rows, part.columns] = block
        if part.mirrored:
            turned = block.transpose(0, 1)
            whole[part.columns, part.rows] = turned.transpose(2, 3) if first.outputs == "full" else turned
        return K

    def check_joined(self, K: Tensor, sides: list[list[Batch]]) -> None:
        """Hold a sum over entries of several parts against backward passes."""
        job = self.first
        o, apart = job.plan.outputs, all(len(each) == 1 for each in sides) or job.sizes.diagonal_only
        if not self.check or apart or (job.outputs == "trace" and o > _OUTPUTS):
            return
        generator = torch.Generator().manual_seed(8)
        some = [_some_of_each(batches, generator) for batches in sides]
        (rows, _, s), (columns, _, t) = some[0], some[-1]
        K = K if job.groups else K[None]
        entries = K[:, rows[:, None].to(K.device), columns.to(K.device)].double().cpu()
        if job.outputs == "full":
            outputs = [torch.randn(o, generator=generator, dtype=torch.float64)]
            entries = entries @ outputs[0] @ outputs[0]
        else:
            first = job.outputs if isinstance(job.outputs, int) else 0
            outputs = list(torch.eye(o, dtype=torch.float64)[first : o if job.outputs == "trace" else first + 1])
            entries = entries[..., 0] if job.outputs == "diagonal" else entries
        weighted = [[_probe_sum(*each[1:], c) for each in some] for c in outputs]
        check_sum(job, [(each[0], each[-1]) for each in weighted], torch.einsum("gab,a,b->g", entries, s, t))

    # ---- for a store

    def at_most(self, inputs: tuple[int, ...]) -> list[KernelJob]:
        """The jobs of the largest parts of a block of so many inputs."""
        found = []
        for job in self.jobs.values():
            x2 = job.x1 if job.x2 is None else job.x2
            found.append(replace(job, x1=job.x1[: inputs[0]], x2=None if len(inputs) == 1 else x2[: inputs[1]]))
        return found

    @property
    def kinds(self) -> int:
        """In parts of how many kinds an input is: those of its function with every other."""
        return len(self.sets[0])

    def joining_bytes(self, jobs: list[KernelJob]) -> int:
        """What it takes to put the parts of these jobs together, beside the kernel of all of them."""
        return 0 if len(jobs) == 1 else max(each.bytes for each in jobs)

    def at_first_inputs(self) -> Self:
        """The same kernel at the first input of every function only, copied."""
        few: dict[int, Batch] = {}

        def first(x: Batch) -> Batch:
            return few.setdefault(id(x), x[:1].clone())

        found = self.with_jobs(lambda job: replace(job, x1=first(job.x1), x2=job.x2 and first(job.x2)))
        return replace(found, sets=[[first(each) for each in sides] for sides in self.sets])

    def with_jobs(self, change: Callable[[KernelJob], KernelJob]) -> Self:
        """The same kernel by other jobs."""
        return replace(self, jobs={kind: change(each) for kind, each in self.jobs.items()})

    def with_networks(self, change: Callable[[MeasuredModule], MeasuredModule]) -> Self:
        """The same kernel of other modules."""
        return self.with_jobs(lambda job: replace(job, network=change(job.network)))

    def within(self, memory: int) -> Self:
        """The same kernel in so much memory."""
        return self.with_jobs(lambda job: replace(job, sizes=replace(job.sizes, memory=memory)))

    def _counts(self, sides: list[list[Batch]]) -> tuple[int, ...]:
        counts = [sum(map(len, each)) for each in sides]
        return (counts[0],) if self.first.sizes.diagonal_only else (counts[0], counts[-1])


def in_functions(
    sets: list[list[Batch]], ask: Callable[..., KernelJob], *, diagonal: bool, check: bool
) -> KernelInParts:
    """The block matrix of the kernels between functions at their inputs; ``ask`` makes the job of two of them."""
    jobs: dict[tuple[int, int], KernelJob] = {}
    for i, j, *_ in _block_places(sets, diagonal=diagonal):
        alone = len(sets) == 1 and i == j
        jobs[i, j] = ask(x1=sets[0][i], x2=None if alone else sets[-1][j])
    first, *others = (each.plan.outputs for each in jobs.values())
    unlike = [each for each in others if each != first]
    if unlike:
        raise FinwidthError(unequal_outputs(first, unlike[0]))
    return KernelInParts(sets, jobs, check)


def _function(x: Batch) -> int:
    """The number of the function that a batch is of."""
    return x.form.function or 0


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


def _block_places(sets: list[list[Batch]], *, diagonal: bool) -> Iterator[tuple[int, int, slice, slice]]:
    """The blocks that are found: numbers of two functions, and where their inputs are."""
    rows, columns = _slices(sets[0]), _slices(sets[-1])
    for i, mine in enumerate(rows):
        for j, theirs in enumerate(columns):
            if (i == j) if diagonal else (len(sets) > 1 or j >= i):
                yield i, j, mine, theirs


def _slices(batches: list[Batch]) -> list[slice]:
    return [slice(*each) for each in pairwise(accumulate(map(len, batches), initial=0))]
