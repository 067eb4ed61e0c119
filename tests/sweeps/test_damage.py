"""Damage to any one file of a store is told by every command, and mended; nothing is lost, nothing silently wrong."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

import finwidth
from finwidth import FinwidthError
from finwidth.sweeps import check, merge, read
from finwidth.sweeps.plots import plot
from finwidth.sweeps.store.dataset import status

# Quantities of one shape and of others; two outer axes, so that places differ in more than depth and width.
CONFIG: dict[str, Any] = {
    "quantities": ["exact", "bounds", "sampled", "gram"],
    "axes": {"depth": [2, 3], "width": [3, 4], "n_0": [2, 3], "law": ["gaussian"]},
    "sampled": {"draws": 100},
    "gram": {"inputs": ["ones", "random:1"], "draws": 20},
}
ANOTHER = CONFIG | {"seed": 1}
MOVED = CONFIG | {"axes": {**CONFIG["axes"], "depth": [2, 5]}}


def mostly_slow(cases: Iterable[Any], quick: int) -> list[Any]:
    """The first cases run always, the others in the slow tier."""
    return [pytest.param(*each, marks=[pytest.mark.slow] if k >= quick else []) for k, each in enumerate(cases)]


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, xr.Dataset]:
    path = tmp_path_factory.mktemp("whole") / "a.zarr"
    return path, finwidth.sweep(CONFIG, path)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("others")
    for name, config in (("another", ANOTHER), ("moved", MOVED)):
        finwidth.sweep(config, folder / name)
    return [folder / "another", folder / "moved"]


def uses(store: Path, elsewhere: Path) -> dict[str, Callable[[], object]]:
    return {
        "sweep": lambda: finwidth.sweep(CONFIG, store),
        "collect": lambda: read(store),
        "status": lambda: status(store),
        "plot": lambda: plot(store, "phase", elsewhere / "phase.png", at=["n_0=2"]),
        "merge": lambda: merge([store], elsewhere / "merged"),
    }


def told(
    store: Path, files: tuple[str, ...], tmp_path: Path, names: tuple[str, ...] = ("sweep", "status", "merge")
) -> bool:
    """Whether the damage is told, by every command or none; each names a damaged file and leaves the store alone."""
    damaged = tree(store)
    messages = [message_of(uses(store, tmp_path)[name]) for name in names]
    if not any(messages):
        return False
    for message in messages:
        assert any(file in message for file in files), (message, files)
        assert f"finwidth sweep check {store} lists" in message
    assert tree(store) == damaged
    return True


def message_of(use: Callable[[], object]) -> str:
    """Of the error that is raised; empty if none is."""
    try:
        use()
    except FinwidthError as error:
        return str(error)
    return ""


def mended(store: Path, whole: tuple[Path, xr.Dataset]) -> bool:
    """Whether `check` and the same command lead to the store that there was, byte for byte."""
    check(store)
    assert not check(store)
    return finwidth.sweep(CONFIG, store).identical(whole[1]) and tree(store) == tree(whole[0])


def _flip(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def _overwrite(content: bytes, rng: random.Random) -> bytes:
    place, length = rng.randrange(len(content)), rng.randrange(1, 20)
    return content[:place] + rng.randbytes(length) + content[place + length :]


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": lambda content, rng: content[: rng.randrange(len(content))],
    "emptied": lambda content, rng: b"",
    "zeroed": lambda content, rng: bytes(len(content)),
    "flipped": _flip,
    "appended": lambda content, rng: content + rng.randbytes(rng.randrange(1, 100)),
    "overwritten": _overwrite,
    "doubled": lambda content, rng: content + content,
}


def kind_of(name: str) -> str:
    folder, _, file = name.rpartition("/")
    if folder in {"", "finwidth_sweep"}:
        return "description"
    what = "records" if folder in CONFIG["quantities"] else "labels"
    return what if file.startswith("c.") else f"metadata of {what}"


@pytest.mark.parametrize("count", [10, pytest.param(400, marks=pytest.mark.slow)])
def test_damage_to_one_file(tmp_path: Path, whole: tuple[Path, xr.Dataset], count: int) -> None:
    """Each kind of damage to each kind of file. What is not told must be harmless: it reads identical."""
    rng, outcomes = random.Random(3), Counter[str]()
    kinds: dict[str, list[str]] = {}
    for name in sorted(tree(whole[0])):
        kinds.setdefault(kind_of(name), []).append(name)
    assert len(kinds) == 5
    for number in range(count):
        damage = [*DAMAGES][number % len(DAMAGES)]
        kind = [*kinds][number % len(kinds)]
        store, name = tmp_path / f"{number}.zarr", rng.choice(kinds[kind])
        shutil.copytree(whole[0], store)
        content = (store / name).read_bytes()
        (store / name).write_bytes(DAMAGES[damage](content, rng))
        if (store / name).read_bytes() == content:
            continue
        was_told = told(store, (name,), tmp_path / str(number), ("sweep", "status", "collect", "merge"))
        outcomes["told" if was_told else "harmless"] += 1
        if was_told:
            assert [each.file for each in check(store)] == [name]
            assert mended(store, whole), (damage, name)
        else:  # a blank of JSON that is another blank
            assert kind.startswith("metadata"), (damage, name)
            assert read(store).identical(whole[1])
        shutil.rmtree(store)
    print(f"{count} damages: {dict(outcomes)}")
    assert outcomes["told"] > 0.9 * count


LOST = ["zarr.json", "finwidth_sweep/zarr.json", "sampled/zarr.json", "depth/zarr.json", "depth/c.0"]


@pytest.mark.parametrize("name", mostly_slow(zip(LOST, strict=True), 3))
def test_lost_files(tmp_path: Path, whole: tuple[Path, xr.Dataset], name: str) -> None:
    store = tmp_path / "a.zarr"
    shutil.copytree(whole[0], store)
    (store / name).unlink()
    assert told(store, (name,), tmp_path, ("sweep", "collect", "status", "plot", "merge"))
    assert mended(store, whole)


SWAPS = [
    ("sampled/c.0.0.0.0.0.0.0.0.0", "sampled/c.0.0.0.0.0.1.0.0.0"),
    ("exact/c.0.0.0.0.0.0.0.0", "bounds/c.0.0.0.0.0.0.0.0"),
    ("exact/zarr.json", "bounds/zarr.json"),
    ("depth/c.0", "width/c.0"),
    ("sampled/c.0.0.0.0.0.0.0.0.0", "sampled/c.1.0.0.0.0.0.0.0.0"),
    ("gram/c.0.0.0.0.0.0.1.0.0.0.0", "gram/c.1.0.0.0.0.1.0.0.0.0.0"),
    ("exact/c.0.0.0.0.0.0.0.0", "exact/c.1.0.0.0.0.0.0.0"),
    ("n_0/zarr.json", "width/zarr.json"),
    ("zarr.json", "exact/zarr.json"),
]


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


@pytest.mark.parametrize(("one", "other"), mostly_slow(SWAPS, 4))
def test_swapped_files(tmp_path: Path, whole: tuple[Path, xr.Dataset], one: str, other: str) -> None:
    store = tmp_path / "a.zarr"
    shutil.copytree(whole[0], store)
    swap(store / one, store / other)
    assert told(store, (one, other), tmp_path, ("sweep", "collect", "status", "plot", "merge"))
    assert mended(store, whole)


FOREIGN = ["sampled/c.0.0.0.0.0.1.1.0.0", "zarr.json", "gram/c.0.0.0.0.0.1.0.0.0.0.0", "exact/c.0.0.0.0.0.0.0.0"]


@pytest.mark.parametrize("name", mostly_slow(zip(FOREIGN, strict=True), 2))
def test_files_of_another_store(tmp_path: Path, whole: tuple[Path, xr.Dataset], others: list[Path], name: str) -> None:
    """Of another seed, and of another grid: the chunk at the same index is of another depth."""
    for number, other in enumerate(others):
        store = tmp_path / f"{number}.zarr"
        shutil.copytree(whole[0], store)
        if (store / name).read_bytes() == (other / name).read_bytes():
            assert name.startswith("exact/")  # has no seed
            continue
        shutil.copy(other / name, store / name)
        assert told(store, (name,), tmp_path / str(number))
        assert mended(store, whole)


def test_the_check_values_are_what_notices(
    tmp_path: Path, whole: tuple[Path, xr.Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them two chunks that changed places are two valid chunks: the tests above can fail."""
    from finwidth.sweeps.store import seals

    store = tmp_path / "a.zarr"
    shutil.copytree(whole[0], store)
    swap(*(store / name for name in SWAPS[0]))
    monkeypatch.setattr(seals, "intact", lambda stored, where: np.ones(where.shape, bool))
    assert not read(store).identical(whole[1])


