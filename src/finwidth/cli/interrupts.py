"""Signals that ask a program to stop: the first one is an exception, so that files are closed; a second one ends it.

The first one waits for the call of NumPy or PyTorch that is going on.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # as typing has it, without the time that typing takes
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "its terminal is closed"}
_SHOW_CURSOR = "\x1b[?25h"  # which a progress bar hides


class Stopped(KeyboardInterrupt):
    """A signal has asked to stop: what cleans up after Ctrl-C cleans up after each of them."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def handle(handler: Callable[[int, FrameType | None], None]) -> None:
    """Have a handler called for each of the signals, but for those that are switched off, as by nohup."""
    for name in WORDS:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def stop(number: int, frame: FrameType | None) -> None:
    """Stop with an exception, and at once should a second signal come while files are closed."""
    handle(end)
    sys.unraisablehook = _end_if_stopped  # what is half made may fail as it goes: that is no news
    raise Stopped(number)


def end(number: int, frame: FrameType | None = None) -> None:
    """Stop at once, in one line: while modules load, and after the work, nothing is open."""
    line = f"finwidth: {word(number)}\n"
    try:
        os.write(2, ((_SHOW_CURSOR if os.isatty(2) else "") + line).encode())
    finally:
        os._exit(128 + number)


def end_unheard(ignored: sys.UnraisableHookArgs) -> None:
    """For `sys.unraisablehook`: a stop that comes where exceptions are lost, as in a destructor, is not lost."""
    _end_if_stopped(ignored)
    sys.__unraisablehook__(ignored)


def _end_if_stopped(ignored: sys.UnraisableHookArgs) -> None:
    if isinstance(ignored.exc_value, Stopped):
        end(ignored.exc_value.number)


def behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """The stop that an exception is, or that it is a consequence of."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def word(number: int) -> str:
    """The word for a signal that ended the program."""
    return WORDS[signal.Signals(number).name]
