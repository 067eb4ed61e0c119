"""Running a sweep: its tasks, who computes them, and the one process that stores their results."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, product
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from finwidth import arguments
from finwidth.arguments import count
from finwidth.errors import FinwidthError
from finwidth.memory import afford
from finwidth.networks.laws import FloatArray
from finwidth.progress import check_time
from finwidth.sampling.random.streams import check_threads
from finwidth.sweeps.config import Config, Vectors, cell_at, read_config
from finwidth.sweeps.quantities.registry import KINDS, Settings
from finwidth.sweeps.schema.document import store_beside
from finwidth.sweeps.schema.grid import Cell
from finwidth.sweeps.schema.tiling import blocks
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


@dataclass(frozen=True)
class Task:
    """A block of cells of one quantity, with all that is needed to compute it anywhere."""

    quantity: str
    region: tuple[slice, ...]
    cells: list[Cell]
    settings: Settings
    vectors: Vectors
    previous: FloatArray | None
    new: int  # cells that were not done before

    def work(self) -> float:
        """About how long it takes, in microseconds."""
        return sum(KINDS[self.quantity].work(cell, self.settings.table) for cell in self.cells)


class Computed(NamedTuple):
    """The records of a task, shape (cells, *dims), and what their bits depend on where they were computed."""

    records: FloatArray
    numerics: Mapping[str, Any]


def perform(task: Task, pause: Callable[[], None] = lambda: None) -> Computed:
    """Compute a task, here."""
    kind, settings = KINDS[task.quantity], task.settings
    records = kind.compute(task.cells, settings, task.vectors, task.previous, pause)
    return Computed(records, kind.numerics(settings.table))


def sweep(
    config: str | Path | Mapping[str, Any],
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
    from finwidth.sweeps.store.dataset import read

    if store is None and isinstance(config, Mapping):
        with TemporaryDirectory() as folder:
            place = Path(folder) / "sweep.zarr"
            run(config, place, workers=workers, scheduler=scheduler, progress=progress)
            return read(place)
    place = store_beside(arguments.path("the config", config)) if store is None else arguments.path("the store", store)
    run(config, place, workers=workers, scheduler=scheduler, progress=progress)
    return read(place)


def run(
    config: str | Path | Mapping[str, Any],
    path: Path,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: Callable[[Progress], object] | None = None,
) -> None:
    """`sweep` without reading what it stored."""
    if workers is not None and scheduler is not None:
        raise FinwidthError("workers are threads of this process, and a scheduler has its own; give one of the two")
    threads = check_threads(None) if workers is None else count("workers", workers)
    tell = arguments.progress(progress)
    if scheduler is not None:
        arguments.text(
            "scheduler", scheduler, "an address such as tcp://host:8786; a cluster has it as its scheduler_address"
        )
    checked, vectors = read_config(config)
    check_sizes(checked, threads if scheduler is None else None)
    with writing(path, checked, here=scheduler is None) as store:
        done, total = cells_done(store), len(store.config.quantities) * int(np.prod(store.config.shape))
        before, start = done, time.monotonic()
        tell(Progress(before, done, total, 0.0))
        tasks = make_tasks(store, vectors)
        if scheduler is None:
            results = by_threads(tasks, threads)
        else:
            from finwidth.sweeps.execution.dask import by_dask

            results = by_dask(tasks, scheduler)
        with closing(results):  # an interrupt anywhere below ends them, too
            for task, (records, numerics) in results:
                shape = (*(cut.stop - cut.start for cut in task.region), *records.shape[1:])
                store.write(task.quantity, task.region, records.reshape(shape), numerics)
                done += task.new
                tell(Progress(before, done, total, time.monotonic() - start))


def check_sizes(config: Config, threads: int | None) -> None:
    """Refuse a sweep whose records or cells do not fit the memory there is, or that takes over a year.

    With threads None a cluster computes, of which is assumed that it has up to 10^4, and memory for any cell.
    """
    cells = prod(config.shape)
    for name, table in config.quantities.items():
        kind, settings = KINDS[name], Settings(config.seed, dict(config.network), dict(table))
        numbers = cells * prod(len(labels) for labels in kind.dims(table).values())
        what = f"records of {numbers} numbers of {name}"
        afford(_COPIES * 8 * numbers, what, "take fewer cells, inputs or recorded steps, or merge the stores of parts")
        axes = {axis: values[:: -(-len(values) // _LOOKED_AT)] for axis, values in config.axes.items()}
        some = [cell_at(axes, (*[0] * (len(axes) - 2), i, j)) for i, j in np.ndindex(*map(len, [*axes.values()][-2:]))]
        change = "take fewer draws, cells, steps or inputs, or smaller networks"
        seconds = 1e-6 * sum(kind.work(cell, table) for cell in some) / len(some)
        check_time(cells, seconds / (threads or _CLUSTER), f"computing {name} in {cells} cells", change)
        if threads is not None:
            most = max(kind.memory(cell, settings) for cell in _corners(config))
            afford(threads * most, f"computing {name} in {threads} cells at once", f"{change}, or fewer workers")


def _corners(config: Config) -> list[Cell]:
    """The deepest cells at either end of the last axis, one of which is the largest."""
    last = (*[-1] * len(config.axes),)
    return [cell_at(config.axes, last), cell_at(config.axes, (*last[:-1], 0))]


def cells_done(store: Store) -> int:
    """How many cells are done, counted once for each quantity."""
    return sum(
        int(KINDS[quantity].finished(store.records(quantity), table).sum())
        for quantity, table in store.config.quantities.items()
    )


def make_tasks(store: Store, vectors: Vectors) -> Iterator[Task]:
    """The tasks that are left."""
    config = store.config
    for quantity, table in config.quantities.items():
        kind, records = KINDS[quantity], store.records(quantity)
        finished = kind.finished(records, table)
        settings = Settings(config.seed, dict(config.network), dict(table))
        left = [region for region in blocks(finished.shape, kind.block) if not finished[region].all()]
        random.Random(0).shuffle(left)  # small and large cells mixed, so that the rate so far tells the time left
        for region in left:
            places = product(*(range(cut.start, cut.stop) for cut in region))
            cells = [cell_at(store.axes, place) for place in places]
            there = records[region].reshape(len(cells), *records.shape[finished.ndim :])
            needed = {(cell.input, cell.n_0) for cell in cells} | {
                (name, cell.n_0) for name in kind.inputs(table) for cell in cells
            }
            yield Task(
                quantity,
                region,
                cells,
                settings,
                {key: vectors[key] for key in needed},
                None if np.isnan(there).any() else there,
                int((~finished[region]).sum()),
            )


class _StoppedError(Exception):
    """The sweep ends; raised in the threads that compute."""


def by_threads(tasks: Iterable[Task], threads: int) -> Generator[tuple[Task, Computed]]:
    """Tasks and what they give as they are done, by threads of this process.

    NumPy computes without the interpreter's lock, so threads keep all cores busy; they also end with the process, even
    when it is killed, and need nothing of the script that calls them.  Where an exception ends it, such as an
    interrupt, the tasks that end rather than pause still count.
    """
    stop = threading.Event()

    def pause() -> None:
        if stop.is_set():
            raise _StoppedError

    left = iter(tasks)
    pool = ThreadPoolExecutor(threads)
    running: dict[Future[Computed], Task] = {}
    try:
        while True:
            for task in islice(left, 2 * threads - len(running)):
                running[pool.submit(perform, task, pause)] = task
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    except GeneratorExit:
        raise
    except BaseException:
        stop.set()
        pool.shutdown(cancel_futures=True)
        for future, task in running.items():
            if not future.cancelled() and future.exception() is None:
                yield task, future.result()
        raise
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
