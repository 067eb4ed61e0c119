"""Sweeps on the worker processes of a Dask cluster: the same numbers, and workers may be lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import finwidth
from finwidth import FinwidthError
from finwidth.sweeps import cluster
from finwidth.sweeps.run import Progress, Task

distributed = pytest.importorskip("distributed", reason="needs the dask extra")

# What distributed itself leaves open, or warns of, when its workers start and are killed.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CONFIG: dict[str, Any] = {
    "seed": 4,
    "quantities": ["exact", "sampled"],
    "axes": {"depth": [2, 4, 8], "width": [3, 8, 16, 32], "n_0": 2, "input": "1,2"},
    "sampled": {"draws": 300_000},
}


@pytest.fixture(scope="module")
def whole() -> Any:
    return finwidth.sweep(CONFIG)


@pytest.fixture
def two_workers() -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", host="127.0.0.1"
    ) as running:
        yield running


def test_a_cluster_gives_the_same_and_survives_the_loss_of_a_worker(two_workers: Any, whole: Any) -> None:
    address = two_workers.scheduler_address
    killed: list[int] = []

    def kill_one(now: Progress) -> None:
        if now.done >= 14 and not killed:  # the exact cells, and some of the others
            killed.append(two_workers.workers[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    assert whole.identical(finwidth.sweep(CONFIG, scheduler=address, progress=kill_one))
    assert killed
    two_workers.scale(1)
    assert whole.identical(finwidth.sweep(CONFIG, scheduler=address))


def test_a_worker_of_another_version_is_refused(two_workers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "versions", lambda: {"finwidth": "99.0"})
    with pytest.raises(FinwidthError, match=r"a worker has .*; install the same versions"):
        finwidth.sweep(CONFIG, scheduler=two_workers.scheduler_address)


def test_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 1)
    with pytest.raises(FinwidthError, match=r"no Dask scheduler answers at 'tcp://127\.0\.0\.1:1'"):
        finwidth.sweep(CONFIG, scheduler="tcp://127.0.0.1:1")
    with pytest.raises(FinwidthError, match="no Dask scheduler answers at 'nonsense://'"):
        finwidth.sweep(CONFIG, scheduler="nonsense://")


def test_cheap_tasks_travel_together() -> None:
    class Sized:
        def __init__(self, microseconds: float) -> None:
            self.microseconds = microseconds

        def work(self) -> float:
            return self.microseconds

    sizes = [1e5] * 5 + [1.0] * 130 + [1e9, 1.0]
    tasks: Any = [Sized(size) for size in sizes]
    made: list[list[Task]] = list(cluster.batches(tasks))
    assert [task for batch in made for task in batch] == tasks
    assert max(map(len, made)) == 64
    assert len(made) == 6
    assert np.isclose(sum(task.work() for batch in made for task in batch), sum(sizes))


def test_a_cell_that_kills_every_worker_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import dask

    monkeypatch.setattr(cluster, "_ATTEMPTS", 2)
    monkeypatch.setattr(cluster, "perform_batch", lambda batch: os._exit(1))
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=":0") as running,
        pytest.raises(FinwidthError, match=r"lost again and again while they computed (exact|sampled) of Cell\(n_0=2"),
    ):
        finwidth.sweep(CONFIG, scheduler=running.scheduler_address)
