"""Kernels on the workers of a Dask cluster: the same store, bit for bit, though workers and schedulers are lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")
distributed = pytest.importorskip("distributed", reason="needs the dask extra")

from torch import nn  # noqa: E402

from finwidth import FinwidthError  # noqa: E402
from finwidth.empirical import check_kernel, ntk  # noqa: E402
from finwidth.empirical.kernel_store import computing as _computing  # noqa: E402
from kernel_runs import MEMORY, Slow, inputs, squares, stored  # noqa: E402

computing: Any = _computing  # in which tests put something else

# What distributed itself leaves open, or warns of, when its workers start and are killed.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("kernel") / "whole.zarr"
    stored(store)
    return store


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", host="127.0.0.1"
    ) as running:
        yield running


def test_the_same_bits_though_a_worker_is_lost(two_workers: Any, whole: Path, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_one(done: int) -> None:
        if done >= 300 and not killed:
            killed.append(two_workers.workers[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    stored(tmp_path / "K.zarr", scheduler=two_workers.scheduler_address, progress=kill_one)
    assert killed
    assert tree(tmp_path / "K.zarr") == tree(whole)


def test_two_sets_of_inputs_and_a_step_that_is_left(two_workers: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"outputs": "trace", "memory": MEMORY}
    x1, x2 = inputs(23), inputs(40)[23:]
    for name, scheduler in (("a", two_workers.scheduler_address), ("b", None)):
        ntk(Slow(), x1, x2, store=tmp_path / name, scheduler=scheduler, **options)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    for name in ("seal/c.0.1", "K/c.0.1"):
        (tmp_path / "a" / name).unlink()
    ntk(Slow(), x1, x2, store=tmp_path / "a", scheduler=two_workers.scheduler_address, **options)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    found = ntk(Slow(), inputs(23), store=tmp_path / "c", entries="diagonal", scheduler=two_workers.scheduler_address)
    np.testing.assert_allclose(found, ntk(Slow(), inputs(23), entries="diagonal"), rtol=1e-12)


def test_groups_and_functions_of_outputs_are_sent(two_workers: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"outputs": squares, "by": "layer", "memory": MEMORY}
    for name, scheduler in (("a", two_workers.scheduler_address), ("b", None)):
        ntk(Slow(), inputs(23), store=tmp_path / name, scheduler=scheduler, **options)
    assert len(list((tmp_path / "a" / "seal").glob("c.*"))) > 1
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


@pytest.mark.parametrize("of", ["functions", "batch"])
def test_functions_and_batches_are_sent(two_workers: Any, tmp_path: Path, of: str) -> None:
    for name, scheduler in (("a", two_workers.scheduler_address), ("b", None)):
        stored(tmp_path / name, of, scheduler=scheduler, outputs=0)
    assert len(list((tmp_path / "a" / "seal").glob("c.*"))) > 8
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_every_function_is_compared_on_a_worker(tmp_path: Path) -> None:
    net, x = Slow(), inputs(5)
    cluster = computing.KernelOnCluster(_kernel_of([net, Doubled(net)], [x, x], tmp_path), 1e-8)
    block = computing.KernelBlock((0, 0), range(10), None, of_x2=False)
    found = cluster.perform(block, {name: cluster.part(name) for name in block.needs()})
    np.testing.assert_allclose(found.entries, ntk([net, Doubled(net)], [x, x]), rtol=1e-12)
    cluster = computing.KernelOnCluster(_kernel_of([net, Elsewise(net)], [x, x], tmp_path), 1e-8)
    with pytest.raises(FinwidthError, match="computes something else on a worker than here"):
        cluster.perform(block, {name: cluster.part(name) for name in block.needs()})


class Doubled(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.factor = net, 2.0

    def forward(self, x: Any) -> Any:
        return self.factor * self.net(x)


class Elsewise(Doubled):
    """Another function once it was sent."""

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.factor = 3.0


class Unsendable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.held: object
        self.net, self.held = nn.Linear(3, 1), threading.Lock()

    def forward(self, x: Any) -> Any:
        return self.net(x)


class Unloadable(Unsendable):
    def __init__(self) -> None:
        super().__init__()
        self.held = Trap()


class Trap:
    def __reduce__(self) -> Any:
        return _only_here, (os.getpid(),)


def _only_here(pid: int) -> Trap:
    if os.getpid() != pid:
        raise RuntimeError("not on this machine")
    return Trap()


class Elsewhere(nn.Linear):
    """Computes something else in another process."""

    def __init__(self) -> None:
        super().__init__(3, 1)
        self.home = os.getpid()

    def forward(self, x: Any) -> Any:
        return super().forward(x) * (1 if os.getpid() == self.home else 2)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Unsendable, r"a Unsendable, cannot be sent to a cluster \(TypeError: .*; leave scheduler= out"),
        (Unloadable, r"a worker cannot load the module \((RuntimeError|ModuleNotFoundError): .*; install there what"),
        (Elsewhere, r"computes something else on a worker than here|a worker cannot load the module"),
    ],
)
def test_modules_that_workers_do_not_have(two_workers: Any, tmp_path: Path, kind: Any, message: str) -> None:
    with pytest.raises(FinwidthError, match=message):
        ntk(kind(), torch.ones(3, 3), store=tmp_path / "K.zarr", scheduler=two_workers.scheduler_address)
    assert not list(tmp_path.glob("K.zarr/seal/c.*"))
    assert not check_kernel(tmp_path / "K.zarr")


def test_attention_is_sent_with_its_plan(tmp_path: Path) -> None:
    """By torch.func, by products and by rules of expansions, as `ntk` found out before."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).double()
    net, x = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 1).double()), torch.randn(6, 3, 4).double()
    cluster = computing.KernelOnCluster(_kernel_of(net, x, tmp_path), 1e-8)
    block = computing.KernelBlock((0, 1), range(3), range(3, 6), of_x2=False)
    found = cluster.perform(block, {name: cluster.part(name) for name in block.needs()})
    np.testing.assert_allclose(found.entries, ntk(net, x)[:3, 3:], rtol=1e-11)


