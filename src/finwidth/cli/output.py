"""Results on standard output: one JSON document for programs, and lines for people; tables are in `cli.tables`."""

from __future__ import annotations

import codecs
import json
import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path

import typer

_COLUMNS = 80


_ASCII = {"±": "+-", "²": "^2", "³": "^3", "⁴": "^4", "Δ": "d", "λ": "lambda", "β": "beta", "ᵀ": "^T", "≤": "<="}


def in_ascii() -> str:
    """The name of an error handler for streams, which spells signs that an encoding does not have.

    >>> from finwidth.cli.output import in_ascii
    >>> "E[ΔK²]/λ ± 1, é".encode("ascii", errors=in_ascii())
    b'E[dK^2]/lambda +- 1, ?'
    """
    codecs.register_error("finwidth.ascii", _spelled)
    return "finwidth.ascii"


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_ASCII.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


def print_json(document: Mapping[str, object]) -> None:
    """One JSON document of plain types."""
    typer.echo(json.dumps(document, indent=1, allow_nan=False))


def verb(file: Path | None) -> str:
    """What is to be said of a file once it is written: whether there was one before.

    >>> from pathlib import Path
    >>> from finwidth.cli.output import verb
    >>> verb(Path("missing.nc"))
    'Wrote'
    """
    return "Replaced" if file is not None and file.exists() else "Wrote"


def wrapped(text: str) -> str:
    """A sentence in lines of at most 80 columns, or what the terminal has.

    >>> from finwidth.cli.output import wrapped
    >>> len(wrapped(20 * "word ").splitlines())
    2
    """
    columns = min(_COLUMNS, shutil.get_terminal_size((_COLUMNS, 1)).columns)
    return textwrap.fill(text, columns, break_on_hyphens=False, break_long_words=False)
