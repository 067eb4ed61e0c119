"""A sweep that is stopped, killed or moved to another machine ends in order, and goes on to the same bits."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import finwidth
from finwidth import FinwidthError
from finwidth.stores import numerics
from finwidth.sweeps import check, merge, read
from finwidth.sweeps.store.dataset import status

GRAM: dict[str, Any] = {
    "quantities": ["exact", "sampled", "gram"],
    "axes": {"depth": [2, 3], "width": [3, 40], "n_0": 8},
    "sampled": {"draws": 100},
    "gram": {"inputs": ["ones", "random:1", "random:2"], "draws": 50},
}
DRAWN = {**GRAM, "quantities": ["exact", "sampled"]}
DRAWN.pop("gram")


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def grown(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"axes": config["axes"] | {"depth": [2, 3, 4]}}


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if this were another processor, until it is undone."""
    here = numerics.blas()
    monkeypatch.setattr(numerics, "blas", lambda: here | {"kernels": "Another"})
    return monkeypatch


def test_kernel_matrices_of_two_processors_are_not_mixed(tmp_path: Path, elsewhere: pytest.MonkeyPatch) -> None:
    store = tmp_path / "a.zarr"
    there = finwidth.sweep(GRAM, store)
    elsewhere.undo()
    before = tree(store)
    message = r"bits of gram .* kernels Another \(here .*\)\. Go on where .* OPENBLAS_CORETYPE"
    for config in (GRAM, grown(GRAM)):
        with pytest.raises(FinwidthError, match=message):
            finwidth.sweep(config, store)
        assert tree(store) == before
    assert read(store).identical(there)
    assert not check(store)


def test_what_does_not_depend_on_the_processor_goes_on(tmp_path: Path, elsewhere: pytest.MonkeyPatch) -> None:
    store = tmp_path / "a.zarr"
    finwidth.sweep(DRAWN, store)
    elsewhere.undo()
    assert finwidth.sweep(grown(DRAWN), store).identical(finwidth.sweep(grown(DRAWN)))
    assert finwidth.sweep(GRAM | {"axes": grown(DRAWN)["axes"]}, store).identical(finwidth.sweep(grown(GRAM)))


def test_parts_of_two_processors_are_not_merged(tmp_path: Path, elsewhere: pytest.MonkeyPatch) -> None:
    for name, config in (("a", GRAM), ("c", DRAWN)):
        finwidth.sweep(config, tmp_path / name)
    elsewhere.undo()
    for name, config in (("b", GRAM), ("d", DRAWN)):
        finwidth.sweep(config | {"axes": config["axes"] | {"depth": [5]}}, tmp_path / name)
    with pytest.raises(FinwidthError, match=r"bits of gram .* differ in .*a \(.*kernels Another"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "ab")
    assert not (tmp_path / "ab").exists()
    merge([tmp_path / "c", tmp_path / "d"], tmp_path / "cd")
    assert status(tmp_path / "cd")["complete"]


SWEEP = """
import json, signal, sys, finwidth

def stop(number, frame):
    raise SystemExit(128 + number)

signal.signal(signal.SIGTERM, stop)
def progress(now):
    print(now.done, flush=True)
finwidth.sweep(json.loads(sys.argv[1]), sys.argv[2], workers=int(sys.argv[3]), progress=progress)
"""


def started(config: dict[str, Any], store: Path, workers: int = 1, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SWEEP, json.dumps(config), str(store), str(workers)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **environment})


