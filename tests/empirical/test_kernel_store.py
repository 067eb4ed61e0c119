"""Kernels on disk: the same numbers, the same bits after kills, damage told, and nobody else's file touched."""

from __future__ import annotations

import importlib
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")
zarr = pytest.importorskip("zarr", reason="needs the sweep extra")

import xarray as xr  # noqa: E402
from torch import nn  # noqa: E402

from finwidth import FinwidthError  # noqa: E402
from finwidth.empirical import check_kernel, ntk  # noqa: E402
from finwidth.empirical.kernel import coupled, parts  # noqa: E402
from finwidth.empirical.kernel_store import computing as _computing  # noqa: E402
from finwidth.empirical.kernel_store import fill as _fill  # noqa: E402
from finwidth.empirical.kernel_store import sharing as _sharing  # noqa: E402
from finwidth.empirical.kernel_store import store as module  # noqa: E402
from finwidth.empirical.reference.jacobian import reference_ntk  # noqa: E402
from finwidth.errors import SizeError  # noqa: E402
from finwidth.progress import Stage, watching  # noqa: E402
from kernel_runs import KERNELS, MEMORY, N, Slow, inputs, started, stored  # noqa: E402
from plain_rows import rows  # noqa: E402

# Modules in which tests put something else.
fill: Any = _fill
computing: Any = _computing
sharing: Any = _sharing

# A fork of a process with threads; the server of forks has one.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("kernel") / "whole.zarr"
    stored(store)
    assert len(list((store / "seal").glob("c.*"))) == 64
    return store


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "K.zarr"))


# ---- the numbers


def small_module() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 2)).double()


@pytest.mark.parametrize("outputs", ["full", "diagonal", "trace", 1])
@pytest.mark.parametrize("kind", ["square", "rectangle", "diagonal"])
def test_the_kernel_is_that_of_ntk_and_of_the_jacobian(tmp_path: Path, outputs: str | int, kind: str) -> None:
    net, x = small_module(), inputs(23)
    x2 = inputs(30)[23:] if kind == "rectangle" else None
    options: dict[str, Any] = {"entries": "diagonal"} if kind == "diagonal" else {"x2": x2}
    seen: list[int] = []
    found = ntk(net, x, outputs=outputs, store=tmp_path / "a", memory="100kB", progress=seen.append, **options)
    here = ntk(net, x, outputs=outputs, labelled=True, **options)
    assert found.dims == here.dims
    assert found.dtype == here.dtype
    assert found.attrs == here.attrs
    np.testing.assert_allclose(found, here, rtol=1e-12, atol=1e-13)
    truth = of_wanted(reference_ntk(net, x, x2).numpy(), outputs, kind)
    np.testing.assert_allclose(found, truth, rtol=1e-11, atol=1e-12)
    assert seen == sorted(seen)
    assert seen[-1] == here.sizes["input"] * here.sizes.get("input_", 1)
    assert len(list((tmp_path / "a" / "K").glob("c.*"))) > (kind != "diagonal")


PARTS: dict[str, dict[str, Any]] = {
    "by layer": {"by": "layer"},
    "by names, trace": {"by": {"first": "0", "a bias": ["2.bias"]}, "outputs": "trace"},
    "by module, diagonal": {"by": "module", "outputs": "diagonal", "entries": "diagonal"},
    "a list": {"outputs": [1, 0]},
    "a slice": {"outputs": slice(1, 2), "by": "layer"},
    "combinations": {"outputs": [[0.5, 2.0], [1.0, -1.0], [0.0, 3.0]]},
    "one combination": {"outputs": [0.5, 2.0], "by": "layer"},
    "a function": {"outputs": lambda output, sample: (output * sample[:, :2]).square().sum(1)},
}


@pytest.mark.parametrize("name", PARTS)
def test_groups_and_chosen_outputs(tmp_path: Path, name: str) -> None:
    """Against the Jacobian of the parameters, and of the outputs, one after another."""
    net, x, options = small_module(), inputs(23), PARTS[name]
    found = ntk(net, x, store=tmp_path / "a", memory="100kB", **options)
    here = ntk(net, x, labelled=True, **options)
    xr.testing.assert_allclose(found, here, rtol=1e-12, atol=1e-13)
    assert found.attrs == here.attrs
    assert len(list((tmp_path / "a" / "K").glob("c.*"))) > ("entries" not in options)
    assert not check_kernel(tmp_path / "a")
    K = found.sum("group").to_numpy() if "group" in found.dims else found.to_numpy()
    np.testing.assert_allclose(K, by_jacobian(net, x, **options), rtol=1e-11, atol=1e-12)
    if "group" in found.dims:
        first = ["0.weight", "0.bias"]
        of_first = ntk(net, x, parameters=first, **{key: each for key, each in options.items() if key != "by"})
        np.testing.assert_allclose(found.isel(group=0), of_first, rtol=1e-11, atol=1e-12)


def by_jacobian(net: nn.Module, x: Any, outputs: Any = "full", entries: str = "full", by: Any = None) -> Any:
    """The kernel of all parameters by plain backward passes."""
    if callable(outputs):
        rows = torch.stack([flat_gradient(net, outputs(net(each[None]), each[None])[0]) for each in x])
        return (rows @ rows.T).numpy()
    return of_wanted(reference_ntk(net, x).numpy(), outputs, entries)


def of_wanted(K: Any, outputs: Any, entries: str) -> Any:
    """What is wanted of the kernel of all pairs of inputs and of two outputs."""
    if isinstance(outputs, str):
        K = {"full": K, "trace": np.trace(K, axis1=2, axis2=3), "diagonal": np.diagonal(K, axis1=2, axis2=3)}[outputs]
    else:
        C = np.eye(2)[outputs] if isinstance(outputs, int | slice) or outputs == [1, 0] else np.array(outputs)
        K = np.einsum("abij,...i,...j->ab..." if C.ndim == 1 else "abij,ki,lj->abkl", K, C, C)
    return K[range(len(K)), range(len(K))] if entries == "diagonal" else K


