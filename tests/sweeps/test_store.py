"""The store survives: kills at any moment, a full disk, a second process; and it is left alone where it is not ours."""

from __future__ import annotations

import hashlib
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import finwidth
from finwidth import FinwidthError
from finwidth.quantities import DRAWN
from finwidth.stores import files
from finwidth.sweeps import check, merge, read
from finwidth.sweeps.config import read_config
from finwidth.sweeps.quantities import sampled
from finwidth.sweeps.store import layout
from finwidth.sweeps.store.dataset import status
from finwidth.sweeps.store.zarr_store import open_store, writing

zarr = pytest.importorskip("zarr", reason="needs the sweep extra")

CONFIG: dict[str, Any] = {
    "seed": 2,
    "quantities": ["exact", "sampled", "gram"],
    "axes": {"depth": [2, 3, 5, 8], "width": [3, 4, 8, 16, 32, 64], "n_0": 2, "input": "1,2", "activation": ["relu"]},
    "sampled": {"draws": 300_000},  # so that a sweep outlasts the kills on a fast machine too
    "gram": {"inputs": ["ones", "1,2"], "draws": 200},
}


def small(**changes: Any) -> dict[str, Any]:
    return {
        "quantities": ["exact", "sampled"], "axes": {"depth": [2, 3], "width": [3, 4], "n_0": 2},
        "sampled": {"draws": 100},
    } | changes  # fmt: skip


