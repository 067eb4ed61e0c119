"""The store: a Zarr group that any Zarr reader opens, and that a kill at any moment leaves whole.

Each quantity is one array over the axes of the grid and the dimensions of its records.  A task's records are one
chunk, written to a file of another name that is then renamed: it is there as a whole or not at all, and a cell is done
if its record is not NaN.  The attributes of the group, again one file, say what the grid is; the arrays are made and
enlarged after them, so where the two differ the attributes are right.  Axes keep the order in which values were added.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from finwidth import arguments
from finwidth.errors import FinwidthError
from finwidth.laws import FloatArray
from finwidth.sweeps.config import Config, differences
from finwidth.sweeps.kinds import KINDS

SCHEMA = 1
_KEY = "finwidth_sweep"


def versions() -> dict[str, str]:
    """What the numbers depend on beside the config."""
    return {"finwidth": version("finwidth"), "numpy": np.__version__}


@dataclass
class Store:
    """An open store.

    Attributes
    ----------
    path
        Its folder.
    config
        What it holds the cells of.
    axes
        The values of each axis in the order of the arrays.
    versions
        What computed its numbers.
    group
        The Zarr group.
    """

    path: Path
    config: Config
    axes: Mapping[str, tuple[Any, ...]]
    versions: Mapping[str, str]
    group: Any
    _arrays: dict[str, Any] = field(default_factory=dict)  # open to write to

    def records(self, quantity: str) -> FloatArray:
        """The records of a quantity, shape (*axes, *dims); NaN where there are none."""
        shape = (*map(len, self.axes.values()), *self._record_shape(quantity))
        found = np.full(shape, np.nan)
        with _told_as_damage(self.path):
            if quantity in self.group:
                stored = self.group[quantity][...]
                if stored.ndim != len(shape) or stored.dtype != np.float64:
                    raise ValueError(f"the array {quantity} has {stored.ndim} dimensions of {stored.dtype}")
                common = tuple(slice(0, min(sizes)) for sizes in zip(shape, stored.shape, strict=True))
                found[common] = stored[common]
        return found

    def write(self, quantity: str, region: tuple[slice, ...], records: FloatArray) -> None:
        """Store the records of a block, shape (*block, *dims); raises FinwidthError if the disk does not take them."""
        with _told_as_full(self.path):
            self._arrays[quantity][region] = records

    def attributes(self) -> dict[str, Any]:
        """What the group says of itself, in plain types."""
        return {
            "schema": SCHEMA,
            "config": self.config.to_json(),
            "axes": {name: list(values) for name, values in self.axes.items()},
            "versions": dict(self.versions),
        }

    def _record_shape(self, quantity: str) -> tuple[int, ...]:
        return tuple(map(len, KINDS[quantity].dims(self.config.quantities[quantity]).values()))

    def catch_up(self) -> None:
        """Make and enlarge arrays until they are as the attributes say."""
        labels: dict[str, Sequence[Any]] = dict(self.axes)
        for quantity, settings in self.config.quantities.items():
            kind = KINDS[quantity]
            dims = kind.dims(settings)
            labels |= dims
            sizes = tuple(map(len, dims.values()))
            chunks = (*[1] * (len(self.axes) - 2), *kind.block, *sizes)
            names = (*self.axes, *dims)
            self._arrays[quantity] = self._array(
                quantity,
                (*map(len, self.axes.values()), *sizes),
                chunks=chunks,
                dtype=np.float64,
                fill_value=np.nan,
                dimension_names=names,
            )
        for name, values in labels.items():
            column = np.array(values)
            text = column.dtype.kind == "U"
            array = self._array(name, column.shape, dtype=str if text else column.dtype, dimension_names=(name,))
            array[...] = column.astype(object) if text else column

    def _array(self, name: str, shape: tuple[int, ...], **layout: Any) -> Any:
        """The array called ``name``, made or enlarged to this shape."""
        from zarr.codecs import ZstdCodec

        if name not in self.group:
            layout["compressors"] = [ZstdCodec(level=1, checksum=True)]
            layout["chunk_key_encoding"] = {"name": "default", "separator": "."}  # one folder for all chunks
            return self.group.create_array(name, shape=shape, **layout)
        array = self.group[name]
        if array.shape != shape:
            array.resize(shape)
        return array


def open_store(path: str | Path) -> Store:
    """An existing store, to read; raises FinwidthError if it is none, or damaged, or of another version's schema."""
    return _open(arguments.path("the store", path), "r")


