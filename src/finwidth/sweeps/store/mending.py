"""Damage to a store: finding it, and mending files that can be computed again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finwidth import arguments
from finwidth.sweeps.store import layout
from finwidth.sweeps.store.zarr_store import Store, descriptions, disk_errors, lock, store_of


@dataclass(frozen=True)
class Damage:
    """A file of a store with other content than was stored there, and its fate."""

    file: str
    mended: str


_REWRITTEN = "written again"
_REMOVED = "removed; the next sweep computes its cells again"
LEFT = "left, for the store did not make it; move it away"


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
    descriptions(path)  # refuses what is not ours before it is locked
    with lock(path):
        store, found = _sound_store(path)
        with disk_errors(path):
            damaged, files = store.structure()
            if store.grows:  # a kill, no damage
                damaged = []
            if found or damaged or store.grows:
                store.describe(files)
            found += [Damage(name, _REWRITTEN) for name in damaged]
            for quantity in store.config.quantities:
                found += [Damage(name, _removed(path / name)) for name in store.examined(quantity)[1]]
    return found


def _sound_store(path: Path) -> tuple[Store, list[Damage]]:
    """The store according to its sound description."""
    root, copy = descriptions(path)
    if root is None or copy is None:
        content, lost = (copy, layout.ROOT) if root is None else (root, layout.COPY)
        assert content is not None
        store = store_of(path, content)
        # A store that is being made has no copy yet.
        return store, [] if store.grows and root is not None else [Damage(lost, _REWRITTEN)]
    store = store_of(path, root)
    if root == copy or store.grows:
        return store, []
    # Two sound descriptions: one is of another store, and the records tell which.
    other = store_of(path, copy)
    if _sound_numbers(other) > _sound_numbers(store):
        return other, [Damage(layout.ROOT, _REWRITTEN)]
    return store, [Damage(layout.COPY, _REWRITTEN)]


def _sound_numbers(store: Store) -> int:
    """How many numbers fit their check values, if the description is right."""
    return sum(int((~np.isnan(store.examined(quantity)[0])).sum()) for quantity in store.config.quantities)


def _removed(file: Path) -> str:
    if file.is_symlink() or not file.is_file():
        return LEFT
    file.unlink()
    return _REMOVED
