"""The one loop of all samplers: what it asks of one, and what it refuses before anything is drawn."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest

from finwidth import MLP, FinwidthError, memory
from finwidth.errors import SizeError
from finwidth.sampling.sampler import Chunk, Columns, Sampler, afford_draws, collect, draw_chunks


class Numbers(Sampler):
    """Uniform numbers, and which thread drew them; a smaller sampler than any of the package's."""

    shapes: Mapping[str, tuple[int, ...]] = {"value": (), "pair": (2,)}
    fewer: ClassVar[str] = "take less"

    def __init__(self, bytes_each: int = 8, seconds: float = 1e-6, parts: int = 1) -> None:
        self.bytes_each, self.time, self.parts = bytes_each, seconds, parts
        self.threads: set[int] = set()

    @staticmethod
    def unsupported(net: MLP) -> list[str]:
        return []

    @property
    def chunk_size(self) -> int:
        return 100

    def memory(self, draws: int) -> int:
        return self.bytes_each * draws

    @property
    def seconds(self) -> float:
        return self.time

    def task(self, draws: int) -> str:
        return f"drawing {draws} numbers"

    def draw(self, chunk: Chunk) -> Columns:
        self.threads.add(threading.get_ident())
        value = chunk.stream().random(chunk.draws)
        if self.parts > 1:
            for _ in range(self.parts):
                chunk.tick(chunk.draws)
        return {"value": value, "pair": np.stack([value, -value], axis=1), "further": value}

    def check(self, drawn: Columns) -> None:
        if (drawn["value"] > 0.9999).any():
            raise FinwidthError("a number is too large; take another seed")


@pytest.mark.parametrize("draws", [1, 99, 100, 101, 1000])
def test_threads_and_the_number_of_draws_do_not_change_the_numbers(draws: int) -> None:
    whole = np.concatenate([Chunk(3, number, 100).stream().random(100) for number in range(10)])
    for threads in (1, 2, 5):
        drawn = collect(Numbers(), draws, 3, threads=threads)
        assert np.array_equal(drawn["value"], whole[:draws])
        assert drawn["pair"].shape == (draws, 2)
        assert set(drawn) == {"value", "pair"}


def test_threads_are_used_and_no_more_than_there_are_chunks() -> None:
    used = Numbers()
    collect(used, 1000, threads=4)
    assert threading.get_ident() not in used.threads
    alone = Numbers()
    collect(alone, 100, threads=4)
    assert alone.threads == {threading.get_ident()}


def test_the_default_number_of_threads_is_bounded_by_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finwidth.sampling.sampler.check_threads", lambda threads: threads or 64)
    monkeypatch.setattr(memory, "available", lambda: 2**50)
    asked: list[int] = []

    def noted(task, items, threads):  # type: ignore[no-untyped-def]
        asked.append(threads)
        return map(task, items)

    monkeypatch.setattr("finwidth.sampling.sampler.in_order", noted)
    for bytes_each, threads in ((1, 64), (2**31 // 300, 3), (2**40 // 100, 1)):
        collect(Numbers(bytes_each), 10_000)
        assert asked.pop() == threads


@pytest.mark.parametrize(("parts", "told"), [(1, [100, 200, 250]), (2, [100, 200, 300, 400, 450, 500])])
def test_progress_counts_draws_times_parts(parts: int, told: list[int]) -> None:
    seen: list[int] = []
    for _ in draw_chunks(Numbers(parts=parts), 250, threads=1, progress=seen.append):
        pass
    assert seen == told


def test_progress_of_parts_is_told_by_all_threads() -> None:
    seen: list[int] = []
    collect(Numbers(parts=7), 10_000, threads=8, progress=seen.append)
    assert seen == list(range(100, 70_001, 100))


def test_progress_can_end_the_work() -> None:
    def stop(done: int) -> None:
        raise KeyboardInterrupt

    sampler = Numbers()
    with pytest.raises(KeyboardInterrupt):
        collect(sampler, 10**6, threads=1, progress=stop)


def test_what_is_drawn_is_checked() -> None:
    with pytest.raises(FinwidthError, match="too large"):
        collect(Numbers(), 10**6)


def test_sizes_are_refused_before_anything_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 2**34)
    for sampler, draws, words in (
        (Numbers(bytes_each=2**30), 10, "drawing 10 numbers needs up to 10 GiB.*take less"),  # 12 GiB are used
        (Numbers(seconds=1e4), 10**4, "drawing 10000 numbers would take about 3.2 years.*make fewer draws"),
        (Numbers(), 10**9, "drawing 1000000000 numbers needs up to 22.35 GiB.*make fewer draws"),
    ):
        if "10 GiB" in words:
            monkeypatch.setattr(memory, "available", lambda: 2**33)
        with pytest.raises(SizeError, match=words):
            collect(sampler, draws, threads=1)
        assert not sampler.threads
    afford_draws(Numbers(), 10**9, 1)  # chunk by chunk there is room


@pytest.mark.parametrize(
    ("arguments", "words"), [({"draws": 0}, "draws"), ({"seed": -1}, "seed"), ({"threads": 0}, "threads")]
)
def test_arguments_are_checked(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(FinwidthError, match=f"{words} is"):
        next(draw_chunks(Numbers(), **{"draws": 5, **arguments}))