def test_a_worker_compares_what_its_module_computes(tmp_path: Path) -> None:
    kernel = _kernel_of(Slow(), inputs(5), tmp_path)
    block = computing.KernelBlock((0, 0), range(5), None, of_x2=False)
    cluster = computing.KernelOnCluster(kernel, 1e-8)
    shared = {name: cluster.part(name) for name in block.needs()}
    found = cluster.perform(block, shared)
    np.testing.assert_allclose(found.entries, ntk(Slow(), inputs(5)), rtol=1e-13)
    original = computing.every_function
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            computing, "every_function", lambda given: [[[2 * v for v in each] for each in f] for f in original(given)]
        )
        with pytest.raises(FinwidthError, match="computes something else on a worker than here"):
            cluster.perform(block, shared)


def _kernel_of(net: Any, x: Any, folder: Path) -> Any:
    """What `ntk` makes of a module, to be stored."""
    caught: list[Any] = []
    with pytest.MonkeyPatch.context() as patched:
        from finwidth.empirical.kernel import ntk as home

        patched.setattr(home, "stored_ntk", lambda kernel, *_: caught.append(kernel))
        home.ntk(net, x, store=folder / "none")
    return caught[0]


class OfTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)

    def forward(self, x: Any, y: Any) -> Any:
        return torch.tanh(self.net(x)) * y


def test_several_arguments_are_sent(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = OfTwo().double(), (torch.randn(6, 3).double(), torch.randn(6, 2).double())
    cluster = computing.KernelOnCluster(_kernel_of(net, x, tmp_path), 1e-8)
    block = computing.KernelBlock((0, 1), range(3), range(3, 6), of_x2=False)
    found = cluster.perform(block, {name: cluster.part(name) for name in block.needs()})
    np.testing.assert_allclose(found.entries, ntk(net, x)[:3, 3:], rtol=1e-11)


@pytest.mark.slow
def test_the_death_of_the_scheduler(tmp_path: Path, whole: Path) -> None:
    """What was stored is kept, and the same call goes on without one."""
    code = (
        "import sys, time; from distributed import LocalCluster\n"
        "if __name__ == '__main__':\n"
        "    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=':0') as running:\n"
        "        print(running.scheduler_address, flush=True)\n"
        "        time.sleep(600)\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    script = tmp_path / "cluster.py"
    script.write_text(code)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()

    def kill(done: int) -> None:
        if done >= 200:
            os.killpg(process.pid, signal.SIGKILL)

    store, began = tmp_path / "K.zarr", time.monotonic()
    try:
        with pytest.raises(FinwidthError, match=f"the connection to the Dask scheduler {address} is lost; what was"):
            stored(store, scheduler=address, progress=kill)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert time.monotonic() - began < 60
    assert 0 < len(list(store.glob("seal/c.*"))) < 64
    stored(store)
    assert tree(store) == tree(whole)
