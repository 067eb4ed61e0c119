"""A kernel computed into its store: what is left of it, in blocks, by threads or a cluster; one process stores them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from finwidth import arguments
from finwidth.empirical.kernel.arguments import numpy_of
from finwidth.empirical.kernel.computation import KernelJob
from finwidth.empirical.kernel_store.array import KernelArray, Labels, Place, block_sides
from finwidth.empirical.kernel_store.computing import BlocksOnThreads, KernelBlock, KernelOnCluster, on_one_core
from finwidth.empirical.kernel_store.identity import function_rounding, identity, identity_differences
from finwidth.empirical.kernel_store.sharing import in_bands
from finwidth.empirical.kernel_store.store import KIND, KernelStore, begin, lazily, writing_kernel
from finwidth.errors import FinwidthError, SizeError
from finwidth.execution.dask import check_engine, on_dask
from finwidth.execution.threads import cores, on_threads
from finwidth.memory import afford, amount, available, size
from finwidth.progress import stage
from finwidth.stores.arrays import import_zarr
from finwidth.stores.files import afford_disk

if TYPE_CHECKING:
    import xarray as xr

_AT_ONCE = (4, 2, 1)  # so many blocks fit the memory, where one input does
_GRADIENTS = 3  # of all parameters, that the check of a block holds after the block is dropped
_COPIES = 6  # of a block beside what computes it: computed, waiting, its mirror image, and as a file
_GAPS = 2  # one part in so many is what the allocator keeps for each thread between what is in use
_SMALLER = 'give fewer inputs, outputs="trace", or a path on a larger disk with store='


@dataclass(frozen=True)
class StorePlace:
    """Where a kernel is stored, and who computes it: threads of this process, or the workers of a scheduler."""

    path: Path
    workers: int | None
    scheduler: str | None


class ArrayLabels(NamedTuple):
    """What the array of a kernel says of itself: attributes, dimensions, and the labels of some of these."""

    attrs: Mapping[str, object]
    dims: tuple[str, ...]
    labels: Mapping[str, Labels]


def check_store(store: object, workers: object, scheduler: object) -> StorePlace | None:
    """The store that is asked for, None if there is none; all that it needs is installed."""
    if store is None:
        if workers is not None or scheduler is not None:
            raise FinwidthError("workers and a scheduler compute the blocks of a store; give its path with store=")
        return None
    path = arguments.path("the store", store)
    threads, address = check_engine(workers, scheduler)
    import_zarr()
    return StorePlace(path, threads, address)


def check_storable(*, several: bool, coupled: bool) -> None:
    """Refuse a kernel that is not one of single inputs of one module."""
    if several or coupled:
        raise FinwidthError(
            f"a store keeps no kernel {'of several functions' if several else 'with coupled=True'}; leave store= out, "
            "or give one module, without coupled="
        )


def stored_ntk(job: KernelJob, where: StorePlace, stack: ExitStack, named: ArrayLabels, *, check: bool) -> xr.DataArray:
    """The kernel of a job in a store, after what is not there yet is computed; it is read when it is needed."""
    with writing_kernel(where.path) as there:
        store = _wanted_store(job, where.path, named, check=check) if there is None else there
        if there is not None:
            _refuse_another(store, job, check=check)
        kept = replace(job, sizes=replace(job.sizes, memory=store.content["memory"]))
        done = begin(store)
        left = [place for place in store.array.blocks() if not done.issuperset(store.array.mirrored(place))]
        if left:
            _compute_left(store, kept, where, stack, left, memory=job.sizes.memory, check=check)
        elif job.progress is not None:
            job.progress(job.entries.pairs)
    return lazily(where.path)


def _wanted_store(job: KernelJob, path: Path, named: ArrayLabels, *, check: bool) -> KernelStore:
    """A store that is not there yet."""
    entries, dtype = job.entries, str(numpy_of(torch.zeros(0, dtype=job.plan.dtype)).dtype)
    groups = entries.shape[:1] if job.groups else ()
    inputs = entries.shape[len(groups) :][: 1 if entries.diagonal_only else 2]
    shape = (*groups, *inputs, *[entries.shape[-1]] * (len(named.dims) - len(groups) - len(inputs)))
    sides = block_sides(inputs, job.bytes // entries.pairs, job.sizes.memory)
    array = KernelArray(shape, sides, named.dims, dtype, symmetric=len(inputs) == 2 and job.x2 is None)
    afford_disk(array.total_bytes, f"a kernel of {amount(entries.pairs)} pairs of inputs", path, _SMALLER)
    fields = {
        "shape": [*shape],
        "sides": [*sides],
        "dims": [*named.dims],
        "dtype": dtype,
        "symmetric": array.symmetric,
    }
    with on_one_core(job.x1.device):
        kernel = identity(job, check=check)
    return KernelStore(
        path,
        {
            "schema": KIND.schema,
            "kernel": kernel,
            "array": fields,
            "attrs": dict(named.attrs),
            "labels": dict(named.labels),
            "memory": _block_memory(job, array),
            "versions": {package: version(package) for package in ("finwidth", "numpy", "torch")},
            "numerics": {},
            "grows": True,
        },
    )


def _block_memory(job: KernelJob, array: KernelArray) -> int:
    """Working memory of a block: the smallest part of all that there is into which one fits."""
    for parts in _AT_ONCE:
        memory = job.sizes.memory // parts
        with suppress(FinwidthError):  # one input does not fit
            if _block_bytes(replace(job, sizes=replace(job.sizes, memory=memory)), array) <= memory:
                return memory
    _refuse_large(_block_bytes(job, array), job.sizes.memory)
    return job.sizes.memory


def _refuse_large(needed: int, memory: int) -> None:
    """Refuse a block that needs more than the memory there is."""
    if needed > memory:
        raise SizeError(f"a block of the kernel needs {size(needed)}, and memory is {size(memory)}; give more")


def _block_bytes(job: KernelJob, array: KernelArray) -> int:
    """What a block takes while it is computed, checked and stored."""
    gradient = sum(each.numel() * each.element_size() for each in job.network.parameters.values())
    working = max(_first_block(job, array).working_bytes, _GRADIENTS * gradient)
    return working + working // _GAPS + _COPIES * array.chunk_bytes


def _first_block(job: KernelJob, array: KernelArray) -> KernelJob:
    """The job of a largest block."""
    x2 = None if len(array.sides) == 1 else (job.x1 if job.x2 is None else job.x2)[: array.sides[1]]
    return replace(job, x1=job.x1[: array.sides[0]], x2=x2)


def _refuse_another(store: KernelStore, job: KernelJob, *, check: bool) -> None:
    """Raise FinwidthError if the store is not that of this kernel."""
    with on_one_core(job.x1.device):
        here = identity(job, check=check)
        found = identity_differences(store.content["kernel"], here, function_rounding(job.network, job.x1[:2]))
    for package, made_by in store.content["versions"].items():
        if version(package) != made_by:
            found.append(f"its numbers come from {package} {made_by}, and this is {version(package)}")
    if found:
        raise FinwidthError(
            f"{store.path} is the store of another kernel: {'; '.join(found)}. It is left as it is; give another path "
            f"with {KIND.option}"
        )


def _compute_left(
    store: KernelStore,
    job: KernelJob,
    where: StorePlace,
    stack: ExitStack,
    left: list[Place],
    *,
    memory: int,
    check: bool,
) -> None:
    """Compute and store the blocks that are left."""
    array, before = store.array, job.entries.pairs - sum(map(store.array.pairs, left))
    tell: Callable[[int], object] = job.progress or (lambda done: None)
    with stage("kernel", job.entries.pairs - before, lambda done: tell(before + done)) as told:
        done = 0
        if where.scheduler is None:
            threads, kept, _ = workforce(job, array, min(where.workers or cores(), len(left)), memory)
            local = BlocksOnThreads(job, threads, stack, kept=kept, check=check)
            with on_one_core(job.x1.device) as facts:
                store.refuse_other(facts)
            blocks = _kernel_blocks(job, array, in_bands(left, max(1, kept - threads - 1)))
            results = on_threads(blocks, local.threads, local.perform)
        else:
            rounding = function_rounding(job.network, job.x1[:1])
            blocks = _kernel_blocks(job, array, left)
            results = on_dask(blocks, where.scheduler, KernelOnCluster(job, rounding, check=check))
        with closing(results):  # an interrupt anywhere below ends them, too
            for block, (entries, numerics) in results:
                store.write(block.place, entries, numerics)
                done += array.pairs(block.place)
                told(done)


def _kernel_blocks(job: KernelJob, array: KernelArray, places: list[Place]) -> Iterator[KernelBlock]:
    for place in places:
        rows, *columns = array.region(place)
        same = not columns or (array.symmetric and place[0] == place[1])
        yield KernelBlock(place, rows, None if same else columns[0], job.x2 is not None)


class Workforce(NamedTuple):
    """Who computes on this machine: threads, the blocks of inputs whose gradients they keep, and the bytes of both."""

    threads: int
    kept: int
    bytes: int


def workforce(job: KernelJob, array: KernelArray, most: int, memory: int) -> Workforce:
    """As many threads as fit the memory, at most so many; and in the rest of it gradients that blocks share."""
    needed, room = _block_bytes(job, array), memory
    _refuse_large(needed, memory)
    if job.x1.device.type == "cpu":
        pairs = array.pairs((0,) * len(array.sides))
        afford(needed, f"a block of {pairs} pairs of inputs", "begin a store with less memory=")
        room = min(memory, available() * 3 // 4)
        threads = max(1, min(most, room // needed))
    else:
        threads = 1
    first = _first_block(job, array)
    gradients = first.sizes.block(first.layout.inputs, first.layout.outputs).block
    gradients += gradients // _GAPS
    shared = 0 if job.sizes.diagonal_only else array.grid[0] if array.symmetric else sum(array.grid)
    kept = max(0, min(shared, (room - threads * needed) // gradients))
    return Workforce(threads, kept, threads * needed + kept * gradients)
