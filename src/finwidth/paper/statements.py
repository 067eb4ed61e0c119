"""The whole paper as checks that run: one for each numbered statement, and what they found different.

Source: B. Hanin, M. Nica, "Finite Depth and Width Corrections to the Neural Tangent Kernel" (ICLR 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from finwidth import arguments
from finwidth.documents import document
from finwidth.paper import bias_checks, derivative_checks, moment_checks, path_checks, probability_checks
from finwidth.paper.findings import findings
from finwidth.paper.records import Finding, Statement

__all__ = ["STATEMENTS", "Finding", "Statement", "check", "check_all", "findings", "to_json"]

Progress: TypeAlias = Callable[[str], object]

_CHECKS: dict[str, Callable[[], Statement]] = {
    "theorem-1": moment_checks.theorem_1,
    "theorem-2": moment_checks.theorem_2,
    "proposition-3": moment_checks.proposition_3,
    "proposition-4": moment_checks.proposition_4,
    "proposition-5": moment_checks.proposition_5,
    "lemma-6": derivative_checks.lemma_6,
    "lemma-7": path_checks.lemma_7,
    "lemma-8": path_checks.lemma_8,
    "lemma-9": path_checks.lemma_9,
    "proposition-10": probability_checks.proposition_10,
    "lemma-11": probability_checks.lemma_11,
    "lemma-12": derivative_checks.lemma_12,
    "lemma-13": bias_checks.lemma_13,
    "lemma-14": bias_checks.lemma_14,
    "definition-1": path_checks.definition_1,
    "definition-2": path_checks.definition_2,
    "definition-3": path_checks.definition_3,
    "figure-1": path_checks.figure_1,
    "figure-2": path_checks.figure_2,
}
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
