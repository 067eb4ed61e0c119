"""Two parts of a sweep as one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path

import numpy as np

from finwidth.arguments import items, path
from finwidth.errors import FinwidthError
from finwidth.networks.laws import FloatArray
from finwidth.outputs import refuse_inside_store
from finwidth.stores.files import appearing
from finwidth.sweeps.config import cell_at, united
from finwidth.sweeps.quantities.base import Numerics
from finwidth.sweeps.quantities.registry import QUANTITIES
from finwidth.sweeps.schema.kinds import Value
from finwidth.sweeps.schema.tiling import grid_blocks
from finwidth.sweeps.store import layout
from finwidth.sweeps.store.zarr_store import Store, open_store, writing


def merge(parts: Sequence[str | Path], output: str | Path) -> None:
    """Make one store of the stores of parts of a sweep, such as two halves that ran on two machines.

    The result reads identical to the store of the whole grid, and a sweep of that grid can go on in it.

    Parameters
    ----------
    parts
        Stores whose configs differ in their axis values only.
    output
        The new store; there must be nothing yet.

    Raises
    ------
    FinwidthError
        If the configs or versions differ, or two parts hold different numbers for the same cell.
    """
    target, parts = path("the merged store", output), items("parts", parts, "the stores of the parts")
    refuse_inside_store(target)
    if os.path.lexists(target):
        raise FinwidthError(f"there is something at {target} already; give another path for the merged store")
    stores = [open_store(part) for part in parts]
    if not stores:
        raise FinwidthError("there is nothing to merge; give the stores of the parts")
    for store in stores[1:]:
        if store.versions != stores[0].versions:
            raise FinwidthError(
                f"the numbers of {stores[0].path} and {store.path} come from different versions: "
                f"{stores[0].versions} and {store.versions}"
            )
    numerics = _same_numerics(stores)
    config = reduce(united, (store.config for store in stores))
    whole = {quantity: _united(stores, quantity, config.axes) for quantity in config.quantities}
    with (
        appearing(target, layout.KIND.option) as beside,
        writing(beside, config, stores[0].versions, here=False) as merged,
    ):
        for quantity, records in whole.items():
            for region in grid_blocks(config.shape, QUANTITIES[quantity].block):
                if not np.isnan(records[region]).all():
                    merged.write(quantity, region, records[region], numerics.get(quantity, {}))


def _same_numerics(stores: Sequence[Store]) -> dict[str, Numerics]:
    """The numerics of each quantity; raises FinwidthError if that is not the same in all stores."""
    found: dict[str, tuple[Store, Numerics]] = {}
    for store in stores:
        for quantity, facts in store.numerics.items():
            first, known = found.setdefault(quantity, (store, facts))
            if known != facts:
                raise FinwidthError(
                    f"the bits of {quantity} depend on the processor and its libraries, and differ in "
                    f"{first.path} ({_listed_facts(known)}) and {store.path} ({_listed_facts(facts)}); compute the "
                    "parts on machines alike (docs/processors.md)"
                )
    return {quantity: facts for quantity, (_, facts) in found.items()}


def _listed_facts(facts: Numerics) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _united(stores: Sequence[Store], quantity: str, axes: Mapping[str, tuple[Value, ...]]) -> FloatArray:
    """The records of all stores on the common grid; raises FinwidthError where two of them disagree."""
    found: FloatArray | None = None
    for store in stores:
        records = store.records(quantity)
        places = np.ix_(*([axes[name].index(value) for value in axis] for name, axis in store.axes.items()))
        if found is None:
            found = np.full((*map(len, axes.values()), *records.shape[len(axes) :]), np.nan)
        there = found[places]
        conflict = (there != records) & ~np.isnan(there) & ~np.isnan(records)
        if conflict.any():
            place = tuple(int(i) for i in np.argwhere(conflict)[0][: len(axes)])
            raise FinwidthError(
                f"{store.path} and another part hold different {quantity} numbers for {cell_at(store.axes, place)}"
            )
        found[places] = np.where(np.isnan(records), there, records)
    assert found is not None
    return found
