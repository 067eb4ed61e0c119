"""``memory=`` reads the same texts, and refuses the same with the same words, wherever it is taken."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import finwidth
from finwidth import MLP, FinwidthError
from finwidth.memory import check_memory
from finwidth.sampling.lazy_matrix.gaussian import DeferredGaussianMatrix

READ: list[tuple[Any, int]] = [
    ("4GiB", 2**32),
    (" 500 MB ", 500_000_000),
    ("1.5 gib", 3 * 2**29),
    ("64m", 64_000_000),
    ("64Mi", 64 * 2**20),
    ("200000 KB", 200_000_000),
    ("0.5tb", 5 * 10**11),
    (".5 GB", 5 * 10**8),
    ("1e9", 10**9),
    ("2E+8 b", 2 * 10**8),
    ("1000000000", 10**9),
    (10**9, 10**9),
    (1e9, 10**9),
    (1e22, 10**22),
    (10**400 + 1, 10**400 + 1),
    (np.int64(2**30), 2**30),
    (np.float32(2**30), 2**30),
]
REFUSED: list[Any] = [
    "4 potatoes", "", "GiB", "-1GiB", "1GiBB", "1 G i B", "1,5GB", "1 000 MB", "1_000MB", "nan", "inf", "1e400", "2^30",
    "1e", "0x10", "0", "0.5", "1e-3", 0, -5, 1e-9, float("nan"), float("inf"), True, b"1GiB", [1], "\uff11GB", "1 Eib",
]  # fmt: skip


def matrix_free_layer(kind: str, memory: Any) -> Any:
    pytest.importorskip("torch")
    if kind == "linear":
        return finwidth.MatrixFreeLinear(3, 2, memory=memory)
    return finwidth.MatrixFreeConv2d(3, 2, 1, memory=memory)


def empirical(kind: str, memory: Any) -> Any:
    torch = pytest.importorskip("torch")
    module, x, y = torch.nn.Linear(3, 1), torch.eye(3), torch.zeros(3, 1)
    calls: dict[str, Callable[[], Any]] = {
        "ntk": lambda: finwidth.empirical.ntk(module, x, memory=memory),
        "explain": lambda: finwidth.empirical.explain(module, x, memory=memory),
        "sgd_update": lambda: finwidth.empirical.sgd_update(module, x, y, memory=memory),
        "Tracker": lambda: finwidth.empirical.Tracker(module, x, memory=memory),
        "Ensemble": lambda: finwidth.empirical.Ensemble(MLP([3, 2, 1]), 2).kernels(x, memory=memory),
        "Ensemble of modules": lambda: finwidth.empirical.Ensemble(lambda: module, 2).kernels(x, memory=memory),
    }
    return calls[kind]()


ENTRIES: dict[str, Callable[[Any], Any]] = {
    "train": lambda memory: finwidth.train(MLP([3, 2, 1]), np.eye(3), [1.0, 0.0, 2.0], 1, 0.01, 1, memory=memory),
    "DeferredGaussianMatrix": lambda memory: DeferredGaussianMatrix(3, 3, np.random.default_rng(0), memory=memory),
    "MatrixFreeLinear": lambda memory: matrix_free_layer("linear", memory),
    "MatrixFreeConv2d": lambda memory: matrix_free_layer("convolution", memory),
    **{
        kind: functools.partial(empirical, kind)
        for kind in ("ntk", "explain", "sgd_update", "Tracker", "Ensemble", "Ensemble of modules")
    },
}


@pytest.mark.parametrize(("given", "size"), READ)
def test_sizes_are_read(given: Any, size: int) -> None:
    assert check_memory(given) == size


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_takes_the_same_texts(entry: str) -> None:
    for given, _ in READ:
        ENTRIES[entry](given)


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_refuses_the_same_texts_in_the_same_words(entry: str) -> None:
    for given in REFUSED:
        with pytest.raises(FinwidthError) as caught:
            ENTRIES[entry](given)
        told = f'memory is {given!r}; give a number of bytes, or a text such as "1GiB" or "200 MB"'
        assert str(caught.value) == told


def test_a_budget_is_read_before_it_matters() -> None:
    """A text that is none is told also where the budget would never be reached."""
    with pytest.raises(FinwidthError, match="memory is 'much'"):
        finwidth.train(MLP([2, 2, 1]), np.eye(2), [1.0, 0.0], 1, 0.01, 1, memory="much")


def test_the_command_line_takes_them_too(tmp_path: Path) -> None:
    from finwidth.cli.main import app

    np.save(tmp_path / "X.npy", np.eye(3))
    command = ["train", "3,2,1", "-i", str(tmp_path / "X.npy"), "-t", "1,2,3", "--steps", "1", "--draws", "1"]
    for given in ("4GiB", "1.5 gib", "64m", "1e9", ".5 GB"):
        assert CliRunner().invoke(app, [*command, "--memory", given]).exit_code == 0, given
    for given in ("4 potatoes", "1GiBB", "nan"):
        found = CliRunner().invoke(app, [*command, "--memory", given])
        assert isinstance(found.exception, FinwidthError)
        assert f"memory is {given!r}; give a number" in str(found.exception)
