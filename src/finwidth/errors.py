"""The one exception that a user's mistake raises."""


class FinwidthError(ValueError):
    """Something the user gave cannot be used.

    The message says what was given, what is allowed, and what to type instead.  The command line
    prints it in one line and exits with status 2.
    """