@pytest.mark.slow
def test_twenty_random_swaps(tmp_path: Path, whole: tuple[Path, xr.Dataset], others: list[Path]) -> None:
    rng, names = random.Random(5), sorted(tree(whole[0]))
    swaps = 0
    while swaps < 20:
        store = tmp_path / f"{swaps}.zarr"
        shutil.copytree(whole[0], store)
        one, other = rng.sample(names, 2)
        source = rng.choice([store, store, *others])
        shutil.copytree(source, tmp_path / "source", dirs_exist_ok=True)
        second = store if source == store else tmp_path / "source"
        if (store / one).read_bytes() == (second / other).read_bytes():
            shutil.rmtree(store)
            continue
        swap(store / one, second / other)
        assert told(store, (one, other), tmp_path / str(swaps)), (one, other)
        assert mended(store, whole)
        swaps += 1


def edited(store: Path, name: str, value: Any) -> None:
    """Numbers changed by another program that writes Zarr, so that every checksum of the file is right."""
    array: Any = zarr.open_array(store / name)
    values = array[...]
    values[(0,) * array.ndim] = value
    array[...] = values  # as a whole: older Zarr takes no single text


@pytest.mark.parametrize(("name", "value"), [("exact", 1.0), ("sampled", np.nan), ("depth", 7), ("law", "uniform")])
def test_edited_numbers(tmp_path: Path, whole: tuple[Path, xr.Dataset], name: str, value: Any) -> None:
    store = tmp_path / "a.zarr"
    shutil.copytree(whole[0], store)
    edited(store, name, value)
    assert told(store, (f"{name}/c.0",), tmp_path)
    assert mended(store, whole)


