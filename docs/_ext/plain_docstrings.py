"""Docstrings are plain text, to be read in a terminal: what reStructuredText would take for markup is escaped here."""

from __future__ import annotations

import re
from itertools import groupby

from sphinx.application import Sphinx

# Bars of absolute values, and names that end in an underscore; not in ``code``.
_MARKUP = re.compile(r"(``.+?``)|(?<!\\)(\|)|(?<=\w)(_)(?!\w)")


def escaped(line: str) -> str:
    """A line with its bars and last underscores as they are."""
    if line.lstrip().startswith((">>>", "...")):
        return line
    return _MARKUP.sub(lambda found: found[1] or "\\" + (found[2] or found[3]), line)


def list_table(rows: list[str]) -> list[str]:
    """A Markdown table as reStructuredText."""
    indent = " " * (len(rows[0]) - len(rows[0].lstrip()))
    cells = [[cell.strip() for cell in row.strip().strip("|").split("|")] for row in rows]
    lines = ["", f"{indent}.. list-table::", f"{indent}   :header-rows: 1", ""]
    for row in [cells[0], *cells[2:]]:
        lines += [f"{indent}   {'* -' if not i else '  -'} {escaped(cell)}" for i, cell in enumerate(row)]
    return [*lines, ""]


def plain(_app: Sphinx, _what: str, _name: str, _of: object, _options: object, lines: list[str]) -> None:
    """Escape a docstring in place."""
    found: list[str] = []
    for table, group in groupby(lines, lambda line: line.lstrip().startswith("| ")):
        part = list(group)
        found += list_table(part) if table and len(part) > 2 else map(escaped, part)
    lines[:] = found


def setup(app: Sphinx) -> dict[str, bool]:
    """Escape before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", plain, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
