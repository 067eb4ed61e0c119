"""Check values: a number at the end of each record that binds its numbers to its cell.

A checksum of a file, as in Zarr's codecs, tells that the file is as it was written, not that it is where it belongs:
two chunks whose files changed places are both valid.  So the store keeps with the entries of each record a hash of them
and of their *cell*: seed, network, settings, versions, coordinates, and the numbers of its inputs.  It lies in the same
chunk as the numbers that it checks, so a kill cannot part the two, and it does not depend on how the store is laid out,
so a cell keeps it when axes grow.  Cells are hashed by BLAKE2b; the entries are mixed in by the finalizer of SplitMix64
(Steele, Lea and Flood, 2014), whole arrays at a time: a million records in a fraction of a second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from finwidth.networks.laws import FloatArray
from finwidth.stores.description import digest
from finwidth.sweeps.schema.kinds import Value

Hashes: TypeAlias = npt.NDArray[np.uint64]

CHECK = "check"  # the label of the check value among the entries of a record
_HASH_BYTES = 8
_BITS = np.uint64(53)  # which a double holds exactly


def cell_hashes(
    common: Mapping[str, object], axes: Mapping[str, Sequence[Value]], inputs: Mapping[str, Mapping[str, object]]
) -> Hashes:
    """A hash of the identity of each cell, shape (*axes).

    Parameters
    ----------
    common
        The seed, settings and so on of all cells, in plain types.
    axes
        The values of each axis.
    inputs
        An identity of the inputs that each cell needs, by the cell's input and input width.
    """
    *outer, depth, width = axes.items()
    names = [name for name, _ in outer]
    found = []
    for values in product(*(axis for _, axis in outer)):
        cell = dict(zip(names, values, strict=True))
        own = inputs[str(cell["input"])][str(cell["n_0"])]
        found.append(int(digest([common, cell, own], _HASH_BYTES), 16))
    hashes = np.array(found, np.uint64).reshape(*(len(axis) for _, axis in outer), 1, 1)
    for (name, axis), shape in ((depth, (-1, 1)), (width, (1, -1))):
        along = np.array([int(digest([name, value], _HASH_BYTES), 16) for value in axis], np.uint64)
        hashes = _mixed(hashes ^ along.reshape(shape))
    return hashes


def sealed(records: FloatArray, where: Hashes) -> FloatArray:
    """Records, shape (*cells, *dims), with their check values appended to the last dimension.

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth.sweeps.store.seals import intact, sealed
    >>> here, there = np.array([7, 8], np.uint64)[:, None]
    >>> record = sealed(np.array([[0.5, 2.0]]), here)
    >>> intact(record, here).item(), intact(record, there).item()
    (True, False)
    """
    return np.concatenate([records, _check_values(records, where)[..., None]], axis=-1)


def intact(stored: FloatArray, where: Hashes) -> npt.NDArray[np.bool_]:
    """Whether each cell's record, shape (*cells, *dims) with check values, is as it was stored, or none (NaN)."""
    cells = where.ndim
    records, found = stored[..., :-1], stored[..., -1]
    dims = tuple(range(cells, stored.ndim))
    same = found == _check_values(records, where)
    return np.asarray(np.isnan(stored).all(dims) | same.all(dims[:-1]))


def _check_values(records: FloatArray, where: Hashes) -> FloatArray:
    """One whole number for each row of the last dimension."""
    rows = records.shape[where.ndim : -1]
    number = np.arange(math.prod(rows), dtype=np.uint64).reshape(rows)
    hashes = where.reshape(*where.shape, *[1] * len(rows)) ^ number
    entries = np.ascontiguousarray(records, "<f8").view("<u8")
    for k in range(records.shape[-1]):
        hashes = _mixed(hashes ^ entries[..., k])
    return (hashes >> (np.uint64(64) - _BITS)).astype(np.float64)


def _mixed(bits: Hashes) -> Hashes:
    """A bijection of 64 bits in which each bit of the argument moves all others."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
