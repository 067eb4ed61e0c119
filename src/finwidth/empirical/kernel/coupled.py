"""The kernel of a module whose samples meet, such as in batch statistics: of all outputs of one batch, as one function.

With J the derivatives of all N O outputs of the one batch, K = J S J^T. The batch is then one sample of that many
outputs, and everything else is as in any kernel (docs/empirical-ntk.md).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import nn

from finwidth.empirical.kernel.arguments import Parameters, Scale, check_entries
from finwidth.empirical.kernel.calls import Combinations
from finwidth.empirical.kernel.check import check_sum
from finwidth.empirical.kernel.computation import KernelJob, check_affordable
from finwidth.empirical.kernel.gradients import plan_whole
from finwidth.empirical.kernel.inputs import read_batch
from finwidth.empirical.kernel.outputs import read_outputs
from finwidth.empirical.kernel.preparation import measured, returned
from finwidth.empirical.kernel.working_memory import bytes_of_call
from finwidth.errors import FinwidthError
from finwidth.memory import check_memory

Tensor = torch.Tensor


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
    find: Callable[[KernelJob], Tensor],
    progress: Callable[[int], object] | None,
    *,
    check: bool,
) -> tuple[Tensor, KernelJob]:
    """The kernel of all outputs of one batch, in the shape that `ntk` gives, and its job; ``find`` does jobs.

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
    check_affordable(whole, n * n, n * n * output.element_size())
    plan, sizes = plan_whole(network, whole)
    sizes = replace(sizes, memory=memory, all_pairs=True)
    job = KernelJob(network, whole, None, "full", plan, sizes, groups=groups)
    every = own.rows if own is not None else torch.arange(o, device=output.device)
    parts = [every] if kind == "full" else [every[[kind]]] if isinstance(kind, int) else torch.split(every, 1)
    found: list[Tensor] = []
    for done, rows in enumerate(parts, 1):
        K = _of_each_sample(job, rows, n, find, check=check)
        K = K if kind == "full" else K[..., 0, 0]
        found = [found[0].add_(K)] if found and kind == "trace" else [*found, K]
        if progress is not None:
            progress(n * n * done // len(parts))
    K = torch.stack(found, -1) if kind == "diagonal" else found[0]
    lead = int(bool(groups))
    if entries == "diagonal":
        K = K.diagonal(dim1=lead, dim2=lead + 1).movedim(-1, lead).contiguous()
    shape = replace(sizes, diagonal_only=entries == "diagonal")
    return K, replace(job, network=replace(network, combinations=own), outputs=kind, sizes=shape)


def _of_each_sample(
    job: KernelJob, rows: Tensor, n: int, find: Callable[[KernelJob], Tensor], *, check: bool
) -> Tensor:
    """The kernel of these numbers of every sample of the batch, (N, N, k, k) after groups."""
    numbers, k = Combinations(rows, n), len(rows)
    plan = replace(job.plan, outputs=len(numbers))
    job = replace(job, network=replace(job.network, combinations=numbers), plan=plan)
    check_affordable(job.x1, job.bytes // plan.dtype.itemsize, job.bytes + bytes_of_call(job))
    K = torch.unflatten(torch.unflatten(find(job)[..., 0, 0, :, :], -1, (n, k)), -3, (n, k)).transpose(-3, -2)
    if check:
        c = torch.randn(n, k, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(K.device)
        weighted = [(job.x1, c.reshape(1, -1))]
        check_sum(job, [(weighted, weighted)], torch.einsum("...abij,ai,bj->...", K.double(), c, c).reshape(-1))
    return K
