"""Tasks on threads of this process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

from finwidth.execution.task import Cancel, Result, Task


class _CancelledError(Exception):
    """The work ends; raised in the threads that compute."""


def cores() -> int:
    """How many there are to run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def on_threads(
    tasks: Iterable[Task], threads: int, perform: Callable[[Task, Cancel], Result]
) -> Generator[tuple[Task, Result]]:
    """Tasks and their results as they are done, by threads of this process.

    NumPy and torch compute without the interpreter's lock, so threads keep all cores busy; they also end with the
    process, even when it is killed, and need nothing of the script that calls them.  Where an exception ends it, such
    as an interrupt, the tasks that end by themselves, rather than at `check_cancelled`, still count.
    """
    stop = threading.Event()

    def check_cancelled() -> None:
        if stop.is_set():
            raise _CancelledError

    left = iter(tasks)
    pool = ThreadPoolExecutor(threads)
    running: dict[Future[Result], Task] = {}
    try:
        while True:
            for task in islice(left, 2 * threads - len(running)):
                running[pool.submit(perform, task, check_cancelled)] = task
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
