r"""The distribution of a non-negative quantity from a stream of draws: quantiles, and moments of its logarithm.

Counts in bins (g^(i-1), g^i], g = (1 + a)/(1 - a) with a = 10^-3, and the number of zeros. Every value of a bin is
within the share a of 2 g^i / (1 + g), so any quantile of the draws is known to 0.1%, however many draws and however
heavy the tails. Counts are whole numbers: they depend neither on the order of the draws nor on how they were split and
merged. The positive doubles span 730,000 bins, 6 MB; kernels span some thousands.

This is DDSketch (C. Masson, J. E. Rim, H. K. Lee, PVLDB 12 (2019), 2195-2205) with bins that are kept in one array.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from finwidth.errors import FinwidthError
from finwidth.networks.laws import FloatArray
from finwidth.sampling.statistics.estimates import Accumulator

ACCURACY = 1e-3
_LOG_BASE = math.log1p(ACCURACY) - math.log1p(-ACCURACY)
_LARGEST_LOG = math.log(sys.float_info.max)
SHOWN = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Measured:
    """A statistic of draws and its standard error."""

    value: float
    se: float

    def content(self) -> dict[str, float]:
        """Plain types."""
        return {"value": self.value, "se": self.se}


class QuantileSketch:
    """A stream of non-negative draws in bounded memory: quantiles, by a DDSketch, and moments of the logarithm.

    Examples
    --------
        >>> import numpy as np
        >>> from finwidth.sampling.statistics.quantile_sketch import QuantileSketch
        >>> sketch = QuantileSketch()
        >>> for chunk in np.exp(np.random.default_rng(0).normal(size=(100, 1000))):
        ...     sketch.add(chunk)
        >>> round(sketch.quantile(0.5).value, 2), round(sketch.log_sd.value, 2), sketch.zeros
        (1.0, 1.0, 0.0)
    """

    def __init__(self) -> None:
        self._first = 0  # the bin of counts[0]
        self._counts = np.zeros(0, dtype=np.int64)
        self._zero = 0
        self._least, self._largest = math.inf, 0.0  # of the positive draws
        self._logs = Accumulator()

    def add(self, values: FloatArray) -> None:
        """Take in a chunk of draws, shape (count,); raises FinwidthError for one that is negative or not finite."""
        if not (np.isfinite(values) & (values >= 0)).all():
            raise FinwidthError("a law on a logarithmic scale needs finite draws of at least 0")
        positive = values[values > 0]
        self._zero += len(values) - len(positive)
        if len(positive):
            self._least = min(self._least, float(positive.min()))
            self._largest = max(self._largest, float(positive.max()))
            logs = np.log(positive)
            self._logs.add(logs)
            bins = np.ceil(logs / _LOG_BASE).astype(np.int64)
            first = int(bins.min())
            self._count(first, np.bincount(bins - first))

    @classmethod
    def of(cls, values: FloatArray) -> QuantileSketch:
        """That of all draws of one array, shape (count,)."""
        sketch = cls()
        sketch.add(values)
        return sketch

    def _count(self, first: int, counts: npt.NDArray[np.int64]) -> None:
        """Add counts of the bins from ``first`` on."""
        if not len(self._counts):
            self._first = first
        start = min(self._first, first)
        stop = max(self._first + len(self._counts), first + len(counts))
        if stop - start > len(self._counts):
            grown = np.zeros(stop - start, dtype=np.int64)
            grown[self._first - start : self._first - start + len(self._counts)] = self._counts
            self._first, self._counts = start, grown
        self._counts[first - self._first : first - self._first + len(counts)] += counts

    def merge(self, other: QuantileSketch) -> None:
        """Take in all draws of another."""
        self._zero += other._zero
        self._least, self._largest = min(self._least, other._least), max(self._largest, other._largest)
        self._logs.merge(other._logs)
        if len(other._counts):
            self._count(other._first, other._counts)

    @property
    def draws(self) -> int:
        """Number of draws added."""
        return self._zero + self._logs.count

    @property
    def zeros(self) -> float:
        """The share of draws that are zero."""
        return self._zero / self.draws

    def quantile(self, share: float) -> Measured:
        """The least value that at least this share of the draws does not exceed, to 0.1%.

        The standard error is half the distance of the quantiles one standard deviation of the rank below and above.
        """
        if not 0 <= share <= 1:
            raise FinwidthError(f"a quantile's share is {share!r}; give a number from 0 to 1; 0.5 is the median")
        deviation = math.sqrt(share * (1 - share) / self.draws)
        low, value, high = (self._quantile(each) for each in (share - deviation, share, share + deviation))
        return Measured(value, (high - low) / 2)

    def _quantile(self, share: float) -> float:
        rank = min(max(math.ceil(share * self.draws), 1), self.draws)
        if rank <= self._zero:
            return 0.0
        place = self._first + int(np.searchsorted(np.cumsum(self._counts), rank - self._zero))
        # 2 g^i / (1 + g), without g^i, which may overflow.
        middle = math.exp(min(place * _LOG_BASE - math.log((1 + math.exp(_LOG_BASE)) / 2), _LARGEST_LOG))
        return min(max(middle, self._least), self._largest)

    @property
    def relative_spread(self) -> Measured:
        """Half the distance of the quantiles one standard deviation of a normal law from the median, over the median.

        Infinite where the median is 0. Its error is that of independent quantiles, a little more than the true one.
        """
        low, middle, high = (self.quantile(share) for share in (NormalDist().cdf(-1), 0.5, NormalDist().cdf(1)))
        if not middle.value:
            return Measured(math.inf, math.inf)
        value = (high.value - low.value) / (2 * middle.value)
        error = math.hypot(high.se / (2 * middle.value), low.se / (2 * middle.value), value * middle.se / middle.value)
        return Measured(value, error)

    @property
    def log_mean(self) -> Measured:
        """The mean of the logarithm over the draws that are not zero."""
        return Measured(self._logs.mean, self.log_sd.value / math.sqrt(max(self._logs.count, 1)))

    @property
    def log_sd(self) -> Measured:
        """The standard deviation of the logarithm over the draws that are not zero; its error from the bins."""
        count = self._logs.count
        variance = self._logs.squared_deviations / max(count - 1, 1)
        if not variance:
            return Measured(0.0, 0.0)
        logs = (self._first + np.arange(len(self._counts)) - 0.5) * _LOG_BASE
        fourth = float((self._counts * (logs - self._logs.mean) ** 4).sum()) / count
        return Measured(math.sqrt(variance), math.sqrt(max(fourth - variance**2, 0) / (4 * variance * count)))

    def content(self) -> dict[str, dict[str, float]]:
        """Quantiles of K, their spread, moments of log K and the share of zeros, each by its name."""
        found = {f"q{100 * share:g}(K)": self.quantile(share) for share in SHOWN}
        found |= {"spread(K)": self.relative_spread, "mean(log K)": self.log_mean, "sd(log K)": self.log_sd}
        return {name: each.content() for name, each in found.items()} | {"share(K = 0)": {"value": self.zeros}}
