"""The one exception that a user's mistake raises, and how a value is shown in its message."""

from __future__ import annotations

from typing import Any

_LONGEST = 100


class FinwidthError(ValueError):
    """Something the user gave cannot be used.

    The message says what was given, what is allowed, and what to type instead.  The command line
    prints it in one line and exits with status 2.
    """


def shown(value: Any) -> str:
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
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
