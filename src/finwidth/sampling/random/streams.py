"""Random streams: one integer seed gives the same numbers whatever the order or the number of workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np

from finwidth.arguments import count
from finwidth.errors import FinwidthError
from finwidth.execution.threads import cores
from finwidth.memory import amount

_MOST_THREADS = 4096

Item = TypeVar("Item")
Result = TypeVar("Result")


@cache
def _keep_freed_arrays() -> None:
    """Let glibc keep the memory of freed arrays for the next ones; once in a process, with its first stream.

    It gives every array back to the system, which then clears its pages for the next, until one as large as this has
    been freed (mallopt(3), M_MMAP_THRESHOLD; 32 MiB is the most that it learns).
    """
    np.empty(2**22 - 2**12)


def stream(seed: int, chunk: int, *purpose: int) -> np.random.Generator:
    """The generator of one chunk of draws; chunks are independent of each other and of who draws them.

    SFC64, the fastest of NumPy's bit generators, under a spawn key of the chunk's number, and of a further number
    where a chunk needs several.
    """
    _keep_freed_arrays()
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(chunk, *purpose))))


def check_threads(threads: int | None) -> int:
    """The number of threads, by default as many as there are cores to run on."""
    if threads is None:
        return cores()
    if (number := count("threads", threads)) > _MOST_THREADS:
        raise FinwidthError(f"threads is {amount(number)}; give at most {_MOST_THREADS}")
    return number


def in_order(task: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """``task`` of every item, computed by several threads, given back in order, few held at a time."""
    return map(task, items) if threads == 1 else _on_threads(task, items, threads)


def _on_threads(task: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(task, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
