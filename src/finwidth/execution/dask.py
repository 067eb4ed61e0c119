"""Tasks on the workers of a Dask scheduler; the process that asks stays the only one that stores."""

from __future__ import annotations

import contextlib
import logging
import platform
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from importlib.metadata import version
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeAlias, TypedDict, cast

from finwidth import arguments
from finwidth.errors import FinwidthError
from finwidth.execution.task import OnCluster, Result, Shared, Task
from finwidth.extras import load_extra

# Cheap tasks travel together, up to about this much work, so that the scheduler's own time does not count.
_BATCH_MICROSECONDS, _BATCH_TASKS = 2e5, 64
_AHEAD = 4  # batches for each thread of the cluster
_ATTEMPTS = 2  # in each of them Dask lets several workers die
_CONNECT_SECONDS = 10
_ANSWER_SECONDS = 60  # a scheduler that is busy may take some
_PATIENCE_SECONDS = 10  # without a result, before we look whether there are workers
_LOGGERS = (
    *("distributed", "distributed.client", "distributed.core", "distributed.comm"),
    *("tornado", "tornado.application", "asyncio"),  # distributed gives the application a level of its own
)


Versions: TypeAlias = Mapping[str, str | None]


class _Future(Protocol):
    """`distributed.Future`, as far as it is used here; distributed has no types."""

    status: str

    def result(self) -> list[Any]: ...

    def exception(self) -> BaseException: ...

    def add_done_callback(self, done: Callable[[_Future], None]) -> None: ...


class _Packages(TypedDict):
    """Versions on one part of a cluster."""

    packages: dict[str, str]  # of Python a tuple


class _ClusterVersions(TypedDict):
    """The result of `Client.get_versions`."""

    scheduler: _Packages
    workers: dict[str, _Packages]


class _Client(Protocol):
    """`distributed.Client`."""

    status: str
    scheduler: object

    def close(self) -> None: ...

    def submit(self, function: Callable[..., object], *arguments: object, pure: bool) -> _Future: ...

    def sync(self, function: object, *, callback_timeout: float) -> dict[str, int]: ...

    def get_versions(self, *, packages: list[str]) -> _ClusterVersions: ...


class _Security(Protocol):
    """`distributed.Security`."""

    def get_connection_args(self, role: str) -> Mapping[str, object]: ...


class _Server(Protocol):
    """`distributed.rpc`."""

    def identity(self) -> Awaitable[dict[str, str]]: ...


class _Loop(Protocol):
    """`distributed.utils.LoopRunner`."""

    def run_sync(self, function: Callable[..., Awaitable[str]], *arguments: object, callback_timeout: float) -> str: ...


def import_distributed() -> None:
    """Raise FinwidthError unless Dask's distributed is installed."""
    load_extra("distributed", "a scheduler")


def check_engine(workers: object, scheduler: object) -> tuple[int | None, str | None]:
    """Who computes, as a user says it: a number of threads, or the address of a scheduler; None: nothing is said."""
    if workers is not None and scheduler is not None:
        raise FinwidthError("workers are threads of this process, and a scheduler has its own; give one of the two")
    if scheduler is None:
        return None if workers is None else arguments.count("workers", workers), None
    address = "an address such as tcp://host:8786; a cluster has it as its scheduler_address"
    found = arguments.text("scheduler", scheduler, address)
    import_distributed()
    return None, found


def environment(packages: Iterable[str]) -> dict[str, str]:
    """Versions that must be the same here and on the workers."""
    return {each: version(each) for each in packages} | {"python": ".".join(platform.python_version_tuple()[:2])}


def perform_batch(
    batch: list[Task], wanted: Mapping[str, str], perform: Callable[[Task, Shared], Result], shared: Shared
) -> list[Result]:
    """The results of some tasks, on a worker; raises FinwidthError if it runs other versions than are wanted."""
    from distributed import get_worker

    refuse_other_versions(f"the worker {get_worker().address}", environment(wanted.keys() - {"python"}), wanted)
    return [perform(task, shared) for task in batch]


