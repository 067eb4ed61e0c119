"""The one exception that a user's mistake raises, its message in one line, and how a value is shown in it."""

from __future__ import annotations

import re
from typing import Any

_LONG_WORD = re.compile(r"\S{161,}")
_LONGEST = 1500  # characters of a message
_SHOWN = 100  # of a value in it


class FinwidthError(ValueError):
    """Something the user gave cannot be used.

    The message says what was given, what is allowed, and what to type instead.  The command line
    prints it in one line and exits with status 2.
    """


class SizeError(FinwidthError):
    """What was asked for is allowed, and too large: for the memory there is, or for a year."""


def shown(value: Any, longest: int = _SHOWN) -> str:
    """A value in a message: in one line, and not too long.

    >>> from finwidth.errors import shown
    >>> shown([1, "two"]), shown(10**5000)
    ("[1, 'two']", 'an int that is too long to show')
    """
    try:
        text = " ".join(repr(value).split())
    except Exception:  # whatever its __repr__ raises; a whole number of more digits than Python prints does, too
        kind = type(value).__name__
        return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} that is too long to show"
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def shortened(message: str) -> str:
    """A message in one line that a terminal shows as it is, without the middle of what is long in it.

    Messages repeat what was given, which may be thousands of characters; what to do instead comes last.

    >>> from finwidth.errors import shortened
    >>> shortened("'" + 5000 * "9" + "' is not a width")
    "'999999999999999999999999999999999999999...(5002 characters)...9999999999999999999' is not a width"
    """
    line = _LONG_WORD.sub(lambda word: _without_middle(word[0], 60), " ".join(message.split()))
    line = "".join(each if each.isprintable() else repr(each)[1:-1] for each in line)
    return line if len(line) <= _LONGEST else _without_middle(line, 1000)


def _without_middle(text: str, kept: int) -> str:
    """About the first two thirds and the last third of as many characters as are kept."""
    last = kept // 3
    return f"{text[: kept - last]}...({len(text)} characters)...{text[-last:]}"
