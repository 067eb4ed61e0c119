"""The store of a kernel: a Zarr group that a kill at any moment leaves whole, and that tells damage.

The kernel is the array ``K``, which any Zarr reader opens.  The array ``seal`` has one number for each of its chunks: a
hash of the file, of its place, and of the kernel that it belongs to.  A chunk is written first and its seal after it,
so a chunk without a seal is what a kill left, and is computed again; anything else that does not fit is damage.
Chunks are not compressed: the last digits of a kernel are noise, and its bits are the same whatever library compresses.
The description of the store is the attribute of the group, and a copy beside it (`stores.description`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict, cast

import numpy as np

from finwidth import arguments
from finwidth.empirical.kernel_store.array import KernelArray, Labels, Numbers, Place, function_coordinates
from finwidth.errors import FinwidthError
from finwidth.stores.arrays import ArraysInMemory, import_zarr
from finwidth.stores.description import ROOT, StoreKind, digest
from finwidth.stores.files import (
    REWRITTEN,
    Damage,
    disk_errors,
    irregular,
    lock,
    put,
    remove_leftovers,
    removed,
)
from finwidth.stores.numerics import Facts, unlike

if TYPE_CHECKING:
    import xarray as xr

KIND = StoreKind("finwidth_kernel", 2, "a kernel", 'ntk(..., store="{path}")', "store=")
_REMOVED = "removed; the next call of ntk with this store computes its block again"
_SEAL_ATTRS = {"long_name": "check values of the chunks of K, and of where they belong"}


class KernelContent(TypedDict):
    """The description of a store, in plain types; ``grows`` while its arrays may not yet be as it says.

    ``kernel`` is what makes the kernel this one (`kernel_store.identity`), ``array`` the fields of its `KernelArray`,
    ``attrs`` and ``labels`` those of K, ``functions`` how many inputs each function has along a dimension of inputs, if
    there are several functions, ``memory`` that of a block, ``numerics`` what its bits depend on, once there are some.
    """

    schema: int
    kernel: dict[str, object]
    array: dict[str, object]
    attrs: dict[str, object]
    labels: dict[str, Labels]
    functions: NotRequired[dict[str, dict[str, int]]]
    memory: int
    versions: dict[str, str]
    numerics: Facts
    grows: NotRequired[bool]


@dataclass
class KernelStore:
    """An open store of a kernel."""

    path: Path
    content: KernelContent
    _key: bytes = field(init=False)

    def __post_init__(self) -> None:
        self._key = digest([self.content["kernel"], self.content["array"], self.content["versions"]]).encode()

    @property
    def array(self) -> KernelArray:
        """The array and its blocks."""
        fields = self.content["array"]
        shape, sides, dims = (tuple(cast("list[object]", fields[name])) for name in ("shape", "sides", "dims"))
        whole = cast("tuple[int, ...]", shape), cast("tuple[int, ...]", sides), cast("tuple[str, ...]", dims)
        return KernelArray(*whole, str(fields["dtype"]), symmetric=bool(fields["symmetric"]))

    def arrays(self) -> ArraysInMemory:
        """Its arrays as Zarr describes them."""
        found, array = ArraysInMemory(), self.array
        functions = function_coordinates(self.content.get("functions", {}))
        # By this attribute xarray knows labels that are none of a dimension of their own name.
        named = {"coordinates": " ".join(functions)} if functions else {}
        attrs = {"attributes": self.content["attrs"] | named, "fill_value": np.nan}
        found.create("K", array.shape, array.dims, chunks=array.chunks, dtype=array.dtype, compressors=None, **attrs)
        blocks = tuple(f"block{name.removeprefix('input')}" for name in array.dims[: len(array.sides)])
        seals = {"chunks": (1,) * len(blocks), "dtype": np.uint64, "fill_value": 0, "attributes": _SEAL_ATTRS}
        found.create("seal", array.grid, blocks, compressors=None, **seals)
        for name, values in self.content["labels"].items():
            found.label(name, values)
        for name, (dim, values) in functions.items():
            found.label(name, values, dim)
        return found

    @property
    def labels(self) -> list[str]:
        """The names of the arrays of labels."""
        return [*self.content["labels"], *function_coordinates(self.content.get("functions", {}))]

    def describe(self) -> None:
        """Write the description, and the arrays' in between; a kill may come at any moment."""
        files = self.arrays().files
        # The arrays' metadata once more in the root, where xarray looks for them first.
        metadata = {
            name.removesuffix(f"/{ROOT}"): json.loads(content) for name, content in files.items() if name.endswith(ROOT)
        }
        group = {"consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": metadata}}
        content = {**self.content}
        put(self.path / ROOT, KIND.described({**content, "grows": True}), lasting=True)
        for name, wanted in files.items():
            put(self.path / name, wanted)
        put(self.path / KIND.copy, KIND.described(content), lasting=True)
        put(self.path / ROOT, KIND.described(content, **group), lasting=True)

    def file(self, array: str, place: Place) -> str:
        """The file of a chunk of K, or of its seal."""
        return f"{array}/c." + ".".join(map(str, self.array.chunk_place(place) if array == "K" else place))

    def seal_of(self, file: str) -> str:
        """The file of the seal of a chunk, by that of the chunk."""
        chunk = tuple(map(int, file.removeprefix("K/c.").split(".")))
        return self.file("seal", self.array.place_of(chunk))

    def seal(self, place: Place, chunk: bytes) -> bytes:
        """The file that binds a chunk to its place."""
        return hashlib.blake2b(chunk, digest_size=8, key=self._key, salt=digest(place, 8).encode()).digest()

    def examined(self) -> tuple[set[Place], list[str]]:
        """The places of the chunks that are there as they were stored, and the files of those that are not."""
        damaged = [*irregular(self.path, "K"), *irregular(self.path, "seal")]
        done: set[Place] = set()
        for place in self.array.places():
            chunk, seal = self.file("K", place), self.file("seal", place)
            if {chunk, seal}.isdisjoint(damaged) and (found := self._read(seal)) is not None:
                if found == self.seal(place, self._read(chunk) or b""):
                    done.add(place)
                else:
                    damaged.append(chunk)
        return done, damaged

    def _read(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FinwidthError(f"cannot read {self.path / name}: {error.strerror}") from None

    def write(self, place: Place, entries: Numbers, numerics: Facts) -> None:
        """Store a block and its mirror image, once its bits are known to come from where those of the others do."""
        self.refuse_other(numerics)
        with disk_errors(self.path, KIND.option):
            if not self.content["numerics"]:
                self.content["numerics"] = dict(numerics)
                self.describe()
            for each in self.array.mirrored(place):
                chunk = self.array.chunk(entries if each == place else self.array.mirror(entries))
                put(self.path / self.file("K", each), chunk, lasting=True)
                put(self.path / self.file("seal", each), self.seal(each, chunk), lasting=True)

    def refuse_other(self, numerics: Facts) -> None:
        """Raise FinwidthError if the bits of the blocks depend on something else than ``numerics``."""
        if self.content["numerics"] and (others := unlike(self.content["numerics"], numerics)):
            raise FinwidthError(
                f"the bits of a kernel depend on the processor and its libraries, and those in {self.path} come from "
                f"{', '.join(others)}. Go on where the store was begun, or give another path with {KIND.option}"
            )

    def damage(self, file: str) -> FinwidthError:
        """The error that a file has other content than was stored there."""
        return FinwidthError(
            f"the store {self.path} is damaged in {file}, and left as it is; "
            f"finwidth.empirical.check_kernel({str(self.path)!r}) lists all damage, and what can be computed again is"
        )


def open_kernel_store(path: Path) -> KernelStore:
    """An existing store; raises FinwidthError if it is none, of another version's schema, or damaged."""
    import_zarr()
    root, copy = KIND.descriptions(path)
    if root is None:
        assert copy is not None
        raise _store_of(path, copy).damage(ROOT)
    store = _store_of(path, root)
    if not store.content.get("grows"):
        if root != copy:
            raise store.damage(KIND.copy)
        if wrong := store.arrays().wrong(path):
            raise store.damage(wrong[0])
    return store


def _store_of(path: Path, content: Mapping[str, object]) -> KernelStore:
    return KernelStore(path, cast("KernelContent", dict(content)))


@contextlib.contextmanager
def writing_kernel(path: Path) -> Iterator[KernelStore | None]:
    """The store at a path for the only process that writes to it; None if there is none yet.

    Raises
    ------
    FinwidthError
        If another process writes to it, it is damaged or not a store; then it is left as it was.
    """
    import_zarr()
    with KIND.only_writer(path) as empty:
        yield None if empty else open_kernel_store(path)


def begin(store: KernelStore) -> set[Place]:
    """Make a store ready for writing, and find what is done; raises FinwidthError if it is damaged."""
    with disk_errors(store.path, KIND.option):
        remove_leftovers(store.path, (KIND.key, "K", "seal", *store.labels), KIND.beginning)
        if store.content.pop("grows", False):
            store.describe()
    done, damaged = store.examined()
    if damaged:
        raise store.damage(damaged[0])
    return done


def check_kernel(path: str | Path) -> list[Damage]:
    """Find every damaged file of a kernel's store, and mend it.

    Every chunk is held against its seal. Descriptions are written again. Chunks that are not what was stored there are
    removed, so that the next call of `ntk` with this store computes their blocks again, and the store ends up as if
    nothing had happened. Nothing else is touched.

    Parameters
    ----------
    path
        The store.

    Returns
    -------
    list of Damage
        The damaged files, and what became of each; empty if there is none.

    Raises
    ------
    FinwidthError
        If it is no store of a kernel, another process writes to it, the disk does not take what mends it, or nothing
        that is left of it says what it holds.

    Examples
    --------
    >>> import pathlib, tempfile, torch
    >>> from finwidth.empirical import check_kernel, ntk
    >>> store = pathlib.Path(tempfile.mkdtemp(), "K.zarr")
    >>> module, x = torch.nn.Linear(3, 1), torch.eye(3)
    >>> K = ntk(module, x, outputs="trace", store=store)
    >>> _ = (store / "K" / "c.0.0").write_bytes(b"")
    >>> [damage.file for damage in check_kernel(store)], check_kernel(store)
    (['K/c.0.0'], [])
    >>> ntk(module, x, outputs="trace", store=store).values.tolist()
    [[2.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 2.0]]
    """
    path = arguments.path("the store", path)
    import_zarr()
    KIND.descriptions(path)  # refuses what is not ours before it is locked
    with lock(path, KIND.option):
        content, lost = KIND.sound_description(path, lambda each: len(_store_of(path, each).examined()[0]))
        store, found = _store_of(path, content), [Damage(lost, REWRITTEN)] if lost else []
        grows = store.content.pop("grows", False)
        if not grows:  # a kill, no damage
            found += [Damage(name, REWRITTEN) for name in store.arrays().wrong(path)]
        with disk_errors(path, KIND.option):
            if found or grows:
                store.describe()
            for name in store.examined()[1]:
                if name.startswith("K/"):
                    (path / store.seal_of(name)).unlink(missing_ok=True)  # before the chunk, for a kill in between
                found.append(removed(path, name, _REMOVED))
    return found


def lazily(path: Path) -> xr.DataArray:
    """The kernel in a store, whose numbers are read when they are needed."""
    import xarray as xr

    K: xr.DataArray = xr.open_zarr(path, chunks=None)["K"]
    return K