def kept_part(part: object) -> object:
    """What tasks share, as a task of its own: if the worker that holds it dies, another one gets it again."""
    return part


def refuse_other_versions(who: str, found: Versions, wanted: Versions) -> None:
    """Raise FinwidthError if a part of the cluster has other software than this process."""
    others = [
        f"{package} {found[package]} (here {wanted.get(package)})" if found[package] else f"no {package}"
        for package in found
        if found[package] != wanted.get(package)
    ]
    if others:
        raise FinwidthError(f"{who} has {', '.join(others)}; install there what is here, and start it again")


def task_batches(tasks: Iterable[Task]) -> Iterator[list[Task]]:
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


def on_dask(tasks: Iterable[Task], scheduler: str, owner: OnCluster[Task, Result]) -> Generator[tuple[Task, Result]]:
    """Tasks and their results as they are done; a batch whose worker is lost goes to another one.

    Raises
    ------
    FinwidthError
        If there is no scheduler at the address, or no longer; if its workers have other software, or too little memory.

    Warns
    -----
    UserWarning
        If no worker computes, because there is none or because all are short of memory; it waits for one that does.
    """
    import_distributed()  # before its loggers are hushed, as it sets them up
    with _quiet():
        cluster = _Connection(scheduler, owner)
        try:
            yield from _results(cluster, task_batches(tasks))
        finally:
            cluster.close()


def _results(cluster: _Connection[Task, Result], left: Iterator[list[Task]]) -> Iterator[tuple[Task, Result]]:
    running: dict[_Future, list[Task]] = {}
    losses: Counter[str] = Counter()
    idle = 0
    batch = next(left, None)
    while batch or running:
        room = _AHEAD * cluster.threads() - len(running)
        while batch and room > 0:
            running[cluster.submit(batch)] = batch
            batch, room = next(left, None), room - 1
        try:
            future = cluster.done.get(timeout=1)
        except Empty:
            idle += 1
            if idle % _PATIENCE_SECONDS == 0:
                cluster.warn_if_nobody_computes()
            continue
        idle = 0
        tasks = running.pop(future)
        results = cluster.results(future)
        if results is not None:
            yield from zip(tasks, results, strict=True)
            continue
        first = tasks[0].told()
        losses[first] += 1
        if losses[first] == _ATTEMPTS:
            raise FinwidthError(
                f"workers were lost again and again while they computed {first}; give them more memory "
                f"(dask worker --memory-limit), or {cluster.owner.change}"
            )
        running[cluster.submit(tasks)] = tasks


