"""Running a sweep: its tasks, who computes them, and the one process that stores their results."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from finwidth import arguments
from finwidth.execution.dask import check_engine, on_dask
from finwidth.execution.threads import cores, on_threads
from finwidth.memory import afford
from finwidth.progress import check_time
from finwidth.stores.arrays import import_zarr
from finwidth.sweeps.config import Config, cell_at, read_config
from finwidth.sweeps.execution.task import SweepOnCluster, Task, perform
from finwidth.sweeps.quantities.base import CellBatch, Settings
from finwidth.sweeps.quantities.registry import QUANTITIES
from finwidth.sweeps.schema.document import store_beside
from finwidth.sweeps.schema.grid import Cell, Vectors
from finwidth.sweeps.schema.tiling import grid_blocks
from finwidth.sweeps.store.dataset import read
from finwidth.sweeps.store.zarr_store import Store, writing

if TYPE_CHECKING:
    import xarray as xr


_COPIES = 4  # of the records: as they are read, collected and written
_LOOKED_AT = 32  # values of each axis, for the time that cells take
_CLUSTER = 10**4


@dataclass(frozen=True)
class Progress:
    """How far a sweep is: cells (counted once for each quantity) done before it started, done by now, and in all."""

    before: int
    done: int
    total: int
    seconds: float

    @property
    def rate(self) -> float:
        """Cells a second."""
        return (self.done - self.before) / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Until the end, at this rate; None if nothing is known of it yet."""
        return (self.total - self.done) / self.rate if self.rate else None


def sweep(
    config: str | Path | Mapping[str, object],
    store: str | Path | None = None,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: Callable[[Progress], object] | None = None,
) -> xr.Dataset:
    """Compute every cell of a grid of networks that its store does not hold yet, and return them all.

    Parameters
    ----------
    config
        A TOML file, or a mapping of the same shape (docs/sweeps.md).
    store
        The Zarr store that keeps what is done, cell by cell; by default beside the file, with the ending ``.zarr``, and
        none for a mapping. A sweep that was stopped, in whatever way, goes on from its store.
    workers
        How many threads compute; by default one for each core.
    scheduler
        The address of a Dask scheduler whose workers compute instead, such as ``"tcp://host:8786"``.
    progress
        Called with a `Progress` when the sweep starts and each time cells are done.

    Returns
    -------
    xarray.Dataset
        See `finwidth.sweeps.read`.

    Raises
    ------
    FinwidthError
        If the config is not allowed, or the store not its own, damaged, in use or full.

    Examples
    --------
    >>> import finwidth
    >>> found = finwidth.sweep({"quantities": ["exact"], "axes": {"depth": [2, 8], "width": [16, 64], "n_0": 16}})
    >>> found.exact_cv.dims, round(float(found.exact_cv.sel(depth=8, width=16)), 3)
    (('depth', 'width'), 1.441)
    """
    if store is None and isinstance(config, Mapping):
        with TemporaryDirectory() as folder:
            place = Path(folder) / "sweep.zarr"
            run(config, place, workers=workers, scheduler=scheduler, progress=progress)
            return read(place)
    place = store_beside(arguments.path("the config", config)) if store is None else arguments.path("the store", store)
    run(config, place, workers=workers, scheduler=scheduler, progress=progress)
    return read(place)


def run(
    config: str | Path | Mapping[str, object],
    path: Path,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: Callable[[Progress], object] | None = None,
) -> None:
    """`sweep` without reading what it stored."""
    threads, address = check_engine(workers, scheduler)
    threads, tell = threads or cores(), arguments.progress(progress)
    import_zarr()
    checked, vectors = read_config(config)
    check_grid_size(checked, threads if address is None else None)
    with writing(path, checked, here=address is None) as store:
        done, total = cells_done(store), len(store.config.quantities) * int(np.prod(store.config.shape))
        before, start = done, time.monotonic()
        tell(Progress(before, done, total, 0.0))
        tasks = make_tasks(store, vectors)
        results = on_threads(tasks, threads, perform) if address is None else on_dask(tasks, address, SweepOnCluster())
        with closing(results):  # an interrupt anywhere below ends them, too
            for task, (records, numerics) in results:
                shape = (*(cut.stop - cut.start for cut in task.region), *records.shape[1:])
                store.write(task.quantity, task.region, records.reshape(shape), numerics)
                done += task.new
                tell(Progress(before, done, total, time.monotonic() - start))


def check_grid_size(config: Config, threads: int | None) -> None:
    """Refuse a sweep whose records or cells do not fit the memory there is, or that takes over a year.

    With threads None a cluster computes, of which is assumed that it has up to 10^4, and memory for any cell.
    """
    cells = prod(config.shape)
    for name, table in config.quantities.items():
        quantity, settings = QUANTITIES[name], Settings(config.seed, config.network, table)
        numbers = cells * prod(len(labels) for labels in quantity.dims(table).values())
        what = f"records of {numbers} numbers of {name}"
        afford(_COPIES * 8 * numbers, what, "take fewer cells, inputs or recorded steps, or merge the stores of parts")
        axes = {axis: values[:: -(-len(values) // _LOOKED_AT)] for axis, values in config.axes.items()}
        some = [cell_at(axes, (*[0] * (len(axes) - 2), i, j)) for i, j in np.ndindex(*map(len, [*axes.values()][-2:]))]
        change = "take fewer draws, cells, steps or inputs, or smaller networks"
        seconds = 1e-6 * sum(quantity.work(cell, table) for cell in some) / len(some)
        check_time(cells, seconds / (threads or _CLUSTER), f"computing {name} in {cells} cells", change)
        if threads is not None:
            most = max(quantity.memory(cell, settings) for cell in _corners(config))
            afford(threads * most, f"computing {name} in {threads} cells at once", f"{change}, or fewer workers")


def _corners(config: Config) -> list[Cell]:
    """The deepest cells at either end of the last axis, one of which is the largest."""
    last = (*[-1] * len(config.axes),)
    return [cell_at(config.axes, last), cell_at(config.axes, (*last[:-1], 0))]


def cells_done(store: Store) -> int:
    """How many cells are done, counted once for each quantity."""
    return sum(
        int(QUANTITIES[name].finished(store.records(name), table).sum())
        for name, table in store.config.quantities.items()
    )


def make_tasks(store: Store, vectors: Vectors) -> Iterator[Task]:
    """The tasks that are left."""
    config = store.config
    for name, table in config.quantities.items():
        quantity, records = QUANTITIES[name], store.records(name)
        finished = quantity.finished(records, table)
        settings = Settings(config.seed, config.network, table)
        left = [region for region in grid_blocks(finished.shape, quantity.block) if not finished[region].all()]
        random.Random(0).shuffle(left)  # small and large cells mixed, so that the rate so far tells the time left
        for region in left:
            places = product(*(range(cut.start, cut.stop) for cut in region))
            cells = [cell_at(store.axes, place) for place in places]
            there = records[region].reshape(len(cells), *records.shape[finished.ndim :])
            needed = {(each, cell.n_0) for cell in cells for each in (cell.input, *quantity.inputs(table))}
            batch = CellBatch(
                cells, settings, {key: vectors[key] for key in needed}, None if np.isnan(there).any() else there
            )
            yield Task(name, region, batch, int((~finished[region]).sum()))
