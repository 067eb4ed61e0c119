"""Checks on single values of a config: numbers, lists, ranges; each error names the key."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from finwidth.errors import FinwidthError
from finwidth.sweeps.schema.document import Document, shown

MOST_VALUES = 10**5  # on one axis
LARGEST = 2**62  # of whole numbers: so that 64 bits hold what is computed from them

Check = Callable[[Any], Any]


def whole(low: int, high: float = LARGEST) -> Check:
    """A check for whole numbers of a range, which may be open, to infinity."""

    def check(value: Any) -> int:
        try:
            number = operator.index(value)
        except TypeError:
            number = low - 1
        if isinstance(value, bool | np.bool_) or not low <= number <= high:
            upwards = "up" if high == math.inf else f"to {high}"
            raise FinwidthError(f"{shown(value)} is not a whole number from {low} {upwards}")
        return number

    return check


def within(low: float, high: float) -> Check:
    """A check for numbers of a range."""

    def check(value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise FinwidthError(f"{shown(value)} is not a number from {low:g} to {high:g}")
        return float(value)

    return check


def text(value: Any) -> str:
    """A string that is not empty."""
    if not isinstance(value, str) or not value:
        raise FinwidthError(f'{shown(value)} is not text; write it in quotes, such as "ones"')
    return value


def one_of(names: Sequence[str]) -> Check:
    """A check for one of a few names."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise FinwidthError(f"{shown(value)} is not known; choose from {', '.join(names)}")
        return value

    return check


def checked(document: Document, key: str, value: Any, check: Check) -> Any:
    """``check(value)``, its error with the key and the line."""
    try:
        return check(value)
    except FinwidthError as error:
        raise document.fault(key, str(error)) from None


def several(document: Document, key: str, given: Any, check: Check) -> list[Any]:
    """The values of a list or of one value, each checked, none twice."""
    values = list(given) if isinstance(given, list | tuple | range | np.ndarray) else [given]
    if not values:
        raise document.fault(key, "the list is empty; give at least one value")
    if len(values) > MOST_VALUES:
        raise document.fault(key, f"{len(values)} values are too many; give at most {MOST_VALUES}")
    found = [checked(document, key, value, check) for value in values]
    if len(set(found)) < len(found):
        twice = next(value for place, value in enumerate(found) if value in found[:place])
        raise document.fault(key, f"{shown(twice)} comes twice")
    return found


def numbers(document: Document, key: str, given: Any, check: Check) -> list[Any]:
    """As `several`, where numbers may also be a range: {from = 1, to = 9, step = 2} or {from = 1, to = 8, factor = 2}.

    The end belongs to the range; a step counts in decimals, so that 0.1 to 0.3 by 0.1 is 0.1, 0.2, 0.3.
    """
    if not isinstance(given, Mapping):
        return several(document, key, given, check)
    ways = ({"from", "to"}, {"from", "to", "step"}, {"from", "to", "factor"})
    if set(given) not in ways:
        raise document.fault(key, "a range is {from = 1, to = 9}, with step = 2, or factor = 2, and nothing else")
    ends = {name: checked(document, key, value, _real) for name, value in given.items()}
    low, high, factor = ends["from"], ends["to"], ends.get("factor")
    step = ends.get("step", Fraction(1))
    if low <= 0 or step <= 0 or (factor is not None and factor <= 1) or high < low:
        raise document.fault(key, "a range goes up, from above 0, with a step above 0, or a factor above 1")
    size = (high - low) / step if factor is None else math.log(high / low) / math.log(factor) + 1e-9
    if size >= MOST_VALUES:
        raise document.fault(key, f"the range has more than {MOST_VALUES} values")
    if factor is None:
        values = [low + step * place for place in range(int(size) + 1)]
    else:
        values = [Fraction(float(low) * float(factor) ** place) for place in range(int(size) + 1)]
    # Whole numbers stay whole: the check refuses 2.5 where they are asked for.
    return several(document, key, [int(v) if v.denominator == 1 else float(v) for v in values], check)


def _real(value: Any) -> Fraction:
    """A finite number as a fraction of the decimal that was typed."""
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= LARGEST:
        raise FinwidthError(f"{shown(value)} is not a finite number of usual size")
    return Fraction(str(value))
