"""The files of a store: they are written whole or not at all, one process writes, and nobody else's file is touched."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from finwidth.errors import FinwidthError, SizeError
from finwidth.extras import load_extra
from finwidth.memory import size
from finwidth.outputs import leaving_no_empty_folder, partial_beside

_CHUNK = re.compile(r"c(\.\d+)*")
# The names of files that Zarr and `put` write before they rename them, and that a kill may leave, with a UUID.
_TEMPORARY = re.compile(r"(zarr|c(\.\d+)*)\.[0-9a-f]{32}\.partial")


def put(file: Path, content: bytes, *, lasting: bool = False) -> None:
    """Write a file so that it is there as a whole or not at all; if ``lasting``, after a power cut too."""
    file.parent.mkdir(exist_ok=True)
    beside = file.with_suffix(f".{uuid.uuid4().hex}.partial")
    try:
        with beside.open("wb") as stream:
            stream.write(content)
            if lasting:
                stream.flush()
                os.fsync(stream.fileno())
        beside.replace(file)
    except BaseException:  # an interrupt, too
        beside.unlink(missing_ok=True)
        raise


def holds(file: Path, content: bytes) -> bool:
    """Whether a file has this content."""
    try:
        return os.path.isfile(file) and file.read_bytes() == content
    except OSError:
        return False


def is_vacant(path: Path, beginning: bytes) -> bool:
    """Whether it is an empty folder, but for a first file of a store that a kill left half written.

    ``beginning`` is that of the store's first file.
    """
    if not os.path.isdir(path):
        return False
    with os.scandir(path) as entries:
        return all(_is_of_root(entry, beginning) for entry in entries)


def irregular(path: Path, array: str) -> list[str]:
    """Names of chunks that are no files that can be read: folders, pipes, links to nothing."""
    folder = path / array
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as entries:
        return [f"{array}/{entry.name}" for entry in entries if _CHUNK.fullmatch(entry.name) and not entry.is_file()]


def remove_leftovers(path: Path, folders: Iterable[str], beginning: bytes) -> None:
    """Remove files that kills left half written: names that the store gives, in folders that it made."""
    with os.scandir(path) as entries:
        found = [Path(entry) for entry in entries if _is_of_root(entry, beginning)]
    for folder in map(path.joinpath, folders):
        if folder.is_dir() and not folder.is_symlink():
            with os.scandir(folder) as entries:
                found += [Path(entry) for entry in entries if _is_temporary(entry)]
    for each in found:
        each.unlink()


def _is_temporary(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False) and _TEMPORARY.fullmatch(entry.name) is not None


def _is_of_root(entry: os.DirEntry[str], beginning: bytes) -> bool:
    """Whether it is of our root; in a folder that may be anyone's, its content must say so."""
    if not (_is_temporary(entry) and entry.name.startswith("zarr.")):
        return False
    with open(entry, "rb") as stream:
        return beginning.startswith(stream.read(len(beginning)))


@contextlib.contextmanager
def disk_errors(path: Path, option: str) -> Iterator[None]:
    """Turn an error of the system in writing into a FinwidthError; ``option`` is where the user gives the path."""
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        raise FinwidthError(
            f"cannot write to {path}: {'no space is left' if full else error.strerror}. What was stored before is "
            f"kept; {'make room' if full else f'give another path with {option}'}, and the same command goes on"
        ) from None


def afford_disk(needed: int, what: str, path: Path, change: str) -> None:
    """Refuse a store of more bytes than its disk has free, before anything is computed for it."""
    with contextlib.suppress(OSError):  # the disk that does not tell may have them
        there = next(each for each in (path.absolute(), *path.absolute().parents) if each.is_dir())
        free = shutil.disk_usage(there).free
        if needed > free:
            raise SizeError(f"{what} needs {size(needed)} of disk, and {size(free)} are free at {path}; {change}")


@contextlib.contextmanager
def appearing(path: Path, option: str) -> Iterator[Path]:
    """A place beside ``path`` for a store that is there as a whole or not at all: it takes its place at the end."""
    beside = partial_beside(path)
    with leaving_no_empty_folder(path):
        try:
            yield beside
            with disk_errors(path, option):
                beside.rename(path)
        except FinwidthError as error:  # tells the path that the user gave
            error.args = (str(error).replace(str(beside), str(path)),)
            raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def lock(path: Path, option: str) -> Iterator[None]:
    """Keep other processes out; the system lets go of the lock when this one ends, however it ends.

    It is the folder that is locked, so that no file is left. Windows locks no folders: there it is a file beside it,
    which the system removes when it lets go.
    """
    lock_descriptor = load_extra("filelock", "a store").lock_descriptor
    temporary = getattr(os, "O_TEMPORARY", None)  # which Windows has
    place, how = (
        (path, os.O_RDONLY) if temporary is None else (f"{path.resolve()}.lock", os.O_RDWR | os.O_CREAT | temporary)
    )
    with disk_errors(path, option):
        opened = os.open(place, how)
    try:
        if not lock_descriptor(opened, blocking=False):
            raise FinwidthError(f"another process writes to {path}; wait until it ends, or stop it")
    except OSError as error:
        raise FinwidthError(f"cannot lock {path}: {error.strerror}; put the store on a local disk") from None
    else:
        yield
    finally:
        os.close(opened)


@dataclass(frozen=True)
class Damage:
    """A file of a store with other content than was stored there, and its fate."""

    file: str
    mended: str


REWRITTEN = "written again"
LEFT = "left, for the store did not make it; move it away"


def removed(path: Path, file: str, told: str) -> Damage:
    """Remove a damaged file, if it is one; ``told`` is what becomes of it."""
    place = path / file
    if place.is_symlink() or (os.path.lexists(place) and not place.is_file()):
        return Damage(file, LEFT)
    place.unlink(missing_ok=True)
    return Damage(file, told)
