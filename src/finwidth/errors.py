"""The one exception that a user's mistake raises."""


class FinwidthError(ValueError):
    """Something the user gave cannot be used.

    The message says what was given, what is allowed, and what to type instead.  The command line
    prints it in one line and exits with status 2.
    """


class SizeError(FinwidthError):
    """What was asked for is allowed, and too large: for the memory there is, or for a year."""
