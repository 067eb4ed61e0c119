"""How far long work is, and that what would take years is refused.

Long loops are stages.  A stage tells the ``progress`` that a caller gave, and the command line, which `watching` sets
up: of stages within each other it hears of the outermost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import TypeAlias

from finwidth.errors import SizeError

_YEAR = 365 * 86400  # seconds; what would take longer is refused
_TIMED = 0.5  # seconds from which on the pace so far tells the time of the whole


@dataclass
class Stage:
    """Work that has begun: ``what`` in a word or two, and how much of ``total`` is done, in units that take equal time.

    ``started`` is on the clock of `time.monotonic`.
    """

    what: str
    total: int
    started: float
    done: int = 0
    over: bool = False

    @property
    def share(self) -> float:
        """The part that is done, from 0 to 1."""
        return float(Decimal(self.done) / self.total)

    @property
    def seconds_left(self) -> float | None:
        """Until the end, at the pace so far; None if nothing is known of it yet."""
        passed = time.monotonic() - self.started
        return passed * float(Decimal(self.total - self.done) / self.done) if self.done else None


Watcher: TypeAlias = Callable[[Stage], object]
_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextmanager
def watching(watcher: Watcher | None) -> Iterator[None]:
    """Call the watcher each time some of a stage is done, and when it is over; None: nobody.

    Examples
    --------
    >>> import finwidth
    >>> from finwidth.progress import watching
    >>> with watching(lambda stage: print(stage.what, stage.done, "of", stage.total, stage.over)):
    ...     _ = finwidth.sample(finwidth.MLP([2, 4, 1]), [1, 2], draws=20_000)
    drawing 16384 of 20000 False
    drawing 20000 of 20000 False
    drawing 20000 of 20000 True
    """
    before = _watcher.get()
    _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.set(before)


@contextmanager
def stage(what: str, total: int, progress: Callable[[int], object] | None = None) -> Iterator[Callable[[int], None]]:
    """A function to call with how much is done, each time some is; it refuses to go on with what takes over a year.

    Raises
    ------
    SizeError
        From that function, by the pace of the half second after its first call.
    """
    watcher, now = _watcher.get(), Stage(what, total, time.monotonic())
    pace = _Pace(what, total)

    def told(done: int) -> None:
        now.done = done
        pace.check(done)
        if watcher is not None:
            watcher(now)
        if progress is not None:
            progress(done)

    with watching(None):
        try:
            yield told
        finally:
            now.over = True
            if watcher is not None:
                watcher(now)


@dataclass
class _Pace:
    """The time that all will take; work done only once, such as imports, is over when `check` is called first."""

    what: str
    total: int
    first: int = 0
    since: float | None = None
    sure: bool = False

    def check(self, done: int) -> None:
        now = time.monotonic()
        if self.since is None:
            self.first, self.since = done, now
        elif not self.sure and now - self.since > _TIMED and done > self.first:
            self.sure = True
            check_time(self.total - done, (now - self.since) / (done - self.first), self.what)


def check_time(times: int, seconds: float, what: str, change: str = "ask for less of it") -> None:
    """Refuse what takes over a year, at so many seconds each time.

    Examples
    --------
    >>> from finwidth.progress import check_time
    >>> check_time(10**30, 1e-6, "drawing 10^30 networks", "draw fewer")
    Traceback (most recent call last):
    finwidth.errors.SizeError: drawing 10^30 networks would take about 3.2e+16 years, and more than one is refused; ...
    """
    if times * Fraction(seconds) > _YEAR:
        years = Decimal(times) * Decimal(seconds) / _YEAR
        told = f"{years:,.1f}" if years < 10**6 else f"{years:.2g}"
        raise SizeError(f"{what} would take about {told} years, and more than one is refused; {change}")
