"""The store: a Zarr group that any Zarr reader opens, that a kill at any moment leaves whole, and that tells damage.

Each quantity is one array over the axes of the grid and the dimensions of its records.  A task's records are one
chunk, written to a file of another name that is then renamed: it is there as a whole or not at all, and a cell is done
if its record is not NaN.  Axes keep the order in which values were added.

Every file is checked against what it should be, and where it should be:

- The attributes of the group, again one file, describe the store.  They carry a checksum, and a copy lies beside them.
- It has the labels of the records, so that numbers of another list of moments are refused rather than read wrongly.
- The arrays' metadata and labels follow from the description, so they are compared with what it makes of them.
- A record ends in a check value that binds its numbers to its cell (`sweeps.seals`).

A list of checksums in a file of its own would be simpler to explain, and wrong: a kill between a chunk and its line in
the list looks like damage, or damage like a kill.  Here what is checked and what checks it are one file, or the one
follows from the other.  The exception is the moment in which a store is made or enlarged: then the description says
that it grows, the arrays follow, and last it says so no more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from finwidth import arguments
from finwidth.errors import FinwidthError
from finwidth.networks.laws import FloatArray
from finwidth.stores.arrays import ArraysInMemory, import_zarr, opened, refuse_other_failures
from finwidth.stores.description import ROOT
from finwidth.stores.files import disk_errors, irregular, put, remove_leftovers
from finwidth.stores.numerics import unlike
from finwidth.sweeps.config import Config, differences
from finwidth.sweeps.quantities.base import Dims, Numerics
from finwidth.sweeps.quantities.registry import QUANTITIES
from finwidth.sweeps.schema.kinds import Value
from finwidth.sweeps.schema.tiling import grid_blocks
from finwidth.sweeps.store import layout, seals
from finwidth.sweeps.store.layout import Content

if TYPE_CHECKING:
    from finwidth.stores.arrays import ZarrArray


def versions() -> dict[str, str]:
    """The versions that the numbers depend on."""
    return {"finwidth": version("finwidth"), "numpy": np.__version__}


@dataclass
class Store:
    """An open store.

    Attributes
    ----------
    path
        Its folder.
    config
        The sweep whose cells it holds.
    axes
        The values of each axis in the order of the arrays.
    versions
        The versions that computed its numbers.
    numerics
        The libraries and features that their bits depend on (`SweepQuantity.numerics`), by quantity, as soon as there
        are some.
    grows
        Whether its arrays may not yet be as this says.
    described
        The description that it was opened with, None for a new one.
    """

    path: Path
    config: Config
    axes: Mapping[str, tuple[Value, ...]]
    versions: Mapping[str, str]
    numerics: dict[str, Numerics] = field(default_factory=dict)
    grows: bool = False
    described: Content | None = None
    _read: dict[str, FloatArray] = field(default_factory=dict)  # records that are as they were read
    _writable: dict[str, tuple[ZarrArray, seals.Hashes]] = field(default_factory=dict)

    def records(self, quantity: str) -> FloatArray:
        """The records of a quantity, shape (*axes, *dims), NaN where there are none; refuses damaged ones."""
        if quantity not in self._read:
            records, damaged = self.examined(quantity)
            if damaged:
                raise self.damage(damaged[0])
            self._read[quantity] = records
        return self._read[quantity]

    def damage(self, file: str) -> FinwidthError:
        """The error that a file has other content than was stored there, unless the store has changed meanwhile."""
        if layout.KIND.description(self.path / ROOT) != self.described:
            return FinwidthError(f"{self.path} was enlarged while it was read; give the same command again")
        return damage(self.path, file)

    def examined(self, quantity: str) -> tuple[FloatArray, list[str]]:
        """The sound records of a quantity, NaN where there are none, and the files of those that are not."""
        settings = self.config.quantities[quantity]
        shape = (*map(len, self.axes.values()), *map(len, layout.record_dims(quantity, settings).values()))
        regions = list(grid_blocks(self.config.shape, QUANTITIES[quantity].block))
        if no_files := irregular(self.path, quantity):
            return np.full((*shape[:-1], shape[-1] - 1), np.nan), no_files
        stored, unreadable = self._stored(quantity, shape, regions)
        where = self._cell_hashes(quantity)
        records = stored[..., :-1]
        sound = seals.intact(stored, where) & QUANTITIES[quantity].allowed(records, settings)
        records[~sound] = np.nan
        wrong = [] if sound.all() else [region for region in regions if not sound[region].all()]
        return records, [layout.file_of(quantity, region, settings) for region in unreadable + wrong]

    def _stored(
        self, quantity: str, shape: tuple[int, ...], regions: list[tuple[slice, ...]]
    ) -> tuple[FloatArray, list[tuple[slice, ...]]]:
        """The content of the array of a quantity, and the blocks that cannot be read."""
        stored, unreadable = np.full(shape, np.nan), []
        array = opened(self.path / quantity)
        if array is None or array.ndim != len(shape):  # in a store that is being made, or mended
            return stored, []
        common = tuple(slice(0, min(sizes)) for sizes in zip(shape, array.shape, strict=True))
        try:
            stored[common] = array[common]
        except Exception as error:  # as in `opened`
            refuse_other_failures(error)
            for region in regions:
                cut = tuple(slice(one.start, min(one.stop, end.stop)) for one, end in zip(region, common, strict=False))
                try:
                    stored[cut] = array[cut]
                except Exception as error:
                    refuse_other_failures(error)
                    unreadable.append(region)
        return stored, unreadable

    def _cell_hashes(self, quantity: str) -> seals.Hashes:
        """The hash that binds each cell's record to it, shape (*axes)."""
        settings = self.config.quantities[quantity]
        common = {
            "quantity": quantity,
            "seed": self.config.seed,
            "network": self.config.network,
            "settings": {name: value for name, value in settings.items() if name not in QUANTITIES[quantity].growing},
            "versions": self.versions,
        }
        digests = {
            name: {width: described[1] for width, described in widths.items()}
            for name, widths in self.config.inputs.items()
        }
        own = {name: digests[name] for name in QUANTITIES[quantity].inputs(settings)}
        needed = {
            str(name): {
                str(n_0): [digests[str(name)][str(n_0)], *(each[str(n_0)] for each in own.values())]
                for n_0 in self.axes["n_0"]
            }
            for name in self.axes["input"]
        }
        return seals.cell_hashes(common, self.axes, needed)

    def write(self, quantity: str, region: tuple[slice, ...], records: FloatArray, numerics: Numerics) -> None:
        """Store the records of a block, shape (*block, *dims), and their numerics.

        Raises
        ------
        FinwidthError
            If the disk does not take them, or the bits of others of the quantity depend on something else.
        """
        self.refuse_other(quantity, numerics)
        self._read.pop(quantity, None)
        with disk_errors(self.path, layout.KIND.option):
            if numerics and quantity not in self.numerics:
                self.numerics[quantity] = dict(numerics)
                self.describe({})
            if quantity not in self._writable:
                array = import_zarr().open_array(self.path / quantity, mode="r+", zarr_format=3)
                self._writable[quantity] = array, self._cell_hashes(quantity)
            array, places = self._writable[quantity]
            array[region] = seals.sealed(records, places[region])

    def refuse_other(self, quantity: str, numerics: Mapping[str, Value | None]) -> None:
        """Raise FinwidthError if the bits of a quantity's records depend on something else than ``numerics``."""
        there = self.numerics.get(quantity, numerics)
        others = unlike(there, numerics)
        if others:
            raise FinwidthError(
                f"the bits of {quantity} depend on the processor and its libraries, and those in {self.path} "
                f"come from {', '.join(others)}. Go on where the store was begun, or with OPENBLAS_CORETYPE, "
                "OPENBLAS_NUM_THREADS and NPY_DISABLE_CPU_FEATURES set so that they agree (docs/processors.md)"
            )

    def content(self) -> Content:
        """The description of the store, in plain types."""
        return {
            "schema": layout.KIND.schema,
            "config": self.config.to_json(),
            "axes": {name: list(values) for name, values in self.axes.items()},
            "labels": layout.labels(self.config.quantities),
            "versions": dict(self.versions),
            "numerics": self.numerics,
        }

    def describe(self, files: Mapping[str, bytes]) -> None:
        """Write the description, and files of its arrays in between; a kill may come at any moment."""
        content = self.content()
        put(self.path / ROOT, layout.KIND.described({**content, "grows": True}), lasting=True)
        for name, wanted in files.items():
            put(self.path / name, wanted)
        for name in (layout.KIND.copy, ROOT):
            put(self.path / name, layout.KIND.described({**content}), lasting=True)
        self.grows = False

    def enlarge(self, config: Config) -> None:
        """Make the store, or make it one of a config that adds to its own."""
        added = {name: [v for v in axis if v not in set(self.axes[name])] for name, axis in config.axes.items()}
        before = None if self.grows else self.content()
        self.config, self.axes = config, {name: (*self.axes[name], *values) for name, values in added.items()}
        if self.content() != before:
            self._read.clear()
            with disk_errors(self.path, layout.KIND.option):
                self.describe(self.arrays().files)

    def arrays(self) -> ArraysInMemory:
        """Its arrays, without records."""
        return layout.arrays(self.axes, self.config.quantities)


