"""Estimates from draws that say when they cannot be trusted, in bounded memory.

The weight part of K is close to log-normal with a log-variance that grows like 5 beta, so the sample averages of K^2
and Delta K of deep narrow networks rest on draws that never happen, and their own standard errors do not see it.  What
a sample can see is how many draws carry its sum: the effective number (sum v)^2 / sum v^2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from finwidth.networks.inputs import exponent
from finwidth.networks.laws import FloatArray
from finwidth.quantities import CONSTANT, DRAWN, Estimate

# Below this many effective draws the relative standard error exceeds 5%; above it, no single draw can hold more than
# 1/20 of the sum.
_TRUSTED_EFFECTIVE_DRAWS = 400
# A standard error that rests on one draw to more than this share of its square has not converged itself.
_TRUSTED_SHARE = 0.1
# An honest estimate is this far from the exact value once in 10^6.
_TRUSTED_Z = 4.9


class Accumulator:
    """Count, mean and sum of squared deviations of a stream of draws, merged chunk by chunk without cancellation.

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth.sampling.statistics.estimates import Accumulator
    >>> total = Accumulator()
    >>> for chunk in np.arange(1000.0).reshape(10, 100):
    ...     total.add(chunk)
    >>> total.estimate().value, round(total.estimate().se, 3)
    (499.5, 9.133)
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.squared_deviations = 0.0
        self.smallest, self.largest = math.inf, -math.inf

    def add(self, values: FloatArray) -> None:
        """Take in a chunk of draws, shape (count,)."""
        if not len(values):
            return
        chunk = Accumulator()
        with np.errstate(over="ignore", invalid="ignore"):  # an infinite mean or error is told as such
            chunk.count, chunk.mean = len(values), float(values.mean())
            chunk.squared_deviations = float(np.square(values - chunk.mean).sum())
            chunk.smallest, chunk.largest = float(values.min()), float(values.max())
            self.merge(chunk)

    def merge(self, other: Accumulator) -> None:
        """Take in all draws of another."""
        if not other.count:
            return
        shift, total = other.mean - self.mean, self.count + other.count
        self.squared_deviations += other.squared_deviations + shift * shift * self.count * other.count / total
        self.mean += shift * other.count / total
        self.count = total
        self.smallest, self.largest = min(self.smallest, other.smallest), max(self.largest, other.largest)

    def estimate(self, exact: float | None = None) -> Estimate:
        """The mean with its standard error, judged by itself and, where there is one, by the ``exact`` value."""
        if not self.count:
            return Estimate(math.nan, math.nan, 0, 0.0, trust=False, verdict="no draw has a value")
        if not math.isfinite(self.mean):
            infinite = math.inf if self.largest == math.inf else -math.inf
            return Estimate(infinite, math.inf, self.count, 0.0, trust=False, verdict="a draw overflows a double")
        se = math.sqrt(self.squared_deviations / max(self.count - 1, 1)) / math.sqrt(self.count)
        # (sum v)^2 / sum v^2 = count / (1 + relative variance), a form that does not overflow.
        spread = math.sqrt(self.squared_deviations / self.count) / abs(self.mean) if self.mean else 0.0
        effective = self.count / (1 + spread * spread)
        return Estimate(self.mean, se, self.count, effective, *self._judge(se, effective, exact))

    def _judge(self, se: float, effective: float, exact: float | None) -> tuple[bool, str]:
        if se <= CONSTANT * abs(self.mean):
            return self._judge_constant(exact)
        if effective < _TRUSTED_EFFECTIVE_DRAWS:
            return False, f"about {effective:.3g} of {self.count} draws carry the sum, too few to tell its error"
        furthest = max(self.largest - self.mean, self.mean - self.smallest) / math.sqrt(self.squared_deviations)
        if furthest**2 > _TRUSTED_SHARE:
            return False, f"one draw makes {furthest**2:.0%} of the squared standard error, too much to tell the error"
        if exact is not None and not abs(self.mean - exact) <= _TRUSTED_Z * se:
            return False, f"{abs(self.mean - exact) / se:.1f} standard errors from the exact value"
        return True, f"about {effective:.3g} of {self.count} draws carry the sum"

    def _judge_constant(self, exact: float | None) -> tuple[bool, str]:
        """Draws that are all equal: a quantity that does not vary, or too few draws to see that it does."""
        if exact is None:
            return False, f"all {self.count} draws are equal, which tells nothing of the error"
        if abs(self.mean - exact) <= 1e-9 * abs(exact):
            return True, f"all {self.count} draws are equal to the exact value"
        return False, f"all {self.count} draws are equal, and not to the exact value: those that matter are too rare"


