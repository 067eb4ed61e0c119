"""Progress of long work on standard error: a bar or a spinner on a terminal, a line now and then in a log."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from finwidth.progress import Stage

if TYPE_CHECKING:
    from rich.progress import Progress

LOG_SECONDS = 30
_PATIENCE = 1.0  # seconds; shorter work shows nothing
_SILENCE = 2.0  # seconds without a bar or output until the spinner turns


class Spinner:
    """Tells on a terminal that work goes on of which nothing else is shown, such as libraries that load."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lock, self._over = stream, threading.RLock(), threading.Event()
        self._started = self._quiet_since = time.monotonic()
        self._shown = False

    @contextlib.contextmanager
    def turning(self) -> Iterator[None]:
        """Turn within this context, but while something else is shown: whatever is printed takes it away."""
        stdout, stderr = sys.stdout, sys.stderr
        threading.Thread(target=self._turn, daemon=True).start()
        sys.stdout, sys.stderr = (_Heard(each, self._hush) for each in (stdout, stderr))
        try:
            yield
        finally:
            self._over.set()
            self._hush()
            sys.stdout, sys.stderr = stdout, stderr

    def _hush(self) -> None:
        with self._lock:
            if self._shown:
                self._write("\r\x1b[K")
            self._shown, self._quiet_since = False, time.monotonic()

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone
            self._stream.write(text)
            self._stream.flush()

    def _turn(self) -> None:
        for sign in itertools.cycle("|/-\\"):
            if self._over.wait(0.1):
                return
            with self._lock:
                now = time.monotonic()
                if now - self._quiet_since > _SILENCE and not self._over.is_set():
                    self._shown = True
                    self._write(f"\r{sign} working, {duration(now - self._started)}")


class _Heard:
    """A stream that tells before it is written to."""

    def __init__(self, stream: TextIO, before: Callable[[], None]) -> None:
        self._stream, self._before = stream, before

    def write(self, text: str) -> int:
        self._before()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


class Bars:
    """A watcher of stages (`finwidth.progress`)."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._stage: Stage | None = None
        self._next = 0.0

    def __call__(self, stage: Stage) -> None:
        """Show how far the stage is, if it is not over soon."""
        if stage is not self._stage:
            self._stage, self._next = stage, stage.started + LOG_SECONDS
        if stage.over:
            self._end()
        elif time.monotonic() - stage.started < _PATIENCE:
            return
        elif sys.stderr.isatty():
            self._draw(stage)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + LOG_SECONDS
            print(f"{stage.what}: {stage.share:.1%} done, {duration(stage.seconds_left)} left", file=sys.stderr)

    def _draw(self, stage: Stage) -> None:
        if self._bar is None:
            self._bar = _new_bar()
            self._bar.start()
            self._bar.add_task(stage.what, total=1.0, left="")
        left = duration(stage.seconds_left)
        self._bar.update(self._bar.task_ids[0], completed=stage.share, left=left)

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _new_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    left = TextColumn("{task.fields[left]} left")
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), left)
    return Progress(*columns, console=Console(stderr=True), transient=True)


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds, or days where they are many.

    >>> from finwidth.cli.bars import duration
    >>> duration(3725), duration(10**7), duration(None)
    ('1:02:05', '116 days', '?')
    """
    if seconds is None:
        return "?"
    if seconds >= 3 * 86400:
        return f"{seconds / 86400:.0f} days"
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"
