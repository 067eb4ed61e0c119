"""The whole paper as checks that run: one for each numbered statement, and what they found different.

Source: B. Hanin, M. Nica, "Finite Depth and Width Corrections to the Neural Tangent Kernel" (ICLR 2020).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TypeAlias

from finwidth import arguments
from finwidth.documents import document
from finwidth.paper import bias_checks, derivative_checks, moment_checks, path_checks, probability_checks
from finwidth.paper.findings import findings
from finwidth.paper.records import Finding, Statement

__all__ = ["STATEMENTS", "Finding", "Statement", "check", "check_all", "findings", "to_json"]

Progress: TypeAlias = Callable[[str], object]

_MODULES = (moment_checks, bias_checks, path_checks, derivative_checks, probability_checks)
_KINDS = ({"theorem", "proposition", "lemma"}, {"definition"}, {"figure"})  # each numbered by itself


def _numbered(id: str) -> tuple[int, int]:
    """Where a statement stands among all."""
    kind, number = id.split("-")
    return next(i for i, kinds in enumerate(_KINDS) if kind in kinds), int(number)


def _checks() -> dict[str, Callable[[], Statement]]:
    """By id every function of a module of checks that is named like a statement: `lemma_13` checks "lemma-13"."""
    named = re.compile(f"({'|'.join(set().union(*_KINDS))})_[0-9]+")
    found = {
        name.replace("_", "-"): each
        for module in _MODULES
        for name, each in vars(module).items()
        if named.fullmatch(name)
    }
    return {id: found[id] for id in sorted(found, key=_numbered)}


_CHECKS = _checks()

STATEMENTS: tuple[str, ...] = tuple(_CHECKS)


def check(id: str, progress: Progress | None = None) -> Statement:
    """Check one statement of the paper.

    Parameters
    ----------
    id
        One of `STATEMENTS`, such as "lemma-9".
    progress
        Called with the id before the check runs.

    Raises
    ------
    FinwidthError
        For an id that is not in the paper.

    Examples
    --------
    >>> from finwidth.paper.statements import check
    >>> found = check("lemma-9")
    >>> found.holds, found.figures["edge multisets"]
    (True, 653)
    """
    chosen = _CHECKS[arguments.one_of("the paper's statement", id, STATEMENTS)]
    arguments.progress(progress)(id)
    return chosen()


def check_all(progress: Progress | None = None) -> tuple[Statement, ...]:
    """Check every statement, in the order of `STATEMENTS`; about five seconds."""
    return tuple(check(id, progress) for id in STATEMENTS)


def to_json(statements: Iterable[Statement], found: Iterable[Finding] = ()) -> dict[str, object]:
    """The document of ``finwidth paper --json``."""
    results = {"statements": [each.content() for each in statements], "findings": [each.content() for each in found]}
    return document("Paper", results, command="paper")