def open_store(path: str | Path) -> Store:
    """An existing store, to read; raises FinwidthError if it is none, or damaged, or of another version's schema."""
    path = arguments.path("the store", path)
    import_zarr()
    root, copy = layout.KIND.descriptions(path)
    if root is None:
        raise damage(path, ROOT)
    store = store_of(path, root)
    if not store.grows:
        if root != copy:
            raise store.damage(layout.KIND.copy if copy is None else f"{ROOT} or {layout.KIND.copy}")
        if damaged := store.arrays().wrong(path):
            raise store.damage(damaged[0])
    return store


def store_of(path: Path, description: Mapping[str, object]) -> Store:
    """The store at a path that has this description; raises FinwidthError if its records are of other things."""
    content = cast("Content", description)
    axes = {name: tuple(values) for name, values in content["axes"].items()}
    config = Config.from_json(content["config"])
    now = layout.labels({name: settings for name, settings in config.quantities.items() if name in QUANTITIES})
    for quantity, there in content["labels"].items():
        here = now.get(quantity, {})
        if there != here:
            raise FinwidthError(
                f"the records of {quantity} in {path} have {_unlike(there, here)}, and those of this version of "
                f"finwidth {_unlike(here, there)}; use the version that made it, or give another store with -o"
            )
    return Store(path, config, axes, content["versions"], content["numerics"], content.get("grows", False), content)


