"""Files that appear whole or not at all, and that replace nothing but what finwidth wrote.

A file is written beside its place, as ``.finwidth-<random>.partial``, and renamed once it is whole and on the disk: a
kill, a full disk or an interrupt leaves what was there.  Only a kill leaves the partial file, too; nothing reads it,
and anyone may delete it.  Every format carries one mark of its maker, by which `wrote` knows what may be replaced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from finwidth.errors import FinwidthError, shortened

if TYPE_CHECKING:
    import xarray as xr

SOURCE = f"finwidth {version('finwidth')}"  # the mark
RULE = "A file that finwidth wrote is replaced; anything else that is there is refused."

# Where each format has the mark. Close to its writer's layout, so that what a user made of such a file is the user's:
# an edited drawing, or a PDF that includes one of ours (and copies its metadata).
_MARKS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        rb"CDF[\x01\x02].{4,3000}?\0{3}\x0c.{4}\0{3}\x06source\0{5}\x02.{4}finwidth ",  # netCDF 3: first attribute
        rb"\x89PNG\r\n\x1a\n.{25}.{4}tEXtSoftware\0finwidth ",
        rb"%PDF-.*\n(\d+) 0 obj\n<< /Creator \(finwidth [^>]*>>\nendobj\nxref\n[ nf\d\n]*"
        rb"trailer\n<<[^>]* /Info \1 0 R[^>]*>>\nstartxref\n\d+\n%%EOF\n?\Z",
        rb"<\?xml [^>]*>\n<!DOCTYPE svg [^>]*>\n<svg [^>]*>\n <metadata>.{,600}?<dc:title>finwidth ",
        rb'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta name="generator" content="finwidth ',
        rb"<!-- finwidth ",  # Markdown
        rb'\{\s*"source": "finwidth ',  # JSON
    )
)
_HEAD, _TAIL = 2**12, 2**16  # bytes that are looked at; a PDF has its mark at the end
_ZARR = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def wrote(path: Path) -> bool:
    """Whether finwidth wrote the regular file ``path``, by its mark; it takes reading a few kilobytes."""
    with path.open("rb") as file:
        content = file.read(_HEAD)
        file.seek(max(_HEAD, file.seek(0, os.SEEK_END) - _TAIL))
        content += file.read()
    return any(mark.match(content) for mark in _MARKS)


def written(*files: Path | None) -> list[str] | None:
    """The names of files, for a document; None if there is none."""
    return [str(file) for file in files if file is not None] or None


def check(*paths: Path | None) -> list[Path]:
    """Refuse outputs that cannot be made, or would replace what is not finwidth's, before the work for them is done.

    Returns
    -------
    list
        Where the files are, links followed. None stands for an output that is not wanted, and is left out.

    Raises
    ------
    FinwidthError
        If a path leads to a folder, a device, a pipe, into a Zarr store or nowhere, or there is a file that finwidth
        did not write, or two paths are the same.
    """
    given = [path for path in paths if path is not None]
    places = [_place(path) for path in given]
    if len(set(places)) < len(places):
        raise FinwidthError(f"two outputs go to {given[-1]}; give each a file of its own")
    return places


def check_folder(folder: Path, names: Iterable[str]) -> None:
    """As `check`, for files of these names in a folder that need not be there yet."""
    first = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    with _writing(folder, "a folder"):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            folder.lstat()  # a name may be too long
        _refuse_unwritable(first)
        refuse_inside_store(folder)
    if first == folder:
        check(*(folder / name for name in names))


def refuse_inside_store(path: Path) -> None:
    """Raise FinwidthError if one of the folders that ``path`` lies in is a Zarr store: nothing else belongs there."""
    for folder in Path(os.path.realpath(path)).parents:
        if any(os.path.lexists(folder / name) for name in _ZARR):
            raise FinwidthError(
                f"cannot write {path}: it lies in the Zarr store {folder}, and what is a Zarr store holds nothing "
                "else; give a path outside of it"
            )


@contextlib.contextmanager
def replacing(*paths: Path) -> Iterator[list[Path]]:
    """Files to write to, which take the places of ``paths``, in this order, once all of them are whole.

    If anything is raised before, what was at the paths is unchanged. Several files take their places one by one.

    Raises
    ------
    FinwidthError
        As `check`, or if they cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from finwidth.outputs import SOURCE, replacing
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "page.md"
    ...     with replacing(path) as [partial]:
    ...         _ = partial.write_text(f"<!-- {SOURCE} -->")
    ...     [each.name for each in Path(folder).iterdir()]
    ['page.md']
    """
    places = check(*paths)
    replaced: list[Path] = []
    partials = [partial_beside(place) for place in places]
    try:
        for partial in partials:
            partial.touch(exist_ok=False)
        yield partials
        for partial in partials:
            _sync(partial)
        check(*paths)  # again: much may have happened since
        for partial, place in zip(partials, places, strict=True):
            partial.replace(place)
            replaced.append(place)
    except OSError as error:
        kept = "some of it is replaced already" if replaced else "what was there before is unchanged"
        make_room = " make room, or" if error.errno in _FULL else ""
        names = ", ".join(shortened(str(path)) for path in paths)
        raise FinwidthError(
            f"cannot write {names}: {_why_not_written(error)}; {kept};{make_room} give another with -o"
        ) from None
    finally:
        for partial in partials[len(replaced) :]:
            with contextlib.suppress(OSError):
                partial.unlink()


@contextlib.contextmanager
def replacing_in(folder: Path, names: Iterable[str]) -> Iterator[dict[str, Path]]:
    """As `replacing`, for files of these names in a folder that is made if need be: the files to write to, by name."""
    names = list(names)
    check_folder(folder, names)
    with leaving_no_empty_folder(folder):
        with _writing(folder, "a folder"):
            folder.mkdir(parents=True, exist_ok=True)
        with replacing(*(folder / name for name in names)) as partials:
            yield dict(zip(names, partials, strict=True))


@contextlib.contextmanager
def leaving_no_empty_folder(folder: Path) -> Iterator[None]:
    """A folder and its parents, if they are made within this context and hold nothing at its end, are removed again."""
    new = [each for each in (folder, *folder.parents) if not os.path.exists(each)]
    try:
        yield
    finally:
        for each in new:
            with contextlib.suppress(OSError):  # not empty
                each.rmdir()


def partial_beside(place: Path) -> Path:
    """A name for what takes this place once it is whole."""
    return place.with_name(f".finwidth-{os.urandom(8).hex()}.partial")


def write_netcdf(dataset: xr.Dataset, path: Path) -> None:
    """Write a netCDF 3 file, which every netCDF library reads; raises FinwidthError as `replacing`.

    Its whole numbers have 32 bits. A variable with larger ones is written as floats where these hold them exactly, up
    to 2^53, and else as text.
    """
    with replacing(path) as [partial]:
        marked = dataset.assign(_fitting(dataset))
        marked.attrs = {"source": SOURCE, **dataset.attrs}
        marked.to_netcdf(partial, engine="scipy")


def _why_not_written(error: OSError) -> str:
    return "no space is left" if error.errno in _FULL else error.strerror or str(error)


def _fitting(dataset: xr.Dataset) -> dict[str, xr.Variable]:
    """The variables whose whole numbers need more than 32 bits, as netCDF 3 holds them."""
    found = {}
    for name, column in dataset.variables.items():
        if column.dtype.kind in "iu" and column.size:
            largest = max(-int(column.min()), int(column.max()))
            if largest >= 2**31:
                found[str(name)] = column.astype(float if largest <= 2**53 else str)
    return found


def _place(path: Path) -> Path:
    """Where the file at ``path`` is, links followed, so that a link stays one; raises FinwidthError as `check`."""
    with _writing(path, "a file"):
        place = Path(os.path.realpath(path))
        refuse_inside_store(path)
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            _refuse_unwritable(place.parent)
            return place
        if stat.S_ISDIR(mode):
            raise FinwidthError(f"cannot write {path}: it is a folder; give a file")
        if not stat.S_ISREG(mode):
            raise FinwidthError(f"cannot write {path}: it is a device or a pipe; give a file")
        if not wrote(path):
            raise FinwidthError(
                f"cannot write {path}: there is a file that finwidth did not write, and it is left as it is; give "
                "another, or move it away"
            )
        if not os.access(place, os.W_OK):
            raise FinwidthError(f"cannot write {path}: it is write-protected; give another file")
        _refuse_unwritable(place.parent)
    return place


def _refuse_unwritable(folder: Path) -> None:
    """Raises OSError unless files can be made in ``folder``."""
    if not os.path.lexists(folder):
        raise OSError(errno.ENOENT, f"there is no folder {folder}")
    if not folder.is_dir():
        raise OSError(errno.ENOTDIR, f"{folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, f"the folder {folder} is write-protected")


@contextlib.contextmanager
def _writing(path: Path, other: str) -> Iterator[None]:
    """Turn an error of the system about a path into a FinwidthError."""
    try:
        yield
    except OSError as error:
        raise FinwidthError(
            f"cannot write {shortened(str(path))}: {_why_not_written(error)}; give {other} that can be written"
        ) from None


def _sync(path: Path) -> None:
    """Wait until the disk has the file: a disk that fills up may tell no earlier."""
    with path.open("r+b") as file:  # Windows waits only for what could be written
        os.fsync(file.fileno())
