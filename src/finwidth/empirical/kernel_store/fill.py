"""A kernel computed into its store: what is left of it, in blocks, by threads or a cluster; one process stores them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch

from finwidth import arguments
from finwidth.empirical.kernel.arguments import numpy_of
from finwidth.empirical.kernel.parts import KernelInParts
from finwidth.empirical.kernel_store.array import KernelArray, Labels, Place, block_sides
from finwidth.empirical.kernel_store.computing import BlocksOnThreads, KernelBlock, KernelOnCluster, on_one_core
from finwidth.empirical.kernel_store.identity import function_rounding, identity, identity_differences
from finwidth.empirical.kernel_store.sharing import in_bands
from finwidth.empirical.kernel_store.store import KIND, KernelContent, KernelStore, begin, lazily, writing_kernel
from finwidth.errors import FinwidthError, SizeError
from finwidth.execution.dask import check_engine, on_dask
from finwidth.execution.threads import cores, on_threads
from finwidth.memory import afford, amount, available, size
from finwidth.progress import stage
from finwidth.stores.arrays import import_zarr
from finwidth.stores.files import afford_disk

if TYPE_CHECKING:
    import xarray as xr

Progress: TypeAlias = "Callable[[int], object] | None"

_AT_ONCE = (4, 2, 1)  # so many blocks fit the memory, where one input does
_SPARING = (2, 4, 8)  # a block that is to have all memory reckons with such a part, so that copies and gaps have room
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
    """What the array of a kernel says of itself: attributes, dimensions, and the labels of some of these.

    ``functions`` has for dimensions of inputs how many of them every function has, if there are several.
    """

    attrs: Mapping[str, object]
    dims: tuple[str, ...]
    labels: Mapping[str, Labels]
    functions: Mapping[str, Mapping[str, int]]


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


def stored_ntk(
    kernel: KernelInParts, where: StorePlace, stack: ExitStack, named: ArrayLabels, progress: Progress
) -> xr.DataArray:
    """The kernel in a store, after what is not there yet is computed; it is read when it is needed."""
    with writing_kernel(where.path) as there:
        store = _wanted_store(kernel, where.path, named) if there is None else there
        if there is not None:
            _refuse_another(store, kernel)
        kept = kernel.within(store.content["memory"])
        done = begin(store)
        left = [place for place in store.array.blocks() if not done.issuperset(store.array.mirrored(place))]
        if left:
            _compute_left(store, kept, where, stack, left, progress=progress, memory=kernel.first.sizes.memory)
        elif progress is not None:
            progress(math.prod(kernel.inputs))
    return lazily(where.path)


def _wanted_store(kernel: KernelInParts, path: Path, named: ArrayLabels) -> KernelStore:
    """A store that is not there yet."""
    job, inputs, shape = kernel.first, kernel.inputs, kernel.shape(kernel.inputs)
    dtype = numpy_of(torch.zeros(0, dtype=job.plan.dtype)).dtype
    pairs = math.prod(inputs)
    sides = block_sides(kernel.met, math.prod(shape) // pairs * dtype.itemsize, job.sizes.memory)[: len(inputs)]
    array = KernelArray(shape, sides, named.dims, str(dtype), symmetric=kernel.symmetric)
    afford_disk(array.total_bytes, f"a kernel of {amount(pairs)} pairs of inputs", path, _SMALLER)
    fields = {
        "shape": [*shape],
        "sides": [*sides],
        "dims": [*named.dims],
        "dtype": str(dtype),
        "symmetric": array.symmetric,
    }
    with on_one_core(job.x1.device):
        made_of = identity(kernel)
    content: KernelContent = {
        "schema": KIND.schema,
        "kernel": made_of,
        "array": fields,
        "attrs": dict(named.attrs),
        "labels": dict(named.labels),
        "memory": _block_memory(kernel, array),
        "versions": {package: version(package) for package in ("finwidth", "numpy", "torch")},
        "numerics": {},
        "grows": True,
    }
    if named.functions:
        content["functions"] = {dim: dict(each) for dim, each in named.functions.items()}
    return KernelStore(path, content)


def _block_memory(kernel: KernelInParts, array: KernelArray) -> int:
    """Working memory of a block: the smallest part of all that there is into which one fits."""
    whole = kernel.first.sizes.memory
    for parts, room in (*((parts, whole // parts) for parts in _AT_ONCE), *((parts, whole) for parts in _SPARING)):
        with suppress(FinwidthError):  # one input does not fit
            if _block_bytes(kernel.within(whole // parts), array) <= room:
                return whole // parts
    _refuse_large(_block_bytes(kernel, array), whole)
    return whole


def _refuse_large(needed: int, memory: int) -> None:
    """Refuse a block that needs more than the memory there is."""
    if needed > memory:
        raise SizeError(f"a block of the kernel needs {size(needed)}, and memory is {size(memory)}; give more")


def _block_bytes(kernel: KernelInParts, array: KernelArray) -> int:
    """What a block takes while it is computed, checked and stored."""
    gradient = sum(each.numel() * each.element_size() for each in kernel.first.network.parameters.values())
    jobs = kernel.at_most(array.sides)
    working = max(_GRADIENTS * gradient, *(each.working_bytes for each in jobs))
    joining = kernel.joining_bytes(jobs)
    return working + working // _GAPS + _COPIES * array.chunk_bytes + joining


def _refuse_another(store: KernelStore, kernel: KernelInParts) -> None:
    """Raise FinwidthError if the store is not that of this kernel."""
    with on_one_core(kernel.first.x1.device):
        here = identity(kernel)
        found = identity_differences(store.content["kernel"], here, function_rounding(kernel))
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
    kernel: KernelInParts,
    where: StorePlace,
    stack: ExitStack,
    left: list[Place],
    *,
    progress: Progress,
    memory: int,
) -> None:
    """Compute and store the blocks that are left."""
    array = store.array
    remaining = sum(map(array.pairs, left))
    before = math.prod(kernel.inputs) - remaining
    tell: Callable[[int], object] = progress or (lambda done: None)
    with stage("kernel", remaining, lambda done: tell(before + done)) as told:
        done = 0
        if where.scheduler is None:
            threads, kept, _ = workforce(kernel, array, min(where.workers or cores(), len(left)), memory)
            local = BlocksOnThreads(kernel, threads, stack, kept=kept)
            with on_one_core(kernel.first.x1.device) as facts:
                store.refuse_other(facts)
            blocks = _kernel_blocks(array, in_bands(left, max(1, kept - threads - 1)))
            results = on_threads(blocks, local.threads, local.perform)
        else:
            blocks = _kernel_blocks(array, left)
            results = on_dask(blocks, where.scheduler, KernelOnCluster(kernel, function_rounding(kernel)))
        with closing(results):  # an interrupt anywhere below ends them, too
            for block, (entries, numerics) in results:
                store.write(block.place, entries, numerics)
                done += array.pairs(block.place)
                told(done)


def _kernel_blocks(array: KernelArray, places: list[Place]) -> Iterator[KernelBlock]:
    for place in places:
        rows, *columns = array.region(place)
        same = not columns or (array.symmetric and place[0] == place[1])
        yield KernelBlock(place, rows, None if same else columns[0], not array.symmetric)


class Workforce(NamedTuple):
    """Who computes on this machine: threads, the blocks of inputs whose gradients they keep, and the bytes of both."""

    threads: int
    kept: int
    bytes: int


def workforce(kernel: KernelInParts, array: KernelArray, most: int, memory: int) -> Workforce:
    """As many threads as fit the memory, at most so many; and in the rest of it gradients that blocks share."""
    needed, room = _block_bytes(kernel, array), memory
    _refuse_large(needed, memory)
    if kernel.first.x1.device.type == "cpu":
        pairs = array.pairs((0,) * len(array.sides))
        afford(needed, f"a block of {pairs} pairs of inputs", "begin a store with less memory=")
        room = min(memory, available() * 3 // 4)
        threads = max(1, min(most, room // needed))
    else:
        threads = 1
    jobs = kernel.at_most(array.sides)
    gradients = max(each.layout.block_bytes for each in jobs)
    gradients += gradients // _GAPS
    shared = 0 if len(array.sides) == 1 else array.grid[0] if array.symmetric else sum(array.grid)
    kept = max(0, min(shared * kernel.kinds, (room - threads * needed) // gradients))
    return Workforce(threads, kept, threads * needed + kept * gradients)
