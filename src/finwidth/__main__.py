"""The command line as a process: ready for signals before it loads anything, and with all of its streams."""

from __future__ import annotations

import os
import sys
import warnings

from finwidth.cli.interrupts import Stopped, end, handle, stop

_NARROWEST = 20  # columns that a table or a help text can be read in


def main() -> None:
    """Run the command line."""
    handle(end)
    closed = sys.stdout is None
    _fill_streams()
    if closed:
        print("finwidth: error: standard output is closed; send it to a file, or to /dev/null", file=sys.stderr)
        sys.exit(2)
    _check_columns()
    if not sys.warnoptions:  # a number that is lost to an overflow is told of as an error, or shown as what it is
        warnings.simplefilter("ignore", RuntimeWarning)
    from finwidth.cli.main import main as run

    try:
        try:
            handle(stop)
            run()
        finally:
            handle(end)
            os.dup2(2, 1)  # what a user's module prints as the program ends is no part of the result
    except Stopped as late:  # nothing is open before the command begins, nor after it
        end(late.number)


def _fill_streams() -> None:
    """Open closed streams on nothing: the next file would have their number, and get what is written to them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            file = os.open(os.devnull, os.O_RDWR)
            if file != number:
                os.dup2(file, number)
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


def _check_columns() -> None:
    """Leave the width of the terminal to the terminal, if the environment says nothing that can be."""
    columns = os.environ.get("COLUMNS", "")
    if not (columns.isdecimal() and len(columns) < 6 and int(columns) >= _NARROWEST):
        os.environ.pop("COLUMNS", None)


if __name__ == "__main__":
    main()
