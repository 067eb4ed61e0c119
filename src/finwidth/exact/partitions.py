"""States of the transfer over path partitions, and the two halves of a step between them (docs/theory/transfer.md).

A product of derivatives of the output is a sum over tuples of paths.  Followed from the output down, what matters at a
layer is which paths sit in the same neuron, and which marks are still to be placed.  A *mark* on two paths says that
both are differentiated by one common parameter: a weight (both go on) or a bias (both end there).

A path is written as the string of its marks, capital letters for weights and small ones for biases; so
``(("", "", "A", "A"), ("a", "a"))`` is six paths in two neurons, of which two are still to share a weight and two a
bias.  Paths with the same marks in the same neuron are alike, so they need no names.

A step *splits* the paths of each neuron into ties, each of which leaves by one parameter, and *lands* the ties in the
neurons below.  In a residual block only some of the paths take such steps: the state is then a *pair*, of the paths
that stay in their neurons of the stream and of those that pass through the block (docs/theory/residual.md).  Everything
here is combinatorial: no width and no number of the network enters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache, reduce
from itertools import chain, combinations, groupby, permutations, product
from string import ascii_lowercase, ascii_uppercase
from typing import TypeAlias

_Block: TypeAlias = tuple[str, ...]  # the paths of one neuron, or of one tie
State: TypeAlias = tuple[_Block, ...]

# The kind of parameter ("w" or "b") by which the paths of a tie leave, and how many of the paths bring it as a factor:
# none if a mark has taken it out.
Tie: TypeAlias = tuple[str, int]
Factor: TypeAlias = tuple[Tie, ...]  # the weight of a split is a product over its ties
Splits: TypeAlias = Counter[tuple[State, Factor]]  # ties that go on, and the factor of all, with their multiplicity
Pair: TypeAlias = tuple[State, State]  # paths that stay in neurons of the stream, and paths that pass through the block

END: State = ()  # every path has ended in a bias
_NO_PATHS: Splits = Counter({(END, ()): 1})  # the one split of no paths


def start_state(outputs: Sequence[Sequence[int]], marks: Sequence[tuple[int, int, str]]) -> State:
    """Paths 0..k-1 by the output in which they end; marks (p, q, kind) of paths p and q by a weight "w" or a bias "b".

    Examples
    --------
    >>> start_state([(0, 1, 2, 3)], [(0, 1, "w"), (1, 2, "b")])
    (('', 'A', 'Aa', 'a'),)
    """
    names = {"w": iter(ascii_uppercase), "b": iter(ascii_lowercase)}
    path = {index: "" for output in outputs for index in output}
    for p, q, kind in marks:
        name = next(names[kind])
        path[p] += name
        path[q] += name
    return canonical(tuple(tuple(path[index] for index in output) for output in outputs))


def pairs(kinds: str) -> State:
    """The state at the output of a product of kernels: for each of ``kinds`` ("w", "b") a pair of marked paths."""
    marks = [(2 * j, 2 * j + 1, kind) for j, kind in enumerate(kinds)]
    return start_state([range(2 * len(marks))], marks)


def canonical(state: State) -> State:
    """The state with its marks renamed and its paths and blocks sorted: one for all that differ by names only."""
    return _smallest((_sorted(state),))[0]


def canonical_pair(staying: State, passing: State) -> Pair:
    """The same for a pair, whose two halves share their marks."""
    staying, passing = _smallest((_sorted(staying), _sorted(passing)))
    return staying, passing


def _sorted(state: State) -> State:
    return tuple(sorted(tuple(sorted(block)) for block in state))


@cache
def _smallest(states: tuple[State, ...]) -> tuple[State, ...]:
    """The smallest of the renamings, the same in all of the states, in which marks come by the places they are in."""
    seen: dict[str, list[tuple[int, ...]]] = {}
    for half, state in enumerate(states):
        for block in state:
            for path in block:
                if path:
                    place = (half, len(path), len(block), *map(len, block))
                    for mark in path:
                        seen.setdefault(mark, []).append(place)
    places = {mark: (mark.islower(), sorted(found)) for mark, found in seen.items()}
    alike = [list(group) for _, group in groupby(sorted(places, key=places.__getitem__), key=places.__getitem__)]
    weights = sum(map(str.isupper, seen))  # these are sorted before the biases
    names = ascii_uppercase[:weights] + ascii_lowercase[: len(seen) - weights]
    paths = {path for state in states for block in state for path in block}
    renamed = []
    for order in product(*map(permutations, alike)):
        name = dict(zip(chain(*order), names, strict=True))
        new = {path: "".join(sorted(name[mark] for mark in path)) for path in paths}
        renamed.append([sorted(tuple(sorted(new[path] for path in block)) for block in state) for state in states])
    return tuple(map(tuple, min(renamed)))


def splits(state: State, occurring: frozenset[Tie]) -> Splits:
    """Every way in which the paths at the neurons of a layer leave them, by marks and by the ``occurring`` ties."""
    merged: Splits = Counter()
    together = reduce(_side_by_side, [_block_splits(block, occurring) for block in state], _NO_PATHS)
    for (ties, factor), ways in together.items():
        merged[canonical(ties), factor] += ways
    return merged


@cache
def _block_splits(paths: _Block, occurring: frozenset[Tie]) -> Splits:
    """The splits of one neuron: its first path and some others are one tie, and the rest split in turn."""
    found: Splits = Counter()
    waiting: list[tuple[_Block, State, Factor, int]] = [(paths, END, (), 1)]
    while waiting:
        left, ties, factor, ways = waiting.pop()
        if not left:
            found[tuple(sorted(ties)), tuple(sorted(factor))] += ways
            continue
        first, rest, further = left[0], left[1:], []
        for size in range(1, len(left), 2):
            for others, times in Counter(combinations(rest, size)).items():
                after = tuple((Counter(rest) - Counter(others)).elements())
                for tied, by in dict.fromkeys(_ties((first, *others), occurring)):
                    further.append((after, ties + tied, factor + by, ways * times))
        waiting += reversed(further)
    return found


def _ties(paths: _Block, occurring: frozenset[Tie]) -> Iterator[tuple[State, Factor]]:
    """Every way in which all ``paths`` leave their neuron by one parameter; if they go on, with their other marks."""
    order = len(paths)
    if ("w", order) in occurring:
        yield (paths,), (("w", order),)
    if ("b", order) in occurring and not any(paths):  # a path that ends can have no mark left
        yield END, (("b", order),)
    if order == 2:
        for mark in sorted(set(paths[0]) & set(paths[1])):
            if mark.isupper():
                yield (tuple(path.replace(mark, "") for path in paths),), (("w", 0),)
            elif paths == (mark, mark):
                yield END, (("b", 0),)


def _side_by_side(ones: Splits, others: Splits) -> Splits:
    """The splits of two sets of paths together."""
    found: Splits = Counter()
    for (ties, factor), ways in ones.items():
        for (more, another), times in others.items():
            found[tuple(sorted(ties + more)), tuple(sorted(factor + another))] += ways * times
    return found


def landings(ties: State) -> Iterator[State]:
    """Every way in which ties can meet in the neurons of the layer below."""
    return map(canonical, _landings(ties))


def _landings(ties: State, taken: State = ()) -> list[State]:
    """Every way in which ties can meet in neurons, some of which are taken by paths that are there already."""
    found = [taken]
    for tie in reversed(ties):
        found = [
            landed
            for neurons in found
            for landed in (
                (tie, *neurons),
                *((*neurons[:place], tie + neuron, *neurons[place + 1 :]) for place, neuron in enumerate(neurons)),
            )
        ]
    return found


def choices(stream: State) -> Counter[Pair]:
    """Every way in which paths at the neurons of a residual stream skip the block below or pass through it.

    An even number of each neuron's paths passes: the block's last matrix is even in each of its rows.

    Examples
    --------
    >>> for pair, ways in choices((("", "", "A", "A"),)).items():
    ...     print(ways, *pair)
    1 (('', '', 'A', 'A'),) ()
    1 (('A', 'A'),) (('', ''),)
    4 (('', 'A'),) (('', 'A'),)
    1 (('', ''),) (('A', 'A'),)
    1 () (('', '', 'A', 'A'),)
    """
    found: Counter[Pair] = Counter({((), ()): 1})
    for block in stream:
        longer: Counter[Pair] = Counter()
        for size in range(0, len(block) + 1, 2):
            for passing, ways in Counter(combinations(block, size)).items():
                staying = tuple((Counter(block) - Counter(passing)).elements())
                for (stay, go), times in found.items():
                    longer[(*stay, staying) if staying else stay, (*go, passing) if passing else go] += ways * times
        found = longer
    merged: Counter[Pair] = Counter()
    for pair, ways in found.items():
        merged[canonical_pair(*pair)] += ways
    return merged


def pair_splits(pair: Pair, occurring: frozenset[Tie]) -> Counter[tuple[Pair, Factor]]:
    """The splits of the paths that pass through the block, beside those that stay."""
    staying, passing = pair
    merged: Counter[tuple[Pair, Factor]] = Counter()
    together = reduce(_side_by_side, [_block_splits(block, occurring) for block in passing], _NO_PATHS)
    for (ties, factor), ways in together.items():
        merged[canonical_pair(staying, ties), factor] += ways
    return merged


def pair_landings(pair: Pair) -> Counter[Pair]:
    """The landings of the ties of those that pass in the hidden neurons of the block."""
    staying, ties = pair
    return Counter(canonical_pair(staying, neurons) for neurons in _landings(ties))


def meetings(pair: Pair) -> Counter[State]:
    """Every way in which groups of paths that have met take neurons of the stream: each another one, taken or not."""
    staying, groups = pair
    found: list[Pair] = [(staying, ())]  # neurons that are free, and those that were taken
    for group in groups:
        found = [
            met
            for free, taken in found
            for met in (
                (free, (*taken, group)),
                *(((*free[:place], *free[place + 1 :]), (*taken, group + neuron)) for place, neuron in enumerate(free)),
            )
        ]
    return Counter(canonical((*free, *taken)) for free, taken in found)


def returns(pair: Pair) -> Counter[State]:
    """Every way in which ties come back to the stream, also to the neurons of the paths that stayed there."""
    staying, ties = pair
    return Counter(map(canonical, _landings(ties, staying)))
