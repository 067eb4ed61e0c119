"""When a run is recorded: one meaning of `record=` for a known and an unknown number of steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from finwidth import FinwidthError
from finwidth.schedule import Record, recorded_steps, schedule


@pytest.mark.parametrize("record", ["log", 1, 2, 7, 100, [0], [3, 5], {4}, range(2), []])
@pytest.mark.parametrize("steps", [1, 8, 31])
def test_the_steps_of_a_run_are_those_that_are_due_and_its_ends(record: Record, steps: int) -> None:
    due = schedule(record)
    expected = sorted({0, steps, *(step for step in range(1, steps + 1) if due(step))})
    if not isinstance(record, str | int) and max(record, default=0) > steps:
        with pytest.raises(FinwidthError, match="record holds"):
            recorded_steps(record, steps)
    else:
        assert list(recorded_steps(record, steps)) == expected


def test_all_steps_take_no_memory_and_a_long_list_is_refused() -> None:
    assert len(recorded_steps(1, 10**12)) == 10**12 + 1
    with pytest.raises(FinwidthError, match="a list of steps"):
        recorded_steps(2, 10**12)


@pytest.mark.parametrize("read", [schedule, lambda record: recorded_steps(record, 9)])
@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("often", "record is 'often'; give \"log\", a number k"),
        (0, "record is 0"),
        (-2, "record is -2"),
        (None, "record is None"),
        ([-1], "a step of record is -1"),
        ([0.5], "a step of record is 0.5"),
        (2.5, "record is 2.5"),
        (True, "record is True"),
    ],
)
def test_mistakes_are_told(read: Callable[[object], object], record: object, words: str) -> None:
    with pytest.raises(FinwidthError, match=words):
        read(record)
