"""A config as it was written: nested tables, and the line on which each key stands."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from finwidth import arguments, errors
from finwidth.errors import FinwidthError
from finwidth.inputs import check_file

_LONGEST = 10**7  # bytes of a config
_NAME = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""
_DOTTED = rf"{_NAME}(?:\s*\.\s*{_NAME})*"
_HEADER = re.compile(rf"^\s*\[\s*({_DOTTED})\s*\]")
_KEY = re.compile(rf"^\s*({_DOTTED})\s*=")


@dataclass(frozen=True)
class Document:
    """The content of a TOML file or of a mapping.

    Attributes
    ----------
    tables
        The nested tables.
    folder
        The folder of relative paths in it.
    name, lines
        The file's name and the line of each key, for messages; None and empty for a mapping.
    """

    tables: Mapping[str, object]
    folder: Path
    name: str | None
    lines: Mapping[str, int]

    def fault(self, key: str, problem: str) -> FinwidthError:
        """An error that names the key, and the line where the key or the table around it stands."""
        where, line = key, None
        while where and line is None:
            line = self.lines.get(where)
            where = where.rpartition(".")[0]
        place = "" if self.name is None else f"{self.name}, line {line}: " if line else f"{self.name}: "
        return FinwidthError(f"{place}{key}: {problem}")

    @contextlib.contextmanager
    def at(self, key: str) -> Iterator[None]:
        """Give the errors that are raised inside the key and the line."""
        try:
            yield
        except FinwidthError as error:
            raise self.fault(key, str(error)) from None

    def table(self, key: str, allowed: Iterable[str]) -> dict[str, object]:
        """The table at ``key`` ("" for the whole), empty if there is none; keys that are not allowed are refused."""
        found = self.tables if not key else self.tables.get(key, {})
        names = sorted(allowed)
        if not isinstance(found, Mapping):
            raise self.fault(key, f"{as_typed(found)} is not a table; write [{key}] above keys {', '.join(names)}")
        for name in found:
            if name not in names:
                near = difflib.get_close_matches(str(name), names, 1)
                advice = f"did you mean {near[0]}?" if near else f"choose from {', '.join(names) or 'none'}"
                raise self.fault(f"{key}.{name}" if key else str(name), f"this key is not known; {advice}")
        return dict(found)


def as_typed(value: object) -> str:
    """A value in a message, as it was typed and not too long."""
    return str(value).lower() if isinstance(value, bool) else errors.shown(value, 60)


def _check_config(path: Path) -> None:
    """Refuse a file that cannot be a config before it is read."""
    check_file(path, "the config", "give a TOML file")
    if path.stat().st_size > _LONGEST:
        raise FinwidthError(f"the config {path} has more than {_LONGEST:,} bytes; give a TOML file")


def store_beside(config: Path) -> Path:
    """Where a sweep is kept by default: beside its config, with the ending ``.zarr``."""
    _check_config(config)  # what is no file may have no name, such as "."
    return config.with_suffix(".zarr")


def read_document(source: str | Path | Mapping[str, object]) -> Document:
    """The config in a TOML file, or in a mapping that has its shape; raises FinwidthError for what is not TOML."""
    import tomllib

    if isinstance(source, Mapping):
        return Document(source, Path(), None, {})
    path = arguments.path("the config", source)
    _check_config(path)
    try:
        text = path.read_bytes().decode()
        return Document(tomllib.loads(text), path.parent, path.name, _line_numbers(text))
    except OSError as error:
        raise FinwidthError(f"cannot read the config {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise FinwidthError(f"the config {path} is not a text file in UTF-8") from None
    except RecursionError:
        raise FinwidthError(f"the config {path} nests its values too deeply") from None
    except ValueError as error:  # TOMLDecodeError, or a number of too many digits
        raise FinwidthError(f"the config {path} is not TOML: {error}") from None


def _line_numbers(text: str) -> dict[str, int]:
    """The line of each key and table, by its dotted name; the first if a name comes twice."""
    lines: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = _unquoted(header[1])
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            lines.setdefault(f"{table}.{_unquoted(key[1])}" if table else _unquoted(key[1]), number)
    return lines


def _unquoted(dotted: str) -> str:
    """A dotted name without its quotes and blanks."""
    return ".".join(part.strip().strip("\"'") for part in re.findall(_NAME, dotted))
