"""The arrays of a store as Zarr describes them: made in memory, written as files, and compared with what is there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from finwidth.errors import FinwidthError
from finwidth.extras import load_extra
from finwidth.stores.description import ROOT
from finwidth.stores.files import holds

if TYPE_CHECKING:
    import zarr

    ZarrArray: TypeAlias = zarr.Array[Any]  # of either version of the format


def import_zarr() -> ModuleType:
    """The zarr module; raises FinwidthError if it is not installed."""
    return load_extra("zarr", "a store")


class ArraysInMemory:
    """Arrays that are described, and may hold labels, but no numbers yet."""

    def __init__(self) -> None:
        self._buffers: dict[str, Any] = {}
        self.group: zarr.Group = import_zarr().create_group(
            import_zarr().storage.MemoryStore(self._buffers), zarr_format=3
        )

    def create(self, name: str, shape: tuple[int, ...], dims: Iterable[str], **more: Any) -> ZarrArray:
        """Describe one more array; all its chunks are files of one folder."""
        return self.group.create_array(
            name,
            shape=shape,
            dimension_names=tuple(dims),
            chunk_key_encoding={"name": "default", "separator": "."},
            **more,
        )

    def label(self, name: str, values: Sequence[bool | int | float | str], dim: str | None = None) -> None:
        """The labels of a dimension, which has their name unless another is given, one array.

        They are not compressed: the same labels are the same bytes, whatever library compresses.
        """
        column = np.array(values)
        text = column.dtype.kind == "U"
        dtype = str if text else column.dtype
        array = self.create(name, column.shape, (dim or name,), chunks=column.shape, dtype=dtype, compressors=None)
        array[...] = column.astype(object) if text else column

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the arrays, without that of the group."""
        return {name: buffer.to_bytes() for name, buffer in self._buffers.items() if name != ROOT}

    def wrong(self, path: Path) -> list[str]:
        """The files at a path that do not have the content that they should have."""
        found = []
        for file, content in self.files.items():
            if holds(path / file, content):
                continue
            # Another version of Zarr may write the same metadata in other words; labels are what they are.
            name = file.partition("/")[0]
            there = opened(path / name) if file.endswith(ROOT) else None
            if there is None or repr(there.metadata) != repr(self.group[name].metadata):
                found.append(file)
        return found


def opened(folder: Path) -> ZarrArray | None:
    """An array to read from; None if it is not there, or its metadata are damaged."""
    if not os.path.isfile(folder / ROOT):
        return None
    try:
        array: ZarrArray = import_zarr().open_array(folder, mode="r", zarr_format=3)
    # Zarr and its codecs raise exceptions of no common class at damaged files, and MemoryError where they claim to be
    # large.
    except Exception as error:
        refuse_other_failures(error)
        return None
    return array


def refuse_other_failures(error: Exception) -> None:
    """Raise an error in reading again if it tells of the machine rather than of the file."""
    if isinstance(error, OSError) and error.errno not in {None, errno.ENOENT}:
        raise FinwidthError(f"cannot read {error.filename}: {error.strerror}") from None
