"""The one exception that a user's mistake raises, and its message in one line."""

import re

_LONG_WORD = re.compile(r"\S{161,}")
_LONGEST = 1500  # characters of a message


class FinwidthError(ValueError):
    """Something the user gave cannot be used.

    The message says what was given, what is allowed, and what to type instead.  The command line
    prints it in one line and exits with status 2.
    """


class SizeError(FinwidthError):
    """What was asked for is allowed, and too large: for the memory there is, or for a year."""


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