class ScaledAccumulator:
    """An `Accumulator` of draws of any size: in units of a power of two, which keep their squares from overflow.

    Examples
    --------
    >>> from finwidth.sampling.statistics.estimates import ScaledAccumulator
    >>> total = ScaledAccumulator()
    >>> total.add(1e200 * np.arange(1000.0))
    >>> total.estimate().value, round(total.estimate().se / 1e200, 3)
    (4.995e+202, 9.133)
    """

    def __init__(self) -> None:
        self._total = Accumulator()
        self._unit: int | None = None  # its exponent

    def add(self, values: FloatArray) -> None:
        """Take in a chunk of draws, shape (count,)."""
        if self._unit is None:
            self._unit = exponent(values)
        self._total.add(np.ldexp(values, -self._unit) if self._unit else values)

    def estimate(self, exact: float | None = None) -> Estimate:
        """As that of an `Accumulator`."""
        unit = self._unit or 0
        known = exact if exact is not None and math.isfinite(exact) else None
        found = self._total.estimate(None if known is None else float(np.ldexp(known, -unit)))
        with np.errstate(over="ignore"):
            value, se = (float(np.ldexp(each, unit)) for each in (found.value, found.se))
        return replace(found, value=value, se=se)


class MomentAccumulators:
    """Estimates of the moments in `finwidth.quantities.DRAWN` from draws that come in chunks.

    Chunks with a ``weight`` (`sampling.one_input.importance`) average weight x quantity.

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth.sampling.statistics.estimates import MomentAccumulators
    >>> found = MomentAccumulators()
    >>> for K in np.arange(1000.0).reshape(10, 100):
    ...     found.add({"K": K, "K_w": K - 1, "K_b": 1 + 0 * K, "dK": -K})
    >>> found.estimates()["K_w"].value
    498.5
    """

    def __init__(self) -> None:
        self._totals: dict[str, ScaledAccumulator] = {}

    def add(self, drawn: Mapping[str, FloatArray]) -> None:
        """Take in a chunk of draws: the columns of `finwidth.sample`, shape (draws,) each; dK may be missing."""
        for name, value in DRAWN.items():
            if name == "dK" and name not in drawn:
                continue
            with np.errstate(over="ignore", under="ignore"):  # an infinite draw is told as such
                values = value(drawn) * drawn["weight"] if "weight" in drawn else value(drawn)
            self._totals.setdefault(name, ScaledAccumulator()).add(values)

    def estimates(self, exact: Mapping[str, float] | None = None) -> dict[str, Estimate]:
        """An estimate of each moment, judged by itself and by the ``exact`` values that there are."""
        known = exact or {}
        return {name: each.estimate(known.get(name)) for name, each in self._totals.items()}


def estimate_moments(
    chunks: Iterable[Mapping[str, FloatArray]], exact: Mapping[str, float] | None = None
) -> dict[str, Estimate]:
    """Estimates of the moments in `finwidth.quantities.DRAWN` from draws in chunks.

    Examples
    --------
    >>> from finwidth import MLP
    >>> from finwidth.sampling.one_input.sample import one_input_sampler
    >>> from finwidth.sampling.sampler import draw_chunks
    >>> from finwidth.sampling.statistics.estimates import estimate_moments
    >>> found = estimate_moments(draw_chunks(one_input_sampler(MLP([3, *[2] * 20, 1]), [1, 2, 2]), draws=50_000))
    >>> found["K_b"].trust, found["K^2"].trust
    (False, False)
    """
    found = MomentAccumulators()
    for drawn in chunks:
        found.add(drawn)
    return found.estimates(exact)