def tree(path: Path) -> dict[str, str]:
    """What every file of a folder holds."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {
        str(each.relative_to(path)): hashlib.sha256(each.read_bytes()).hexdigest() for each in files if each.is_file()
    }


SWEEP = """
import json, sys, finwidth
finwidth.sweep(json.loads(sys.argv[1]), sys.argv[2], workers=1, progress=lambda now: print(now.done, flush=True))
"""


def started(config: dict[str, Any], store: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SWEEP, json.dumps(config), str(store)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_at_ten_random_moments(tmp_path: Path) -> None:
    """SIGKILL: what was stored is right each time, and in the end all is as if nothing had happened."""
    whole = finwidth.sweep(CONFIG, tmp_path / "whole.zarr")
    store, rng, done = tmp_path / "killed.zarr", random.Random(1), [0]
    for kill in range(10):
        process = started(CONFIG, store)
        assert process.stdout is not None
        if kill % 3:  # while cells are computed and stored
            for _ in range(rng.randrange(1, 6)):
                process.stdout.readline()
            time.sleep(rng.uniform(0, 0.02))
        else:  # at the start, when the store is made or checked
            while not store.exists():
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.02) if kill == 0 else rng.uniform(0.2, 0.7))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the sweep ended before it was killed; make it longer"
        if (store / "zarr.json").exists():
            so_far = read(store)
            for name in ("exact_mean", "sampled_mean", "sampled_se", "gram_mean"):
                there = ~np.isnan(so_far[name])
                assert (so_far[name].where(there) == whole[name]).where(there, True).all()
            done.append(sum(each["done"] for each in status(store)["quantities"].values()))
    assert done == sorted(done)
    assert 0 < done[-1] < 72
    assert finwidth.sweep(CONFIG, store).identical(whole)
    assert not list(store.rglob("*.partial"))
    assert tree(store) == tree(tmp_path / "whole.zarr")  # byte for byte


@pytest.mark.parametrize("moments", [range(0, 40, 5), pytest.param(range(40), marks=pytest.mark.slow)])
def test_killed_while_it_is_enlarged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moments: range) -> None:
    """The attributes are written, and the arrays are not yet larger: a kill between any two files."""
    first, grown = small(), small(axes={"depth": [2, 3, 4], "width": [3, 4, 300], "n_0": [2, 3]})
    finwidth.sweep(first, tmp_path / "first.zarr")
    whole = finwidth.sweep(grown)
    writes = 0

    class Killed(BaseException):
        pass

    original = Path.replace

    def counted(self: Path, target: Path) -> Path:
        nonlocal writes
        writes -= 1
        if writes < 0:
            raise Killed
        return original(self, target)

    for allowed in moments:
        store = tmp_path / f"{allowed}.zarr"
        shutil.copytree(tmp_path / "first.zarr", store)
        writes = allowed
        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", counted)
            with pytest.raises(Killed):
                finwidth.sweep(grown, store)
        assert int((~np.isnan(read(store).exact_mean)).sum()) >= 4
        assert finwidth.sweep(grown, store).identical(whole)
        assert not check(store)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(tiny_disk: Path, tmp_path: Path) -> None:
    config = CONFIG | {"sampled": {"draws": 2000}}
    with pytest.raises(FinwidthError, match=r"no space is left. What was stored before is kept; make room"):
        finwidth.sweep(config, tiny_disk / "a.zarr")
    found = status(tiny_disk / "a.zarr")
    assert 0 < sum(each["done"] for each in found["quantities"].values()) < 72
    shutil.copytree(tiny_disk / "a.zarr", tmp_path / "room.zarr")
    assert finwidth.sweep(config, tmp_path / "room.zarr").identical(finwidth.sweep(config))


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    """The same without a mount: a limit on the size of a file, which the chunks of `exact` exceed."""
    axes = {"depth": {"from": 1, "to": 40}, "width": {"from": 1, "to": 40}, "n_0": 2}
    config = {"quantities": ["exact"], "axes": axes}
    store = tmp_path / "a.zarr"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    command = [sys.executable, "-c", SWEEP, json.dumps(config), str(store)]
    process = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert "FinwidthError: cannot write to" in process.stderr
    assert "no space is left" in process.stderr
    assert not list(store.rglob("*.partial"))
    assert finwidth.sweep(config, store).identical(finwidth.sweep(config))


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    with writing(store, read_config(small())[0]):
        command = [sys.executable, "-c", SWEEP, json.dumps(small()), str(store)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        assert f"FinwidthError: another process writes to {store}" in process.stderr
        assert np.isnan(read(store).exact_mean).all()  # to read is allowed
        with pytest.raises(FinwidthError, match="another process writes"):
            finwidth.sweep(small(), store)
    assert finwidth.sweep(small(), store).identical(finwidth.sweep(small()))


@pytest.mark.parametrize("schema", [1, 4])
def test_another_schema_is_told_and_not_touched(tmp_path: Path, schema: int) -> None:
    """An earlier one, which had no checksum, and a later one."""
    store = tmp_path / "a.zarr"
    if schema == 1:
        zarr.create_group(store, zarr_format=3, attributes={"finwidth_sweep": {"schema": 1, "axes": {}}})
    else:
        files.put(store / "zarr.json", layout.KIND.described({"schema": 4}))
    before = tree(store)
    for use in (finwidth.sweep, lambda config, path: read(path), lambda config, path: check(path)):
        with pytest.raises(FinwidthError, match=f"layout {schema} of another version of finwidth, and this one has 3"):
            use(small(), store)
        assert tree(store) == before


@pytest.mark.parametrize("moments", [[*reversed(DRAWN)], [*DRAWN, "K^3"]], ids=["as many", "one more"])
def test_records_of_other_moments_are_told_and_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moments: list[str]
) -> None:
    """A version with another list of them: records hold moments by place, so it would read one as another."""
    store = tmp_path / "a.zarr"
    whole = finwidth.sweep(small(), store)
    before = tree(store)
    with monkeypatch.context() as patch:
        patch.setattr(sampled, "DRAWN", dict.fromkeys(moments))
        for use in (finwidth.sweep, lambda config, path: read(path), lambda config, path: check(path)):
            with pytest.raises(
                FinwidthError, match=r"records of sampled in .* have the moments K, K_w, .* use the version"
            ):
                use(small(), store)
            assert tree(store) == before
    assert read(store).identical(whole)


def test_a_lost_chunk_is_a_cell_to_do_again(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    whole = finwidth.sweep(small(), store)
    next(store.glob("sampled/c.0.0.0.0.0.1.1.*")).unlink()
    assert status(store)["quantities"]["sampled"]["done"] == 3
    assert finwidth.sweep(small(), store).identical(whole)


@pytest.mark.parametrize("value", ["2", "2.0"])
def test_numbers_may_be_written_as_they_like(tmp_path: Path, value: str) -> None:
    """The check values depend on what a config says, not on how."""
    config = small() | {"network": {"gains": 2, "bias_variance": 1.0, "bias": "trained"}, "quantities": ["sampled"]}
    whole = finwidth.sweep(config, tmp_path / "a.zarr")
    config["network"] = {"gains": float(value), "bias_variance": 1, "bias": "trained"}
    assert (finwidth.sweep(config, tmp_path / "a.zarr").sampled_mean == whole.sampled_mean).all()


def test_a_reader_that_is_overtaken(tmp_path: Path) -> None:
    """A store that is enlarged while another process reads it is not called damaged."""
    store = tmp_path / "a.zarr"
    finwidth.sweep(small(), store)
    opened = open_store(store)
    finwidth.sweep(small(sampled={"draws": 200}), store)
    with pytest.raises(FinwidthError, match="was enlarged while it was read; give the same command again"):
        opened.records("sampled")


def _zarr_of_another(path: Path) -> None:
    zarr.create_group(path, attributes={"made_by": "someone"})


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("all of it")


@pytest.mark.parametrize("make", [_zarr_of_another, _folder, lambda path: path.write_text("a file")])
def test_a_foreign_store_is_not_touched(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a.zarr")
    before = tree(tmp_path / "a.zarr")
    for use in (finwidth.sweep, lambda config, path: read(path)):
        with pytest.raises(FinwidthError, match="is not the store of a sweep; it is left as it is"):
            use(small(), tmp_path / "a.zarr")
    assert tree(tmp_path / "a.zarr") == before


def test_another_sweep_is_refused_and_the_difference_said(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    finwidth.sweep(small(), store)
    before = tree(store)
    with pytest.raises(FinwidthError, match=r"seed was 0 and is 7; sampled.draws was 100 and is 50\. Axis values"):
        finwidth.sweep(small(seed=7, sampled={"draws": 50}), store)
    assert tree(store) == before


def test_numbers_of_another_version_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "a.zarr"
    finwidth.sweep(small(), store)
    before = tree(store)
    from finwidth.sweeps.store import zarr_store as module

    monkeypatch.setattr(module, "version", lambda package: "99.0")
    with pytest.raises(FinwidthError, match=r"its numbers come from finwidth 0.1.0, and this is 99.0"):
        finwidth.sweep(small(axes={"depth": [2, 3, 4], "width": [3, 4], "n_0": 2}), store)
    assert tree(store) == before
    assert read(store).attrs["finwidth_version"] == "0.1.0"  # to read is allowed


HALVES = [
    ({"depth": [2, 3], "width": [3, 4, 8], "n_0": 2}, {"depth": [5], "width": [3, 4, 8], "n_0": 2}),
    ({"depth": [2, 3, 5], "width": [3, 8], "n_0": 2}, {"depth": [2, 3, 5], "width": [4, 8], "n_0": 2}),
    ({"depth": [3, 2, 5], "width": [3, 4, 8], "n_0": 2}, {"depth": [2, 3, 5], "width": [3, 4, 8], "n_0": 2}),
]


@pytest.mark.parametrize("halves", HALVES)
def test_two_halves_merged_are_the_whole(tmp_path: Path, halves: tuple[dict[str, Any], dict[str, Any]]) -> None:
    whole = finwidth.sweep(small(axes={"depth": [2, 3, 5], "width": [3, 4, 8], "n_0": 2}))
    for name, axes in zip("ab", halves, strict=True):
        finwidth.sweep(small(axes=axes), tmp_path / name)
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "ab")
    merge([tmp_path / "b", tmp_path / "a"], tmp_path / "ba")
    assert read(tmp_path / "ab").identical(whole)
    assert read(tmp_path / "ba").identical(whole)


def test_parts_that_leave_cells_open_can_go_on(tmp_path: Path) -> None:
    finwidth.sweep(small(axes={"depth": 2, "width": 3, "n_0": 2}), tmp_path / "a")
    finwidth.sweep(small(axes={"depth": [3], "width": [4], "n_0": 2}), tmp_path / "b")
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert np.isnan(read(tmp_path / "c").sampled_mean.sel(moment="K")).to_numpy().tolist() == [
        [False, True],
        [True, False],
    ]
    assert finwidth.sweep(small(), tmp_path / "c").identical(finwidth.sweep(small()))


def test_merges_that_would_mix_are_refused(tmp_path: Path) -> None:
    finwidth.sweep(small(), tmp_path / "a")
    finwidth.sweep(small(seed=1), tmp_path / "b")
    with pytest.raises(FinwidthError, match="the sweeps cannot be merged: seed was 0 and is 1"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    finwidth.sweep(small(sampled={"draws": 200}), tmp_path / "d")
    with pytest.raises(FinwidthError, match=r"sampled.draws was"):
        merge([tmp_path / "a", tmp_path / "d"], tmp_path / "c")
    shutil.copytree(tmp_path / "a", tmp_path / "e")
    with writing(tmp_path / "e", read_config(small())[0]) as store:
        region = (*[slice(0, 1)] * 5, slice(1, 2), slice(0, 1))
        store.write("sampled", region, store.records("sampled")[region] - 1e-9, {})
    with pytest.raises(FinwidthError, match=r"different sampled numbers for Cell\(n_0=2.*depth=3, width=3\)"):
        merge([tmp_path / "a", tmp_path / "e"], tmp_path / "c")
    with pytest.raises(FinwidthError, match="there is something at"):
        merge([tmp_path / "a"], tmp_path / "b")
    assert not (tmp_path / "c").exists()


def test_any_zarr_reader_opens_it(tmp_path: Path) -> None:
    import xarray as xr

    found = finwidth.sweep(small(), tmp_path / "a.zarr")
    raw = xr.open_zarr(tmp_path / "a.zarr", consolidated=False, chunks=None)
    mean = raw.sampled.sel(moment="K", sampled_statistic="mean", law="gaussian").squeeze()
    np.testing.assert_array_equal(mean, found.sampled_mean.sel(moment="K"))
    assert raw.attrs["finwidth_sweep"]["versions"]["finwidth"] == finwidth.__version__


def test_provenance() -> None:
    found = finwidth.sweep(small())
    assert found.attrs["finwidth_version"] == finwidth.__version__
    assert found.attrs["seed"] == 0
    assert json.loads(found.attrs["config"])["quantities"]["sampled"]["draws"] == 100
    assert all("long_name" in found[name].attrs for name in found)
