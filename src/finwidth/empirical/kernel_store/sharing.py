"""Gradients that blocks of a kernel have in common: found once, and kept while the memory has room for them.

The entries of a block depend on the gradients at its rows and at its columns alone, and those on these inputs and the
plan: so the bits of a block depend neither on what is kept nor on who found it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future

import torch

from finwidth.empirical.kernel.computation import KernelJob, Passed, compute, finished, tiles_of
from finwidth.empirical.kernel.layout import Block
from finwidth.empirical.kernel.tiles import Tile, add_products
from finwidth.empirical.kernel.weights import OtherRouteError
from finwidth.empirical.kernel_store.array import Place

Tensor = torch.Tensor


class KeptGradients:
    """The gradients at the blocks of inputs that were used last, at most so many, for all threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[object, Future[list[Tile] | None]] = OrderedDict()

    def compute(self, job: KernelJob, own: KernelJob, names: Sequence[object]) -> tuple[Tensor, KernelJob]:
        """As `compute`, of the job that is a block's ``own``, of inputs with these names.

        What is not one product of whole blocks is computed by itself, and so are other jobs: those of the check. The
        job that comes back has the outputs of the passes made here; others that shared them had them before.
        """
        layout, entries = job.layout, job.entries
        parts = layout.inputs < entries.longest or layout.outputs < len(entries.outputs)
        if job is not own or parts or entries.diagonal_only:
            return compute(job)
        passed: Passed = {}
        found = []
        for second, (name, x) in enumerate(zip(names, job.sets, strict=True)):
            future, mine = self._promised((name, layout.inputs, layout.outputs, layout.inputs_per_pass, layout.tile))
            if mine:
                try:
                    block = Block(bool(second), range(len(entries.outputs)), range(len(x)))
                    future.set_result(tiles_of(job, block, passed))
                except BaseException as error:
                    future.set_exception(error)
            found.append(future.result())
        left, right = found[0], found[-1]
        if left is None or right is None:
            return compute(job)
        K = torch.zeros(entries.shape, dtype=job.plan.dtype, device=job.x1.device)
        try:
            with torch.no_grad():
                add_products(K, entries, left, right)
        except OtherRouteError:
            return compute(job)
        return finished(K, job.outputs, all_pairs=entries.all_pairs), job.after(passed)

    def _promised(self, key: object) -> tuple[Future[list[Tile] | None], bool]:
        """The gradients at some inputs, and whether it is this thread that is to find them; others wait for them."""
        with self._lock:
            future = self._kept.get(key)
            mine = future is None
            if future is None:
                future = self._kept[key] = Future()
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return future, mine


def in_bands(places: Iterable[Place], rows: int) -> list[Place]:
    """Blocks in the order in which so many rows of blocks, kept, meet every column once.

    Examples
    --------
    >>> from finwidth.empirical.kernel_store.sharing import in_bands
    >>> in_bands([(i, j) for i in range(4) for j in range(i, 4)], 2)
    [(0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 2), (2, 3), (3, 3)]
    """
    return sorted(places, key=lambda place: (place[0] // rows, place[1:], place[0]))
