"""The files of a store: their names and contents, and which files of a folder belong to it."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NotRequired, TypeAlias, TypedDict, cast

import numpy as np

from finwidth.errors import FinwidthError
from finwidth.extras import load_extra
from finwidth.sweeps.quantities.base import Dims, Numerics
from finwidth.sweeps.quantities.registry import QUANTITIES
from finwidth.sweeps.schema.kinds import Value
from finwidth.sweeps.store.seals import CHECK, digest

if TYPE_CHECKING:
    import zarr
    from zarr.core.buffer import Buffer

    from finwidth.sweeps.config import ConfigDocument

    ZarrArray: TypeAlias = zarr.Array[Any]  # of either version of the format

Settings: TypeAlias = Mapping[str, Mapping[str, object]]  # the settings of each quantity

KEY = "finwidth_sweep"
ROOT, COPY = "zarr.json", f"{KEY}/zarr.json"  # both describe the store; the copy is for when the other is damaged
_CHUNK = re.compile(r"c(\.\d+)*")
# The names of files that Zarr and `put` write before they rename them, and that a kill may leave, with a UUID.
_TEMPORARY = re.compile(r"(zarr|c(\.\d+)*)\.[0-9a-f]{32}\.partial")


class Content(TypedDict):
    """The description of a store, in plain types; ``grows`` while its arrays may not yet be as it says."""

    schema: int
    config: ConfigDocument
    axes: dict[str, list[Value]]
    labels: dict[str, Dims]
    versions: dict[str, str]
    numerics: dict[str, Numerics]
    grows: NotRequired[bool]


def import_zarr() -> ModuleType:
    """The zarr module; raises FinwidthError if it is not installed."""
    return load_extra("zarr", "a sweep")


def described(content: Mapping[str, object]) -> bytes:
    """The zarr.json of a group with ``content`` as its attributes, and a checksum of it."""
    checked = {**content, "checksum": digest(content)}
    document = {"attributes": {KEY: checked}, "zarr_format": 3, "node_type": "group"}
    return json.dumps(document, indent=2).encode()


_BEGINNING = described({"schema": 0}).partition(b'"schema"')[0]


def description(file: Path) -> Content | None:
    """The content of a file that `described` made; None if there is no such file, or it is not as it was written."""
    found = raw_description(file)
    if found is None:
        return None
    content = cast("Content", {name: value for name, value in found.items() if name != "checksum"})
    try:
        return content if described(content) == file.read_bytes() else None
    except RecursionError:
        return None


def raw_description(file: Path) -> Content | None:
    """The content of the zarr.json of a sweep's store of any version, unchecked; None if it is none."""
    if not os.path.isfile(file):
        return None
    try:
        found = json.loads(file.read_bytes())["attributes"][KEY]
    except OSError as error:
        raise FinwidthError(f"cannot read {file}: {error.strerror or error}") from None
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    return cast("Content", found) if isinstance(found, dict) else None


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
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def holds(file: Path, content: bytes) -> bool:
    """Whether a file has this content."""
    try:
        return os.path.isfile(file) and file.read_bytes() == content
    except OSError:
        return False


def arrays(axes: Mapping[str, Sequence[Value]], quantities: Settings) -> tuple[zarr.Group, dict[str, bytes]]:
    """The arrays of a store without their records: as a Zarr group in memory, and as the files that it is stored in.

    There is one array for each quantity, and one of labels for each dimension.
    """
    import_zarr()
    import zarr
    from zarr.codecs import ZstdCodec

    files: dict[str, Buffer] = {}
    group = zarr.create_group(zarr.storage.MemoryStore(files), zarr_format=3)
    labels: dict[str, Sequence[Value]] = dict(axes)
    for quantity, settings in quantities.items():
        dims = record_dims(quantity, settings)
        labels |= dims
        sizes = tuple(map(len, dims.values()))
        chunks = (*[1] * (len(axes) - 2), *QUANTITIES[quantity].block, *sizes)
        layout = {"chunks": chunks, "dtype": np.float64, "fill_value": np.nan}
        compressors = [ZstdCodec(level=1, checksum=True)]
        _create_array(
            group, quantity, (*map(len, axes.values()), *sizes), (*axes, *dims), compressors=compressors, **layout
        )
    for name, values in labels.items():
        column = np.array(values)
        text = column.dtype.kind == "U"
        dtype = str if text else column.dtype
        # Not compressed: the same labels are the same bytes, whatever library compresses.
        array = _create_array(group, name, column.shape, (name,), chunks=column.shape, dtype=dtype, compressors=None)
        array[...] = column.astype(object) if text else column
    return group, {name: buffer.to_bytes() for name, buffer in files.items() if name != ROOT}


def _create_array(group: zarr.Group, name: str, shape: tuple[int, ...], dims: Iterable[str], **more: Any) -> ZarrArray:
    return group.create_array(
        name,
        shape=shape,
        dimension_names=tuple(dims),
        chunk_key_encoding={"name": "default", "separator": "."},  # one folder for all chunks
        **more,
    )


def record_dims(quantity: str, settings: Mapping[str, object]) -> Dims:
    """The dimensions of a stored record and their labels: as for the quantity, the last one with the check value."""
    *others, (name, labels) = QUANTITIES[quantity].dims(settings).items()
    return {**dict(others), name: [*labels, CHECK]}


def labels(quantities: Settings) -> dict[str, Dims]:
    """The dimensions of the records of each quantity and their labels."""
    return {quantity: QUANTITIES[quantity].dims(settings) for quantity, settings in quantities.items()}


def file_of(quantity: str, region: tuple[slice, ...], settings: Mapping[str, object]) -> str:
    """The file of the chunk that holds a block."""
    steps = (*[1] * (len(region) - 2), *QUANTITIES[quantity].block)
    place = [cut.start // step for cut, step in zip(region, steps, strict=True)]
    return f"{quantity}/c." + ".".join(map(str, [*place, *[0] * len(QUANTITIES[quantity].dims(settings))]))


def is_vacant(path: Path) -> bool:
    """Whether it is an empty folder, but for a first file of a store that a kill left half written."""
    if not os.path.isdir(path):
        return False
    with os.scandir(path) as entries:
        return all(_is_of_root(entry) for entry in entries)


def irregular(path: Path, quantity: str) -> list[str]:
    """Names of chunks that are no files that can be read: folders, pipes, links to nothing."""
    folder = path / quantity
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as entries:
        return [f"{quantity}/{entry.name}" for entry in entries if _CHUNK.fullmatch(entry.name) and not entry.is_file()]


def leftovers(path: Path, axes: Iterable[str], quantities: Settings) -> Iterator[Path]:
    """Files that kills left half written: names that the store gives, in folders that it made."""
    with os.scandir(path) as entries:
        yield from [Path(entry) for entry in entries if _is_of_root(entry)]
    dims = [name for quantity, settings in quantities.items() for name in record_dims(quantity, settings)]
    for folder in (path / name for name in (KEY, *axes, *quantities, *dims)):
        if folder.is_dir() and not folder.is_symlink():
            with os.scandir(folder) as entries:
                yield from [Path(entry) for entry in entries if _is_temporary(entry)]


def _is_temporary(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False) and _TEMPORARY.fullmatch(entry.name) is not None


def _is_of_root(entry: os.DirEntry[str]) -> bool:
    """Whether it is of our root; in a folder that may be anyone's, its content must say so."""
    if not (_is_temporary(entry) and entry.name.startswith("zarr.")):
        return False
    with open(entry, "rb") as stream:
        return _BEGINNING.startswith(stream.read(len(_BEGINNING)))
