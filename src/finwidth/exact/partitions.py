"""States of the transfer over path partitions, and the steps between them (docs/theory/transfer.md).

A product of derivatives of the output is a sum over tuples of paths.  Followed from the output
down, what matters at a layer is which paths sit in the same neuron, and which marks are still to be
placed.  A *mark* (p, q, kind) says that paths p and q are differentiated by one common parameter: a
weight ("w": both go on, and the weight's power drops by two) or a bias ("b": both end there).

Everything here is combinatorial: no width, no law, no number of the network enters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from typing import TypeAlias

Block: TypeAlias = tuple[int, ...]
Mark: TypeAlias = tuple[int, int, str]


@dataclass(frozen=True)
class State:
    """Paths 0..k-1 partitioned into the neurons they occupy, and the marks not placed yet."""

    blocks: tuple[Block, ...]
    marks: tuple[Mark, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many paths each occupied neuron holds."""
        return tuple(len(block) for block in self.blocks)


END = State((), ())


@dataclass(frozen=True)
class Factor:
    """The weight of a step, as exponents of the layer's numbers (see `transfer.Coefficients`).

    A column of W met by k paths of a neuron and differentiated m times gives the moment of order
    k - 2m; a bias likewise.  ``neurons`` distinct neurons of the layer below can be chosen in
    n (n-1) ... (n - neurons + 1) ways.
    """

    weight_orders: tuple[int, ...]
    weight_marks: int
    bias_orders: tuple[int, ...]
    bias_marks: int
    neurons: int


Steps: TypeAlias = dict[tuple[State, Factor], int]


@dataclass(frozen=True)
class _Column:
    """Paths of one neuron that leave by one weight, or (``bias``) end in the neuron's bias."""

    paths: Block
    bias: bool
    placed: tuple[Mark, ...]


