"""All checks of the paper, run once for all tests."""

from __future__ import annotations

import pytest

from finwidth.paper.records import Finding, Statement
from finwidth.paper.statements import check_all, findings


@pytest.fixture(scope="session")
def seen() -> list[str]:
    """The ids that `check_all` reported, in order."""
    return []


@pytest.fixture(scope="session")
def checked(seen: list[str]) -> dict[str, Statement]:
    return {statement.id: statement for statement in check_all(seen.append)}


@pytest.fixture(scope="session")
def found() -> tuple[Finding, ...]:
    return findings()