@pytest.mark.slow
def test_processors_in_earnest(tmp_path: Path) -> None:
    """OpenBLAS can be told to use the kernels of other processors: the numbers differ, and are not mixed."""
    for kernels in ("Nehalem", "Haswell"):
        process = started(GRAM, tmp_path / kernels, OPENBLAS_CORETYPE=kernels)
        process.communicate()
        assert process.returncode == 0
        again = started(grown(GRAM), tmp_path / "Nehalem", OPENBLAS_CORETYPE=kernels)
        _, errors = again.communicate()
        assert (again.returncode == 0) == (kernels == "Nehalem")
    assert "kernels Nehalem (here Haswell)" in errors
    first, second = read(tmp_path / "Nehalem").sel(depth=[2, 3]), read(tmp_path / "Haswell")
    assert first[["sampled_mean", "exact_cv"]].equals(second[["sampled_mean", "exact_cv"]])
    assert not (first.gram_mean == second.gram_mean).all()
    wide, other = (found.gram_mean.sel(width=40) for found in (first, second))  # narrow ones: docs/processors.md
    np.testing.assert_allclose(wide, other, rtol=1e-12, atol=1e-12)


LONG = GRAM | {"axes": {"depth": [2, 3, 4, 5, 6], "width": [3, 4, 5, 6], "n_0": 8}, "sampled": {"draws": 60_000}}


@pytest.mark.parametrize("workers", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_signal_that_raises(tmp_path: Path, workers: int) -> None:
    """SIGTERM: the threads end, nothing hangs, what was stored is there, and the sweep goes on."""
    store = tmp_path / "a.zarr"
    process = started(LONG, store, workers)
    assert process.stdout is not None
    while int(process.stdout.readline()) < 25:  # cells of `exact` come first, then those that draw
        pass
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (128 + signal.SIGTERM, "")
    assert not check(store)
    done = sum(each["done"] for each in status(store)["quantities"].values())
    assert 25 <= done < 60
    assert finwidth.sweep(LONG, store).identical(finwidth.sweep(LONG))


def test_what_ends_by_itself_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt while two tasks are computed: the one that ends counts, the one that is cancelled does not."""
    from finwidth.execution import threads

    computing: list[str] = []

    def perform(task: Any, check_cancelled: Any) -> Any:
        computing.append(task)
        while task == "is cancelled":
            check_cancelled()
            time.sleep(0.001)
        time.sleep(0.2)
        return task

    def interrupted(*arguments: Any, **more: Any) -> Any:
        while len(computing) < 2:
            time.sleep(0.001)
        raise KeyboardInterrupt

    monkeypatch.setattr(threads, "wait", interrupted)
    tasks: Any = iter(["ends", "is cancelled", "never begins"])
    results: Any = threads.on_threads(tasks, 2, perform)
    assert next(results)[0] == "ends"
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert sorted(computing) == ["ends", "is cancelled"]


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path: Path) -> None:
    """36 kills, of sweeps that are made, enlarged and computed; each store ends up as if nothing had happened."""
    rng, kills = random.Random(7), 0
    longer = LONG | {"sampled": {"draws": 300_000}}
    configs = [longer, longer | {"axes": LONG["axes"] | {"depth": [2, 3, 4, 5, 6, 7], "n_0": [8, 9]}}]
    for number in range(4):
        store, stored = tmp_path / f"{number}.zarr", 0
        for kill in range(9):
            process = started(configs[kill // 5], store, workers=1 + number % 2)
            if kill % 3:
                assert process.stdout is not None
                for _ in range(rng.randrange(1, 5)):
                    process.stdout.readline()
            else:
                while process.poll() is None and not store.exists():
                    time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.3))
            process.kill()
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
            if (store / "zarr.json").exists():
                done = sum(each["done"] for each in status(store)["quantities"].values())
                assert done >= stored
                stored = done
                if number > 1:  # it would finish what a kill left of an enlargement
                    assert not check(store)
        whole = finwidth.sweep(configs[1], tmp_path / "whole.zarr")
        assert finwidth.sweep(configs[1], store).identical(whole)
        assert not list(store.rglob("*.partial"))
        again = tmp_path / "again.zarr"
        finwidth.sweep(configs[0], again)
        finwidth.sweep(configs[1], again)
        assert tree(store) == tree(again)
        for path in (store, again):
            shutil.rmtree(path)
    assert kills == 36
