"""When a run of steps is recorded: ``record=`` of `finwidth.train`, `finwidth.empirical.Ensemble.train` and `Tracker`.

It is ``"log"``, at 0, 1, 2, ... four times an octave; a number k, every k steps; or the steps themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias, cast

from finwidth.arguments import count, index, items
from finwidth.errors import FinwidthError, shown
from finwidth.memory import afford, amount

Record: TypeAlias = str | int | Iterable[int]

_PER_OCTAVE = 4
_LONGEST = 19  # digits of a step
_WANTED = '"log", a number k for every k steps, or the steps themselves'


def schedule(record: Record) -> Callable[[int], bool]:
    """Whether a step, 1 or more, is to be recorded.

    Examples
    --------
    >>> from finwidth.schedule import schedule
    >>> due = schedule("log")
    >>> [step for step in range(1, 30) if due(step)]
    [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 23, 27]
    """
    if isinstance(record, str) and record == "log":
        return lambda step: step == 1 or _octaves(step) > _octaves(step - 1)
    if index(record) is not None:
        every = count("record", record)
        return lambda step: step % every == 0
    chosen = frozenset(_chosen(record))
    return lambda step: step in chosen


def recorded_steps(record: Record, steps: int) -> Sequence[int]:
    """The steps that a run of so many is recorded at: 0 and the last always.

    Raises
    ------
    FinwidthError
        If a step is named that the run does not have.

    Examples
    --------
    >>> from finwidth.schedule import recorded_steps
    >>> recorded_steps([3], 7), recorded_steps(3, 7), recorded_steps(1, 7)
    ((0, 3, 7), (0, 3, 6, 7), range(0, 8))
    """
    number = index(record)
    if number == 1:
        return range(steps + 1)
    if number is None and not isinstance(record, str):
        chosen = _chosen(record)
        if max(chosen, default=0) > steps:
            raise FinwidthError(f"record holds {max(chosen)}; give whole numbers from 0 to {steps}")
    else:
        due = schedule(record)
        afford(100 * steps // (number or 1), f"a list of steps of {amount(steps)}", "take fewer steps, or name some")
        chosen = {step for step in range(number or 1, steps, number or 1) if due(step)}
    return tuple(sorted({0, *chosen, steps}))


def parse_record(text: str) -> str | int | list[int]:
    """A record as the command line writes it: ``log``, every so many steps, or the steps themselves with commas.

    >>> from finwidth.schedule import parse_record
    >>> parse_record("log"), parse_record("10"), parse_record("0,5")
    ('log', 10, [0, 5])
    """
    if text == "log":
        return text
    numbers = [int(part) if part.strip().isdecimal() and len(part) < _LONGEST else -1 for part in text.split(",")]
    if min(numbers) < 0:
        raise FinwidthError(f"record is {shown(text)}; give log, every how many steps, such as 10, or steps: 0,5,20")
    return numbers if "," in text else numbers[0]


def _chosen(record: Record) -> set[int]:
    steps = items("record", cast("Iterable[int]", record), _WANTED)
    return {count("a step of record", step, 0) for step in steps}


def _octaves(step: int) -> int:
    return math.floor(_PER_OCTAVE * math.log2(step))
