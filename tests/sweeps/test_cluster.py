"""Sweeps on the worker processes of a Dask cluster: the same numbers, and workers may be lost."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import finwidth
from finwidth import FinwidthError
from finwidth.execution import dask as cluster
from finwidth.sweeps import read
from finwidth.sweeps.execution.run import Progress
from finwidth.sweeps.execution.task import Task

distributed = pytest.importorskip("distributed", reason="needs the dask extra")
import dask  # noqa: E402
import tornado.util  # noqa: E402

# What distributed itself leaves open, or warns of, when its workers start and are killed.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

GRID = """\
seed = 4
quantities = ["exact", "sampled"]
[axes]
depth = [2, 4, 8]
width = [3, 8, 16, 32]
n_0 = 2
input = "1,2"
[sampled]
draws = 200_000
"""
CONFIG = tomllib.loads(GRID)
COMMAND = [sys.executable, "-c", "from finwidth.cli.main import main; main()", "sweep"]


@pytest.fixture(scope="module")
def whole() -> Any:
    return finwidth.sweep(CONFIG)


@pytest.fixture(scope="module")
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


def test_a_worker_of_another_version_is_refused(two_workers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        cluster, "environment", lambda packages: {"finwidth": "99.0", "numpy": np.__version__, "python": "3.9"}
    )
    with pytest.raises(FinwidthError, match=r"has finwidth .* \(here 99\.0\), python .* \(here 3\.9\); install there"):
        finwidth.sweep(CONFIG, scheduler=two_workers.scheduler_address)


def test_a_worker_that_comes_while_others_compute_looks_for_itself(two_workers: Any) -> None:
    with distributed.Client(two_workers.scheduler_address, set_as_default=False) as client:
        future = client.submit(cluster.perform_batch, [], {"numpy": "0.1"}, None, {})
        with pytest.raises(FinwidthError, match=r"the worker tcp://.* has .*numpy .* \(here 0\.1\)"):
            future.result()


def test_a_mistake_that_a_worker_finds_is_told_as_it_is(two_workers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(batch: list[Task], wanted: Mapping[str, str], *_: object) -> None:
        raise FinwidthError("this needs PyTorch")

    monkeypatch.setattr(cluster, "perform_batch", mistaken)
    with pytest.raises(FinwidthError, match=r"^this needs PyTorch$"):
        finwidth.sweep(CONFIG, scheduler=two_workers.scheduler_address)


def test_no_workers_is_told_and_late_ones_are_used(whole: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_PATIENCE_SECONDS", 1)
    with distributed.LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=":0") as late:
        threading.Timer(1.5, late.scale, [1]).start()
        with pytest.warns(UserWarning, match=r"has no workers; waiting for one, .*: dask worker tcp://127\.0\.0\.1"):
            assert whole.identical(finwidth.sweep(CONFIG, scheduler=late.scheduler_address))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("tcp://127.0.0.1:1", "timed out after 1 s"),
        ("nonsense://", "unknown address scheme 'nonsense'"),
        ("tcp://127.0.0.1:port", "invalid literal"),
        ("", "missing port number"),
        ("x" * 5000, "missing port number"),
        ("tls://127.0.0.1:1", "TLS .*needs the certificates"),
        (8786, "scheduler is 8786; give an address such as tcp://host:8786"),
    ],
)
def test_no_scheduler(address: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 1)
    with pytest.raises(FinwidthError, match=message) as raised:
        finwidth.sweep(CONFIG, scheduler=address)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("error", [TimeoutError(), tornado.util.TimeoutError()])
def test_a_timeout_without_words(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    async def busy(*_: object) -> str:
        raise error

    monkeypatch.setattr(cluster, "_server_kind", busy)
    with pytest.raises(FinwidthError, match=r"\(timed out after \d+ s\)"):
        finwidth.sweep(CONFIG, scheduler="tcp://127.0.0.1:1")


def test_a_port_where_something_else_listens(two_workers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(FinwidthError, match="timed out after 1 s"):
        finwidth.sweep(CONFIG, scheduler=f"tcp://127.0.0.1:{silent.getsockname()[1]}")
    with pytest.raises(FinwidthError, match="it is the address of a Worker"):
        finwidth.sweep(CONFIG, scheduler=next(iter(two_workers.workers.values())).worker_address)


def test_cheap_tasks_travel_together() -> None:
    class Sized:
        def __init__(self, microseconds: float) -> None:
            self.microseconds = microseconds

        def work(self) -> float:
            return self.microseconds

    sizes = [1e5] * 5 + [1.0] * 130 + [1e9, 1.0]
    tasks: Any = [Sized(size) for size in sizes]
    made: list[list[Task]] = list(cluster.task_batches(tasks))
    assert [task for batch in made for task in batch] == tasks
    assert max(map(len, made)) == 64
    assert len(made) == 6
    assert np.isclose(sum(task.work() for batch in made for task in batch), sum(sizes))


def test_a_cell_that_kills_every_worker_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_ATTEMPTS", 2)
    monkeypatch.setattr(cluster, "perform_batch", lambda *_: os._exit(1))
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=":0") as running,
        pytest.raises(FinwidthError, match=r"lost again and again while they computed (exact|sampled) of Cell\(n_0=2"),
    ):
        finwidth.sweep(CONFIG, scheduler=running.scheduler_address)


@contextlib.contextmanager
def one_small_worker(memory: str) -> Iterator[Any]:
    small = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, memory_limit=memory, dashboard_address=":0"
    )
    try:
        yield small
    finally:
        with contextlib.suppress(TimeoutError):  # of older versions, where a worker is about to be killed
            small.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:(all workers of )?tcp:UserWarning")  # there may be none for a while
def test_a_worker_that_is_killed_for_its_memory_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def large(batch: list[Task], wanted: Mapping[str, str], *_: object) -> None:
        held = np.ones(10**8)
        time.sleep(3)
        assert held.all()

    monkeypatch.setattr(cluster, "perform_batch", large)
    with one_small_worker("500MB") as small:
        small.adapt(minimum=1, maximum=1)  # a nanny may die with its worker
        with pytest.raises(FinwidthError, match=r"lost again and again .* more memory"):
            finwidth.sweep(CONFIG, scheduler=small.scheduler_address)


@pytest.mark.slow
def test_a_worker_that_pauses_for_lack_of_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_PATIENCE_SECONDS", 1)
    with (
        dask.config.set({"distributed.worker.memory.pause": 0.01, "distributed.worker.memory.terminate": False}),
        one_small_worker("2GB") as small,
        pytest.raises(UserWarning, match=r"all workers of tcp://.* pause, for they are short of memory; waiting"),
    ):
        finwidth.sweep(CONFIG, scheduler=small.scheduler_address)


# The same on processes that a shell starts, and with the command line.


@contextlib.contextmanager
def dask_process(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A `dask scheduler` or `dask worker` on this machine alone."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", *arguments, "--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | environment,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(timeout=30)


@contextlib.contextmanager
def dask_scheduler(folder: Path, *options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)
    with dask_process("scheduler", "--port", "0", "--scheduler-file", str(file), *options, **environment) as process:
        while True:
            time.sleep(0.1)
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                address = json.loads(file.read_text())["address"]
                break
        yield process, address


def dask_worker(address: str, folder: Path, *options: str, **environment: str) -> Any:
    return dask_process("worker", address, "--nthreads", "1", "--local-directory", str(folder), *options, **environment)


def start(folder: Path, address: str, **environment: str) -> subprocess.Popen[str]:
    """`finwidth sweep`, once it has stored something of what is sampled."""
    (folder / "grid.toml").write_text(GRID)
    before = len(list(folder.glob("grid.zarr/sampled/c.*")))
    process = subprocess.Popen(
        [*COMMAND, "grid.toml", "--quiet", "--scheduler", address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - off in background jobs
    )
    while len(list(folder.glob("grid.zarr/sampled/c.*"))) == before and process.poll() is None:
        time.sleep(0.01)
    return process


def tasks_at(address: str) -> int:
    with distributed.Client(address, set_as_default=False) as client:
        return int(client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))


def test_an_interrupt_and_then_the_death_of_the_scheduler(tmp_path: Path, whole: Any) -> None:
    with dask_scheduler(tmp_path) as (scheduler, address), dask_worker(address, tmp_path):
        interrupted = start(tmp_path, address)
        interrupted.send_signal(signal.SIGINT)
        _, errors = interrupted.communicate(timeout=60)
        assert interrupted.returncode == 130
        assert errors.splitlines()[-1].startswith("finwidth: interrupted; ")
        assert errors.endswith("the same command goes on\n")
        assert "Traceback" not in errors
        while tasks_at(address):  # the worker ends the one that it is at
            time.sleep(0.1)

        left_alone = start(tmp_path, address)
        scheduler.kill()
        _, errors = left_alone.communicate(timeout=60)
        assert left_alone.returncode == 2
        assert errors.startswith(
            f"finwidth: error: the connection to the Dask scheduler {address} is lost; what was st"
        )
        assert errors.count("\n") == 1
    assert whole.identical(finwidth.sweep(tmp_path / "grid.toml"))


@pytest.mark.slow
def test_a_scheduler_that_is_stuck(tmp_path: Path) -> None:
    with dask_scheduler(tmp_path) as (scheduler, address), dask_worker(address, tmp_path):
        process = start(tmp_path, address)
        scheduler.send_signal(signal.SIGSTOP)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2
        assert "is lost" in errors
        assert errors.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("other", ["scheduler", "worker"])
def test_other_software_is_told_before_anything_is_computed(tmp_path: Path, other: str) -> None:
    module = tmp_path / "site" / "finwidth-99.0.dist-info"
    module.mkdir(parents=True)
    (module / "METADATA").write_text("Metadata-Version: 2.1\nName: finwidth\nVersion: 99.0\n")
    (tmp_path / "site" / "finwidth.py").write_text("__version__ = '99.0'")
    of = {each: {"PYTHONPATH": str(tmp_path / "site")} if each == other else {} for each in ("scheduler", "worker")}
    with (
        dask_scheduler(tmp_path, **of["scheduler"]) as (_, address),
        dask_worker(address, tmp_path, **of["worker"]),
    ):
        process = start(tmp_path, address)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert re.match(rf"finwidth: error: the {other} .*has finwidth 99\.0 \(here", errors)
    assert errors.count("\n") == 1
    assert not [*tmp_path.glob("grid.zarr/exact/c.*"), *tmp_path.glob("grid.zarr/sampled/c.*")]


@pytest.mark.slow
def test_encryption_with_a_certificate_of_ones_own(tmp_path: Path, whole: Any) -> None:
    """As docs/sweeps.md tells."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")
    certificate = {"cert": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:3072", "-nodes", "-days", "1", "-subj", "/CN=finwidth",
         "-keyout", certificate["key"], "-out", certificate["cert"]],
        check=True,
        capture_output=True,
    )  # fmt: skip
    tls = {"ca-file": certificate["cert"], **dict.fromkeys(("scheduler", "worker", "client"), certificate)}
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "tls.yaml").write_text(
        json.dumps({"distributed": {"comm": {"require-encryption": True, "tls": tls}}})
    )
    trusted = {"DASK_CONFIG": str(tmp_path / "config")}
    with (
        dask_scheduler(tmp_path, "--protocol", "tls", **trusted) as (_, address),
        dask_worker(address, tmp_path, **trusted),
    ):
        assert address.startswith("tls://")
        for stranger in (address, address.replace("tls", "tcp")):
            process = start(tmp_path, stranger)
            assert "no Dask scheduler answers" in process.communicate(timeout=60)[1]
            assert process.returncode == 2
        process = start(tmp_path, address, **trusted)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert whole.identical(read(tmp_path / "grid.zarr"))


@pytest.mark.parametrize("name", ["distributed.core", "tornado", "tornado.application", "asyncio"])
def test_what_libraries_log_of_a_stop_is_hushed(name: str) -> None:
    """Some have a level of their own, which distributed gives them."""
    logger = logging.getLogger(name)
    assert logger.isEnabledFor(logging.CRITICAL)
    with cluster._quiet():
        assert not logger.isEnabledFor(logging.CRITICAL)
    assert logger.isEnabledFor(logging.CRITICAL)
