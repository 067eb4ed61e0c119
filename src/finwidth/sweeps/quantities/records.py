"""Records of estimates: sums over chunks of draws that can be taken up again where they stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy

import numpy as np

from finwidth.networks.laws import FloatArray
from finwidth.quantities import Estimate
from finwidth.sampling.statistics.estimates import Accumulator

# What is stored of an estimate. `draws` made it, `wanted` is what the stopping rule asks for; the rest is the state of
# its accumulator after the last full chunk of draws, from which more draws go on.
STATISTICS = ("mean", "se", "effective_draws", "trusted", "draws", "wanted", "count", "at", "squares", "low", "high")
_STATE = STATISTICS.index("count")

Piece = Callable[[int, int], Sequence[FloatArray]]


def accumulate(
    piece: Piece, entries: int, size: int, draws: int, previous: FloatArray | None = None
) -> tuple[list[Accumulator], FloatArray]:
    """Accumulators of ``draws`` draws in chunks of ``size``, and their states after the last full chunk.

    Parameters
    ----------
    piece
        ``piece(number, count)`` draws chunk ``number``: for each entry ``count`` values. Full chunks are the same
        whatever ``draws`` is, so going on gives, bit for bit, what a single run does.
    entries
        How many quantities are estimated.
    size, draws
        Of a chunk, and in all.
    previous
        Records of fewer draws to go on from, shape (entries, statistics).
    """
    totals = [Accumulator() for _ in range(entries)]
    if previous is not None:
        for total, record in zip(totals, previous, strict=True):
            total.count = int(record[_STATE])
            total.mean, total.squared_deviations, total.smallest, total.largest = map(float, record[_STATE + 1 :])
    full, rest = divmod(draws, size)
    for number in range(totals[0].count // size, full):
        _add(totals, piece(number, size))
    states = np.array([[t.count, t.mean, t.squared_deviations, t.smallest, t.largest] for t in totals])
    if rest:
        totals = [copy(total) for total in totals]
        _add(totals, piece(full, rest))
    return totals, states


def _add(totals: list[Accumulator], values: Sequence[FloatArray]) -> None:
    with np.errstate(over="ignore", invalid="ignore"):  # `record` says so
        for total, each in zip(totals, values, strict=True):
            total.add(each)


def record(estimates: Sequence[Estimate], states: FloatArray, wanted: float) -> FloatArray:
    """Records of estimates, shape (entries, statistics); inf and not trusted where a double overflowed."""
    rows = np.empty((len(estimates), len(STATISTICS)))
    for row, found in zip(rows, estimates, strict=True):
        trusted = found.trust and math.isfinite(found.se)
        row[:_STATE] = found.value, found.se, found.effective_draws, trusted, found.draws, wanted
    rows[:, _STATE:] = states
    rows[np.isnan(rows)] = np.inf
    return rows
