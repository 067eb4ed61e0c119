"""Everything public, called with values of every kind: it works, or raises one FinwidthError of one line."""

from __future__ import annotations

import math
import time

import pytest

pytest.importorskip("torch")

from fuzz import calls
from fuzz.calls import Tally, fuzz
from fuzz.surface import public

SECONDS_EACH = {  # calls of these take seconds; they are in the slow tier only
    "finwidth.compare",
    "finwidth.depth_for",
    "finwidth.width_for",
    "finwidth.exact.closed_form.formulas",
    "finwidth.moments",
    "finwidth.paper.check",
    "finwidth.paper.check_all",
    "finwidth.paper.findings",
    "finwidth.paper.page.write_page",
    "finwidth.plots.growth_with_depth",
    "finwidth.plots.kernel_in_training",
    "finwidth.plots.kernel_on_a_circle",
    "finwidth.plots.save",
    "finwidth.plots.spread_over_depth",
    "finwidth.report.report",
    "finwidth.report.write",
    "finwidth.sweep",
}


@pytest.mark.parametrize("target", [each for each in public() if each not in SECONDS_EACH])
def test_a_few_calls(target: str) -> None:
    assert not fuzz(target, 3).different()


@pytest.mark.slow
@pytest.mark.parametrize("target", public())
def test_many_calls(target: str) -> None:
    assert not fuzz(target, 300).different()


def test_a_new_name_is_called_too() -> None:
    """What the package exports is what is called, but for what it returns."""
    names = {name.rpartition(".")[2] for name in public()}
    some = {"moments", "MLP", "MatrixFreeLinear", "ntk", "Tracker", "combine", "sweep", "merge", "law_of_kernel"}
    assert some <= names
    assert not {"Estimate", "Regime", "FinwidthError"} & names


def test_faults_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(memory: object) -> object:
        return memory + 1  # type: ignore[operator]

    def nothing(memory: object) -> float:
        return math.nan

    def works(memory: object) -> None:
        while True:
            pass

    def waits(memory: object) -> None:
        time.sleep(60)

    monkeypatch.setattr(calls, "SECONDS", 1)
    monkeypatch.setattr(calls, "STUCK", 5)
    tally = Tally()
    for function, times in ((breaks, 20), (nothing, 1), (works, 1), (waits, 1)):
        tally.calls(function.__name__, function, times, 0.5)
    assert {"TypeError", "NaN"} <= set(tally.outcomes)
    assert tally.outcomes["too long"] == 2