def flat_gradient(net: nn.Module, value: Any) -> Any:
    return torch.cat([each.flatten() for each in torch.autograd.grad(value, list(net.parameters()))])


def test_any_reader_opens_it_lazily_and_quietly(whole: Path) -> None:
    with warnings.catch_warnings(action="error"):
        found = xr.open_zarr(whole, chunks=None)
    assert found.K.dims == ("input", "input_", "output", "output_")
    assert found.seal.dims == ("block", "block_")
    assert not isinstance(found.K.variable._data, np.ndarray)  # nothing was read
    assert found.K.attrs["module"] == "Slow"
    assert found.attrs["finwidth_kernel"]["versions"]["torch"] == torch.__version__
    assert (found.seal > 0).all()
    lazy = pytest.importorskip("dask.array", reason="needs the dask extra")
    assert isinstance(xr.open_zarr(whole).K.data, lazy.Array)
    np.testing.assert_array_equal(zarr.open_array(whole / "K")[:5], found.K[:5])


def test_one_block_has_the_bits_of_ntk(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for net in (small_module(), small_module().float()):
            np.testing.assert_array_equal(ntk(net, inputs(23), store=tmp_path / str(id(net))), ntk(net, inputs(23)))
    finally:
        torch.set_num_threads(before)


def test_blocks_below_the_diagonal_are_mirror_images(whole: Path) -> None:
    K = xr.open_zarr(whole).K.to_numpy()
    blocks = np.arange(N) // 5
    apart = blocks[:, None] != blocks
    np.testing.assert_array_equal(K[apart], K.transpose(1, 0, 3, 2)[apart])


@pytest.mark.parametrize("options", [{"workers": 1}, {"workers": 5, "memory": "2MB"}])
def test_who_computes_it_and_in_which_order_makes_no_difference(
    copied: Path, whole: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a larger memory, of a store that is begun: its blocks stay as they are."""
    for i, j in product(range(8), range(3, 8)):
        (copied / "seal" / f"c.{i}.{j}").unlink()
        (copied / "K" / f"c.{i}.{j}.0.0").unlink()
    before, original = torch.get_num_threads(), fill._kernel_blocks
    monkeypatch.setattr(fill, "_kernel_blocks", lambda *given: reversed(list(original(*given))))
    stored(copied, **options)
    assert tree(copied) == tree(whole)
    with ThreadPoolExecutor(1) as pool:
        assert torch.get_num_threads() == pool.submit(torch.get_num_threads).result() == before


class Counting(nn.Module):
    """Counts its calls, keeps an average, and is called by one thread at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.busy = small_module(), False
        self.register_buffer("mean", torch.zeros(1).double())
        self.calls, self.together = 0, False

    def forward(self, x: Any) -> Any:
        self.together |= self.busy
        self.busy = True
        time.sleep(0.001)
        self.calls += 1
        self.mean += x.mean()
        self.busy = False
        return self.net(x)


class Locked(Counting):
    """Cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Closed(Counting):
    """Calls layers that a copy does not have as its own."""

    def __init__(self) -> None:
        super().__init__()
        self.act: Any = lambda x: self.net(1 * x)

    def forward(self, x: Any) -> Any:
        time.sleep(0.001)
        return self.act(x)


@pytest.fixture
def used_threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many threads each kernel of the test was computed on."""
    found: list[int] = []
    original = fill.on_threads

    def counted(blocks: Any, n: int, perform: Any) -> Any:
        found.append(n)
        return original(blocks, n, perform)

    monkeypatch.setattr(fill, "on_threads", counted)
    return found


@pytest.mark.parametrize(("kind", "threads"), [(Counting, 3), (Locked, 1), (Closed, 1)])
def test_each_thread_has_a_module_of_its_own(
    tmp_path: Path, kind: type[Counting], threads: int, used_threads: list[int]
) -> None:
    net: Any = kind()
    found = ntk(net, inputs(23), store=tmp_path / "a", memory="400kB", workers=3)
    assert used_threads == [threads]
    assert (net.calls, float(net.mean), net.together) == (0, 0.0, False)
    np.testing.assert_allclose(found, ntk(net, inputs(23)), rtol=1e-12, atol=1e-13)


def test_attention_and_general_parameters_on_threads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).double()
    net, x = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 1).double()), torch.randn(12, 3, 4).double()
    found = ntk(net, x, outputs="trace", store=tmp_path / "a", memory="1MB", workers=2)
    np.testing.assert_allclose(found, ntk(net, x, outputs="trace"), rtol=1e-11)


# ---- several functions, and a whole batch


