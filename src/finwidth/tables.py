"""Results that people read: one table each, which terminals, notebooks, pandas and the command line show alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from html import escape
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from finwidth.documents import document

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table as Grid

_LONGEST_FRACTION = 300  # bits; longer ones are told in digits and printed whole by --json
_COLUMNS = 80  # of a result as text
_GAP = 2  # between columns
_FOLLOWING = {"std. err.", "std. dev.", "z", "ratio"}  # belong to the column before
_UNBROKEN = 30  # characters; longer cells may be folded between words


class Told(NamedTuple):
    """A number, and how a table writes it."""

    value: float | Fraction | None
    text: str


Cell: TypeAlias = str | float | Fraction | Told | None


def _number_of_digits(value: Fraction) -> str:
    """A long fraction by its size and its leading digits."""
    digits = round(value.numerator.bit_length() * math.log10(2))
    try:
        return f"{float(value):.6g} ({digits} digits)"
    except OverflowError:
        return f"({digits} digits)"


def number(value: float | Fraction | None, log: float | None = None) -> str:
    """Six digits; a fraction as it is; past a double's range from its logarithm.

    >>> from finwidth.tables import number
    >>> number(1080.5312), number(Fraction(15, 2)), number(math.inf, log=2000.0)
    ('1080.53', '15/2', '3.88118e+868')
    """
    if value is None:
        return ""
    if isinstance(value, Fraction):
        return str(value) if value.numerator.bit_length() < _LONGEST_FRACTION else _number_of_digits(value)
    if math.isinf(value) and log is not None:
        exponent = math.floor(log / math.log(10))
        return f"{'-' if value < 0 else ''}{math.exp(log - exponent * math.log(10)):.5f}e+{exponent}"
    return f"{value + 0.0:.6g}"  # no negative zero


def told(value: float | Fraction | None, kind: str = "", log: float | None = None) -> Told:
    """A number in a format such as ``".2g"``, by default with six digits as `number` writes it."""
    return Told(value, f"{value:{kind}}" if kind else number(value, log))


def _text(cell: Cell) -> str:
    if isinstance(cell, str):
        return cell
    return cell.text if isinstance(cell, Told) else number(cell)


def _needs(text: str) -> int:
    """Columns of a terminal."""
    return len(text) if len(text) <= _UNBROKEN else max(map(len, text.split()))


def _value(cell: Cell) -> object:
    """What pandas has of a cell; None of an empty one."""
    return cell.value if isinstance(cell, Told) else None if isinstance(cell, str) and not cell else cell


@dataclass
class Table:
    """A title, rows of cells under headings, and notes in words; an empty row is a gap.

    The first ``named`` columns name a row.  Of more than ``most`` rows so many are shown, evenly spaced.
    """

    title: str
    headings: tuple[str, ...]
    notes: str = ""
    named: int = 1
    most: int | None = None
    rows: list[tuple[Cell, ...]] = field(default_factory=list)

    def add(self, *cells: Cell) -> None:
        """Append a row; what is missing at its end is empty."""
        self.rows.append(cells + ("",) * (len(self.headings) - len(cells)) if cells else ())

    def _shown_rows(self) -> list[tuple[Cell, ...]]:
        last = len(self.rows) - 1
        if self.most is None or last < self.most:
            return self.rows
        return [self.rows[round(last * place / (self.most - 1))] for place in range(self.most)]

    def _stacks(self, room: int) -> list[list[int]]:
        """The columns side by side, in as many tables as there have to be for this room; each has the row's name."""
        texts = [
            [heading, *(_text(row[k]) for row in self._shown_rows() if row)] for k, heading in enumerate(self.headings)
        ]
        widths = [max(map(_needs, column)) + _GAP for column in texts]
        stacks, names = list[list[int]](), list(range(self.named))
        for group in self._groups():
            needed = sum(widths[k] for k in group)
            if not stacks or sum(widths[k] for k in stacks[-1]) + needed - _GAP > room:
                stacks.append([*names])
            stacks[-1] += group
        return stacks

    def _groups(self) -> list[list[int]]:
        """Columns that stay together: an estimate, its error and what is said of the two."""
        groups: list[list[int]] = []
        for k, heading in enumerate(self.headings[self.named :], self.named):
            if groups and heading in _FOLLOWING:
                groups[-1].append(k)
            else:
                groups.append([k])
        return groups

    def _grid(self, columns: Sequence[int]) -> Grid:
        from rich import box
        from rich.table import Table as Grid
        from rich.text import Text

        # What is too wide by itself, such as a long fraction, is folded, never cut.
        grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
        for k in columns:
            words = self.headings[k] in {"quantity", "reason", "parameter"}
            grid.add_column(Text(self.headings[k]), justify="left" if words else "right", overflow="fold")
        for row in self._shown_rows():
            texts = [_text(row[k]) for k in columns] if row else []
            if any(texts[self.named :]):
                grid.add_row(*map(Text, texts))  # as it is: no markup
            elif not row:
                grid.add_section()
        return grid

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """For terminals, as wide as they are."""
        from rich.text import Text

        yield Text(self.title)
        yield ""
        for columns in self._stacks(options.max_width) if self.rows else []:
            yield self._grid(columns)
            yield ""
        yield Text(self.notes.strip())

    def __str__(self) -> str:
        """At 80 columns, without colours."""
        import io
        import random

        state = random.getstate()  # which rich's first style changes
        from rich.console import Console

        page = io.StringIO()
        plain = Console(file=page, width=_COLUMNS, color_system=None, highlight=False, force_jupyter=False)
        plain.print(self)  # in a notebook too, where rich would show it as HTML
        random.setstate(state)
        return "\n".join(line.rstrip() for line in page.getvalue().rstrip().splitlines())

    def html(self) -> str:
        """For notebooks."""
        head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in self.headings)
        body = "".join(f"<tr>{''.join(self._html_cells(row))}</tr>" for row in self._shown_rows() if row)
        notes = "".join(f"<p>{escape(line)}</p>" for line in self.notes.strip().splitlines() if line)
        grid = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if body else ""
        return f"<div><p><strong>{escape(self.title)}</strong></p>{grid}{notes}</div>"

    def _html_cells(self, row: tuple[Cell, ...]) -> Iterator[str]:
        for place, cell in enumerate(row):
            text = escape(_text(cell))
            yield f'<th scope="row">{text}</th>' if place < self.named else f"<td>{text}</td>"

    def frame(self) -> pd.DataFrame:
        """As numbers: what comes twice among the headings is told apart by the column that it belongs to."""
        import pandas as pd

        names = list(self._names())
        found = pd.DataFrame([[_value(cell) for cell in row] for row in self.rows if row], columns=names)
        return found.set_index(names[: self.named])

    def _names(self) -> Iterator[str]:
        owner = ""
        for heading in self.headings:
            if self.headings.count(heading) == 1:
                owner = heading
            yield heading if owner == heading else f"{heading} ({owner})"


