"""The tasks of a sweep on the workers of a Dask scheduler; the process that asks stays the only one that stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from typing import Any

from finwidth.errors import FinwidthError
from finwidth.sweeps.run import Computed, Task, perform
from finwidth.sweeps.store import versions

# Cheap tasks travel together, up to about this much work, so that the scheduler's own time does not count.
_BATCH_MICROSECONDS, _BATCH_TASKS = 2e5, 64
_AHEAD = 4  # batches for each thread of the cluster
_ATTEMPTS = 5
_CONNECT_SECONDS = 10


def perform_batch(batch: list[Task]) -> tuple[dict[str, str], list[Computed]]:
    """What a worker does: records, and the versions that computed them."""
    return versions(), [perform(task) for task in batch]


def batches(tasks: Iterable[Task]) -> Iterator[list[Task]]:
    """Tasks in batches of similar work."""
    batch: list[Task] = []
    work = 0.0
    for task in tasks:
        batch.append(task)
        work += task.work()
        if work > _BATCH_MICROSECONDS or len(batch) == _BATCH_TASKS:
            yield batch
            batch, work = [], 0.0
    if batch:
        yield batch


def by_dask(tasks: Iterable[Task], scheduler: str) -> Generator[tuple[Task, Computed]]:
    """Tasks and their records as they are done; a batch whose worker is lost goes to another one."""
    client = _connect(scheduler)
    try:
        yield from _results(client, batches(tasks))
    finally:
        client.close()


def _connect(scheduler: str) -> Any:
    try:
        import distributed
    except ImportError:
        raise FinwidthError("a scheduler needs Dask, which is not installed; pip install 'finwidth[dask]'") from None
    connect: Any = distributed.Client
    try:
        return connect(scheduler, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise FinwidthError(
            f"no Dask scheduler answers at {scheduler!r} ({' '.join(str(error).split())[:100]}); give the address that "
            "dask scheduler prints, such as tcp://host:8786"
        ) from None


def _results(client: Any, left: Iterator[list[Task]]) -> Iterator[tuple[Task, Computed]]:
    import distributed

    running: dict[Any, list[Task]] = {}
    attempts: Counter[Any] = Counter()
    as_completed: Any = distributed.as_completed
    completed = as_completed(loop=client.loop)

    def submit(batch: list[Task]) -> None:
        future = client.submit(perform_batch, batch, pure=False)
        running[future] = batch
        completed.add(future)

    def fill() -> None:
        threads = sum(client.nthreads().values()) or 1
        while len(running) < _AHEAD * threads and (batch := next(left, None)) is not None:
            submit(batch)

    fill()
    while running:
        future = next(completed)
        batch = running.pop(future)
        try:
            made_by, records = future.result()
        except distributed.KilledWorker as error:
            key = (batch[0].quantity, batch[0].cells[0])
            attempts[key] += 1
            if attempts[key] == _ATTEMPTS:
                raise FinwidthError(
                    f"workers were lost again and again while they computed {batch[0].quantity} of "
                    f"{batch[0].cells[0]}; give them more memory, or make the cell smaller"
                ) from error
            submit(batch)
            continue
        if made_by != versions():
            raise FinwidthError(f"a worker has {made_by} and this process {versions()}; install the same versions")
        yield from zip(batch, records, strict=True)
        fill()