EDITS = {
    "a wrong type": ("zarr.json", '"network": {}', '"network": "x"'),
    "another seed": ("zarr.json", '"seed": 0', '"seed": 5'),
    "of the copy": ("finwidth_sweep/zarr.json", '"seed": 0', '"seed": 5'),
    "another layout": ("zarr.json", '"schema": 3', '"schema": 4'),
    "an array's type": ("exact/zarr.json", "float64", "int64"),
    "an unknown type": ("exact/zarr.json", "float64", "float99"),
    "zeros where nothing is stored": ("sampled/zarr.json", '"fill_value": "NaN"', '"fill_value": 0.0'),
    "other files for chunks": ("sampled/zarr.json", '"separator": "."', '"separator": "/"'),
    "a dimension's name": ("gram/zarr.json", '"depth"', '"width"'),
    "no array": ("depth/zarr.json", '"node_type": "array"', '"node_type": "group"'),
}


@pytest.mark.parametrize("edit", mostly_slow(zip(EDITS, strict=True), 4))
def test_edited_metadata(tmp_path: Path, whole: tuple[Path, xr.Dataset], edit: str) -> None:
    store = tmp_path / "a.zarr"
    shutil.copytree(whole[0], store)
    name, old, new = EDITS[edit]
    before = (store / name).read_text()
    assert old in before
    (store / name).write_text(before.replace(old, new))
    assert told(store, (name,), tmp_path, ("sweep", "collect", "status", "plot", "merge"))
    assert mended(store, whole)