def set_partitions(items: tuple[int, ...], *, even: bool) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Partitions of ``items`` into blocks, of even size only where ``even``."""
    if not items:
        yield ()
        return
    first, rest = items[0], items[1:]
    for size in range(1 if even else 0, len(rest) + 1, 2 if even else 1):
        for chosen in combinations(rest, size):
            remaining = tuple(item for item in rest if item not in chosen)
            for others in set_partitions(remaining, even=even):
                yield ((first, *chosen), *others)


def _placements(marks: list[Mark]) -> Iterator[tuple[Mark, ...]]:
    """Subsets of ``marks`` in which no path is differentiated twice: one layer is linear in its parameters."""
    for size in range(len(marks) + 1):
        for chosen in combinations(marks, size):
            paths = [path for p, q, _ in chosen for path in (p, q)]
            if len(paths) == len(set(paths)):
                yield chosen


def _columns(paths: Block, marks: tuple[Mark, ...], random_bias: bool) -> Iterator[_Column]:
    """Every way in which ``paths`` can share one weight, or one bias, of their neuron."""
    inside = [mark for mark in marks if mark[0] in paths and mark[1] in paths]
    for placed in _placements([mark for mark in inside if mark[2] == "w"]):
        yield _Column(paths, False, placed)
    for placed in _placements([mark for mark in inside if mark[2] == "b"]):
        # A bias that starts at zero must be differentiated out; a path that ends can have no mark left.
        open_marks = [m for m in marks if m not in placed and (m[0] in paths or m[1] in paths)]
        if not open_marks and (random_bias or 2 * len(placed) == len(paths)):
            yield _Column(paths, True, placed)


def _rows(block: Block, marks: tuple[Mark, ...], random_bias: bool) -> Iterator[tuple[_Column, ...]]:
    """Every way in which the paths of one neuron leave it: by even columns, at most one of them the bias."""
    for partition in set_partitions(block, even=True):
        for row in product(*(tuple(_columns(paths, marks, random_bias)) for paths in partition)):
            if sum(column.bias for column in row) <= 1:
                yield row


def _landings(rows: tuple[tuple[Block, ...], ...]) -> Iterator[tuple[Block, ...]]:
    """Where the columns of all rows land: columns of different rows may meet in a neuron, of one row never."""
    if not rows:
        yield ()
        return
    *earlier, row = rows
    for neurons in _landings(tuple(earlier)):
        yield from _place(row, neurons, frozenset())


def _place(row: tuple[Block, ...], neurons: tuple[Block, ...], taken: frozenset[int]) -> Iterator[tuple[Block, ...]]:
    if not row:
        yield neurons
        return
    first, rest = row[0], row[1:]
    for place, block in enumerate(neurons):
        if place not in taken:
            joined = (*neurons[:place], (*block, *first), *neurons[place + 1 :])
            yield from _place(rest, joined, taken | {place})
    yield from _place(rest, (*neurons, first), taken | {len(neurons)})


@cache
def steps(state: State, random_bias: bool) -> Steps:
    """Every step from ``state`` at the neurons of layer i to the neurons of layer i - 1, with its multiplicity."""
    found: Counter[tuple[State, Factor]] = Counter()
    for rows in product(*(tuple(_rows(block, state.marks, random_bias)) for block in state.blocks)):
        columns = [column for row in rows for column in row]
        placed = [mark for column in columns for mark in column.placed]
        left = tuple(mark for mark in state.marks if mark not in placed)
        orders = {
            bias: sorted(len(c.paths) - 2 * len(c.placed) for c in columns if c.bias == bias) for bias in (False, True)
        }
        marks = {bias: sum(len(c.placed) for c in columns if c.bias == bias) for bias in (False, True)}
        going_on = tuple(tuple(column.paths for column in row if not column.bias) for row in rows)
        for neurons in _landings(going_on):
            factor = Factor(
                tuple(order for order in orders[False] if order),
                marks[False],
                tuple(order for order in orders[True] if order),
                marks[True],
                len(neurons),
            )
            found[canonical(State(neurons, left)), factor] += 1
    return dict(found)


def canonical(state: State) -> State:
    """The state with its paths renamed, so that most states that differ by names only become one.

    Any renaming is allowed, for the value of a state does not depend on names; merging fewer states than possible
    costs time, never correctness.  A cheap sort leaves few states for the colour refinement.
    """
    return _refined(_sorted(state))


def _sorted(state: State) -> State:
    """The state with its paths renamed by block size and by how many marks are on them."""
    home = {path: place for place, block in enumerate(state.blocks) for path in block}
    marked = dict.fromkeys(home, 0)
    for p, q, kind in state.marks:
        value = (1 if kind == "w" else 8) * (1 if home[p] == home[q] else 64)
        marked[p] += value
        marked[q] += value
    blocks = [sorted(block, key=marked.__getitem__) for block in state.blocks]
    blocks.sort(key=lambda block: (len(block), [marked[path] for path in block]))
    names = (path for block in blocks for path in block)
    return _renamed(state, {path: rank for rank, path in enumerate(names)})


def _renamed(state: State, name: dict[int, int]) -> State:
    blocks = sorted(tuple(sorted(name[path] for path in block)) for block in state.blocks)
    marks = sorted((min(name[p], name[q]), max(name[p], name[q]), kind) for p, q, kind in state.marks)
    return State(tuple(blocks), tuple(marks))


@cache
def _refined(state: State) -> State:
    """The state with its paths sorted by colour refinement."""
    paths = [path for block in state.blocks for path in block]
    home = {path: block for block in state.blocks for path in block}
    colour = dict.fromkeys(paths, 0)
    while True:
        colour = _refine(colour, home, state.marks)
        classes: dict[int, list[int]] = {}
        for path in paths:
            classes.setdefault(colour[path], []).append(path)
        tied = [members for _, members in sorted(classes.items()) if len(members) > 1]
        if not tied:
            break
        # Single one path out of the first tied class, and refine again.
        colour = {path: 2 * rank for path, rank in colour.items()}
        colour[tied[0][0]] -= 1
    return _renamed(state, {path: rank for rank, path in enumerate(sorted(paths, key=lambda path: colour[path]))})


def _refine(colour: dict[int, int], home: dict[int, Block], marks: tuple[Mark, ...]) -> dict[int, int]:
    """Split the colours by the colours of block mates and of marked partners, until nothing splits."""
    while True:
        partners: dict[int, list[tuple[str, int]]] = {path: [] for path in colour}
        for p, q, kind in marks:
            partners[p].append((kind, colour[q]))
            partners[q].append((kind, colour[p]))
        signature = {
            path: (colour[path], tuple(sorted(colour[mate] for mate in home[path])), tuple(sorted(partners[path])))
            for path in colour
        }
        ranks = {each: rank for rank, each in enumerate(sorted(set(signature.values())))}
        refined = {path: ranks[signature[path]] for path in colour}
        if len(ranks) == len(set(colour.values())):
            return refined
        colour = refined
