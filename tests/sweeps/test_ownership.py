"""Only what the store itself made is ever removed; a user's files are never touched, whatever they are called."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr
from zarr.storage import LocalStore

import finwidth
from finwidth import FinwidthError
from finwidth.sweeps import check, merge, read

CONFIG: dict[str, Any] = {"quantities": ["exact"], "axes": {"depth": [2, 3], "width": [3, 4], "n_0": 2}}
UUID = "0123456789abcdef" * 2


def tree(path: Path) -> dict[str, bytes | str]:
    return {
        str(each.relative_to(path)): os.readlink(each)
        if each.is_symlink()
        else each.read_bytes()
        if each.is_file()
        else ""
        for each in path.rglob("*")
    }


FOREIGN: dict[str, Callable[[Path], object]] = {
    "a partial file": lambda folder: (folder / "film.partial").write_text("x"),
    "a partial folder": lambda folder: (folder / "a.partial").mkdir(),
    "a name that Zarr could have given": lambda folder: (folder / f"zarr.{UUID}.partial").write_text("not ours"),
    "a chunk that Zarr was writing": lambda folder: (folder / f"c.{UUID}.partial").write_text(""),
    "a link of such a name": lambda folder: (folder / f"zarr.{UUID}.partial").symlink_to("/dev/null"),
    "a hidden file": lambda folder: (folder / ".notes").write_text("x"),
    "a Zarr group": lambda folder: zarr.create_group(folder, zarr_format=3),
    "another program's attribute": lambda folder: zarr.create_group(folder, attributes={"finwidth_sweep": "mine"}),
    "a pipe": lambda folder: os.mkfifo(folder / "zarr.json"),
}


@pytest.mark.parametrize("content", FOREIGN)
def test_a_folder_that_is_no_store(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    FOREIGN[content](folder)
    before = tree(folder)
    for use in (lambda: finwidth.sweep(CONFIG, folder), lambda: read(folder), lambda: check(folder)):
        with pytest.raises(FinwidthError, match="d is not the store of a sweep; it is left as it is"):
            use()
        assert tree(folder) == before


NO_FOLDERS: dict[str, Callable[[Path], object]] = {
    "a file": lambda path: path.write_text("x"),
    "an empty file": lambda path: path.write_text(""),
    "a pipe": os.mkfifo,
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", NO_FOLDERS)
def test_what_is_no_folder(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "d"
    NO_FOLDERS[kind](path)
    for use in (lambda: finwidth.sweep(CONFIG, path), lambda: read(path), lambda: check(path)):
        with pytest.raises(FinwidthError, match="d is not the store of a sweep; it is left as it is"):
            use()
    with pytest.raises(FinwidthError, match="there is something at"):
        merge([path], path)
    assert os.path.lexists(path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["d"]


JUNK: list[Any] = [5, None, b"a", ["a"], "a\0b", 1.5, {}]


@pytest.mark.parametrize("given", JUNK)
def test_what_is_no_path(given: Any) -> None:
    uses: list[Callable[[], object]] = [lambda: read(given), lambda: check(given), lambda: merge([given], "m")]
    if given is not None:  # no store
        uses.append(lambda: finwidth.sweep(CONFIG, given))
    if not isinstance(given, dict):  # a config
        uses.append(lambda: finwidth.sweep(given))
    for use in uses:
        with pytest.raises(FinwidthError, match="; give a path"):
            use()
    with pytest.raises(FinwidthError, match="give the stores of the parts"):
        merge("a.zarr", "m")


@pytest.mark.parametrize("path", ["", ".", "/", "/usr"])
def test_folders_that_are_not_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FinwidthError, match=r"is not the store of a sweep; it is left as it is|give a path"):
        finwidth.sweep(CONFIG, path)
    with pytest.raises(FinwidthError, match=r"a folder|give a path|Is a directory|not a file"):
        finwidth.sweep(path)


@pytest.mark.parametrize("inside", ["new", "exact/new", "a/b/c"])
def test_another_store_is_no_place_for_one(tmp_path: Path, inside: str) -> None:
    zarr.create_group(tmp_path / "theirs", zarr_format=3)
    finwidth.sweep(CONFIG, tmp_path / "a.zarr")
    for store in (tmp_path / "a.zarr", tmp_path / "theirs"):
        before = tree(store)
        with pytest.raises(FinwidthError, match=r"lies in the Zarr store .*; give a path outside of it"):
            finwidth.sweep(CONFIG, store / inside)
        assert tree(store) == before


def test_an_empty_folder_becomes_a_store(tmp_path: Path) -> None:
    assert finwidth.sweep(CONFIG, tmp_path).identical(finwidth.sweep(CONFIG))


@pytest.mark.parametrize("length", [0, 1, 30, 60, 200])
def test_a_kill_while_the_first_file_was_written(tmp_path: Path, length: int) -> None:
    finwidth.sweep(CONFIG, tmp_path / "whole")
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / f"zarr.{UUID}.partial").write_bytes((tmp_path / "whole" / "zarr.json").read_bytes()[:length])
    finwidth.sweep(CONFIG, killed)
    assert tree(killed) == tree(tmp_path / "whole")


def test_what_kills_left_and_what_a_user_put_there(tmp_path: Path) -> None:
    """In the store itself: temporaries of its own files go, all else stays."""
    store = tmp_path / "a.zarr"
    whole = finwidth.sweep(CONFIG, store)
    before = tree(store)
    own = [f"exact/zarr.{UUID}.partial", f"exact/c.0.0.0.{UUID}.partial", f"depth/c.{UUID}.partial"]
    own += [f"finwidth_sweep/zarr.{UUID}.partial", f"exact_statistic/c.{UUID}.partial"]
    users = ["film.partial", f"zarr.{UUID}.partial", f"exact/c.0.0.{UUID[:-1]}.partial", f"exact/film.{UUID}.partial"]
    users += ["exact/notes.txt", f"exact/c.0.{UUID}.partial.bak", f"mine/c.0.{UUID}.partial"]
    (store / "mine").mkdir()
    (store / f"exact/c.0.0.0.0.{UUID}.partial").mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / f"c.0.{UUID}.partial").write_text("x")
    for name in own + users:
        (store / name).write_text("x")
    assert finwidth.sweep(CONFIG, store).identical(whole)
    after = tree(store)
    assert not {*own} & {*after}
    assert {name: after[name] for name in users} == dict.fromkeys(users, b"x")
    assert (store / f"exact/c.0.0.0.0.{UUID}.partial").is_dir()
    assert {name: after[name] for name in before} == before
    assert not check(store)
    assert tree(store) == after


def test_an_array_that_lies_elsewhere(tmp_path: Path) -> None:
    """A link in the place of an array is followed to read and write, and nothing is removed behind it."""
    store = tmp_path / "a.zarr"
    whole = finwidth.sweep(CONFIG, store)
    (store / "exact").rename(tmp_path / "elsewhere")
    (store / "exact").symlink_to(tmp_path / "elsewhere")
    left = tmp_path / "elsewhere" / f"c.0.{UUID}.partial"
    left.write_text("x")
    assert finwidth.sweep(CONFIG, store).identical(whole)
    assert left.exists()


def test_the_names_of_temporaries_are_those_of_zarr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Zarr writes before it renames it, caught in the act."""
    from finwidth.stores import files

    names = []

    def caught(self: Path, target: Path) -> Path:
        names.append((self.relative_to(tmp_path).parts, target.name))
        os.rename(self, target)
        return target

    monkeypatch.setattr(Path, "replace", caught)
    finwidth.sweep(CONFIG, tmp_path / "a.zarr")
    assert {target for _, target in names} == {"zarr.json", "c.0", "c.0.0.0.0.0.0.0.0"}
    assert all(files._TEMPORARY.fullmatch(parts[-1]) for parts, _ in names)
    assert LocalStore.__module__ == "zarr.storage._local"


def test_a_store_that_does_not_appear_leaves_no_folders(tmp_path: Path) -> None:
    from finwidth.stores.files import appearing

    def stopped() -> None:
        with appearing(tmp_path / "new" / "er" / "store", "-o") as beside:
            beside.mkdir(parents=True)
            (beside / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not tree(tmp_path)