def test_zeros_where_nothing_is_stored(tmp_path: Path, whole: tuple[Path, xr.Dataset]) -> None:
    """An edited fill value and a lost chunk: two damages."""
    store = tmp_path / "a.zarr"
    shutil.copytree(whole[0], store)
    metadata, chunk = store / "sampled" / "zarr.json", store / "sampled" / "c.0.0.0.0.0.1.1.0.0"
    metadata.write_text(metadata.read_text().replace('"fill_value": "NaN"', '"fill_value": 0.0'))
    chunk.unlink()
    assert told(store, ("sampled/zarr.json",), tmp_path)
    assert mended(store, whole)


def test_all_at_once(tmp_path: Path, whole: tuple[Path, xr.Dataset]) -> None:
    """Every file but one description is damaged: everything is computed again."""
    store = tmp_path / "a.zarr"
    shutil.copytree(whole[0], store)
    for name in tree(store):
        if name != "finwidth_sweep/zarr.json":
            (store / name).write_bytes(b"x")
    assert len(check(store)) > 30
    assert mended(store, whole)


def test_nothing_says_what_it_holds(tmp_path: Path, whole: tuple[Path, xr.Dataset]) -> None:
    store = tmp_path / "a.zarr"
    shutil.copytree(whole[0], store)
    for name in ("zarr.json", "finwidth_sweep/zarr.json"):
        (store / name).write_bytes((store / name).read_bytes()[:-5])
    before = tree(store)
    for use in (lambda: check(store), *uses(store, tmp_path).values()):
        with pytest.raises(FinwidthError, match=r"neither zarr.json nor finwidth_sweep/zarr.json says what it holds"):
            use()
    assert tree(store) == before


def test_more_draws_than_were_asked_for(tmp_path: Path) -> None:
    """A chunk of a store that differs in its draws only is not of this one."""
    config = {"quantities": ["sampled"], "axes": {"depth": [2], "width": [3, 4], "n_0": 2}, "sampled": {"draws": 50}}
    finwidth.sweep(config, tmp_path / "a.zarr")
    finwidth.sweep(config | {"sampled": {"draws": 60}}, tmp_path / "b.zarr")
    name = "sampled/c.0.0.0.0.0.0.1.0.0"
    shutil.copy(tmp_path / "b.zarr" / name, tmp_path / "a.zarr" / name)
    with pytest.raises(FinwidthError, match=f"damaged in {name}"):
        read(tmp_path / "a.zarr")


def test_a_chunk_that_claims_to_be_large(tmp_path: Path, whole: tuple[Path, xr.Dataset]) -> None:
    """A header of Zstandard that says a terabyte: the memory is not there, and the chunk is damaged."""
    store = tmp_path / "a.zarr"
    shutil.copytree(whole[0], store)
    name = "sampled/c.0.0.0.0.0.0.0.0.0"
    header = b"\x28\xb5\x2f\xfd\xe4" + (2**40).to_bytes(8, "little")
    (store / name).write_bytes(header + (store / name).read_bytes()[7:])
    assert told(store, (name,), tmp_path)
    assert mended(store, whole)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nowhere")])
def test_what_is_no_file_is_told_and_left(
    tmp_path: Path, whole: tuple[Path, xr.Dataset], make: Callable[[Path], None]
) -> None:
    store = tmp_path / "a.zarr"
    shutil.copytree(whole[0], store)
    name = "exact/c.0.0.0.0.0.0.0.0"
    (store / name).unlink()
    make(store / name)
    assert told(store, (name,), tmp_path)
    assert [(each.file, each.mended) for each in check(store)] == [
        (name, "left, for the store did not make it; move it away")
    ]
    (store / name).rmdir() if (store / name).is_dir() else (store / name).unlink()
    assert mended(store, whole)
