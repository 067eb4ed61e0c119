"""Normals in whole arrays: the staircase by quadrature, and each part of the draws against its own law."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import integrate, stats

from finwidth.sampling.random import normals
from finwidth.sampling.random.normals import BLOCK, FEWEST, LAYERS, Normals, staircase
from finwidth.sampling.random.streams import stream
from stats import follows, same_mean

FloatArray = npt.NDArray[Any]

DRAWS = 64 * BLOCK
x = staircase()


def f(at: float) -> float:
    return float(np.exp(-(at**2) / 2))


def test_strips_have_equal_areas() -> None:
    assert len(x) == LAYERS + 1
    assert (np.diff(x) < 0).all()
    assert x[-1] == 0
    tail, _ = integrate.quad(f, x[1], np.inf, epsabs=0)
    areas = [x[1] * f(x[1]) + tail, *(x[i] * (f(x[i + 1]) - f(x[i])) for i in range(1, LAYERS))]
    assert np.allclose(areas, x[0] * f(x[1]), rtol=1e-12, atol=0)


def at_once(values: Any) -> Any:
    """Distribution function of |x| for a number of a strip, times the probability that it is accepted at once."""
    wider = LAYERS - np.searchsorted(x[:0:-1], np.abs(values))  # boxes that reach beyond
    per_length, whole = (np.append(0, np.cumsum(each / x[:-1])) for each in (np.ones(LAYERS), x[1:]))
    return (np.abs(values) * per_length[wider] + whole[-1] - whole[wider]) / LAYERS


def settled_law(values: FloatArray) -> Any:
    """Distribution function of |x| for what is not accepted at once: what the normal law has beyond the boxes."""
    return (2 * stats.norm.cdf(np.abs(values)) - 1 - at_once(values)) / (1 - at_once(x[0]))


class Watched(Normals):
    """Keeps what `_settled` makes."""

    def __init__(self, seed: int) -> None:
        super().__init__(stream(seed, 0))
        self.settled: list[FloatArray] = []

    def _settled(self, strip: npt.NDArray[np.int64], values: FloatArray) -> FloatArray:
        made = super()._settled(strip, values)
        self.settled.append(made.copy())
        return made


def drawn(seed: int) -> tuple[FloatArray, FloatArray]:
    """Numbers, and those of them that were not accepted at once."""
    made = Watched(seed)
    numbers = made.standard_normal((DRAWS,))
    return numbers, np.concatenate(made.settled)


def beside(numbers: FloatArray) -> Any:
    """Uniform on (0, 1) if the numbers beyond x_1 follow the tails."""
    return stats.norm.sf(np.abs(numbers[np.abs(numbers) > x[1]])) / stats.norm.sf(x[1])


def test_numbers_are_normal() -> None:
    numbers, settled = drawn(0)
    assert follows(numbers, stats.norm.cdf)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert same_mean(numbers**power, moment, variance)
    assert follows((numbers[::2] + numbers[1::2]) / 2**0.5, stats.norm.cdf)
    beyond = 2 * stats.norm.sf(x[1])
    assert same_mean((np.abs(numbers) > x[1]).astype(float), beyond, beyond * (1 - beyond))
    assert follows(beside(numbers), stats.uniform.cdf)
    rejected = 1 - at_once(x[0])
    assert abs(len(settled) / DRAWS - rejected) < 5 * (rejected / DRAWS) ** 0.5
    assert follows(np.abs(settled), settled_law)
    assert same_mean(np.sign(settled), 0, 1)


def test_a_strip_taken_whole_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a height, what is outside of a box would be kept."""
    tables = normals._tables()
    low = tables._replace(height=tables.height / 2, rise=tables.rise / 2)
    monkeypatch.setattr(normals, "_tables", lambda: low)
    numbers, settled = drawn(0)
    assert not follows(np.abs(settled), settled_law)
    assert follows(beside(numbers), stats.uniform.cdf)


def test_missing_tails_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scipy.special.ndtri", lambda below: np.linspace(-x[1], -x[0], len(below)))
    numbers, _ = drawn(0)
    assert not follows(beside(numbers), stats.uniform.cdf)


def test_a_wrong_last_bit_of_the_strip_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the strips, twice as often."""
    tables = normals._tables()
    width, inner, height, rise = (np.repeat(each[::2], 2) for each in tables[:4])
    halved = normals._Tables(width, inner, height, rise, tables.tail)
    monkeypatch.setattr(normals, "_tables", lambda: halved)
    _, settled = drawn(0)
    assert not follows(np.abs(settled), settled_law)


class Words:
    """A generator of chosen words."""

    def __init__(self, words: npt.NDArray[np.uint64]) -> None:
        self.words = words

    def integers(self, *_: int, **__: object) -> npt.NDArray[np.uint64]:
        return self.words

    def random(self, count: int) -> FloatArray:
        return np.full(count, 0.5)

    def standard_normal(self, count: int) -> FloatArray:
        return np.full(count, np.nan)


def test_a_word_is_a_strip_and_a_place_in_it() -> None:
    words = np.random.default_rng(0).integers(0, 2**64 - 1, FEWEST, dtype=np.uint64, endpoint=True)
    numbers = Normals(Words(words.copy())).standard_normal((FEWEST,))  # type: ignore[arg-type]
    strip = (words % np.uint64(LAYERS)).astype(int)
    place = np.array([int(word) - 2**64 * (int(word) >= 2**63) for word in words]) / 2**63
    inside = np.abs(x[strip] * place) < x[strip + 1]
    assert np.allclose(numbers[inside], (x[strip] * place)[inside], rtol=1e-15, atol=0)
    assert 0.99 < inside.mean() < 1


@pytest.mark.parametrize("size", [(0,), (1,), (3, 0, 5), (7, 11), (FEWEST,), (3, BLOCK // 2 + 1), (BLOCK, 2)])
def test_any_shape(size: tuple[int, ...]) -> None:
    one, same = (Normals(stream(1, 0)).standard_normal(size) for _ in range(2))
    assert one.shape == size
    assert np.array_equal(one, same)
    assert len(np.unique(one)) == one.size
