"""Quantiles of a stream of draws in a fixed number of numbers, so that a record of a sweep can hold them and go on.

A uniformly collapsing sketch (UDDSketch: I. Epicoco, C. Melle, M. Cafaro, M. Pulimeno, IEEE Access 8 (2020),
147604-147617), for draws of either sign.  At level k a positive draw v counts in bin i = ceil(log(v) / h), h = 2^k h_0;
where draws fill more than `BINS` bins, pairs of neighbours are merged and the level is one higher.  So the level is the
least at which all draws so far fill no more, and the counts depend neither on the order of the draws nor on how often
the stream was stopped.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from finwidth.networks.laws import FloatArray
from finwidth.sampling.statistics.quantile_sketch import Measured

BINS = 512
STATE = ("level", *(f"{part} {i}" for part in ("bin", "count") for i in range(BINS)))

_WIDTH = 2e-3  # h_0, of a bin at level 0 in log v: quantiles of narrow laws are right to 0.2%
# Added to the bins of positive draws, so that those of negative ones are their negatives and that of 0 is 0; a power of
# two, so that merging pairs leaves it between them.
_OFFSET = 2**20
_LARGEST_LOG = 711.0  # of an infinite draw: more than that of the largest double

_Integers: TypeAlias = npt.NDArray[np.int64]


class BoundedSketch:
    """A stream of real draws in at most `BINS` bins.

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth.sweeps.quantities.sketches import BoundedSketch
    >>> sketch = BoundedSketch()
    >>> for chunk in np.random.default_rng(0).normal(1, 2, size=(100, 1000)):
    ...     sketch.add(chunk)
    >>> round(sketch.quantile(0.5).value, 1), round(sketch.quantile(0.16).value, 1)
    (1.0, -1.0)
    >>> BoundedSketch(sketch.state()).quantile(0.5) == sketch.quantile(0.5)
    True
    """

    def __init__(self, state: FloatArray | None = None) -> None:
        self._level = 0
        self._bins, self._counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
        if state is not None:
            bins, counts = state[1:].reshape(2, BINS).astype(np.int64)
            self._level, self._bins, self._counts = int(state[0]), bins[counts > 0], counts[counts > 0]

    def state(self) -> FloatArray:
        """All that it knows, as numbers by the names in `STATE`."""
        found = np.zeros((2, BINS))
        found[0, : len(self._bins)], found[1, : len(self._bins)] = self._bins, self._counts
        return np.array([self._level, *found.ravel()])

    @property
    def draws(self) -> int:
        """Number of draws added."""
        return int(self._counts.sum())

    def add(self, values: FloatArray) -> None:
        """Take in a chunk of draws, shape (count,); they may be infinite."""
        with np.errstate(divide="ignore"):
            logs = np.clip(np.log(np.abs(values)), None, _LARGEST_LOG)
        places = np.where(values == 0, 0.0, np.ceil(logs / (_WIDTH * 2**self._level)) + _OFFSET / 2**self._level)
        self._bins, self._counts = _gathered(
            np.concatenate([self._bins, (np.sign(values) * places).astype(np.int64)]),
            np.concatenate([self._counts, np.ones(len(values), np.int64)]),
        )
        while len(self._bins) > BINS:
            self._level += 1
            self._bins, self._counts = _gathered(np.sign(self._bins) * ((np.abs(self._bins) + 1) // 2), self._counts)

    def quantile(self, share: float) -> Measured:
        """The value that this share of the draws does not exceed; NaN of no draws.

        Within a bin the logarithm is interpolated. The standard error is that of the rank times the slope of the
        quantiles, from two standard deviations of the rank below to two above.
        """
        draws = self.draws
        if not draws:
            return Measured(math.nan, math.nan)
        deviation = math.sqrt(share * (1 - share) / draws)
        ends = max(share - 2 * deviation, 0.0), min(share + 2 * deviation, 1.0)
        low, value, high = (self._quantile(each) for each in (ends[0], share, ends[1]))
        if not deviation or low == high:
            return Measured(value, 0.0 if math.isfinite(value) else math.inf)
        error = deviation * (high - low) / (ends[1] - ends[0])
        return Measured(value, error if math.isfinite(error) else math.inf)

    def _quantile(self, share: float) -> float:
        below = np.cumsum(self._counts)
        rank = min(max(share * below[-1], 0.5), below[-1] - 0.5)
        place = int(np.searchsorted(below, rank))
        inside = (rank - below[place]) / self._counts[place]  # from -1 to 0
        number = int(self._bins[place])
        if not number:
            return 0.0
        # Bins of negative draws are read from their lower end, -e^(h i), to their upper one.
        end = abs(number) - _OFFSET / 2**self._level + (inside if number > 0 else -1 - inside)
        with np.errstate(over="ignore"):
            return float(np.copysign(np.exp(_WIDTH * 2**self._level * end), number))


def _gathered(bins: _Integers, counts: _Integers) -> tuple[_Integers, _Integers]:
    """The different bins in order, with the sums of their counts."""
    found, places = np.unique(bins, return_inverse=True)
    return found, np.bincount(places, weights=counts, minlength=len(found)).astype(np.int64)
