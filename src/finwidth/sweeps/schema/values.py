"""Checks on single values of a config: numbers, lists, ranges; each error names the key."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Mapping
from fractions import Fraction
from typing import SupportsIndex, TypeAlias, TypeVar

import numpy as np

from finwidth.errors import FinwidthError
from finwidth.sweeps.schema.document import Document, as_typed

_MOST_VALUES = 10**5  # on one axis
_LARGEST = 2**62  # of whole numbers: so that 64 bits hold what is computed from them

_Checked = TypeVar("_Checked")
_Check: TypeAlias = Callable[[object], _Checked]
LISTS = (list, tuple, range, np.ndarray)


def whole_number(low: int, high: float = _LARGEST) -> _Check[int]:
    """A check for whole numbers of a range, which may be open, to infinity."""

    def check(value: object) -> int:
        flag = isinstance(value, bool | np.bool_)
        try:
            number = operator.index(value) if isinstance(value, SupportsIndex) and not flag else low - 1
        except TypeError:  # NumPy's floats and arrays have the method, and raise this
            number = low - 1
        if not low <= number <= high:
            upwards = "up" if high == math.inf else f"to {high}"
            raise FinwidthError(f"{as_typed(value)} is not a whole number from {low} {upwards}")
        return number

    return check


def number_in(low: float, high: float) -> _Check[float]:
    """A check for numbers of a range."""

    def check(value: object) -> float:
        number = value.item() if isinstance(value, np.generic) else value
        if not isinstance(number, int | float) or isinstance(number, bool) or not low <= number <= high:
            raise FinwidthError(f"{as_typed(value)} is not a number from {low:g} to {high:g}")
        return float(number)

    return check


def nonempty_text(value: object) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value:
        raise FinwidthError(f'{as_typed(value)} is not text; write it in quotes, such as "ones"')
    return value


def name_in(names: Collection[str]) -> _Check[str]:
    """A check for one of a few names."""

    def check(value: object) -> str:
        if not isinstance(value, str) or value not in names:
            raise FinwidthError(f"{as_typed(value)} is not known; choose from {', '.join(names)}")
        return value

    return check


def true_or_false(value: object) -> bool:
    """A truth value."""
    if not isinstance(value, bool | np.bool_):
        raise FinwidthError(f"{as_typed(value)} is neither true nor false")
    return bool(value)


def checked_value(document: Document, key: str, value: object, check: _Check[_Checked]) -> _Checked:
    """``check(value)``, its error with the key and the line."""
    with document.at(key):
        return check(value)


def read_values(document: Document, key: str, given: object, check: _Check[_Checked]) -> list[_Checked]:
    """The values of a list or of one value, each checked, none twice."""
    values = list(given) if isinstance(given, LISTS) else [given]
    if not values:
        raise document.fault(key, "the list is empty; give at least one value")
    if len(values) > _MOST_VALUES:
        raise document.fault(key, f"{len(values)} values are too many; give at most {_MOST_VALUES}")
    found = [checked_value(document, key, value, check) for value in values]
    if len(set(found)) < len(found):
        twice = next(value for place, value in enumerate(found) if value in found[:place])
        raise document.fault(key, f"{as_typed(twice)} comes twice")
    return found


def read_numbers(document: Document, key: str, given: object, check: _Check[_Checked]) -> list[_Checked]:
    """As `read_values`, also of a range: {from = 1, to = 9, step = 2} or {from = 1, to = 8, factor = 2}.

    The end belongs to the range; a step counts in decimals, so that 0.1 to 0.3 by 0.1 is 0.1, 0.2, 0.3.
    """
    if not isinstance(given, Mapping):
        return read_values(document, key, given, check)
    ways = ({"from", "to"}, {"from", "to", "step"}, {"from", "to", "factor"})
    if set(given) not in ways:
        raise document.fault(key, "a range is {from = 1, to = 9}, with step = 2, or factor = 2, and nothing else")
    ends = {name: checked_value(document, key, value, _real) for name, value in given.items()}
    low, high, factor = ends["from"], ends["to"], ends.get("factor")
    step = ends.get("step", Fraction(1))
    if low <= 0 or step <= 0 or (factor is not None and factor <= 1) or high < low:
        raise document.fault(key, "a range goes up, from above 0, with a step above 0, or a factor above 1")
    size = (high - low) / step if factor is None else math.log(high / low) / math.log(factor) + 1e-9
    if size >= _MOST_VALUES:
        raise document.fault(key, f"the range has more than {_MOST_VALUES} values")
    if factor is None:
        values = [low + step * place for place in range(int(size) + 1)]
    else:
        values = [Fraction(float(low) * float(factor) ** place) for place in range(int(size) + 1)]
    # Whole numbers stay whole: the check refuses 2.5 where they are asked for.
    return read_values(document, key, [int(v) if v.denominator == 1 else float(v) for v in values], check)


def _real(value: object) -> Fraction:
    """A finite number as a fraction of the decimal that was typed."""
    number = value.item() if isinstance(value, np.generic) else value
    if not isinstance(number, int | float) or isinstance(number, bool) or not abs(number) <= _LARGEST:
        raise FinwidthError(f"{as_typed(value)} is not a finite number of usual size")
    return Fraction(str(number))