@pytest.fixture(scope="module", params=["functions", "batch"])
def parted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A kind of `kernel_runs.KERNELS`, and its store; the blocks of functions have some of both."""
    store = tmp_path_factory.mktemp("kernel") / f"{request.param}.zarr"
    found = stored(store, request.param)
    assert len(list((store / "seal").glob("c.*"))) == {"functions": 49, "batch": 36}[request.param]
    xr.testing.assert_allclose(found, stored(None, request.param), rtol=1e-11, atol=1e-12)
    return request.param, store


def jacobian(of: str) -> Any:
    """The gradients of all outputs by plain backward passes, shape (inputs, outputs, numbers)."""
    module, x, _ = KERNELS[of]()
    if of == "batch":
        return rows([module(x)], list(module.parameters())).unflatten(0, (len(x), -1))
    calls = [(function, each) for name, function in module.items() for each in x[name]]
    parameters = list(module["f"].parameters())
    return torch.stack([rows([f(each[None].clone())], parameters) for f, each in calls])


CHOICES: dict[str, dict[str, Any]] = {
    "full": {},
    "trace": {"outputs": "trace"},
    "one": {"outputs": 1},
    "each": {"outputs": "diagonal"},
    "each, by layer": {"outputs": "diagonal", "by": "layer"},
    "combinations": {"outputs": [[0.5, 2.0], [1.0, -1.0], [0.0, 3.0]]},
    "one function": {"outputs": lambda output, sample: output @ torch.tensor([0.5, 2.0]).to(output)},
    "inputs with themselves": {"entries": "diagonal"},
    "with themselves, trace": {"entries": "diagonal", "outputs": "trace", "by": "module"},
}


@pytest.mark.parametrize("of", ["functions", "batch"])
@pytest.mark.parametrize("name", CHOICES)
def test_functions_and_batches(tmp_path: Path, of: str, name: str) -> None:
    """Against the Jacobian; against the kernel that is formed, with coordinates and attributes; to the bit in one."""
    options, J = CHOICES[name], jacobian(of)
    before, seen = torch.get_num_threads(), list[int]()
    torch.set_num_threads(1)
    try:
        here = stored(None, of, memory="1GiB", **options)
        assert stored(tmp_path / "a", of, memory="1GiB", **options).identical(here)
    finally:
        torch.set_num_threads(before)
    memory = {"functions": "200kB", "batch": "400kB"}[of]
    found = stored(tmp_path / "b", of, memory=memory, progress=seen.append, **options)
    assert len(list((tmp_path / "a" / "seal").glob("c.*"))) == 1
    assert len(list((tmp_path / "b" / "seal").glob("c.*"))) > ("entries" not in options)
    xr.testing.assert_allclose(found, here, rtol=1e-11, atol=1e-12)
    assert seen == sorted(seen)
    assert seen[-1] == here.sizes["input"] * here.sizes.get("input_", 1)
    assert not check_kernel(tmp_path / "b")
    given = options.get("outputs", "full")
    K = torch.einsum("aip,bjp->abij", J, J).numpy()
    K = of_wanted(K, [0.5, 2.0] if callable(given) else given, options.get("entries", "full"))
    whole = found.sum("group") if "group" in found.dims else found
    np.testing.assert_allclose(whole, K, rtol=1e-10, atol=1e-11)


def test_functions_at_two_sets_of_inputs(tmp_path: Path) -> None:
    functions, x, _ = KERNELS["functions"]()
    others = {"f": inputs(50)[45:], "slopes": inputs(60)[50:]}
    found = ntk(functions, x, others, store=tmp_path / "a", memory="80kB")
    assert len(list((tmp_path / "a" / "seal").glob("c.*"))) > 4
    xr.testing.assert_allclose(found, ntk(functions, x, others, labelled=True), rtol=1e-11, atol=1e-12)
    assert found.function_.to_numpy().tolist() == ["f"] * 5 + ["slopes"] * 10
    between = found.where((found.function == "f") & (found.function_ == "slopes"), drop=True)
    assert between.shape == (17, 10, 2, 2)


def test_who_computes_parts_and_what_is_kept_makes_no_difference(
    tmp_path: Path, parted: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    of, whole = parted
    stored(tmp_path / "a", of, workers=3)
    assert tree(tmp_path / "a") == tree(whole)
    shutil.rmtree(tmp_path / "a" / "seal")
    monkeypatch.setattr(computing, "KeptGradients", lambda most: sharing.KeptGradients(0))
    original = fill._kernel_blocks
    monkeypatch.setattr(fill, "_kernel_blocks", lambda *given: reversed(list(original(*given))))
    assert check_kernel(tmp_path / "a")  # whose descriptions were lost with the seals
    stored(tmp_path / "a", of, workers=1)
    assert tree(tmp_path / "a") == tree(whole)


def test_kills_of_a_kernel_in_parts(tmp_path: Path, parted: tuple[str, Path]) -> None:
    of, whole = parted
    kill_at_random(tmp_path / "K.zarr", whole, 3, seed=3, of=of)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_more_kills_of_a_kernel_in_parts(tmp_path: Path, parted: tuple[str, Path], seed: int) -> None:
    of, whole = parted
    kill_at_random(tmp_path / "K.zarr", whole, 6, seed, of=of)


def test_damage_of_a_kernel_in_parts(tmp_path: Path, parted: tuple[str, Path]) -> None:
    of, whole = parted
    damaged = ["K/c.2.4.0.0", *(["function/c.0", "number_/zarr.json"] if of == "functions" else [])]
    for place, name in enumerate(damaged):
        store = Path(shutil.copytree(whole, tmp_path / f"{place}.zarr"))
        content = (store / name).read_bytes()
        (store / name).write_bytes(content[:-1])
        with pytest.raises(FinwidthError, match=rf"is damaged in {name}, and left as it is"):
            stored(store, of)
        assert [each.file for each in check_kernel(store)] == [name]
        stored(store, of)
        assert tree(store) == tree(whole)


def test_a_function_that_calls_the_original_module_has_one_thread(tmp_path: Path, used_threads: list[int]) -> None:
    net, x = small_module(), inputs(23)
    functions: dict[str, Any] = {"f": net, "twice": lambda x: 2 * net(x)}
    found = ntk(functions, {"f": x, "twice": x}, store=tmp_path / "a", memory="100kB", workers=2)
    own: dict[str, Any] = {"f": net, "copied with it": net.forward}
    ntk(own, {"f": x, "copied with it": x}, store=tmp_path / "b", memory="200kB", workers=2)
    assert used_threads == [1, 2]
    K = reference_ntk(net, x)
    right = torch.cat([torch.cat([K, 2 * K], 1), torch.cat([2 * K, 4 * K], 1)])
    np.testing.assert_allclose(found, right, rtol=1e-11)


def test_other_functions_and_batches_are_refused(tmp_path: Path) -> None:
    functions, x, _ = KERNELS["functions"]()
    ntk(functions, x, outputs="trace", store=tmp_path / "a")
    before = tree(tmp_path / "a")
    changed = {**x, "slopes": x["slopes"].clone()}
    changed["slopes"][3, 1] += 1e-9
    f, slopes = functions.values()
    others: list[tuple[Any, Any, str]] = [
        (functions, changed, "x1 has other inputs"),
        ({"f": f, "g": slopes}, dict(zip("fg", x.values(), strict=True)), "functions was .* and is"),
        ({"f": f, "slopes": lambda x: 2 * slopes(x)}, x, "the module's parameters or buffers have other|computes som"),
        ({"f": f, "slopes": f}, x, "the module.*computes something else of the same parameters|have other numbers"),
        (f, x["f"], "module was 'Functions' and is 'Slow'.*x1 has other inputs.*functions was .* and is None"),
    ]
    for other, given, message in others:
        with pytest.raises(FinwidthError, match=f"a is the store of another kernel: .*({message})"):
            ntk(other, given, outputs="trace", store=tmp_path / "a")
    assert tree(tmp_path / "a") == before
    net, batch = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), inputs(9)
    ntk(net, batch, coupled=True, store=tmp_path / "b")
    told = r"another kernel: one of the two is of a whole batch, by coupled=True\. It"
    with pytest.raises(FinwidthError, match=told):
        ntk(net, batch, store=tmp_path / "b")
    ntk(net, batch, store=tmp_path / "c")
    with pytest.raises(FinwidthError, match=told):
        ntk(net, batch, coupled=True, store=tmp_path / "c")
    with pytest.raises(FinwidthError, match=r"another kernel: x1 has other inputs\. It"):
        ntk(net, batch[:8], coupled=True, store=tmp_path / "b")


@pytest.mark.parametrize("of", ["functions", "batch"])
def test_parts_that_are_wrong_are_not_stored(tmp_path: Path, of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a part, and in putting parts together."""
    original = sharing.KeptGradients.compute

    def wrong(*given: Any, **options: Any) -> Any:
        K, job = original(*given, **options)
        return K if job.x2 is None else K * 1.01, job

    with monkeypatch.context() as patched:
        patched.setattr(sharing.KeptGradients, "compute", wrong)
        with pytest.raises(FinwidthError, match="a number of the kernel is"):
            stored(tmp_path / "a", of)
    owner: Any = parts.KernelInParts if of == "functions" else coupled.CoupledKernel
    joined = owner.joined

    def shifted(self: Any, K: Any, part: Any, found: Any, sides: Any) -> Any:
        return joined(self, K, part, found.roll(1, -1), sides)

    with monkeypatch.context() as patched:
        patched.setattr(owner, "joined", shifted)
        with pytest.raises(FinwidthError, match=r"by its parts, and .* by a backward pass"):
            stored(tmp_path / "b", of, outputs="full")