def _unlike(labels: Dims, others: Dims) -> str:
    """In a message, the labels of records that others do not have."""
    found = {name: values for name, values in labels.items() if values != others.get(name)}
    return "; ".join(f"the {name}s {', '.join(map(str, values))}" for name, values in found.items()) or "none"


def damage(path: Path, file: str) -> FinwidthError:
    """The error that a file of a store has other content than was stored there."""
    return FinwidthError(
        f"the store {path} is damaged in {file}, and left as it is; finwidth sweep check {path} lists all damage and "
        "mends what can be computed again"
    )


@contextlib.contextmanager
def writing(
    path: Path, config: Config, made_by: Mapping[str, str] | None = None, *, here: bool = True
) -> Iterator[Store]:
    """The store of ``config`` at ``path``, new or enlarged to it, for the only process that writes to it.

    Parameters
    ----------
    path, config
        The store and what it is to hold.
    made_by
        The versions that its numbers come from, by default those that run.
    here
        Whether this process computes.

    Raises
    ------
    FinwidthError
        If another process writes to it, it is damaged or not a store, or it holds what the config does not add to;
        then it is left as it was.
    """
    import_zarr()
    with layout.KIND.only_writer(path) as empty:
        if empty:
            store = Store(path, config, dict.fromkeys(config.axes, ()), made_by or versions(), grows=True)
        else:
            store = open_store(path)
            _refuse_mixing(store, config)
            for quantity, settings in store.config.quantities.items():
                if here:
                    store.refuse_other(quantity, QUANTITIES[quantity].numerics(settings))
                store.records(quantity)  # refuses a store that is damaged
        with disk_errors(path, layout.KIND.option):
            remove_leftovers(path, layout.folders(store.axes, store.config.quantities), layout.KIND.beginning)
        store.enlarge(config)
        yield store


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
