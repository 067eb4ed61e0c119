"""What a check of the paper returns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

Figure: TypeAlias = float | int | str | Fraction


@dataclass(frozen=True)
class Statement:
    """One numbered statement of the paper, and what a computation says of it.

    ``holds`` says that what ``checked_by`` describes came out as ``claim`` says; ``note`` says what that leaves open,
    and where the exact answer differs from the print (see `finwidth.paper.statements.findings`).
    """

    id: str
    claim: str
    checked_by: str
    figures: dict[str, Figure]
    holds: bool
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain types: fractions as strings, numbers that are not finite as None."""
        return {
            "id": self.id,
            "claim": self.claim,
            "checked_by": self.checked_by,
            "figures": {name: plain(value) for name, value in self.figures.items()},
            "holds": self.holds,
            "note": self.note,
        }


@dataclass(frozen=True)
class Finding:
    """A place where an exact computation and the print differ, with the numbers."""

    title: str
    printed: str
    exact: str
    figures: dict[str, Figure]
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """Plain types: fractions as strings, numbers that are not finite as None."""
        return {
            "title": self.title,
            "printed": self.printed,
            "exact": self.exact,
            "figures": {name: plain(value) for name, value in self.figures.items()},
            "verdict": self.verdict,
        }


def plain(value: Figure) -> float | int | str | None:
    """A figure as JSON takes it.

    >>> plain(Fraction(15, 2)), plain(float("inf"))
    ('15/2', None)
    """
    if isinstance(value, Fraction):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
