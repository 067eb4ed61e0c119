"""What a sampler is, and the one loop of all that are: chunks of draws on threads or a device, sizes refused first.

A sampler draws networks of one description at fixed inputs, or what is drawn in their place.  Its draws come in chunks,
each from a random stream of its own.  The size of a chunk depends on the network and its inputs only, so that a seed
fixes the numbers, whatever the number of threads.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np

from finwidth import arguments
from finwidth.arguments import FloatArray, count
from finwidth.memory import afford
from finwidth.progress import check_time, stage
from finwidth.sampling.random.device import DeviceGenerator
from finwidth.sampling.random.streams import check_threads, in_order, stream

if TYPE_CHECKING:
    import torch

Columns: TypeAlias = dict[str, FloatArray]  # quantities by name, with the draws along the first axis

_THREADS_BYTES = 2**31  # what the default number of threads may use together


@dataclass(frozen=True)
class Chunk:
    """Draws that share a random stream: how many, and which chunk of a seed's they are.

    ``tick`` is called with a number of draws each time so many have taken one of a sampler's ``parts``.
    """

    seed: int
    number: int
    draws: int
    tick: Callable[[int], object] = lambda draws: None

    def stream(self, *purpose: int) -> np.random.Generator:
        """The chunk's random numbers; further streams of it by a number for each purpose."""
        return stream(self.seed, self.number, *purpose)

    def stream_on(self, device: torch.device | None) -> np.random.Generator | DeviceGenerator:
        """The chunk's random numbers on a device; None: NumPy's."""
        return self.stream() if device is None else DeviceGenerator(device, self.seed, self.number)


class Sampler(ABC):
    """Draws of a network at fixed inputs.

    Attributes
    ----------
    shapes
        The shape of one draw of each quantity.
    device
        The torch device that it draws on; None: threads, with NumPy.
    parts
        In how many equal parts a draw is made.  Where they are more than one, `draw` tells of each by `Chunk.tick`.
    verb, fewer
        What progress calls the work, and what to ask for where the memory does not suffice.
    """

    shapes: Mapping[str, tuple[int, ...]]
    device: torch.device | None = None
    parts: int = 1
    verb: ClassVar[str] = "drawing"
    fewer: ClassVar[str]

    @staticmethod
    @abstractmethod
    def unsupported(net: Any) -> list[str]:
        """Reasons why it does not draw this network; none if it does."""

    @property
    @abstractmethod
    def chunk_size(self) -> int:
        """Draws of a chunk, by the network and its inputs only."""

    @abstractmethod
    def memory(self, draws: int) -> int:
        """Bytes that so many draws made at once need at their peak."""

    @property
    @abstractmethod
    def seconds(self) -> float:
        """About how long a draw takes in one thread."""

    @abstractmethod
    def task(self, draws: int) -> str:
        """The work in words, for messages: ``"drawing 10 networks of 3 layers"``."""

    @property
    def kept(self) -> int:
        """Bytes of the result for each draw."""
        return 8 * sum(math.prod(shape) for shape in self.shapes.values())

    @abstractmethod
    def draw(self, chunk: Chunk) -> Columns:
        """The draws of one chunk; several threads may call it at once."""

    def check(self, drawn: Columns) -> None:  # noqa: B027
        """Raise FinwidthError where draws overflow a double."""


def draw_chunks(
    sampler: Sampler,
    draws: int,
    seed: int = 0,
    *,
    threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Iterator[Columns]:
    """The draws of a sampler chunk by chunk, so that any number of them fits in memory.

    Parameters
    ----------
    sampler
        Such as `one_input_sampler` or `kernel_matrix_sampler` makes.
    draws, seed
        How many, and what fixes the numbers: chunk i has the i-th stream of the seed.
    threads
        How many to use; by default one for each core, fewer if their memory would exceed 2 GiB together.
    progress
        Called with the number of draws finished, times ``sampler.parts``, each time some are.

    Raises
    ------
    FinwidthError
        If an argument is not allowed, a draw overflows, or, as a SizeError, before anything is drawn if all would take
        over a year, or those made at once more memory than there is.

    Examples
    --------
    >>> from finwidth import MLP
    >>> from finwidth.sampling.one_input.sample import one_input_sampler
    >>> from finwidth.sampling.sampler import draw_chunks
    >>> [len(drawn["K"]) for drawn in draw_chunks(one_input_sampler(MLP([2, 4, 4, 1]), [1, 2]), draws=40_000, seed=1)]
    [16384, 16384, 7232]
    """
    with _drawn_chunks(sampler, count("draws", draws), seed, threads, progress) as chunks:
        yield from chunks


def collect(
    sampler: Sampler,
    draws: int,
    seed: int = 0,
    *,
    threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Columns:
    """All draws of `draw_chunks` in one array for each quantity of ``sampler.shapes``, (draws, ...)."""
    draws, start = count("draws", draws), 0
    afford_draws(sampler, draws, threads, kept=sampler.kept)
    columns = {name: np.empty((draws, *shape)) for name, shape in sampler.shapes.items()}
    with _drawn_chunks(sampler, draws, seed, threads, progress) as chunks:
        for drawn in chunks:
            for name, column in columns.items():
                column[start : start + len(drawn[name])] = drawn[name]
            start += len(drawn[name])
    return columns


@contextmanager
def _drawn_chunks(
    sampler: Sampler, draws: int, seed: int, threads: int | None, progress: Callable[[int], object] | None
) -> Iterator[Iterator[Columns]]:
    """The chunks, each drawn when it is asked for and told when it is there; over when the context ends."""
    seed, tell = arguments.check_seed(seed), arguments.progress(progress)
    afford_draws(sampler, draws, threads)
    size, done, one_at_a_time = sampler.chunk_size, 0, Lock()
    total = -(-draws // size)
    with stage(sampler.verb, draws * sampler.parts, tell) as told:

        def tick(finished: int) -> None:
            nonlocal done
            with one_at_a_time:  # parts of draws end in several threads
                done += finished
                told(done)

        def finish(drawn: Columns) -> Columns:
            sampler.check(drawn)
            if sampler.parts == 1:
                tick(len(next(iter(drawn.values()))))
            return drawn

        chunks = (Chunk(seed, number, min(size, draws - number * size), tick) for number in range(total))
        yield map(finish, in_order(sampler.draw, chunks, min(_workers(sampler, threads), total)))


def afford_draws(sampler: Sampler, draws: int, threads: int | None = None, kept: int = 0) -> None:
    """Refuse draws that take over a year, or more memory than there is with ``kept`` bytes of each draw."""
    threads = _workers(sampler, threads)
    at_once = sampler.memory(min(draws, threads * sampler.chunk_size))
    if sampler.device is not None:  # torch keeps some more; what is not the computer's memory is its to refuse
        at_once = at_once * 5 // 4 if sampler.device.type == "cpu" else 0
    afford(at_once, sampler.task(draws), sampler.fewer)
    afford(at_once + kept * draws, sampler.task(draws), "make fewer draws")
    check_time(draws, sampler.seconds / threads, sampler.task(draws), "make fewer draws")


def _workers(sampler: Sampler, threads: int | None) -> int:
    """The number of threads; a device needs one."""
    wanted = check_threads(threads)
    if sampler.device is not None:
        return 1
    if threads is not None:
        return wanted
    return min(wanted, max(1, _THREADS_BYTES // sampler.memory(sampler.chunk_size)))
