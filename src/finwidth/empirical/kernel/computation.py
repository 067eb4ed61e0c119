"""One kernel to compute, as a value: `KernelJob`; and its computation, pass by pass and block by block: `compute`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

import torch

from finwidth.empirical.kernel.batch import Batch
from finwidth.empirical.kernel.calls import MeasuredModule, apply, differentiable
from finwidth.empirical.kernel.forming import ALONE, TRACED
from finwidth.empirical.kernel.gradients import (
    GradientPlan,
    WholePass,
    few_gradients,
    follows,
    general_plan,
    gradients,
)
from finwidth.empirical.kernel.layout import Block, Entries, Layout, Pass, Sizes, fit_memory
from finwidth.empirical.kernel.recording import Recorder
from finwidth.empirical.kernel.tiles import BlockTiles, Tile, add_diagonal, add_products, compact
from finwidth.empirical.kernel.weights import OtherRouteError
from finwidth.errors import FinwidthError
from finwidth.memory import afford, amount
from finwidth.progress import stage

Tensor = torch.Tensor
# Outputs by the set of inputs, x1 or x2, and the first input of a pass, as often as it was made.
Passed: TypeAlias = dict[tuple[bool, int], list[Tensor]]


@dataclass(frozen=True, eq=False)
class KernelJob:
    """A kernel to compute: of which network, at which inputs, of which outputs, by which plan, in how much memory.

    ``x2`` is None if it is x1; ``outputs`` is what the user gave; ``sizes`` say what the memory is needed for, and how
    much there is. With ``groups``, by name, the kernel has their contributions in its first dimension. ``known``
    has the gradients that the plan was made by, if it was by a pass of all inputs. ``passed`` has the outputs of the
    passes by which it was computed, if not all gradients were formed.
    """

    network: MeasuredModule
    x1: Batch
    x2: Batch | None
    outputs: str | int
    plan: GradientPlan
    sizes: Sizes
    progress: Callable[[int], object] | None = None
    groups: tuple[str, ...] = ()
    known: WholePass | None = None
    passed: Passed = field(default_factory=dict)

    @property
    def sets(self) -> list[Batch]:
        """The inputs, each set once."""
        return [self.x1] if self.x2 is None else [self.x1, self.x2]

    @property
    def entries(self) -> Entries:
        """Which entries of the kernel are computed."""
        chosen = wanted_outputs(self.outputs, self.plan.outputs)
        second = None if self.x2 is None else len(self.x2)
        shape = self.sizes.all_pairs, self.sizes.diagonal_only, self.outputs == "trace"
        return Entries(len(self.x1), second, chosen, *shape, groups=len(self.groups))

    @property
    def bytes(self) -> int:
        """Size of the kernel itself."""
        o = self.entries.shape[-1]
        numbers = self.entries.pairs * (o * o if self.sizes.all_pairs else o)
        return max(1, len(self.groups)) * numbers * self.plan.dtype.itemsize

    @cached_property
    def layout(self) -> Layout:
        """The blocks that fit the memory."""
        entries = self.entries
        n, o = fit_memory(replace(self.sizes, both=self.x2 is not None), entries.longest, len(entries.outputs))
        size = self.sizes.block(n, o)
        return Layout(entries, n, o, size.inputs_per_pass, size.tile, size.block)

    def after(self, passed: Passed) -> KernelJob:
        """The same job when it has been computed, with the outputs of its passes."""
        done = replace(self, passed=passed)
        vars(done)["layout"] = self.layout  # which these do not change
        return done

    @property
    def working_bytes(self) -> int:
        """Peak memory of the blocks, without the kernel itself."""
        layout = self.layout
        blocks = 2 if layout.inputs < layout.entries.longest or self.x2 is not None else 1
        return self.sizes.block(layout.inputs, layout.outputs).bytes(blocks)

    def rows(self, pass_: Pass) -> tuple[Batch, range, WholePass | None]:
        """The inputs of a pass, the numbers of its outputs, and the gradients of it that are known."""
        x = self.x2 if pass_.block.second and self.x2 is not None else self.x1
        first, inputs = self.entries.outputs.start, pass_.inputs
        outputs = range(first + pass_.block.outputs.start, first + pass_.block.outputs.stop)
        some = x if len(inputs) == len(x) else x[inputs.start : inputs.stop]
        known = self.known if self.known and self.known.serves(self.network, self.plan, some, outputs) else None
        return some, outputs, known

    def among(self, rows: Tensor, others: Tensor | None, outputs: str | int) -> KernelJob:
        """The kernel of the same outputs, or of others for "trace", among some of the inputs, by the same plan."""
        x2 = None if self.x2 is None or others is None else self.x2[others]
        sizes, x1 = replace(self.sizes, all_pairs=outputs == "full" and self.plan.outputs > 1), self.x1[rows]
        known = self.known.part(rows, x1) if self.known and self.known.x is self.x1 else None
        return replace(self, x1=x1, x2=x2, outputs=outputs, sizes=sizes, progress=None, known=known)

    def generalised(self, *ways: str) -> KernelJob:
        """The job with every gradient formed, in these ways, by default one sample at a time."""
        return replace(self, plan=general_plan(self.network, self.plan, list(ways) or [ALONE]))


def wanted_outputs(outputs: str | int, o: int) -> range:
    """The numbers of the outputs that a kernel is of, among o."""
    return range(outputs, outputs + 1) if isinstance(outputs, int) else range(o)


def check_affordable(x: Batch, numbers: int, needed: int) -> None:
    """Refuse a kernel of so many numbers that needs so many bytes; on a device it is for torch to say."""
    if x.device.type == "cpu":
        afford(needed, f"a kernel of {amount(numbers)} numbers", 'give fewer inputs, or outputs="trace"')


def compute(job: KernelJob) -> tuple[Tensor, KernelJob]:
    """The kernel in its final shape; and the job, by a more general plan if passes did not go as planned."""
    while True:
        layout, entries = job.layout, job.entries
        K = torch.zeros(entries.shape, dtype=job.plan.dtype, device=job.x1.device)
        tiles = BlockTiles(layout)
        add = add_diagonal if entries.diagonal_only else add_products
        done, whole = 0, layout.inputs_passed
        passed: Passed = {}
        try:
            with torch.no_grad(), stage("kernel", entries.pairs, job.progress) as told:
                for step in layout.steps():
                    tiles.keep(step.blocks)
                    for each in step.passes:
                        noted = _outputs_of_pass(passed, each).append
                        found = gradients(job.network, job.plan, *job.rows(each), noted)
                        tiles.add(each, compact(found, job.sizes, layout))
                        done += len(each.inputs)
                        told(entries.pairs * done // whole)
                    for left, right in step.products:
                        add(K, entries, tiles[left], tiles[right])
            return finished(K, job.outputs, all_pairs=entries.all_pairs), job.after(passed)
        except OtherRouteError:
            job = _retreated(job, layout.inputs_per_pass)


def tiles_of(job: KernelJob, block: Block, passed: Passed) -> list[Tile] | None:
    """The gradients of one block; None if a pass does not go as planned.

    The outputs of its passes are added to ``passed``. Progress is told after every pass, without an entry done.
    """
    plan = replace(job.plan, ways=[*job.plan.ways])  # what fails for these inputs may serve others
    layout, tiles = job.layout, BlockTiles(job.layout)
    tiles.keep([block])
    try:
        with torch.no_grad():
            for each in layout.passes(block):
                found = gradients(job.network, plan, *job.rows(each), _outputs_of_pass(passed, each).append)
                tiles.add(each, compact(found, job.sizes, layout))
                if job.progress is not None:
                    job.progress(0)
    except OtherRouteError:
        return None
    return tiles[block]


def _outputs_of_pass(passed: Passed, pass_: Pass) -> list[Tensor]:
    """What ``passed`` has of this pass: its outputs, each time that it was made."""
    return passed.setdefault((pass_.block.second, pass_.inputs.start), [])


def finished(K: Tensor, outputs: str | int, *, all_pairs: bool) -> Tensor:
    """The kernel in its final shape, unless it overflows."""
    # isfinite(K) would need a second K, and aminmax has no forward derivative before torch 2.12.
    if not torch.isfinite(torch.stack([K.amin(), K.amax()])).all():
        raise FinwidthError(f"the kernel overflows {K.dtype}; rescale the inputs, or give module.double()")
    if outputs == "full":
        return K if all_pairs else K[..., None]
    return K if outputs == "diagonal" else K[..., 0]


def _retreated(job: KernelJob, inputs_per_pass: int) -> KernelJob:
    """After a pass that did not follow the plan: smaller passes, or if they do not follow it either, the general way.

    A module that splits its batch into chunks, for instance, follows if the pass is no larger than a chunk. Where all
    gradients together are few numbers, to look for it takes longer than the general way; where control flow follows the
    data, it is not found.
    """
    few = few_gradients(job.network, len(job.x1) * len(job.entries.outputs), job.plan.dtype, job.sizes.memory)
    data_dependent = job.plan.ways[0] == TRACED
    while inputs_per_pass > 6 and not few and not data_dependent:
        inputs_per_pass //= 2
        x = job.x1[:inputs_per_pass]
        with differentiable():
            with Recorder(job.network.parameters, job.plan.numbers) as recorder:
                output = apply(job.network, x, job.network.parameters)
            pass_ = recorder.record(output)
        if follows(pass_, job.plan, len(x)):
            return replace(job, sizes=replace(job.sizes, most=inputs_per_pass))
    return replace(job, sizes=replace(job.sizes, most=2**62)).generalised(*job.plan.ways)