def test_a_batch_that_no_store_can_tell_from_others(tmp_path: Path) -> None:
    net = OfTwo().double()
    given = (torch.ones(3, 3), torch.ones(3, 2), np.float32(1.0))
    with pytest.raises(FinwidthError, match=r"a store keeps no kernel of .* among its inputs"):
        ntk(net, given, coupled=True, store=tmp_path / "K.zarr")
    assert not (tmp_path / "K.zarr").exists()


# ---- gradients that blocks share


class Counted(nn.Module):
    """Tells how many inputs pass."""

    def __init__(self, tell: Callable[[int], object]) -> None:
        super().__init__()
        self.net, self.tell = small_module(), tell

    def forward(self, x: Any) -> Any:
        self.tell(len(x))
        return self.net(x)


@pytest.mark.parametrize(("memory", "most"), [("2MB", 1.2), ("100kB", 1.6)])
def test_an_input_passes_as_often_as_the_memory_asks_for(tmp_path: Path, memory: str, most: float) -> None:
    """Once where it has room for the gradients at all inputs, beside what is passed to plan them."""
    passed: list[int] = []
    ntk(Counted(passed.append), inputs(400), outputs=0, store=tmp_path / "a", memory=memory, workers=1, check=False)
    assert len(list((tmp_path / "a" / "K").glob("c.*"))) >= 16
    assert 400 <= sum(passed) < most * 400


