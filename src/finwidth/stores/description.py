"""The description of a store: the attributes of its group, with a checksum, and a copy of them beside it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from finwidth.errors import FinwidthError
from finwidth.outputs import leaving_no_empty_folder, refuse_inside_store
from finwidth.stores.files import disk_errors, is_vacant, lock

ROOT = "zarr.json"
_OWN = ("attributes", "zarr_format", "node_type")


def digest(document: object, size: int = 16) -> str:
    """A hash of plain types, 2 * size hexadecimal digits; values equal in Python, such as 1 and 1.0, are equal here."""
    same = json.loads(json.dumps(document), parse_float=_whole_as_int, object_pairs_hook=_without_flags)
    return hashlib.blake2b(json.dumps(same, sort_keys=True).encode(), digest_size=size).hexdigest()


def _whole_as_int(text: str) -> float:
    """A float; a whole one as an int."""
    value = float(text)
    return int(value) if value.is_integer() else value


def _without_flags(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """True as 1, False as 0."""
    return {name: int(value) if isinstance(value, bool) else value for name, value in pairs}


@dataclass(frozen=True)
class StoreKind:
    """A kind of store.

    Attributes
    ----------
    key
        The attribute of the group that describes it.
    schema
        The number of its layout.
    whose
        What it is the store of, as it is told.
    made_by
        What the user types to make one at ``{path}``.
    option
        Where the user gives its path.
    """

    key: str
    schema: int
    whose: str
    made_by: str
    option: str

    @property
    def copy(self) -> str:
        """The file beside the root that describes the store too, for when the other is damaged."""
        return f"{self.key}/{ROOT}"

    @property
    def beginning(self) -> bytes:
        """How the root of every such store begins."""
        return self.described({"schema": 0}).partition(b'"schema"')[0]

    def described(self, content: Mapping[str, object], **group: object) -> bytes:
        """The zarr.json of a group with ``content`` as its attribute; ``group`` is what else the group says of itself.

        Both are in its checksum.
        """
        checked = {**content, "checksum": digest({**content, **group})}
        document = {"attributes": {self.key: checked}, "zarr_format": 3, "node_type": "group", **group}
        return json.dumps(document, indent=2).encode()

    def description(self, file: Path) -> dict[str, object] | None:
        """The content of a file that `described` made; None if there is none, or it is not as it was written."""
        found = self.raw_description(file)
        if found is None:
            return None
        content = {name: value for name, value in found.items() if name != "checksum"}
        whole = file.read_bytes()
        try:
            group = {name: value for name, value in json.loads(whole).items() if name not in _OWN}
            return content if self.described(content, **group) == whole else None
        except (ValueError, RecursionError):  # it was replaced meanwhile, or is nested too deeply
            return None

    def raw_description(self, file: Path) -> dict[str, object] | None:
        """The content of the zarr.json of a store of any version, unchecked; None if it is none."""
        if not os.path.isfile(file):
            return None
        try:
            found = json.loads(file.read_bytes())["attributes"][self.key]
        except OSError as error:
            raise FinwidthError(f"cannot read {file}: {error.strerror or error}") from None
        except (ValueError, RecursionError, KeyError, TypeError):
            return None
        return found if isinstance(found, dict) else None

    def descriptions(self, path: Path) -> tuple[dict[str, object] | None, dict[str, object] | None]:
        """The description of a store and its copy, None for one that is not sound; FinwidthError if neither is."""
        root, copy = (self.description(path / name) for name in (ROOT, self.copy))
        if not os.path.lexists(path):
            raise FinwidthError(f"there is no store at {path}; {self.made_by.format(path=path)} makes one")
        found = root or copy or self.raw_description(path / ROOT)
        if found is not None and found.get("schema") != self.schema:
            raise FinwidthError(
                f"{path} has the layout {found.get('schema')} of another version of finwidth, and this one has "
                f"{self.schema}"
            )
        if root is not None or copy is not None:
            return root, copy
        if found is None and not (path / self.copy).exists():
            raise FinwidthError(
                f"{path} is not the store of {self.whose}; it is left as it is. Give another path with {self.option}"
            )
        raise FinwidthError(
            f"the store {path} is damaged, and left as it is: neither {ROOT} nor {self.copy} says what it holds. "
            f"Give another path with {self.option}"
        )

    def sound_description(
        self, path: Path, fitting: Callable[[dict[str, object]], int]
    ) -> tuple[dict[str, object], str | None]:
        """The description that is right, and the file that does not have it and should; FinwidthError if none is sound.

        Of two sound ones that differ one is of another store: ``fitting`` says how much of what is stored fits one.
        """
        root, copy = self.descriptions(path)
        if root is None:
            assert copy is not None
            return copy, ROOT
        if root == copy or root.get("grows"):  # a store that is being made has no copy yet
            return root, None
        if copy is not None and fitting(root) < fitting(copy):
            return copy, ROOT
        return root, self.copy

    @contextlib.contextmanager
    def only_writer(self, path: Path) -> Iterator[bool]:
        """The folder of a store, made if need be, for the only process that writes to it: whether it holds none yet.

        Folders that were made here, and into which nothing was written, are removed again.

        Raises
        ------
        FinwidthError
            If another process writes to it, or there is something else; then it is left as it was.
        """
        with leaving_no_empty_folder(path):
            with disk_errors(path, self.option):
                refuse_inside_store(path)
                if os.path.lexists(path) and not is_vacant(path, self.beginning):
                    self.descriptions(path)  # refuses what is not ours before it is locked
                path.mkdir(parents=True, exist_ok=True)
            with lock(path, self.option):
                yield is_vacant(path, self.beginning)
