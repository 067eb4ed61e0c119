r"""The random numbers of the chains: exact in law, and cheaper than NumPy's own.

Fair coins. With T_k = floor(2^64 P(m <= k)), computed in whole numbers, m is the number of T_k that a uniform u of 64
bits has reached. Sixteen bits of u nearly always tell which; the other 48 are drawn where they do not. So every
probability is right to 2^-63, and values in a tail of less than 2^-64 are not drawn.

Chi-squares. The method of Marsaglia and Tsang (2000): with d = k/2 - 1/3, x a standard normal and s = x / sqrt(9 d),
the proposal d (1 + s)^3 is rejected with probability r = 1 - exp(-d g(s)) (1 where s <= -1),

    g(s) = s^3 - 3 s^2/2 + 3 s - 3 log(1 + s) = integral of 3 u^3 / (1 + u) from 0 to s ,

and what is accepted has the law of chi2(k)/2. A bound on r comes first: 1/(1 + u) <= 4 for u >= -3/4, so that
r <= d g(s) <= 3 d s^4 = x^4 / (27 d), and below -3/4 the bound exceeds 1 once d > 1.06, which k >= 3 sees to. Sixteen
bits of a uniform nearly always exceed it; r itself is computed only where they do not, and what is rejected is drawn
from NumPy's gamma, as are all chi-squares where some k is below 3.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from finwidth.networks.laws import FloatArray

_Bits = npt.NDArray[np.uint16]

_BUCKETS = 2**16
_LEAST = -1 + 1e-15  # where r is 1 to all digits, as it is below
_BLOCK = 2**15  # of chi-squares: their work arrays stay in a core's cache
# Up to this many coins there is a table: 0.05 s to make and 2,400 thresholds at most. NumPy's binomial beyond.
MOST_COINS = 2**16


@lru_cache(maxsize=256)
def thresholds(n: int) -> tuple[int, npt.NDArray[np.uint64]]:
    """The least number of heads that is drawn of ``n`` coins, and the T_k from there on, as uint64.

    Examples
    --------
    >>> from finwidth.sampling.random.variates import thresholds
    >>> low, reached = thresholds(2)
    >>> low, [int(each) / 2**64 for each in reached]
    (0, [0.25, 0.75])
    """
    k = max(0, n // 2 - 7 * math.isqrt(n) - 1)  # fourteen deviations below the mean
    term = total = math.comb(n, k)
    low = 0
    reached: list[int] = []
    while True:
        threshold = (total << 64) >> n
        if threshold == 0:
            low = k + 1
        elif (((1 << n) - total) << 64) >> n == 0:  # what is left above k is rarer than 2^-64
            return low, np.array(reached, dtype=np.uint64)
        else:
            reached.append(threshold)
        term = term * (n - k) // (k + 1)
        k += 1
        total += term


@lru_cache(maxsize=16)
def _guide(n: int) -> FloatArray:
    """The number of heads for each value of the first sixteen bits, -1 where they do not tell."""
    low, reached = thresholds(n)
    first = np.arange(_BUCKETS, dtype=np.uint64) << np.uint64(48)
    least = np.searchsorted(reached, first, side="right")
    most = np.searchsorted(reached, first | np.uint64(2**48 - 1), side="right")
    return np.where(least == most, least + float(low), -1.0)


class Variates:
    """Draws from a NumPy generator: normals as they are, coins and chi-squares by the methods above.

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth.sampling.random.variates import Variates
    >>> draws = Variates(np.random.default_rng(0))
    >>> heads = draws.coins(100, 50_000)
    >>> bool(abs(heads.mean() - 50) < 0.15), bool(abs((draws.chi_square(heads) / heads).mean() - 1) < 0.01)
    (True, True)
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.standard_normal = rng.standard_normal
        self._work = np.empty((2, _BLOCK))

    def _sixteen_bits(self, count: int) -> _Bits:
        """Uniform on 0, ..., 65535."""
        words = self.rng.integers(0, 2**64 - 1, -(-count // 4), dtype=np.uint64, endpoint=True)
        return words.view(np.uint16)[:count]

    def coins(self, n: int, count: int, out: FloatArray | None = None) -> FloatArray:
        """``count`` independent numbers of heads among ``n`` fair coins."""
        if n > MOST_COINS:
            out = np.empty(count) if out is None else out
            out[:] = self.rng.binomial(n, 0.5, count)
            return out
        bits = self._sixteen_bits(count)
        out = np.take(_guide(n), bits, out=out, mode="clip")
        untold = np.flatnonzero(out < 0)
        if len(untold):
            rest = self.rng.integers(0, 2**48, len(untold), dtype=np.uint64)
            low, reached = thresholds(n)
            out[untold] = low + np.searchsorted(
                reached, (bits[untold].astype(np.uint64) << np.uint64(48)) | rest, "right"
            )
        return out

    def chi_square(self, k: FloatArray, less: int = 0, scale: float = 1.0, out: FloatArray | None = None) -> FloatArray:
        """``scale`` times independent chi2(k - less), for an array of whole numbers k; 0 where k <= less.

        ``out`` is contiguous, of the size of k, and not k itself.
        """
        out = np.empty(k.shape) if out is None else out
        flat, drawn = k.reshape(-1), out.reshape(-1)
        if flat.min(initial=np.inf) - less < 3:
            self.rng.standard_gamma(np.maximum((flat - less) / 2, 0), out=drawn)
            drawn *= 2 * scale
            return out
        bits, unsure = self._sixteen_bits(flat.size), np.empty(flat.size, dtype=np.bool_)
        for start in range(0, flat.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            unsure[block] = self._propose(flat[block], less, scale, drawn[block], bits[block])
        place = np.flatnonzero(unsure)
        e = flat[place] - (less + 2 / 3)
        self._redraw(_rejection(e / 2, np.cbrt(drawn[place] / (scale * e)) - 1), e, scale, drawn, place, bits)
        return out

    def chi_squares(self, k: int, count: int) -> FloatArray:
        """``count`` independent chi2(k) of one number k; 0 where k <= 0."""
        if k < 3:
            return 2 * self.rng.standard_gamma(max(k, 0) / 2, count)
        d2, drawn, bits = k - 2 / 3, self.rng.standard_normal(count), self._sixteen_bits(count)
        drawn /= math.sqrt(d2)
        work = np.square(drawn)
        work *= work
        work *= 2 / 27 * _BUCKETS * d2
        place = np.flatnonzero(bits < work)
        drawn += 3 / math.sqrt(2)
        np.square(drawn, out=work)
        work *= 2 * math.sqrt(2) / 27 * d2
        drawn *= work
        e = np.full(len(place), d2)
        self._redraw(_rejection(e / 2, np.cbrt(drawn[place] / e) - 1), e, 1.0, drawn, place, bits)
        return drawn

    def _redraw(  # noqa: PLR0917
        self, r: FloatArray, e: FloatArray, scale: float, drawn: FloatArray, place: npt.NDArray[np.intp], bits: _Bits
    ) -> None:
        """Draw again what is rejected, with probabilities r, of the proposals at ``place``."""
        uniform = (bits[place] + self.rng.random(len(place))) / _BUCKETS
        rejected = np.flatnonzero(uniform < r)
        if len(rejected):
            drawn[place[rejected]] = 2 * scale * self.rng.standard_gamma(e[rejected] / 2 + 1 / 3)

    def _propose(self, k: FloatArray, less: int, scale: float, out: FloatArray, bits: _Bits) -> npt.NDArray[np.bool_]:
        """Fill a block with proposals 2 d (1 + s)^3, and tell which of them may have to be rejected."""
        e, bound = self._work[:, : len(k)]
        # In e = 2 d and y = x / sqrt(e): s = sqrt(2) y / 3, and x^4 / (27 d) = 2 e y^4 / 27.
        np.subtract(k, less + 2 / 3, out=e)
        self.rng.standard_normal(out=out)
        out /= np.sqrt(e, out=bound)
        np.square(out, out=bound)
        bound *= bound
        bound *= e
        bound *= 2 / 27 * _BUCKETS
        unsure: npt.NDArray[np.bool_] = bits < bound
        e *= scale * 2 * math.sqrt(2) / 27
        out += 3 / math.sqrt(2)
        e *= out
        out *= out
        out *= e
        return unsure


def _rejection(d: FloatArray, s: FloatArray) -> FloatArray:
    """r, the probability that a proposal is rejected."""
    s = np.maximum(s, _LEAST)
    square = s * s
    r: FloatArray = -np.expm1(d * (1.5 * square - square * s - 3 * s + 3 * np.log1p(s)))
    return r
