"""Vectors of all inputs as rows, in blocks of neurons that are made when they are needed.

Making a block again from what is kept is cheaper than keeping it, and a block that goes through all steps at once stays
in the cache.  Rows whose squares would leave a double are kept in units, powers of two of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial, reduce
from operator import iadd
from typing import TypeAlias

from finwidth.networks.activations import Array, array_namespace
from finwidth.sampling.kernel_matrix.stacks import Blocks, Generator, ordinary, row_powers, scaled, square

Powers: TypeAlias = "Array | None"  # (draws or 1, rows, 1); None: 0


@dataclass
class Rows:
    """Blocks (draws or 1, rows, neurons), gone through as often as one likes, unless ``once``.

    ``once``: they are made anew for whoever goes through them first, who may change them.  No function that makes
    blocks may hold a state that holds these rows: such a cycle would keep its arrays longer than they are needed.
    """

    make: Callable[[], Iterator[Array]]
    power: Powers = None  # of the units: rows are 2^power times what the blocks hold
    once: bool = False
    gram: Array | None = None  # of what the blocks hold, where it is known already

    def __iter__(self) -> Iterator[Array]:
        return self.make()

    def map(self, function: Callable[..., Array], *others: Iterable[Array], power: Powers = None) -> Rows:
        """The function of each block, and of the others' beside it; the result in units of ``power``."""
        return MappedRows(partial(iter, self), power, self.once, maps=((function, others),))

    def in_units(self, power: Powers) -> Rows:
        """The same rows in other units."""
        if power is None and self.power is None:
            return self
        change = self.power if power is None else -power if self.power is None else self.power - power
        return self.map(lambda block: scaled(block, change), power=power)


@dataclass
class MappedRows(Rows):
    """Rows made of others by functions, one after the other, of each block and of others' blocks beside it."""

    maps: tuple[tuple[Callable[..., Array], tuple[Iterable[Array], ...]], ...] = ()

    def __iter__(self) -> Iterator[Array]:
        blocks = self.make()
        for function, others in self.maps:
            blocks = map(function, blocks, *others)
        return blocks

    def map(self, function: Callable[..., Array], *others: Iterable[Array], power: Powers = None) -> Rows:
        """One function more, without rows between."""
        return MappedRows(self.make, power, self.once, maps=(*self.maps, (function, others)))


def listed(blocks: Blocks, power: Powers = None) -> Rows:
    """Rows that are there already."""
    return Rows(blocks.__iter__, power)


class KeptRows(Rows):
    """Rows whose blocks are made when they are first gone through, and kept."""

    def __init__(self, make: Callable[[], Iterator[Array]], power: Powers = None) -> None:
        super().__init__(make, power)
        self.blocks: Blocks = []
        self.coming: Iterator[Array] | None = None

    def __iter__(self) -> Iterator[Array]:
        if self.coming is None:
            self.coming = self.make()
            del self.make  # what makes them is let go when it is through
        place = 0
        while True:
            if place == len(self.blocks):
                try:
                    self.blocks.append(next(self.coming))
                except StopIteration:
                    return
            yield self.blocks[place]
            place += 1


def in_safe_units(rows: Rows, gram: Array, rng: Generator, constant: float) -> tuple[Rows, Array]:
    """Rows in units in which no square leaves a double, and their Gram matrix; both as they are where none does so.

    A ``constant`` that is not 0 is one more neuron of each row, which is to fit the units too.
    """
    if ordinary(gram) and (rows.power is None or not constant):
        return rows, gram
    power = row_powers(rows, rng, constant, rows.power)
    if power is None and rows.power is None:
        return rows, gram
    rows = rows.in_units(power)
    return rows, reduce(iadd, map(square, rows))


def common_units(x: Rows, y: Rows) -> Powers:
    """Units in which x + y can be formed: of the larger of two rows, a row of zeros being the smallest."""
    if x.power is None and y.power is None:
        return None
    one, other = (0 if rows.power is None else rows.power for rows in (x, y))
    xp = array_namespace(x.power if x.power is not None else y.power)
    empty_x, empty_y = (reduce(iadd, ((block != 0).sum(-1) for block in rows))[..., None] == 0 for rows in (x, y))
    larger = xp.where(one > other, one, other) if not isinstance(one, int) or not isinstance(other, int) else one
    return xp.where(empty_y, one, xp.where(empty_x, other, larger))
