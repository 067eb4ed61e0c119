"""The blocks of a grid: cells that are computed and stored together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product


def grid_blocks(shape: Sequence[int], sizes: tuple[int, int]) -> Iterator[tuple[slice, ...]]:
    """Blocks of one value on every axis but the last two, and of at most ``sizes`` values on these two.

    Examples
    --------
    >>> from finwidth.sweeps.schema.tiling import grid_blocks
    >>> [(cuts[1].start, cuts[1].stop) for cuts in grid_blocks((1, 3, 2), (2, 2))]
    [(0, 2), (2, 3)]
    """
    steps = (*[1] * (len(shape) - 2), *sizes)
    cuts = ([slice(i, min(i + step, n)) for i in range(0, n, step)] for n, step in zip(shape, steps, strict=True))
    yield from product(*cuts)
