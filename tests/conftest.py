"""The false-alarm budget of random tests is one for all processes that share the suite, whatever part each gets."""

from __future__ import annotations

import sys
from typing import Any

import pytest

_counts: list[dict[str, int]] = []  # of each process that made comparisons: how many, and how many are allowed to all


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Called by pytest at the end of each process, last in the one that handed out the tests."""
    stats = sys.modules.get("stats")
    count = {} if stats is None else {"made": stats.made, "allowed": stats.COMPARISONS}
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["comparisons"] = count
        return
    counts = [each for each in (*_counts, count) if each]
    made = sum(each["made"] for each in counts)
    if counts and made > counts[0]["allowed"]:
        print(f"\n{made} comparisons, more than the false-alarm budget is split over; raise COMPARISONS in stats.py")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Called by pytest-xdist when a process is done."""
    _counts.append(getattr(node, "workeroutput", {}).get("comparisons", {}))
