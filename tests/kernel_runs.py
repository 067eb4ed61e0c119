"""Kernels that are computed into a store by processes that tests start, and stop; they are forks of one with torch."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from torch import nn

import finwidth
from finwidth import FinwidthError
from finwidth.empirical import ntk

MEMORY = "60kB"  # blocks of five inputs
N = 40


class Slow(nn.Module):
    """A module of two outputs whose passes take a while."""

    def __init__(self, seconds: float = 0.0005) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).double()
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        found: torch.Tensor = self.net(x)
        return found


def inputs(n: int = N) -> torch.Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(1)).double()


def squares(output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """A function of the outputs, and of the inputs."""
    return (output * sample[:, :2]).square().sum(1)


class Squares(nn.Module):
    """The squared slopes of a module's outputs by its inputs."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.requires_grad_()
        outputs = self.net(x).T
        slopes = [torch.autograd.grad(each.sum(), x, create_graph=True)[0].square().sum(1) for each in outputs]
        return torch.stack(slopes, 1)


class Normed(Slow):
    """A module whose samples meet, in batch statistics."""

    def __init__(self) -> None:
        super().__init__(0.0001)
        self.net.insert(1, nn.BatchNorm1d(8).double())


def _of_module() -> tuple[Any, Any, dict[str, Any]]:
    return Slow(), inputs(), {"memory": MEMORY}


def _of_functions() -> tuple[Any, Any, dict[str, Any]]:
    """A smooth module and its slopes, at 17 and 23 inputs: some of the blocks of six have inputs of both."""
    net = Slow(0.0002)
    net.net[1] = nn.Tanh()
    x = inputs()
    return {"f": net, "slopes": Squares(net)}, {"f": x[:17], "slopes": x[17:]}, {"memory": "100kB"}


def _of_batch() -> tuple[Any, Any, dict[str, Any]]:
    """Blocks of 8 of 43 rows, so that the last are of three."""
    return Normed(), inputs(43), {"memory": "150kB", "coupled": True}


KERNELS: dict[str, Callable[[], tuple[Any, Any, dict[str, Any]]]] = {
    "module": _of_module,
    "functions": _of_functions,
    "batch": _of_batch,
}


def stored(store: Path | None, of: str = "module", **more: Any) -> Any:
    """The kernel that all processes compute; without a store, as it is formed."""
    module, x, options = KERNELS[of]()
    where: dict[str, Any] = {"labelled": True} if store is None else {"store": store}
    return ntk(module, x, **where, **options | more)


def _run(pipe: Connection, store: Path, limit: int | None, more: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _stop)
    if limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    def tell(pairs: int) -> None:
        pipe.send(pairs)
        time.sleep(0.01)  # so that a process that waits for its turn still meets this one at work

    try:
        stored(store, progress=tell, **more)
    except FinwidthError as error:
        pipe.send(str(error))
    except KeyboardInterrupt:
        pipe.send("interrupted")
    pipe.send("over")


def _stop(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["torch", "zarr", "xarray", finwidth.__name__, __name__])


@contextlib.contextmanager
def started(store: Path, limit: int | None = None, **more: Any) -> Iterator[tuple[ForkServerProcess, Connection]]:
    """A process that computes `stored`, and what it says: pairs that are done, an error, and that it is over."""
    here, there = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=_run, args=(there, store, limit, more))
    process.start()
    there.close()
    try:
        yield process, here
    finally:
        process.kill()
        process.join()
        here.close()
