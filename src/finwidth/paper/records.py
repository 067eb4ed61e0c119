"""Results of the checks of the paper."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import TypeAlias

from finwidth.quantities import plain

Figure: TypeAlias = float | int | str | Fraction


@dataclass(frozen=True)
class Statement:
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

    def to_json(self) -> dict[str, object]:
        """Plain types: fractions as strings, numbers that are not finite as None."""
        document: dict[str, object] = plain(asdict(self))
        return document


@dataclass(frozen=True)
class Finding:
    """A place where an exact computation and the print differ, with the numbers."""

    title: str
    printed: str
    exact: str
    figures: dict[str, Figure]
    verdict: str

    def to_json(self) -> dict[str, object]:
        """Plain types: fractions as strings, numbers that are not finite as None."""
        document: dict[str, object] = plain(asdict(self))
        return document
