"""The arrays and files of the store of a sweep: their names and contents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NotRequired, TypeAlias, TypedDict

import numpy as np

from finwidth.stores.arrays import ArraysInMemory
from finwidth.stores.description import StoreKind
from finwidth.sweeps.quantities.base import Dims, Numerics
from finwidth.sweeps.quantities.registry import QUANTITIES
from finwidth.sweeps.schema.kinds import Value
from finwidth.sweeps.store.seals import CHECK

if TYPE_CHECKING:
    from finwidth.sweeps.config import ConfigDocument

Settings: TypeAlias = Mapping[str, Mapping[str, object]]  # the settings of each quantity

KIND = StoreKind("finwidth_sweep", 3, "a sweep", "finwidth sweep CONFIG -o {path}", "-o")


class Content(TypedDict):
    """The description of a store, in plain types; ``grows`` while its arrays may not yet be as it says."""

    schema: int
    config: ConfigDocument
    axes: dict[str, list[Value]]
    labels: dict[str, Dims]
    versions: dict[str, str]
    numerics: dict[str, Numerics]
    grows: NotRequired[bool]


def arrays(axes: Mapping[str, Sequence[Value]], quantities: Settings) -> ArraysInMemory:
    """The arrays of a store without their records: one for each quantity, and one of labels for each dimension."""
    found = ArraysInMemory()
    from zarr.codecs import ZstdCodec

    labels: dict[str, Sequence[Value]] = dict(axes)
    for quantity, settings in quantities.items():
        dims = record_dims(quantity, settings)
        labels |= dims
        sizes = tuple(map(len, dims.values()))
        chunks = (*[1] * (len(axes) - 2), *QUANTITIES[quantity].block, *sizes)
        layout = {"chunks": chunks, "dtype": np.float64, "fill_value": np.nan}
        compressors = [ZstdCodec(level=1, checksum=True)]
        found.create(quantity, (*map(len, axes.values()), *sizes), (*axes, *dims), compressors=compressors, **layout)
    for name, values in labels.items():
        found.label(name, values)
    return found


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


def folders(axes: Iterable[str], quantities: Settings) -> list[str]:
    """The folders that the store makes."""
    dims = [name for quantity, settings in quantities.items() for name in record_dims(quantity, settings)]
    return [KIND.key, *axes, *quantities, *dims]
