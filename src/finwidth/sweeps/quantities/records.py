"""Records of estimates: sums over chunks of draws that can be taken up again where they stopped."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import copy

import numpy as np

from finwidth.networks.laws import FloatArray
from finwidth.quantities import Estimate
from finwidth.sampling.statistics.estimates import Accumulator
from finwidth.sweeps.quantities.sketches import STATE, BoundedSketch

# The record of an estimate. `draws` made it, `wanted` is the number that the stopping rule asks for; the rest is the
# state of its accumulator after the last full chunk of draws, from which more draws go on.
STATISTICS = ("mean", "se", "effective_draws", "trusted", "draws", "wanted", "count", "at", "squares", "low", "high")
_STATE = STATISTICS.index("count")
# Where means need not exist, a record goes on with the state of a sketch, and quantiles of all draws with their errors.
SHARES = (0.05, 0.16, 0.25, 0.5, 0.75, 0.84, 0.95)
QUANTILES = (*STATE, *(f"quantile {share}" for share in SHARES), *(f"se of quantile {share}" for share in SHARES))

_MANY = 4096  # draws, of which the error of a median is known to some 10%


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
    quantiles
        Whether quantiles are kept as well: `sketches`, one for each entry.

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

    def __init__(
        self, entries: int, size: int, draws: int, previous: FloatArray | None = None, *, quantiles: bool = False
    ) -> None:
        self.size, self.draws = size, draws
        self.totals = [Accumulator() for _ in range(entries)]
        self.sketches = [BoundedSketch() for _ in range(entries if quantiles else 0)]
        if previous is not None:
            known, sketched = previous[:, _STATE : len(STATISTICS)], previous[:, len(STATISTICS) :][:, : len(STATE)]
            for total, row in zip(self.totals, known, strict=True):
                total.count = int(row[0])
                total.mean, total.squared_deviations, total.smallest, total.largest = map(float, row[1:])
            self.sketches = [BoundedSketch(row) for row in sketched[: len(self.sketches)]]
        self.states = self._states()

    def chunks(self) -> Iterator[tuple[int, int]]:
        """The number and the size of each chunk that is left to draw; the last may be smaller."""
        full, rest = divmod(self.draws, self.size)
        for number in range(self.totals[0].count // self.size, full):
            yield number, self.size
        self.states = self._states()
        if rest:
            self.totals = [copy(total) for total in self.totals]
            self.sketches = [copy(sketch) for sketch in self.sketches]
            yield full, rest

    def add(self, values: Sequence[FloatArray]) -> None:
        """Take in the draws of a chunk: for each entry its values."""
        with np.errstate(over="ignore", invalid="ignore"):  # `estimate_records` says so
            for total, each in zip(self.totals, values, strict=True):
                total.add(each)
            for sketch, each in zip(self.sketches, values, strict=bool(self.sketches)):
                sketch.add(each)

    def quantiles(self) -> FloatArray:
        """Those of all draws, and their errors, shape (entries, 2 x `SHARES`), infinite of no draws; or nothing."""
        rows = [[sketch.quantile(share) for share in SHARES] for sketch in self.sketches]
        return np.array([[*(q.value for q in row), *(q.se for q in row)] for row in rows])

    def median(self, place: int) -> Estimate:
        """The median of an entry as an estimate, to be trusted of many draws however heavy the tails are."""
        found, draws = self.sketches[place].quantile(0.5), self.sketches[place].draws
        trust = draws >= _MANY and math.isfinite(found.se)
        return Estimate(found.value, found.se, draws, draws, trust, "of the median")

    def _states(self) -> FloatArray:
        states = np.array([[t.count, t.mean, t.squared_deviations, t.smallest, t.largest] for t in self.totals])
        return np.hstack([states, *([[sketch.state() for sketch in self.sketches]] if self.sketches else [])])


def estimate_records(
    estimates: Sequence[Estimate], states: FloatArray, wanted: float, quantiles: FloatArray | None = None
) -> FloatArray:
    """Records of estimates, shape (entries, statistics); inf and not trusted where a double overflowed.

    ``quantiles`` are those of `ResumableSums`, if they are kept.
    """
    rows = np.empty((len(estimates), _STATE))
    for row, found in zip(rows, estimates, strict=True):
        trusted = found.trust and math.isfinite(found.se)
        row[:] = found.value, found.se, found.effective_draws, trusted, found.draws, wanted
    whole = np.hstack([rows, states, *([] if quantiles is None or not len(quantiles) else [quantiles])])
    whole[np.isnan(whole)] = np.inf
    return whole