class _Connection(Generic[Task, Result]):
    """A client of a Dask scheduler; whatever goes wrong between the two is a FinwidthError."""

    def __init__(self, scheduler: str, owner: OnCluster[Task, Result]) -> None:
        self.scheduler = scheduler
        self.owner = owner
        self.wanted = environment(owner.packages)
        self._parts: dict[str, _Future] = {}
        self.done: SimpleQueue[_Future] = SimpleQueue()
        self._known: set[str] = set()  # workers that were asked
        self._client = _connect(scheduler)

    def close(self) -> None:
        """Leave; the scheduler forgets the tasks of a client that has left."""
        with contextlib.suppress(OSError):  # it is gone already
            self._client.close()

    def submit(self, batch: list[Task]) -> _Future:
        """A future, which is put into `done` when it is."""
        with self._if_lost():
            shared = {name: self._part(name) for task in batch for name in task.needs()}
            future = self._client.submit(perform_batch, batch, self.wanted, self.owner.perform, shared, pure=False)
            future.add_done_callback(self.done.put)
            return future

    def _part(self, name: str) -> _Future:
        """What tasks share: it is sent once, and stays with the scheduler until we leave."""
        if name not in self._parts:
            with warnings.catch_warnings(action="ignore"):  # that it is large
                self._parts[name] = self._client.submit(kept_part, self.owner.part(name), pure=False)
        return self._parts[name]

    def threads(self) -> int:
        """Threads of all workers; new ones are asked for their versions, as some die of tasks that they cannot read."""
        threads = self._ask("ncores")
        if not self._known.issuperset(threads):
            self._refuse_other_software()
            self._known.update(threads)
        return sum(threads.values())

    def results(self, future: _Future) -> list[Result] | None:
        """Results of the batch whose future is done; None if it cost the life of several workers."""
        from distributed import KilledWorker

        if future.status != "error":
            with self._if_lost():
                return future.result()
        error = future.exception()
        if isinstance(error, (KilledWorker, MemoryError)):
            return None
        raise error

    def warn_if_nobody_computes(self) -> None:
        """A line that says why nothing happens."""
        if not self._ask("ncores"):
            warnings.warn(
                f"{self.scheduler} has no workers; waiting for one, which must have the same software as this process: "
                f"dask worker {self.scheduler} --nthreads 1",
                stacklevel=2,
            )
        elif not self._ask("ncores_running"):
            warnings.warn(
                f"all workers of {self.scheduler} pause, for they are short of memory; waiting. Start them with more "
                "(dask worker --memory-limit)",
                stacklevel=2,
            )

    def _ask(self, operation: str) -> dict[str, int]:
        """Threads of workers by address."""
        with self._if_lost():
            ask = getattr(self._client.scheduler, operation)
            return self._client.sync(ask, callback_timeout=_ANSWER_SECONDS)

    def _refuse_other_software(self) -> None:
        with self._if_lost():
            found = self._client.get_versions(packages=[*self.owner.packages])
        for who, there in {"the scheduler": found["scheduler"], **found["workers"]}.items():
            has = {package: there["packages"][package] for package in self.owner.packages}
            has["python"] = ".".join(there["packages"]["python"].split(".")[:2])
            refuse_other_versions(who if who == "the scheduler" else f"the worker {who}", has, self.wanted)

    @contextlib.contextmanager
    def _if_lost(self) -> Iterator[None]:
        """Turn a lost connection into a FinwidthError."""
        try:
            yield
        # The exceptions of distributed where its connection is gone have no common class.
        except Exception as error:
            if self._client.status == "running" and not isinstance(error, (CancelledError, OSError)):
                raise
            raise FinwidthError(
                f"the connection to the Dask scheduler {self.scheduler} is lost; what was stored is kept, and the same "
                "command goes on when a scheduler runs there again"
            ) from None


def _connect(scheduler: str) -> _Client:
    import distributed
    from distributed import utils

    client = cast("Callable[..., _Client]", distributed.Client)
    configured: Callable[[], _Security] = distributed.Security
    loop = cast("Callable[[], _Loop]", utils.LoopRunner)
    try:
        security = configured()  # as Dask's configuration says
        # A client that fails is slow and loud, and one that reaches no scheduler may wait for ever: so we ask before.
        kind = loop().run_sync(_server_kind, scheduler, security, callback_timeout=_CONNECT_SECONDS)
        if kind != "Scheduler":
            raise ValueError(f"it is the address of a {kind}")
        with warnings.catch_warnings(action="ignore"):  # of differences in packages that we do not use
            return client(scheduler, timeout=_CONNECT_SECONDS, set_as_default=False, security=security)
    # An address, and Dask's configuration of TLS, decide what is parsed, loaded and connected, and so what is raised.
    except Exception as error:
        waited = f"timed out after {_CONNECT_SECONDS} s"  # of several libraries, which need not say it
        name = type(error).__name__
        why = " ".join(str(error).split())[:200] or (waited if name == "TimeoutError" else name)
        tls = ", and Dask's configuration needs the certificates" if scheduler.startswith("tls:") else ""
        raise FinwidthError(
            f"no Dask scheduler answers at {scheduler!r:.80} ({why}); give the address that dask scheduler prints, "
            f"such as tcp://host:8786{tls} (docs/sweeps.md)"
        ) from None


async def _server_kind(address: str, security: _Security) -> str:
    """Scheduler, Worker or Nanny: the server at an address."""
    import distributed

    connect: Callable[..., contextlib.AbstractAsyncContextManager[_Server]] = distributed.rpc
    async with connect(address, connection_args=security.get_connection_args("client")) as server:
        return (await server.identity())["type"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence these loggers: lost connections are told in one line here."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