class Result:
    """What a function of finwidth returns, as something to read: `print` shows its table, a notebook too."""

    def _table(self) -> Table:
        """The one layout, which all others are made of."""
        raise NotImplementedError

    def _headline(self) -> str:
        """The result in a few words, and whose it is, for `repr`."""
        raise NotImplementedError

    def content(self) -> dict[str, object]:
        """What it found, in plain types: the ``results`` of `to_json`."""
        raise NotImplementedError

    def _about(self) -> dict[str, object]:
        """Whose it is, of how many draws and of which seed, as far as it knows."""
        found = {name: getattr(self, name, None) for name in ("network", "draws", "seed")}
        return found | {"network": describe() if (describe := getattr(found["network"], "describe", None)) else None}

    def to_json(self) -> dict[str, object]:
        """A document of plain types, as ``finwidth schema`` says; its numbers are in ``results`` (docs/json.md)."""
        return document(type(self).__name__, self.content(), **self._about())

    def to_pandas(self) -> pd.DataFrame:
        """The table as numbers, a row for each quantity; NaN where it has no value."""
        return self._table().frame()

    def to_xarray(self) -> xr.Dataset:
        """The same as a dataset, whose attribute ``title`` says of what; NaN where the table has no value."""
        table = self._table()
        found: xr.Dataset = table.frame().to_xarray().assign_attrs(title=table.title)
        return found

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._headline()}>"

    def __str__(self) -> str:
        return str(self._table())

    def __rich__(self) -> Table:
        return self._table()

    def _repr_html_(self) -> str:
        return self._table().html()
