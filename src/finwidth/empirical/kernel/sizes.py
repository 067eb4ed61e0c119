"""How many inputs and outputs are taken at once, so that the working memory stays within its bound."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from finwidth.empirical.kernel.factors import Shape
from finwidth.errors import FinwidthError

_TILE_ROWS = 384  # inputs times outputs, or positions, of a product that stays in the processor's cache
_PASS_BYTES = 2**20  # of the mean gradient of a backward pass; larger ones take memory and save little time
_PASS_SHARE = 4  # a pass takes at most this part of the memory, so that blocks have the rest
_LATE_BYTES = 3 * 2**19  # of gradients that are formed for a product, and then dropped
_PULLING = 3  # gradients of an input that are held at once while they are pulled back from a weight
_BACKWARD = 4  # gradients of the largest layer that a backward pass may hold at once


@dataclass(frozen=True)
class Sizes:
    """Sizes per input, in numbers, except those of the factors (`Shape.numbers`); and which entries are computed.

    ``saved``: what autograd keeps of a forward pass; ``results``: the results of the operations that are recorded;
    ``largest``: the largest of them; ``mean``: their mean; ``itemsize``: bytes of a number; ``pairs``: whether every
    output meets every other; ``alone``: whether every input meets only itself; ``most``: the most inputs of a pass that
    goes as planned; ``memory``: bytes for everything beside the kernel.
    """

    shapes: tuple[Shape, ...]
    saved: int
    results: int
    largest: int
    mean: int
    itemsize: int
    pairs: bool = False
    alone: bool = False
    most: int = 2**62
    memory: int = 2**62

    def forms(self, shape: Shape, n: int, o: int) -> bool:
        """Whether the gradients of this factor are formed."""
        return shape.forms(o, 1 if self.alone else n, pairs=self.pairs)

    def late(self, shape: Shape, n: int, o: int) -> bool:
        """Whether they are formed only for a product and then dropped, because their factors are smaller."""
        smaller = shape.numbers(o, formed=False) < shape.numbers(o, formed=True)
        return smaller and not self.alone and self.forms(shape, n, o)

    def channels(self, shape: Shape, n: int, o: int) -> int:
        """Number of output channels of a layer whose gradients are formed at once, if late."""
        if shape.pulled:
            return shape.c
        return max(1, min(shape.c, _LATE_BYTES // (self.itemsize * n * o * shape.g * shape.a)))

    def tile(self, n: int, o: int) -> int:
        """Number of inputs of a block in one product."""
        P, _ = self._positions(n, o)
        return max(1, min(n, _TILE_ROWS // max(P, o if self.pairs else 1)))

    def once(self, n: int, o: int) -> int:
        """Number of inputs of a block in one pass through the module.

        Enough for the numbers of a typical layer to take longer than the call of it: many small layers, many inputs.
        """
        enough = _PASS_BYTES // (self.itemsize * o * max(1, self.mean))
        room = self.memory // (_PASS_SHARE * self.itemsize * max(1, self._going(n, o)))
        return max(1, min(n, self.most, enough, room))

    def bytes(self, n: int, o: int, sides: int) -> int:
        """Peak memory of blocks of n inputs and o outputs in bytes, without the kernel itself."""
        late = [shape for shape in self.shapes if self.late(shape, n, o)]
        formed = max([0, *(self._formed(shape, n, o) for shape in late)])
        t, (P, c) = self.tile(n, o), self._positions(n, o)
        products = t * t * (o * o + P * P if self.pairs else o * (1 + P * P)) + t * c * o
        blocks, pass_ = sides * (n * self._kept(n, o) + formed), self.once(n, o) * self._going(n, o)
        return self.itemsize * (blocks + pass_ + 3 * products)

    def _formed(self, shape: Shape, n: int, o: int) -> int:
        """Numbers of late gradients that are formed at once, and of what their forming takes."""
        if shape.pulled:
            return (n + _PULLING) * o * shape.pulled
        return n * o * shape.g * shape.a * self.channels(shape, n, o)

    def _kept(self, n: int, o: int) -> int:
        """Numbers of the factors of one input of a block."""
        formed = [self.forms(shape, n, o) and not self.late(shape, n, o) for shape in self.shapes]
        return sum(shape.numbers(o, formed=each) for shape, each in zip(self.shapes, formed, strict=True))

    def _going(self, n: int, o: int) -> int:
        """Numbers that a pass holds for one input."""
        return self._kept(n, o) + self.saved + o * (self.results + _BACKWARD * self.largest)

    def _positions(self, n: int, o: int) -> tuple[int, int]:
        """The most positions of a factor that is kept, and numbers at them; 1 and 0 if there is none."""
        kept = [(shape.P, shape.P * shape.c) for shape in self.shapes if not self.forms(shape, n, o)]
        return max([1, *(P for P, _ in kept)]), max([0, *(c for P, c in kept if P > 1)])


def layout(sizes: Sizes, N: int, o: int, memory: int) -> tuple[int, int]:
    """Numbers of inputs (at most N) and outputs (at most o) of a block; FinwidthError if one of each does not fit."""
    N = sizes.once(N, o) if sizes.alone else N  # no pairs of inputs: a block is one pass
    few = o
    while few > 1 and not sizes.pairs and sizes.bytes(N, few, 1) > memory:  # no pairs: more passes
        few = -(-few // 2)
    if sizes.bytes(N, few, 1) <= memory:
        return N, few
    while o > 1 and sizes.bytes(1, o, 2) > memory:
        o = -(-o // 2)
    low, high = 0, N + 1  # one block of `low` inputs fits beside another, `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if sizes.bytes(middle, o, 2) <= memory else (low, middle)
    if not low:
        needed = -(-sizes.bytes(1, o, 2) // 2**20)
        raise FinwidthError(
            f'one input and one output need {needed} MiB beside the kernel; give at least memory="{needed}MiB"'
        )
    return low, o


def pieces(whole: range, size: int) -> list[range]:
    """Consecutive parts of nearly equal length, at most ``size``.

    >>> from finwidth.empirical.kernel.sizes import pieces
    >>> pieces(range(7), 3)
    [range(0, 3), range(3, 5), range(5, 7)]
    """
    parts = -(-len(whole) // size)
    cuts = [-(-len(whole) * i // parts) for i in range(parts + 1)]
    return [whole[start:stop] for start, stop in pairwise(cuts)]
