"""Damage to a store: finding it, and mending files that can be computed again."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from finwidth import arguments
from finwidth.stores.arrays import import_zarr
from finwidth.stores.files import REWRITTEN, Damage, disk_errors, lock, removed
from finwidth.sweeps.store import layout
from finwidth.sweeps.store.zarr_store import Store, store_of

_REMOVED = "removed; the next sweep computes its cells again"


def check(path: str | Path) -> list[Damage]:
    """Find every damaged file of a store, and mend it.

    Descriptions, metadata and labels are written again.  Records that are not what was stored are removed, so that the
    next sweep computes their cells again and the store ends up as if nothing had happened.  Nothing else is touched.

    Parameters
    ----------
    path
        The store.

    Returns
    -------
    list of Damage
        Empty if there is none.

    Raises
    ------
    FinwidthError
        If it is no store, another process writes to it, the disk does not take what mends it, or nothing that is left
        of it says what it holds.

    Examples
    --------
    >>> import pathlib, tempfile, finwidth
    >>> from finwidth.sweeps import check
    >>> store = pathlib.Path(tempfile.mkdtemp(), "a.zarr")
    >>> config = {"quantities": ["exact"], "axes": {"depth": [2, 8], "width": [16, 64], "n_0": 16}}
    >>> found = finwidth.sweep(config, store)
    >>> _ = (store / "exact" / "c.0.0.0.0.0.0.0.0").write_bytes(b"")
    >>> [damage.file for damage in check(store)], check(store)
    (['exact/c.0.0.0.0.0.0.0.0'], [])
    >>> finwidth.sweep(config, store).identical(found)
    True
    """
    path = arguments.path("the store", path)
    import_zarr()
    layout.KIND.descriptions(path)  # refuses what is not ours before it is locked
    with lock(path, layout.KIND.option):
        content, lost = layout.KIND.sound_description(path, lambda each: _sound_numbers(store_of(path, each)))
        store, found = store_of(path, content), [Damage(lost, REWRITTEN)] if lost else []
        with disk_errors(path, layout.KIND.option):
            arrays = store.arrays()
            damaged = arrays.wrong(path)
            if store.grows:  # a kill, no damage
                damaged = []
            if found or damaged or store.grows:
                store.describe(arrays.files)
            found += [Damage(name, REWRITTEN) for name in damaged]
            for quantity in store.config.quantities:
                found += [removed(path, name, _REMOVED) for name in store.examined(quantity)[1]]
    return found


def _sound_numbers(store: Store) -> int:
    """How many numbers fit their check values, if the description is right."""
    return sum(int((~np.isnan(store.examined(quantity)[0])).sum()) for quantity in store.config.quantities)
