"""How a kernel is cut into blocks, passes and tiles, so that the working memory stays within its bound."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

from finwidth.empirical.kernel.factors import FactorSize
from finwidth.errors import FinwidthError

_TILE_ROWS = 384  # inputs times outputs, or positions, of a product that stays in the processor's cache
_PASS_BYTES = 2**20  # of the mean gradient of a backward pass; larger ones take memory and save little time
_PASS_SHARE = 4  # a pass takes at most this part of the memory, so that blocks have the rest
_DEFERRED_BYTES = 3 * 2**19  # of gradients that are formed for a product, and then dropped
_PULLING = 3  # gradients of an input that are held at once while they are pulled back from a weight
_JOINED = 2  # copies of formed gradients while those by each parameter are added up, and then joined
_BACKWARD = 4  # gradients of the largest layer that a backward pass may hold at once


@dataclass(frozen=True)
class Sizes:
    """Memory per input, in numbers, except that of the factors (`FactorSize.numbers`); and what it has to do with.

    ``saved``: what autograd keeps of a forward pass; ``results``: the results of the recorded operations; ``largest``
    and ``mean``: the largest of these and their mean; ``itemsize``: bytes of a number; ``all_pairs`` and
    ``diagonal_only``: as of `Entries`; ``both``: x2 is not x1, so that a block of each is held even where it has all
    inputs; ``most``: the most inputs of a pass that goes as planned; ``memory``: bytes for all beside the kernel.
    """

    shapes: tuple[FactorSize, ...]
    saved: int
    results: int
    largest: int
    mean: int
    itemsize: int
    all_pairs: bool = False
    diagonal_only: bool = False
    both: bool = False
    most: int = 2**62
    memory: int = 2**62

    @property
    def forward(self) -> int:
        """Numbers of a forward pass at one input of which nothing is kept."""
        return _BACKWARD * self.largest

    @property
    def pass_bytes(self) -> int:
        """Bytes of a plain forward and backward pass at one input, without the gradients by the parameters."""
        return self.itemsize * (self.saved + self.results + self.forward)

    def materializes(self, shape: FactorSize, n: int, o: int) -> bool:
        """Whether the gradients of this factor are formed, because that takes less work."""
        return shape.materializes(o, 1 if self.diagonal_only else n, all_pairs=self.all_pairs)

    def deferred(self, shape: FactorSize, n: int, o: int) -> bool:
        """Whether they are formed for each product anew and dropped after it, because their factors are smaller."""
        return self.materializes(shape, n, o) and self._smaller_in_factors(shape, o)

    def _smaller_in_factors(self, shape: FactorSize, o: int) -> bool:
        smaller = shape.numbers(o, formed=False) < shape.numbers(o, formed=True)
        return smaller and not self.diagonal_only

    def channels(self, shape: FactorSize, n: int, o: int) -> int:
        """Number of output channels whose gradients are formed at once, if they are formed for each product anew."""
        if shape.pulled:
            return shape.c
        return max(1, min(shape.c, _DEFERRED_BYTES // (self.itemsize * n * o * shape.g * shape.a)))

    def block(self, n: int, o: int) -> BlockSize:
        """What a block of n inputs and o outputs needs."""
        held = formed = 0  # numbers of the factors at one input, and of deferred gradients that are formed at once
        met = 1 if self.diagonal_only else n  # inputs that one input is multiplied with
        P, c = 1, 0  # the most positions of a factor that is not formed, and numbers at them
        for shape in self.shapes:
            materializes = shape.materializes(o, met, all_pairs=self.all_pairs)
            deferred = materializes and self._smaller_in_factors(shape, o)
            held += shape.numbers(o, formed=materializes and not deferred)
            if deferred and shape.pulled:
                formed = max(formed, (n + _PULLING) * o * shape.pulled)
            elif deferred:
                formed = max(formed, n * o * shape.g * shape.a * self.channels(shape, n, o))
            elif not materializes:
                P, c = max(P, shape.P), max(c, shape.P * shape.c if shape.P > 1 else 0)
        tile = max(1, min(n, _TILE_ROWS // max(P, o if self.all_pairs else 1)))
        joined = _JOINED * sum(o * shape.c for shape in self.shapes if not shape.P)
        passing = held + joined + self.saved + o * (self.results + self.forward)  # numbers of a pass at one input
        # Enough for the numbers of a typical layer to take longer than the call of it: many small layers, many inputs.
        enough = _PASS_BYTES // (self.itemsize * o * max(1, self.mean))
        room = self.memory // (_PASS_SHARE * self.itemsize * max(1, passing))
        at_once = max(1, min(n, self.most, enough, room))
        products = tile * tile * (o * o + P * P if self.all_pairs else o * (1 + P * P)) + tile * c * o
        passes = self.itemsize * (at_once * passing + 3 * products)
        return BlockSize(at_once, tile, passes, self.itemsize * (n * held + formed))


@dataclass(frozen=True)
class BlockSize:
    """Inputs of a pass and of a tile of a block; bytes that its passes and products need, and that it takes itself."""

    inputs_per_pass: int
    tile: int
    passes: int
    block: int

    def bytes(self, blocks: int) -> int:
        """Peak memory with so many blocks held, without the kernel itself."""
        return blocks * self.block + self.passes


def fit_memory(sizes: Sizes, N: int, o: int) -> tuple[int, int]:
    """Numbers of inputs (at most N) and outputs (at most o) of a block; FinwidthError if one of each does not fit."""
    memory, held = sizes.memory, 2 if sizes.both else 1
    if sizes.diagonal_only:  # no pairs of inputs: one pass at a time is enough
        N = sizes.block(N, o).inputs_per_pass
    few = o
    while few > 1 and not sizes.all_pairs and sizes.block(N, few).bytes(held) > memory:  # fewer at a time: more passes
        few = -(-few // 2)
    if sizes.block(N, few).bytes(held) <= memory:
        return N, few
    while o > 1 and sizes.block(1, o).bytes(2) > memory:
        o = -(-o // 2)
    low, high = 0, N + 1  # one block of `low` inputs fits beside another, `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if sizes.block(middle, o).bytes(2) <= memory else (low, middle)
    if not low:
        needed = -(-sizes.block(1, o).bytes(2) // 2**20)
        raise FinwidthError(
            f'one input and one output need {needed} MiB beside the kernel; give at least memory="{needed}MiB"'
        )
    return low, o


@dataclass(frozen=True)
class Entries:
    """Which entries of the kernel are computed.

    ``first`` is the number of inputs x1, ``second`` that of x2, None if x2 is x1; ``outputs`` are the numbers of the
    chosen outputs; ``all_pairs``: every output with every other, and not only with itself; ``diagonal_only``: every
    input with itself only; ``summed``: summed over the outputs; ``groups``: how many groups of parameters are told
    apart, 0 if none are.
    """

    first: int
    second: int | None
    outputs: range
    all_pairs: bool = False
    diagonal_only: bool = False
    summed: bool = False
    groups: int = 0

    @property
    def pairs(self) -> int:
        """Number of pairs of inputs."""
        return self.first * (1 if self.diagonal_only else self.first if self.second is None else self.second)

    @property
    def longest(self) -> int:
        """Number of inputs x1 or x2, whichever are more."""
        return max(self.first, self.second or 0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the kernel: groups if there are any, inputs, then one dimension for the outputs, or two."""
        o = 1 if self.summed else len(self.outputs)
        inputs = (self.first,) if self.diagonal_only else (self.first, self.pairs // self.first)
        inputs = (*([self.groups] if self.groups else []), *inputs)
        return (*inputs, o, o) if self.all_pairs else (*inputs, o)


class Block(NamedTuple):
    """Gradients that are held together: of a range of outputs, at a range of inputs of x1, or of x2 (``second``).

    Outputs are numbered from the first of those that are chosen.
    """

    second: bool
    outputs: range
    inputs: range


class Pass(NamedTuple):
    """One pass through the module for a block.  The gradients of all passes of a ``run`` are joined."""

    block: Block
    run: range
    inputs: range


@dataclass(frozen=True)
class Step:
    """Passes to make, and then pairs of blocks to multiply.  A block that is not in the products is dropped first."""

    passes: list[Pass]
    products: list[tuple[Block, Block]]

    @property
    def blocks(self) -> dict[Block, None]:
        """The blocks that are multiplied, in order, each once."""
        return dict.fromkeys(block for pair in self.products for block in pair)


@dataclass(frozen=True)
class Layout:
    """In which parts the entries of a kernel are computed.

    A block has ``inputs`` inputs and ``outputs`` outputs; a pass has at most ``inputs_per_pass`` of its inputs, and
    ``tile`` of them are multiplied at once. A block takes ``block_bytes``, if they are known.

    Examples
    --------
    >>> from finwidth.empirical.kernel.layout import Entries, Layout
    >>> whole = Layout(Entries(first=4, second=None, outputs=range(1)), inputs=2, outputs=1, inputs_per_pass=2, tile=2)
    >>> for step in whole.steps():
    ...     passes = [each.inputs for each in step.passes]
    ...     print(passes, [(left.inputs, right.inputs) for left, right in step.products])
    [range(0, 2)] [(range(0, 2), range(0, 2))]
    [range(2, 4)] [(range(0, 2), range(2, 4))]
    [] [(range(2, 4), range(2, 4))]
    """

    entries: Entries
    inputs: int
    outputs: int
    inputs_per_pass: int
    tile: int
    block_bytes: int = 0

    def steps(self) -> Iterator[Step]:
        """All passes and products in order; a block is held as long as consecutive products need it."""
        held: dict[Block, None] = {}
        for products in self._products():
            step = Step([], products)
            new = [block for block in step.blocks if block not in held]
            step.passes.extend(each for block in new for each in self.passes(block))
            yield step
            held = step.blocks

    def _products(self) -> Iterator[list[tuple[Block, Block]]]:
        """The pairs of blocks to multiply, those in a list at once."""
        second = self.entries.second is not None
        if self.entries.diagonal_only:
            for inputs, group in product(pieces(range(self.entries.first), self.inputs), self.groups):
                blocks = [Block(False, outputs, inputs) for outputs in group]
                yield list(product(blocks, blocks))
            return
        for group in self.groups:
            rows, columns = self.blocks(group), self.blocks(group, second=second)
            for i, row in enumerate(rows):
                if not second:  # half of the products are enough
                    yield [(row, row)]
                for column in reversed(columns if second else columns[i + 1 :]):  # the last one is the next row
                    yield [(row, column)]

    @property
    def groups(self) -> list[list[range]]:
        """Ranges of outputs; every range is multiplied with all of its group."""
        ranges = pieces(range(len(self.entries.outputs)), self.outputs)
        return [ranges] if self.entries.all_pairs else [[each] for each in ranges]

    def blocks(self, group: Iterable[range], *, second: bool = False) -> list[Block]:
        """The blocks of a group of outputs, at x1 or at x2."""
        N = self.entries.second if second and self.entries.second is not None else self.entries.first
        return [Block(second, *each) for each in product(group, pieces(range(N), self.inputs))]

    def passes(self, block: Block) -> Iterator[Pass]:
        """The passes for a block."""
        for run in pieces(block.inputs, max(self.inputs_per_pass, self.tile)):
            yield from (Pass(block, run, each) for each in pieces(run, self.inputs_per_pass))

    @property
    def inputs_passed(self) -> int:
        """Number of inputs of all passes together; most blocks are passed anew for every other that they meet."""
        groups, entries = self.groups, self.entries
        ranges = len(groups[0])
        if entries.diagonal_only:
            return len(groups) * ranges * entries.first
        rows = [len(block.inputs) for block in self.blocks(groups[0])]
        if entries.second is None:
            return len(groups) * (rows[0] + sum(place * size for place, size in enumerate(rows)))
        columns = self.blocks(groups[0], second=True)
        return len(groups) * (sum(rows) + (len(rows) if len(columns) > 1 else 1) * ranges * entries.second)


def pieces(whole: range, size: int) -> list[range]:
    """Consecutive parts of nearly equal length, at most ``size``.

    >>> from finwidth.empirical.kernel.layout import pieces
    >>> pieces(range(7), 3)
    [range(0, 3), range(3, 5), range(5, 7)]
    """
    parts = -(-len(whole) // size)
    cuts = [-(-len(whole) * i // parts) for i in range(parts + 1)]
    return [whole[start:stop] for start, stop in pairwise(cuts)]