def _open(path: Path, mode: str) -> Store:
    zarr = import_zarr()
    if not path.exists():
        raise FinwidthError(f"there is no store at {path}; finwidth sweep CONFIG -o {path} makes one")
    with _told_as_damage(path):
        try:
            group = zarr.open_group(path, mode=mode, zarr_format=3)
        except (FileNotFoundError, NotADirectoryError, zarr.errors.NodeTypeValidationError):
            raise _foreign(path) from None
        content = group.attrs.asdict().get(_KEY)
        if content is None:
            raise _foreign(path)
        if content["schema"] != SCHEMA:
            raise FinwidthError(
                f"{path} has the layout {content['schema']} of another version of finwidth, and this one has {SCHEMA}"
            )
        axes = {name: tuple(values) for name, values in content["axes"].items()}
        store = Store(path, Config.from_json(content["config"]), axes, content["versions"], group)
        if {name: set(axis) for name, axis in axes.items()} != {n: set(a) for n, a in store.config.axes.items()}:
            raise ValueError("its axes are not those of its config")
        store.versions = content["versions"]
    return store


def _foreign(path: Path) -> FinwidthError:
    return FinwidthError(f"{path} is not the store of a sweep; it is left as it is. Give another path with -o")


@contextlib.contextmanager
def _told_as_full(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        raise FinwidthError(
            f"cannot write to {path}: {'no space is left' if full else error.strerror}. What was stored before is "
            f"kept; {'make room' if full else 'give another path with -o'}, and the same command goes on"
        ) from None


@contextlib.contextmanager
def _told_as_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except FinwidthError:
        raise
    # Whatever a damaged file makes Zarr, a codec or the lines above raise: there is no common class, and no list.
    except Exception as error:
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise FinwidthError(f"the store {path} is damaged, and left as it is: {what}") from None


def import_zarr() -> Any:
    """The zarr module; raises FinwidthError if it is not installed."""
    try:
        import zarr
    except ImportError:
        raise FinwidthError("sweeps need zarr, which is not installed; pip install 'finwidth[sweep]'") from None
    return zarr


@contextlib.contextmanager
def writing(path: Path, config: Config, made_by: Mapping[str, str] | None = None) -> Iterator[Store]:
    """The store of ``config`` at ``path``, new or enlarged to it, for the only process that writes to it.

    Parameters
    ----------
    path, config
        The store and what it is to hold.
    made_by
        The versions that its numbers come from, by default those that run.

    Raises
    ------
    FinwidthError
        If another process writes to it, it is damaged or not a store, or it holds what the config does not add to;
        then it is left as it was.
    """
    zarr = import_zarr()
    if path.exists() and any(_content(path)):
        open_store(path)  # refuses what is not ours before it is locked
    with _told_as_full(path):
        path.mkdir(parents=True, exist_ok=True)
    with _lock(path):
        if any(_content(path)):
            store = _open(path, "r+")
            _refuse_mixing(store, config)
            for quantity in store.config.quantities:
                store.records(quantity)  # refuses a store that cannot be read
        else:
            store = Store(path, config, dict.fromkeys(config.axes, ()), made_by or versions(), None)
        for leftover in path.rglob("*.partial"):  # of a kill
            leftover.unlink()
        added = {name: [v for v in axis if v not in set(store.axes[name])] for name, axis in config.axes.items()}
        store.config, store.axes = config, {name: (*store.axes[name], *values) for name, values in added.items()}
        attributes = {_KEY: store.attributes()}
        with _told_as_full(path):
            if store.group is None:
                store.group = zarr.create_group(path, zarr_format=3, attributes=attributes)
            elif store.group.attrs.asdict() != attributes:
                store.group.attrs.put(attributes)
            store.catch_up()
        yield store


def _content(path: Path) -> Iterator[Path]:
    """What lies in a folder, but for what a kill left of a file that was being written; a file is its own content."""
    if not path.is_dir():
        yield path
        return
    yield from (each for each in path.iterdir() if each.suffix != ".partial")


def _refuse_mixing(store: Store, config: Config) -> None:
    found = differences(store.config, config)
    for package, made_by in store.versions.items():
        if versions().get(package) != made_by:
            found.append(f"its numbers come from {package} {made_by}, and this is {versions().get(package)}")
    if found:
        raise FinwidthError(
            f"{store.path} is the store of another sweep, which this config does not only add to: {'; '.join(found)}. "
            "Axis values, quantities and draws can be added; for anything else give another store with -o"
        )


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Keep other processes out; the system lets go of the lock when this one ends, however it ends."""
    try:
        import fcntl
    except ImportError:
        raise FinwidthError("sweeps need a system with POSIX file locks, such as Linux or macOS") from None
    folder = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(folder)
        if isinstance(error, BlockingIOError):
            raise FinwidthError(f"another process writes to {path}; wait until it ends, or stop it") from None
        raise FinwidthError(f"cannot lock {path}: {error.strerror}; put the store on a local disk") from None
    try:
        yield
    finally:
        os.close(folder)