class InChunks(nn.Module):
    """Passes two samples at a time, so that larger passes go otherwise than planned."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_module()

    def forward(self, x: Any) -> Any:
        return torch.cat([self.net(each) for each in x.split(2)])


class ByValue(InChunks):
    """Takes another route for some samples."""

    def forward(self, x: Any) -> Any:
        found = self.net(x)
        return torch.where(x[:, :1] > 1, next(self.net.children())(x)[:, :2], found) if (x[:, 0] > 1).any() else found


def weight_normalised() -> nn.Module:
    net = small_module()
    net[0] = nn.utils.parametrizations.weight_norm(nn.Linear(3, 7).double())  # type: ignore[operator]
    return net


@pytest.mark.parametrize("make", [small_module, InChunks, ByValue, weight_normalised])
@pytest.mark.parametrize("outputs", ["full", "trace"])
def test_what_is_kept_makes_no_difference(
    tmp_path: Path, make: Callable[[], nn.Module], outputs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"outputs": outputs, "memory": "200kB"}
    found = ntk(make(), inputs(40), store=tmp_path / "a", workers=2, **options)
    monkeypatch.setattr(computing, "KeptGradients", lambda most: sharing.KeptGradients(0))
    ntk(make(), inputs(40), store=tmp_path / "b", workers=1, **options)
    assert len(list((tmp_path / "a" / "K").glob("c.*"))) > 1
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    truth = reference_ntk(make(), inputs(40)).numpy()
    np.testing.assert_allclose(found, truth if outputs == "full" else np.trace(truth, axis1=2, axis2=3), rtol=1e-10)


@pytest.mark.parametrize(("kept", "rows"), [(12, 12), (12, 10), (6, 4), (5, 3), (4, 2), (3, 1), (2, 1)])
def test_so_many_rows_meet_every_column_once(kept: int, rows: int) -> None:
    """Of a symmetric kernel of 12 x 12 blocks, on one thread."""
    found, shared = 0, sharing.KeptGradients(kept)
    for place in sharing.in_bands([(i, j) for i in range(12) for j in range(i, 12)], rows):
        for each in dict.fromkeys(place):
            found += shared._promised(each)[1]
            assert len(shared._kept) <= kept
    assert found <= sum(range(12, 0, -rows))
    if kept == 12:
        assert found == 12


def test_the_remaining_time_is_that_of_what_is_left(copied: Path) -> None:
    for place in ("7.7", "6.7", "7.6"):
        (copied / "seal" / f"c.{place}").unlink()
    stages: list[tuple[int, int]] = []
    seen: list[int] = []

    def note(stage: Stage) -> None:
        stages.append((stage.done, stage.total))

    with watching(note):
        stored(copied, progress=seen.append)
    assert [each for each in stages if each[0]][-1] == (75, 75)  # three blocks of five by five
    assert seen[-1] == N * N
    assert min(seen) > N * N - 75
    stored(copied, progress=seen.append)
    assert seen[-1] == N * N


def test_a_module_that_draws_is_refused_and_what_others_draw_is_not_its_fault(tmp_path: Path) -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Any) -> Any:
            return super().forward(x) + 1e-30 * torch.rand(1)

    with pytest.raises(FinwidthError, match="the module draws random numbers"):
        ntk(Noisy(3, 1), inputs(5), store=tmp_path / "a")
    assert not (tmp_path / "a").exists()
    ntk(Slow(), inputs(23), store=tmp_path / "a", memory=MEMORY, progress=lambda done: random.random())


# ---- another kernel


def other_module() -> Any:
    net: Any = Slow()
    with torch.no_grad():
        net.net[0].weight[3, 1] += 1e-9
    return net


def other_function() -> Any:
    net: Any = Slow()
    net.net[1] = nn.Tanh()
    return net


def other_inputs() -> Any:
    x = inputs()
    x[31, 2] += 1e-9
    return x


def twice(output: Any, sample: Any) -> Any:
    return 2 * output


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "module": ({"module": other_module}, "the module's parameters or buffers have other numbers. It"),
    "function": ({"module": other_function}, "the module computes something else of the same parameters. It"),
    "class": ({"module": lambda: Slow().net}, "module was 'Slow' and is 'Sequential'; the module's param.*; other par"),
    "inputs": ({"x1": other_inputs}, "x1 has other inputs. It"),
    "x2": ({"x2": inputs}, "x2 has other inputs. It"),
    "outputs": ({"outputs": "trace"}, "outputs was 'full' and is 'trace'. It"),
    "number": ({"outputs": 1}, "outputs was 'full' and is 1. It"),
    "entries": ({"entries": "diagonal"}, "entries was 'full' and is 'diagonal'. It"),
    "scale": ({"scale": {"net.0.weight": 0.5}}, "other parameters count, or with other scales. It"),
    "parameters": ({"parameters": ["net.0.weight"]}, "other parameters count, or with other scales. It"),
    "check": ({"check": False}, "check was True and is False. It"),
    "by": ({"by": "layer"}, "by tells other groups of parameters apart. It"),
    "list": ({"outputs": [0, 1]}, "outputs chooses or combines other outputs of the module. It"),
    "function of outputs": ({"outputs": lambda: twice}, "the function outputs= gives something else. It"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_kernel_is_refused_in_one_line(whole: Path, name: str) -> None:
    options, message = OTHERS[name]
    given = {key: value() if callable(value) else value for key, value in options.items()}
    before = tree(whole)
    with pytest.raises(FinwidthError, match=rf"whole.zarr is the store of another kernel: {message}") as raised:
        ntk(given.pop("module", Slow()), given.pop("x1", inputs()), store=whole, **given)
    assert "\n" not in str(raised.value)
    assert tree(whole) == before


def test_another_function_of_outputs_is_refused(tmp_path: Path) -> None:
    """One that differs at a single input, which is not the first; and other groups, combinations, and labels."""
    net, x, targets = small_module(), inputs(23), torch.zeros(23, dtype=torch.long)
    changed = targets.clone()
    changed[17] = 1
    where: dict[float, int] = {float(each[0]): i for i, each in enumerate(x)}

    def loss_of(wanted: Any) -> Callable[..., Any]:
        return lambda output, sample: nn.functional.cross_entropy(
            output, wanted[[where[float(each[0])] for each in sample]], reduction="none"
        )

    ntk(net, x, outputs=loss_of(targets), store=tmp_path / "a")
    ntk(net, x, outputs=loss_of(targets.clone()), store=tmp_path / "a")
    with pytest.raises(FinwidthError, match=r"another kernel: the function outputs= gives something else\. It is left"):
        ntk(net, x, outputs=loss_of(changed), store=tmp_path / "a")
    ntk(net, x, by={"one": "0"}, outputs=[[1.0, 2.0]], store=tmp_path / "b")
    others: list[tuple[dict[str, Any], str]] = [
        ({"by": {"two": "0"}, "outputs": [[1.0, 2.0]]}, "by tells other groups"),
        ({"by": {"one": "0.bias"}, "outputs": [[1.0, 2.0]]}, "by tells other groups"),
        ({"by": {"one": "0"}, "outputs": [[1.0, 3.0]]}, "outputs chooses or combines other"),
    ]
    for options, message in others:
        with pytest.raises(FinwidthError, match=f"another kernel: {message}"):
            ntk(net, x, store=tmp_path / "b", **options)


def test_a_module_that_was_only_used_is_the_same(whole: Path) -> None:
    net = Slow()
    net(inputs()).sum().backward()
    assert np.isfinite(ntk(net, inputs(), store=whole, memory=MEMORY)).all()


def test_other_software_and_processors_are_refused(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copied / "seal" / "c.0.0").unlink()
    before = tree(copied)
    with monkeypatch.context() as patched:
        patched.setattr(fill, "version", lambda package: "99.0")
        with pytest.raises(FinwidthError, match=r"numbers come from finwidth 0.1.0, and this is 99.0; .* torch"):
            stored(copied)
    facts = fill.on_one_core

    class Elsewhere:
        def __init__(self, device: object) -> None:
            self.inner = facts(device)

        def __enter__(self) -> Any:
            return {**self.inner.__enter__(), "torch_vectors": "Another"}

        def __exit__(self, *error: Any) -> None:
            self.inner.__exit__(*error)

    with monkeypatch.context() as patched:
        patched.setattr(fill, "on_one_core", Elsewhere)
        with pytest.raises(FinwidthError, match=r"bits of a kernel depend on .* \(here Another\)\. Go on where the st"):
            stored(copied)
    assert tree(copied) == before


def test_arguments(tmp_path: Path) -> None:
    net, x = small_module(), inputs(5)
    for options, message in (
        ({"workers": 2}, "give its path with store="),
        ({"scheduler": "tcp://a:1"}, "give its path with store="),
        ({"store": tmp_path / "a", "workers": 2, "scheduler": "tcp://a:1"}, "give one of the two"),
        ({"store": tmp_path / "a", "workers": 0}, "workers is 0; give a whole number"),
        ({"store": 5}, "the store is 5; give a path"),
        ({"store": tmp_path / "a", "memory": 300}, "memory is 300 bytes; give more|give at least memory="),
    ):
        with pytest.raises(FinwidthError, match=message):
            ntk(net, x, **options)
    assert not (tmp_path / "a").exists()


# ---- stopped


def kill_at_random(store: Path, whole: Path, kills: int, seed: int, **more: Any) -> None:
    """Kill processes that fill a store; each goes on, what is stored is right, and in the end all bits are as ever."""
    rng, done = random.Random(seed), 0
    for kill in range(kills):
        with started(store, workers=1 + kill % 2, **more) as (process, said):
            if kill % 3 == 2:  # while the store is made, or opened
                while process.is_alive() and not store.exists():
                    time.sleep(0.0005)
                time.sleep(rng.uniform(0, 0.05))
            else:
                said.recv()
                time.sleep(rng.uniform(0, 0.1))
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL, "it ended before it was killed"
        seals = {file.name for file in store.glob("seal/c.*") if not file.name.endswith("partial")}
        assert len(seals) >= done
        done = len(seals)
        assert all((store / "seal" / name).read_bytes() == (whole / "seal" / name).read_bytes() for name in seals)
        if (store / "zarr.json").exists() and kill % 2:
            assert not check_kernel(store)  # a kill is no damage
    assert done < 64
    stored(store, **more)
    assert tree(store) == tree(whole)


GROUPED: dict[str, Any] = {"by": "layer", "outputs": [1, 0], "memory": "120kB"}


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("kernel") / "grouped.zarr"
    stored(store, **GROUPED)
    assert len(list((store / "K").glob("c.0.*.0.0"))) == 64
    return store


def test_kills_of_a_kernel_by_groups(tmp_path: Path, grouped: Path) -> None:
    kill_at_random(tmp_path / "K.zarr", grouped, 3, seed=2, **GROUPED)


@pytest.mark.parametrize("name", ["K/c.0.6.2.0.0", "seal/c.6.2"])
def test_damage_of_a_kernel_by_groups(tmp_path: Path, grouped: Path, name: str) -> None:
    store = Path(shutil.copytree(grouped, tmp_path / "K.zarr"))
    content = bytearray((store / name).read_bytes())
    content[3] ^= 1
    (store / name).write_bytes(content)
    with pytest.raises(FinwidthError, match=r"is damaged in K/c.0.6.2.0.0, and left as it is"):
        stored(store, **GROUPED)
    assert [each.file for each in check_kernel(store)] == ["K/c.0.6.2.0.0"]
    assert not check_kernel(store)
    stored(store, **GROUPED)
    assert tree(store) == tree(grouped)


@pytest.mark.parametrize("name", ["group/c.0", "output/c.0", "group/zarr.json", "output_/zarr.json"])
def test_damaged_labels(tmp_path: Path, grouped: Path, name: str) -> None:
    store = Path(shutil.copytree(grouped, tmp_path / "K.zarr"))
    content = (store / name).read_bytes()
    (store / name).write_bytes(content[:-1])
    with pytest.raises(FinwidthError, match=rf"is damaged in {name}, and left as it is"):
        stored(store, **GROUPED)
    assert [(each.file, each.mended) for each in check_kernel(store)] == [(name, "written again")]
    assert tree(store) == tree(grouped)


def test_three_kills(tmp_path: Path, whole: Path) -> None:
    kill_at_random(tmp_path / "K.zarr", whole, 3, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_kills_at_random_moments(tmp_path: Path, whole: Path, seed: int) -> None:
    """36 kills."""
    kill_at_random(tmp_path / "K.zarr", whole, 6, seed)


@pytest.mark.parametrize("moments", [range(7, 45, 30), pytest.param(range(60), marks=pytest.mark.slow)])
def test_a_kill_between_any_two_files(
    tmp_path: Path, whole: Path, moments: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    original, writes = Path.replace, 0

    def counted(self: Path, target: Path) -> Path:
        nonlocal writes
        writes -= 1
        if writes < 0:
            raise Killed
        return original(self, target)

    for allowed in moments:
        store = tmp_path / f"{allowed}.zarr"
        writes = allowed
        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", counted)
            with pytest.raises(Killed):
                stored(store)
        if allowed % 2 and (store / "zarr.json").exists():
            assert not check_kernel(store)
        stored(store)
        assert tree(store) == tree(whole)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_interrupts_end_in_order(tmp_path: Path, whole: Path, number: int, status: int) -> None:
    store = tmp_path / "K.zarr"
    with started(store, workers=2) as (process, said):
        said.recv()
        assert process.pid is not None
        os.kill(process.pid, number)
        process.join(20)
        assert process.exitcode == status
    assert 0 < len(list(store.glob("seal/c.*"))) < 64
    assert not list(store.rglob("*.partial"))
    assert not check_kernel(store)
    stored(store)
    assert tree(store) == tree(whole)


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    store = tmp_path / "K.zarr"
    with started(store, limit=512) as (_, said):
        assert "no space is left. What was stored before is kept; make room" in said.recv()
    assert not list(store.rglob("*.partial"))


@pytest.fixture
def tiny_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk of so many KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


SIZES = [200, *(pytest.param(size, marks=pytest.mark.slow) for size in (4, 16, 24, 40, 60, 90, 130, 250, 320, 400))]


@pytest.mark.parametrize("tiny_disk", SIZES, indirect=True)
def test_a_full_disk(tiny_disk: Path, tmp_path: Path, whole: Path) -> None:
    with pytest.raises(
        FinwidthError, match=r"no space is left. What was stored before is kept; make room|of disk, and"
    ):
        stored(tiny_disk / "K.zarr")
    room = tmp_path / "K.zarr"
    if (tiny_disk / "K.zarr").exists():
        shutil.copytree(tiny_disk / "K.zarr", room)
    assert not list(room.rglob("*.partial"))
    assert len(list(room.glob("seal/c.*"))) < 64
    stored(room)
    assert tree(room) == tree(whole)


def test_what_the_disk_cannot_hold_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any of it is computed or written: 10^10 pairs of inputs."""
    net, x = nn.Linear(3, 1), torch.ones(1, 3).expand(10**5, 3)
    free = shutil.disk_usage(tmp_path)._replace(free=30 * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    told = r"1e\+10 pairs of inputs needs 37\.\d+ GiB of disk, and 30 GiB are free at .*K\.zarr; give fewer inputs"
    with pytest.raises(SizeError, match=told):
        ntk(net, x, outputs="trace", store=tmp_path / "new" / "K.zarr")
    assert not list(tmp_path.iterdir())


def test_a_second_process_is_refused(tmp_path: Path, whole: Path) -> None:
    store = tmp_path / "K.zarr"
    with started(store) as (process, said):
        said.recv()
        for use in (lambda: stored(store), lambda: check_kernel(store)):
            with pytest.raises(FinwidthError, match=r"another process writes to .*K.zarr; wait until it ends"):
                use()
        assert xr.open_zarr(store, chunks=None).K.shape == (N, N, 2, 2)  # to read is allowed
        while said.recv() != "over":
            pass
        process.join()
    assert tree(store) == tree(whole)


# ---- damage


def cut(store: Path, rng: random.Random) -> list[str]:
    name = rng.choice(sorted(f.name for f in store.glob("K/c.*")))
    content = (store / "K" / name).read_bytes()
    (store / "K" / name).write_bytes(content[: rng.randrange(len(content))])
    return [f"K/{name}"]


def flip(store: Path, rng: random.Random) -> list[str]:
    name = rng.choice(sorted(f.name for f in store.glob("K/c.*")))
    content = bytearray((store / "K" / name).read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    (store / "K" / name).write_bytes(content)
    return [f"K/{name}"]


def swap(store: Path, rng: random.Random, *arrays: str) -> list[str]:
    one, other = rng.sample([(i, j) for i in range(8) for j in range(8)], 2)
    for array in arrays:
        ends = ".0.0" if array == "K" else ""
        a, b = (store / array / f"c.{i}.{j}{ends}" for i, j in (one, other))
        first = a.read_bytes()
        a.write_bytes(b.read_bytes())
        b.write_bytes(first)
    return [f"K/c.{i}.{j}.0.0" for i, j in sorted((one, other))]


def lose(store: Path, rng: random.Random) -> list[str]:
    (store / "K" / "c.3.5.0.0").unlink()
    return ["K/c.3.5.0.0"]


def break_seal(store: Path, rng: random.Random) -> list[str]:
    (store / "seal" / "c.6.2").write_bytes(rng.randbytes(rng.randrange(9)))
    return ["K/c.6.2.0.0"]


def of_another(store: Path, rng: random.Random) -> list[str]:
    """A chunk and its seal from the same place of another kernel."""
    other = store.parent / "other.zarr"
    ntk(other_module(), inputs(), store=other, memory=MEMORY)
    for name in ("K/c.2.2.0.0", "seal/c.2.2"):
        shutil.copy(other / name, store / name)
    return ["K/c.2.2.0.0"]


DAMAGES: dict[str, Callable[[Path, random.Random], list[str]]] = {
    "cut off": cut,
    "a bit": flip,
    "chunks exchanged": lambda store, rng: swap(store, rng, "K"),
    "chunks and seals exchanged": lambda store, rng: swap(store, rng, "K", "seal"),
    "seals exchanged": lambda store, rng: swap(store, rng, "seal"),
    "a chunk lost": lose,
    "a seal": break_seal,
    "of another kernel": of_another,
}


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_chunks(whole: Path, tmp_path: Path, kind: str, times: int) -> None:
    rng = random.Random(5)
    for number in range(times):
        store = Path(shutil.copytree(whole, tmp_path / f"{number}.zarr"))
        names = DAMAGES[kind](store, rng)
        before = tree(store)
        with pytest.raises(FinwidthError, match=r"is damaged in K/c.*, and left as it is; .*check_kernel\('") as raised:
            stored(store)
        assert tree(store) == before
        assert names[0] in str(raised.value)
        found = check_kernel(store)
        assert [each.file for each in found] == names
        assert all(each.mended.startswith("removed; the next call of ntk") for each in found)
        assert not check_kernel(store)
        stored(store)
        assert tree(store) == tree(whole)


LOST = ["zarr.json", "finwidth_kernel/zarr.json", "K/zarr.json", "seal/zarr.json"]


@pytest.mark.parametrize("name", LOST)
@pytest.mark.parametrize("how", ["lost", "cut", "changed"])
def test_damaged_descriptions(copied: Path, whole: Path, name: str, how: str) -> None:
    content = (copied / name).read_bytes()
    if how == "lost":
        (copied / name).unlink()
    else:
        (copied / name).write_bytes(
            content[:-40] if how == "cut" else content.replace(*((b"40", b"41") if b"40" in content else (b"8", b"9")))
        )
        assert (copied / name).read_bytes() != content
    with pytest.raises(FinwidthError, match=rf"is damaged in {name}, and left as it is"):
        stored(copied)
    assert [(each.file, each.mended) for each in check_kernel(copied)] == [(name, "written again")]
    assert tree(copied) == tree(whole)


@pytest.mark.parametrize("name", LOST[:2])
def test_a_sound_description_of_another_store(copied: Path, whole: Path, tmp_path: Path, name: str) -> None:
    """The chunks tell which description is theirs."""
    ntk(other_module(), inputs(), store=tmp_path / "other.zarr", memory=MEMORY)
    shutil.copy(tmp_path / "other.zarr" / name, copied / name)
    assert [each.file for each in check_kernel(copied)] == [name]
    assert tree(copied) == tree(whole)


def test_a_folder_in_the_place_of_a_chunk(copied: Path) -> None:
    (copied / "K" / "c.0.1.0.0").unlink()
    (copied / "K" / "c.0.1.0.0").mkdir()
    with pytest.raises(FinwidthError, match=r"is damaged in K/c.0.1.0.0"):
        stored(copied)
    assert "move it away" in check_kernel(copied)[0].mended
    assert (copied / "K" / "c.0.1.0.0").is_dir()


def test_what_is_left_of_nothing(copied: Path) -> None:
    for name in LOST[:2]:
        (copied / name).write_bytes(b"{}")
    for use in (lambda: stored(copied), lambda: check_kernel(copied)):
        with pytest.raises(FinwidthError, match=r"neither zarr.json nor finwidth_kernel/zarr.json says what it holds"):
            use()


def test_the_command_that_checks(copied: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from finwidth.cli.main import main

    flip(copied, random.Random(0))
    monkeypatch.setattr("sys.argv", ["finwidth", "sweep", "check", str(copied)])
    for told in (r"K/c\..*: removed; the next call of ntk.*\n1 files of .* were damaged", ".* is as it was stored"):
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
        assert re.match(told, capsys.readouterr().out)
    stored(copied)
    assert tree(copied) == tree(whole)


# ---- memory


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "mlp, small memory", "mlp, 10 outputs", "cnn", "pinn", "batch norm"])
def test_memory_is_within_what_is_promised(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    found = importlib.import_module("kernel_store").run(name)
    assert found["promised"] <= found["memory"]
    assert found["promised"] / 3 < found["measured"] < found["promised"]


# ---- whose files


UUID = "0123456789abcdef" * 2
FOREIGN: dict[str, Callable[[Path], object]] = {
    "a file": lambda folder: (folder / "thesis.tex").write_text("all of it"),
    "a name that we could have given": lambda folder: (folder / f"zarr.{UUID}.partial").write_text("not ours"),
    "a Zarr group": lambda folder: zarr.create_group(folder, zarr_format=3),
    "a sweep's store": lambda folder: zarr.create_group(folder, attributes={"finwidth_sweep": {"schema": 3}}),
    "another program's attribute": lambda folder: zarr.create_group(folder, attributes={"finwidth_kernel": "mine"}),
}


@pytest.mark.parametrize("content", FOREIGN)
def test_a_folder_that_is_no_store(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    FOREIGN[content](folder)
    before = tree(folder)
    for use in (lambda: stored(folder), lambda: check_kernel(folder)):
        with pytest.raises(FinwidthError, match="d is not the store of a kernel; it is left as it is"):
            use()
        assert tree(folder) == before


def test_no_store_in_a_store_and_files_of_others_stay(copied: Path, whole: Path) -> None:
    with pytest.raises(FinwidthError, match="lies in the Zarr store"):
        stored(copied / "new")
    ours, theirs = copied / "K" / f"c.0.0.0.0.{UUID}.partial", copied / "K" / "notes.partial"
    for file in (ours, theirs, copied / "README"):
        file.write_text("x")
    (copied / "seal" / "c.4.4").unlink()
    stored(copied)
    assert (ours.exists(), theirs.read_text(), (copied / "README").read_text()) == (False, "x", "x")
    theirs.unlink()
    (copied / "README").unlink()
    assert tree(copied) == tree(whole)


def test_another_schema_is_told(copied: Path) -> None:
    content = module.KIND.description(copied / "zarr.json")
    assert content is not None
    (copied / "zarr.json").write_bytes(module.KIND.described({**content, "schema": 9}))
    before = tree(copied)
    for use in (lambda: stored(copied), lambda: check_kernel(copied)):
        with pytest.raises(FinwidthError, match="the layout 9 of another version of finwidth, and this one has 2"):
            use()
    assert tree(copied) == before


def test_a_wrong_kernel_is_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block is held against backward passes of the module."""
    original = sharing.KeptGradients.compute

    def wrong(*given: Any, **options: Any) -> Any:
        K, job = original(*given, **options)
        return K * 1.01, job

    monkeypatch.setattr(sharing.KeptGradients, "compute", wrong)
    with pytest.raises(FinwidthError, match="a number of the kernel is"):
        ntk(deepcopy(small_module()), inputs(23), store=tmp_path / "a", memory="100kB")
    assert not list(tmp_path.glob("a/seal/c.*"))


class OfTwo(nn.Module):
    """Of two arguments, and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(3, 8), nn.Linear(2, 8), nn.Linear(8, 2)

    def forward(self, x: Any, y: Any, gain: float = 1.0) -> Any:
        return self.last(torch.tanh(self.left(x) + gain * self.right(y)))


def test_several_arguments(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x, y = OfTwo().double(), torch.randn(12, 3).double(), torch.randn(12, 2).double()
    found = ntk(net, {"x": x, "y": y, "gain": 2.0}, store=tmp_path / "K.zarr", memory="100kB")
    np.testing.assert_allclose(found, ntk(net, {"x": x, "y": y, "gain": 2.0}), rtol=1e-12)
    others: list[Any] = [{"x": x, "y": y + 1, "gain": 2.0}, {"x": x, "y": y, "gain": 3.0}, (x, y, 2.0)]
    for each in others:
        with pytest.raises(FinwidthError, match="is the store of another kernel: x1 has other inputs"):
            ntk(net, each, store=tmp_path / "K.zarr")


def test_in_dims_are_part_of_what_a_kernel_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x, y = OfTwo().double(), torch.randn(3, 3).double(), torch.randn(3, 2).double()
    ntk(net, (x, y), store=tmp_path / "K.zarr")
    with pytest.raises(FinwidthError, match="x1 has other inputs"):
        ntk(net, (x, y[0]), in_dims=(0, None), store=tmp_path / "K.zarr")


def test_what_no_store_keeps(tmp_path: Path) -> None:
    with pytest.raises(FinwidthError, match=r"a store keeps no kernel of .* among its inputs"):
        ntk(OfTwo(), (torch.ones(3, 3), torch.ones(3, 2), np.float32(1.0)), store=tmp_path / "K.zarr")
