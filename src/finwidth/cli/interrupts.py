"""Signals that ask a program to stop: the first one is an exception, so that files are closed; a second one ends it.

The first one waits for the call of NumPy or PyTorch that is going on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

TYPE_CHECKING = False  # as typing has it, without the time that typing takes
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "its terminal is closed"}
_SOON = 0.01  # seconds in which a destructor has ended
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
    sys.unraisablehook = _stop_again  # what is half made may fail as it goes: that is no news
    raise Stopped(number)


def end(number: int, frame: FrameType | None = None) -> None:
    """Stop at once, in one line: while modules load, and after the work, nothing is open."""
    line = f"finwidth: {word(number)}\n"
    try:
        os.write(2, ((_SHOW_CURSOR if os.isatty(2) else "") + line).encode())
    finally:
        os._exit(128 + number)


def _stop_again(ignored: sys.UnraisableHookArgs) -> None:
    """For `sys.unraisablehook`: a stop that came where exceptions are lost, as in a destructor, comes once more."""
    if isinstance(ignored.exc_value, Stopped):
        handle(stop)
        again = threading.Timer(_SOON, _signal_main_thread, [ignored.exc_value.number])
        again.daemon = True  # a program that ends by itself meanwhile has stopped
        again.start()


def _signal_main_thread(number: int) -> None:
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:  # wakes it where it waits, which Windows cannot
        signal.pthread_kill(main, number)
    else:
        signal.raise_signal(number)


def behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """The stop that an exception is, or that it is a consequence of."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def word(number: int) -> str:
    """The word for a signal that ended the program."""
    return WORDS[signal.Signals(number).name]
