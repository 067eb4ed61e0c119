"""Records of estimates: sums over chunks of draws that can be taken up again where they stopped."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import copy

import numpy as np

from finwidth.networks.laws import FloatArray
from finwidth.quantities import Estimate
from finwidth.sampling.statistics.estimates import Accumulator

# The record of an estimate. `draws` made it, `wanted` is the number that the stopping rule asks for; the rest is the
# state of its accumulator after the last full chunk of draws, from which more draws go on.
STATISTICS = ("mean", "se", "effective_draws", "trusted", "draws", "wanted", "count", "at", "squares", "low", "high")
_STATE = STATISTICS.index("count")


class ResumableSums:
    """Accumulators of ``draws`` draws in chunks of ``size``, which go on where previous ones stopped.

    Full chunks are the same whatever ``draws`` is, so going on gives, bit for bit, the numbers of a single run:
    ``states`` are the states of the accumulators after the last full chunk.

    Parameters
    ----------
    entries
        How many quantities are estimated.
    size, draws
        Of a chunk, and in all.
    previous
        Records of fewer draws to go on from, shape (entries, statistics).

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth.sweeps.quantities.records import ResumableSums
    >>> sums = ResumableSums(entries=1, size=4, draws=10)
    >>> for number, count in sums.chunks():
    ...     sums.add([np.full(count, float(number))])
    >>> sums.totals[0].count, sums.totals[0].mean, sums.states[0, :2]
    (10, 0.8, array([8. , 0.5]))
    """

    def __init__(self, entries: int, size: int, draws: int, previous: FloatArray | None = None) -> None:
        self.size, self.draws = size, draws
        self.totals = [Accumulator() for _ in range(entries)]
        if previous is not None:
            for total, row in zip(self.totals, previous, strict=True):
                total.count = int(row[_STATE])
                total.mean, total.squared_deviations, total.smallest, total.largest = map(float, row[_STATE + 1 :])
        self.states = self._states()

    def chunks(self) -> Iterator[tuple[int, int]]:
        """The number and the size of each chunk that is left to draw; the last may be smaller."""
        full, rest = divmod(self.draws, self.size)
        for number in range(self.totals[0].count // self.size, full):
            yield number, self.size
        self.states = self._states()
        if rest:
            self.totals = [copy(total) for total in self.totals]
            yield full, rest

    def add(self, values: Sequence[FloatArray]) -> None:
        """Take in the draws of a chunk: for each entry its values."""
        with np.errstate(over="ignore", invalid="ignore"):  # `estimate_records` says so
            for total, each in zip(self.totals, values, strict=True):
                total.add(each)

    def _states(self) -> FloatArray:
        return np.array([[t.count, t.mean, t.squared_deviations, t.smallest, t.largest] for t in self.totals])


def estimate_records(estimates: Sequence[Estimate], states: FloatArray, wanted: float) -> FloatArray:
    """Records of estimates, shape (entries, statistics); inf and not trusted where a double overflowed."""
    rows = np.empty((len(estimates), len(STATISTICS)))
    for row, found in zip(rows, estimates, strict=True):
        trusted = found.trust and math.isfinite(found.se)
        row[:_STATE] = found.value, found.se, found.effective_draws, trusted, found.draws, wanted
    rows[:, _STATE:] = states
    rows[np.isnan(rows)] = np.inf
    return rows
