"""The memory of a whole call, of which the check after the blocks is a part; and how the check keeps within a bound."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from finwidth.empirical.kernel.computation import KernelJob

_ALL, FEW, _SHARE = 8, 3, 32  # inputs that are checked: up to 8 all, otherwise 3, or one in 32 if that is more
_COMPANY = 256  # inputs of the largest batch that is passed whole and in halves
_PLANNED = 5  # inputs of the passes by which a plan is made
_BESIDE = 2**21  # bytes of what torch and the allocator need besides
_GRADIENTS = 3, 4  # of the memory; blocks leave free what the allocator does not use again for them


def checked_inputs(job: KernelJob, n: int, *, company: bool = False) -> int:
    """How many of n inputs the check passes at once: no more than a pass of the kernel, or half the memory, holds.

    Inputs that are only the ``company`` of others are few of any number.
    """
    few = min(n, FEW)
    size = min(n, _ALL) if company or n <= _ALL else max(few, min(n // _SHARE, job.layout.inputs_per_pass))
    return max(few, min(size, job.sizes.memory // (2 * job.sizes.pass_bytes)))


def company_size(job: KernelJob) -> int:
    """How many inputs are passed whole and in halves."""
    return max(2, min(_COMPANY, job.sizes.memory // (2 * job.sizes.itemsize * job.sizes.forward)))


def parameters_at_once(job: KernelJob, gradients: int, inputs: int) -> list[list[str]]:
    """The counted parameters in parts, so that so many gradients by each of a part fit, beside passes of the inputs.

    A part has one parameter at the least. Derivatives along a direction need all at once.
    """
    bytes_by = {name: each.numel() * each.element_size() for name, each in job.network.parameters.items()}
    part, whole = _GRADIENTS
    room = job.sizes.memory * part // whole - _held(job) - inputs * job.sizes.pass_bytes - max(bytes_by.values())
    if job.network.direction is not None or gradients * sum(bytes_by.values()) <= room:
        return [[*bytes_by]]
    parts, taken = list[list[str]](), 0
    for name, needed in bytes_by.items():
        taken += gradients * needed
        if not parts or taken > room:
            parts.append([])
            taken = gradients * needed
        parts[-1].append(name)
    return parts


def bytes_of_call(job: KernelJob) -> int:
    """Peak memory of a call without the kernel itself: of the plan, the blocks or the check, which come in turn."""
    return _BESIDE + max(_planning(job), job.working_bytes, _checking(job))


def _planning(job: KernelJob) -> int:
    """A copy of what the module may change, and passes of a few inputs."""
    module = job.network.module
    return _bytes_of([*module.parameters(), *module.buffers()]) + _PLANNED * job.sizes.pass_bytes


def _checking(job: KernelJob) -> int:
    """The gradients of weighted samples, passes of these, and the largest gradient once more as it is added up."""
    N = len(job.x1)
    if job.sizes.diagonal_only:
        inputs, gradients = checked_inputs(job, N, company=True), min(N, FEW)
    else:
        inputs, gradients = checked_inputs(job, N) + 1, 2
        if job.x2 is not None:
            inputs, gradients = inputs + checked_inputs(job, len(job.x2)), 3
    own = job.network.parameters
    most = max(_bytes_of(own[name] for name in part) for part in parameters_at_once(job, gradients, inputs))
    together = job.sizes.itemsize * job.sizes.forward * min(company_size(job), N) if job.plan.general else 0
    largest = max(_bytes_of([each]) for each in own.values())
    return _held(job) + max(together, inputs * job.sizes.pass_bytes + gradients * most + largest)


def _held(job: KernelJob) -> int:
    """Gradients of all inputs that are there from the plan to the end."""
    one_pass = job.x2 is None and job.layout.inputs_per_pass == len(job.x1) > FEW
    if not one_pass or len(job.plan.general) == len(job.network.parameters):
        return 0
    return job.layout.block_bytes


def _bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)
