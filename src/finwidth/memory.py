"""A number of bytes, as users write it: one grammar for everything that takes ``memory=``."""

from __future__ import annotations

import math
import re
from numbers import Real
from typing import Any

from finwidth.errors import FinwidthError

_NUMBER = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(e\+?[0-9]+)?")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def check_memory(memory: Any) -> int:
    """Bytes from a number of them, or from a text of a number and a unit.

    The number is decimal, with an exponent or without; the unit is B, kB, MB, GB or TB, which are powers of 1000, or
    KiB, MiB, GiB or TiB, which are powers of 1024. The case of the letters, the B and spaces between the two do not
    count. Parts of a byte are dropped.

    Raises
    ------
    FinwidthError
        If it is anything else, or less than one byte.

    Examples
    --------
    >>> from finwidth.memory import check_memory
    >>> check_memory("1.5 GiB"), check_memory("200MB"), check_memory("4g"), check_memory(4096), check_memory(1e9)
    (1610612736, 200000000, 4000000000, 4096, 1000000000)
    """
    number = isinstance(memory, Real) and not isinstance(memory, bool)
    amount = memory if number else _amount(str(memory).strip().lower())
    if not 1 <= amount < math.inf:
        raise FinwidthError(f'memory is {memory!r}; give a number of bytes, or a text such as "1GiB" or "200 MB"')
    return int(amount)


def _amount(text: str) -> float:
    """The number of bytes that a text in small letters states, 0 if it is none."""
    number = _NUMBER.match(text)
    if number is None:
        return 0.0
    unit = text[number.end() :].strip()
    return float(number[0]) * _UNITS.get(unit.removesuffix("b"), 0)
