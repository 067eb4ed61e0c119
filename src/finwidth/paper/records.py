"""Results of the checks of the paper."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import TypeAlias

from finwidth.documents import plain
from finwidth.tables import Result, Table

Figure: TypeAlias = float | int | str | Fraction


@dataclass(frozen=True, repr=False)
class Statement(Result):
    """One numbered statement of the paper, and the result of checking it.

    ``holds`` says that what ``checked_by`` describes came out as ``claim`` says; ``note`` says what that leaves open,
    and where the exact answer differs from the print (see `finwidth.paper.statements.findings`).
    """

    id: str
    claim: str
    checked_by: str
    figures: dict[str, Figure]
    holds: bool
    note: str = ""

    def content(self) -> dict[str, object]:
        """The attributes."""
        found: dict[str, object] = plain(asdict(self))
        return found

    @property
    def _verdict(self) -> str:
        return "holds" if self.holds else "FAILS"

    def _table(self) -> Table:
        notes = f"{self.claim}\nChecked by: {self.checked_by}\n{self.note}"
        return _of_figures(f"{self.id.replace('-', ' ').capitalize()}: {self._verdict}", self.figures, notes)

    def _headline(self) -> str:
        return f"{self.id}: {self._verdict}, {len(self.figures)} figures"


@dataclass(frozen=True, repr=False)
class Finding(Result):
    """A place where an exact computation and the print differ, with the numbers."""

    title: str
    printed: str
    exact: str
    figures: dict[str, Figure]
    verdict: str

    def content(self) -> dict[str, object]:
        """The attributes."""
        found: dict[str, object] = plain(asdict(self))
        return found

    def _table(self) -> Table:
        return _of_figures(self.title, self.figures, f"Printed: {self.printed}\nExact: {self.exact}\n{self.verdict}")

    def _headline(self) -> str:
        return self.title


def _of_figures(title: str, figures: dict[str, Figure], notes: str) -> Table:
    table = Table(title, ("figure", "value"), notes)
    for name, value in figures.items():
        table.add(name, value)
    return table
