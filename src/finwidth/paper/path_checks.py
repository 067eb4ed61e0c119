"""Definitions 1-3, the two figures and Lemmas 7, 8, 9: what a list of all paths of a small network shows.

Every sum is over fractions, so "equal" means equal.  The functions take the paper's constants as parameters, with the
paper's values as defaults, so that a wrong constant can be shown to fail.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from itertools import product
from typing import TypeAlias

from finwidth.exact.moments import moments
from finwidth.networks.mlp import MLP
from finwidth.networks.widths import format_widths
from finwidth.paper.paths import (
    Edge,
    Path,
    collisions,
    edges_at,
    enumerate_deltas,
    enumerate_moments,
    is_even,
    left_ends,
    loops,
    neurons_at,
    paths_from,
    right_ends,
)
from finwidth.paper.records import Statement

Four: TypeAlias = tuple[Path, Path, Path, Path]
_Pairing: TypeAlias = frozenset[frozenset[int]]
_Multiset: TypeAlias = frozenset[tuple[Edge, int]]

HALF = Fraction(1, 2)
_SMALL = (MLP([2, 2, 2, 1], "laplace"), MLP([1, 2, 3, 1]), MLP([2, 2, 1], "uniform"), MLP([2, 2, 1, 2, 1], "laplace"))
_COUNTED = (MLP([2, 2, 2, 1]), MLP([2, 1, 2, 1, 2, 1]), MLP([2, 2, 1, 2, 1]), MLP([1, 2, 1, 2, 1, 2, 1]))
_PAIRED = (MLP([2, 2, 2, 1]), MLP([1, 2, 2, 1]), MLP([2, 3, 1]), MLP([2, 2, 1, 2, 1]), MLP([3, 3, 2, 2, 1]))


def names(nets: Iterable[MLP]) -> str:
    """Widths of several networks, for people."""
    return "; ".join(format_widths(net.widths) for net in nets)


def from_input(net: MLP) -> list[Path]:
    """Every path from the input to the output."""
    return [path for a in range(net.widths[0]) for path in paths_from(net, 0, a)]


def _some_input(net: MLP) -> list[int]:
    """1, 2, 3, ...: an input with no symmetry."""
    return list(range(1, net.widths[0] + 1))


def even_fours(low: Sequence[Path], high: Sequence[Path]) -> Iterator[Four]:
    """Even 4-tuples, the first two paths from ``low``, the others from ``high``: their odd edges must agree."""
    partners: defaultdict[frozenset[Edge], list[tuple[Path, Path]]] = defaultdict(list)
    for one, two in product(high, repeat=2):
        partners[frozenset(one.edges) ^ frozenset(two.edges)].append((one, two))
    for one, two in product(low, repeat=2):
        for pair in partners[frozenset(one.edges) ^ frozenset(two.edges)]:
            yield (one, two, *pair)


def common(*gammas: Path) -> frozenset[Edge]:
    """The edges that all of the paths share."""
    return frozenset.intersection(*(frozenset(gamma.edges) for gamma in gammas))


# Definitions 1-3


def definition_1() -> Statement:
    """Definition 1: a path picks one neuron per layer; N(x) is the sum over paths, so N is linear in their number."""
    nets = (*_SMALL, MLP([3, 4, 2, 3, 1]))
    right = all(
        len(paths_from(net, layer, neuron)) == math.prod(net.widths[layer + 1 :])
        for net in nets
        for layer in range(net.depth)
        for neuron in range(net.widths[layer])
    )
    # E[N^2] = |x|^2/n_0, by pairs of paths: only the pairs (g, g) are even.
    variance = all(
        sum(Fraction(x[g.neurons[0]] ** 2, math.prod(net.widths[:-1])) for g in from_input(net))
        == Fraction(sum(a * a for a in x), net.widths[0])
        for net in nets
        for x in [_some_input(net)]
    )
    return Statement(
        "definition-1",
        "A path from z(l, a) to the output picks one neuron in every layer from l to d.",
        "listing all paths: their number is the product of the widths above, and E[N^2] is their sum of squares",
        {"networks": len(nets), "paths listed": sum(len(from_input(net)) for net in nets)},
        right and variance,
    )


def definition_2() -> Statement:
    """Definition 2: Gamma(i), E^Gamma(i) and evenness."""
    tuples, right = 0, True
    for net in _SMALL[:3]:
        for gammas in even_fours(from_input(net), from_input(net)):
            tuples += 1
            right &= is_even(gammas)
            for i in range(1, net.depth + 1):
                edges = edges_at(gammas, i)
                right &= edges.total() == 4 and left_ends(edges) == neurons_at(gammas, i - 1)
                right &= right_ends(edges) == neurons_at(gammas, i)
                right &= sorted(edges.values()) in ([2, 2], [4])
    every = sum(len(from_input(net)) ** 4 for net in _SMALL[:3])
    uneven = _uneven_means_vanish(_SMALL[2])
    return Statement(
        "definition-2",
        "Gamma(i): distinct neurons at layer i; E^Gamma(i): multiset of edges; even: every edge covered evenly often.",
        "listing even 4-tuples: four edges a layer, as 2 + 2 or 4, that join Gamma(i-1) to Gamma(i); tuples that are "
        "not even have mean zero",
        {"4-tuples": every, "even": tuples},
        right and uneven,
    )


def _uneven_means_vanish(net: MLP) -> bool:
    """Whether even 4-tuples alone give all of E[N^4], which for one hidden layer can be integrated directly."""
    x, n = _some_input(net), net.widths[1]
    s = Fraction(sum(a * a for a in x), net.widths[0])
    t = Fraction(sum(a**4 for a in x), net.widths[0] ** 2)
    mu = net.weight_law.moment(4)
    fourth = 4 * (3 * s**2 + (mu - 3) * t)  # E[y^4] of a hidden neuron, gain 2
    direct = mu * fourth / (2 * n) + 3 * Fraction(n - 1, n) * s**2  # E[y^2 gate] = s
    total = Fraction(0)
    for gammas in even_fours(from_input(net), from_input(net)):
        size = math.prod(x[g.neurons[0]] for g in gammas)
        total += size * _two_per_edge(net, gammas)
    return total == direct


def _two_per_edge(net: MLP, gammas: Four) -> Fraction:
    """E of the product of the weights of an even tuple: edge moments, gains, and a coin for every hidden neuron."""
    mean = Fraction(1)
    for i in range(1, net.depth + 1):
        mean *= net.layers[i - 1].weight_variance ** 2
        mean *= math.prod(net.weight_law.moment(times) for times in edges_at(gammas, i).values())
        mean *= HALF ** (len(neurons_at(gammas, i)) if i < net.depth else 0)
    return mean


def definition_3() -> Statement:
    """Definition 3: loops; after every collision that is not at the output the paths stay together or form a loop."""
    tuples, right, looped = 0, True, 0
    for net in _SMALL:
        for gammas in even_fours(from_input(net), from_input(net)):
            tuples += 1
            found, met = set(loops(gammas)), set(collisions(gammas))
            looped += bool(found)
            right &= all(i - 1 in met and i not in met for i in found)
            # In an even tuple, apart after together means a loop.
            right &= found == {i for i in range(1, net.depth + 1) if i - 1 in met and i not in met}
    return Statement(
        "definition-3",
        "A loop at layer i: the paths meet in one neuron at i-1 and leave to two; a collision: all in one neuron.",
        "listing even 4-tuples: the loops are exactly the layers i apart after a collision at i-1",
        {"even 4-tuples": tuples, "with a loop": looped},
        right and 0 < looped < tuples,
    )


# Figures 1 and 2

CARTOON = MLP([2, 2, 1, 2, 2, 1, 2, 2, 1])  # the narrow network whose paths the figures draw
MEETINGS = (2, 5, 8)  # where all four meet in the figures
FIRST_MARK, SECOND_MARK = 2, 7


def partners(gammas: Sequence[Path], layer: int) -> _Pairing:
    """Which paths share an edge between layers ``layer`` - 1 and ``layer``, as a partition of 0..k-1."""
    shared: defaultdict[Edge, set[int]] = defaultdict(set)
    for k, gamma in enumerate(gammas):
        shared[gamma.edges[layer - 1]].add(k)
    return frozenset(map(frozenset, shared.values()))


KEPT: _Pairing = frozenset([frozenset([0, 1]), frozenset([2, 3])])


def _in_figure(number: int, gammas: Four) -> bool:
    """Whether a 4-tuple is like the paper's figure 1 (partners kept throughout) or 2 (swapped, and swapped back)."""
    at_marks = [partners(gammas, mark) for mark in (FIRST_MARK, SECOND_MARK)]
    apart = {partners(gammas, i) for i in range(FIRST_MARK + 1, MEETINGS[1] + 1)}  # in the loop between the marks
    if at_marks != [KEPT, KEPT] or collisions(gammas) != MEETINGS or len(apart) != 1:
        return False
    return (apart == {KEPT}) == (number == 1)


@cache
def figure_paths(number: int) -> Four:
    """The first 4-tuple of the kind that a figure shows, in the network CARTOON."""
    paths = [gamma for gamma in from_input(CARTOON) if gamma.neurons[1] == gamma.neurons[0]]
    return next(each for each in even_fours(paths, paths) if _in_figure(number, each))


def figure_1() -> Statement:
    """Figure 1: four paths that keep their partners between two marked layers."""
    return _figure(1, "Four paths that keep their partners between two marked layers.")


def figure_2() -> Statement:
    """Figure 2: four paths that swap partners in one loop and swap back."""
    return _figure(2, "Four paths that swap partners in one loop and swap back.")


def _figure(number: int, claim: str) -> Statement:
    gammas = figure_paths(number)
    return Statement(
        f"figure-{number}",
        claim,
        f"finding such a 4-tuple among all even ones of the network {format_widths(CARTOON.widths)}; drawn on the page",
        {
            "marked layers": f"{FIRST_MARK} and {SECOND_MARK}",
            "loops at": _layers_text(loops(gammas)),
            "collisions at": _layers_text(collisions(gammas)),
            "partners in the loop": _pairing(partners(gammas, loops(gammas)[0] + 1)),
        },
        is_even(gammas) and _in_figure(number, gammas) and not _in_figure(3 - number, gammas),
    )


def _layers_text(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


def _pairing(pairing: _Pairing) -> str:
    return "|".join(sorted("".join(str(k + 1) for k in sorted(block)) for block in pairing))


# Lemma 7


def lemma_7(exponent_sign: int = 1) -> Statement:
    """Lemma 7: E[K_w], E[K_w^2], E[Delta_ww] as sums over even tuples and marked edges, with H and F as printed."""
    equal, summed = True, 0
    for net in _SMALL:
        x = _some_input(net)
        second, delta, count = _lemma_7_sums(net, x, exponent_sign)
        summed += count
        first = sum(
            (Fraction(x[g.neurons[0]] ** 2, math.prod(net.widths[:-1])) * net.depth for g in from_input(net)),
            Fraction(0),
        )
        exact = moments(net, x, exact=True)
        equal &= [first, second, delta] == [exact.K_w.mean, exact.K_w.second_moment, exact.update["D_ww"]]
        equal &= second == enumerate_moments(net, x, "ww") and delta == enumerate_deltas(net, x, ["ww"])
    return Statement(
        "lemma-7",
        "E[K_w], E[K_w^2], E[Delta_ww] are sums over even tuples and marked edges of H = prod 1/n_{i-1} and of "
        "F = (1/2) prod 2^{2-|Gamma(i)|}/n_{i-1}^2 times mu_4 at unmarked layers where all paths share an edge.",
        f"summing F in fractions over all tuples of the networks {names(_SMALL)}: equal to the exact moments by two "
        "other routes (transfer; products of all derivatives)",
        {"networks": len(_SMALL), "marked tuples": summed},
        equal,
    )


def _lemma_7_sums(net: MLP, x: Sequence[int], sign: int) -> tuple[Fraction, Fraction, int]:
    second = delta = Fraction(0)
    count = 0
    paths = from_input(net)
    for gammas in even_fours(paths, paths):
        one, two, three, four = gammas
        size = math.prod(x[g.neurons[0]] for g in gammas)
        for e1, e2 in product(common(one, two), common(three, four)):
            second += size * printed_weight(net, gammas, (e1, e2), sign)
            count += 1
        for e1, e2 in product(common(one, two), common(two, three)):
            if e1 != e2:
                delta += size * printed_weight(net, gammas, (e1, e2), sign)
                count += 1
    return second, delta, count


def printed_weight(
    net: MLP, gammas: Sequence[Path], marks: Sequence[Edge] = (), sign: int = 1, start: int = 0
) -> Fraction:
    """F(Gamma, e1, e2) of Lemma 7, over the layers above ``start``; ``sign`` multiplies the exponent 2 - |Gamma(i)|."""
    met = {i: len(neurons_at(gammas, i)) for i in range(start, net.depth + 1)}
    marked = {mark.layer for mark in marks}
    weight = HALF if start < net.depth else Fraction(1)
    for i in range(start + 1, net.depth + 1):
        weight *= Fraction(2) ** (sign * (2 - met[i])) / net.widths[i - 1] ** 2
        if i not in marked and met[i - 1] == met[i] == 1:
            weight *= net.weight_law.moment(4)
    return weight


# Lemmas 8 and 9


def _edge_multiset(gammas: Sequence[Path]) -> _Multiset:
    """E^Gamma, all layers together."""
    return frozenset(Counter(edge for gamma in gammas for edge in gamma.edges).items())


def lemma_8(ways: int = 6) -> Statement:
    """Lemma 8: how many 4-tuples have a given even edge multiset and given marked edges: ways^loops A times indicators.

    The tuples of one multiset E, one start pattern and two marked edges are counted.  Every count that is not zero is
    6^loops times A with 1/36 <= A <= 1, and some marked edges of the layers i1, i2 have tuples exactly when the
    indicators say so.
    """
    seen: Counter[Fraction] = Counter()
    right, free = True, {"K": set[str](), "D": set[str]()}
    for net in _COUNTED:
        counts = {kind: _marked_counts(net, kind) for kind in "KD"}
        for multiset, gammas in _representatives(net).items():
            of_multiset = Fraction(ways ** len(loops(gammas)))
            for kind, starts, layers in _cases(net, gammas):
                found = counts[kind].get((multiset, starts, layers), Counter()).values()
                shares = [Fraction(number) / of_multiset for number in found]
                seen.update(shares)
                right &= all(Fraction(1, 36) <= share <= 1 for share in shares)
                right &= bool(shares) == _predicted(kind, gammas, starts, layers)
                if shares and _no_collision_below(gammas, layers) and len(set(starts)) == 2:
                    free[kind].add(_pattern(starts) + (f", {'<' if layers[0] < layers[1] else '>='}") * (kind == "D"))
    return Statement(
        "lemma-8",
        "A given even edge multiset with marked edges comes from 6^{#loops} A 4-tuples, 1/36 <= A <= 1, times "
        "indicators of collisions before and, for Delta_ww, between the marks.",
        f"counting all marked 4-tuples of the networks {names(_COUNTED)} by edge multiset, marked edges and starts",
        {
            "counts": sum(seen.values()),
            "values of A": ", ".join(str(share) for share in sorted(seen)),
            "starts that need no collision, K_w^2": ", ".join(sorted(free["K"])),
            "starts that need no collision, Delta_ww": "1122 if e1 is below e2, 1221 if above",
        },
        right and free == {"K": {"1122"}, "D": {"1122, <", "1221, >="}},
        "With the marks as in Lemma 6 the start class that needs no collision is the one whose first marked pair "
        "starts together: (1,1,2,2), where our reading of the lemma has (1,2,1,2). This is a matter of numbering; "
        "the classes carry the same x_a^2 x_b^2, so no sum changes.",
    )


_Layers: TypeAlias = tuple[int, int]
_Starts: TypeAlias = tuple[int, ...]


def _representatives(net: MLP) -> dict[_Multiset, Four]:
    paths = from_input(net)
    return {_edge_multiset(gammas): gammas for gammas in even_fours(paths, paths)}


def _marked_counts(net: MLP, kind: str) -> dict[tuple[_Multiset, _Starts, _Layers], Counter[tuple[Edge, Edge]]]:
    """The number of 4-tuples for each multiset, starts and marked edges, kept by the layers of the marks."""
    counts: defaultdict[tuple[_Multiset, _Starts, _Layers], Counter[tuple[Edge, Edge]]] = defaultdict(Counter)
    paths = from_input(net)
    for gammas in even_fours(paths, paths):
        multiset, starts = _edge_multiset(gammas), tuple(gamma.neurons[0] for gamma in gammas)
        second = gammas[2:] if kind == "K" else gammas[1:3]
        for e1, e2 in product(common(*gammas[:2]), common(*second)):
            if kind == "K" or e1 != e2:
                counts[multiset, starts, (e1.layer, e2.layer)][e1, e2] += 1
    return counts


def _cases(net: MLP, gammas: Four) -> Iterator[tuple[str, _Starts, _Layers]]:
    ends = sorted(neurons_at(gammas, 0))
    starts: list[_Starts] = [(ends[0],) * 4]
    if len(ends) == 2:
        orders = [ends, ends[::-1]]
        starts = [tuple(o[k] for k in each) for each in ((0, 0, 1, 1), (0, 1, 0, 1), (0, 1, 1, 0)) for o in orders]
    layers = range(1, net.depth + 1)
    for each, i1, i2 in product(starts, layers, layers):
        yield "K", each, (i1, i2)
        if i1 != i2:
            yield "D", each, (i1, i2)


def _pattern(starts: _Starts) -> str:
    return "".join("1" if start == starts[0] else "2" for start in starts)


def _no_collision_below(gammas: Four, layers: _Layers) -> bool:
    return not any(i < min(layers) for i in collisions(gammas))


def _predicted(kind: str, gammas: Four, starts: _Starts, layers: _Layers) -> bool:
    """The indicators of Lemma 8."""
    low, high = min(layers), max(layers)
    between = any(low <= i < high for i in collisions(gammas))
    together = "1122" if kind == "K" or layers[0] < layers[1] else "1221"  # the pair of the lower mark starts together
    started = _pattern(starts) in ("1111", together)
    return (started or not _no_collision_below(gammas, layers)) and (between or kind == "K")


def lemma_9(ways: int = 2) -> Statement:
    """Lemma 9: an even E comes from ways^(loops + 1{|V(0)| = 2}) ordered pairs of paths V with E = 2 E^V."""
    right, counted = True, 0
    most = 0
    for net in _PAIRED:
        origins: defaultdict[_Multiset, list[tuple[Path, Path]]] = defaultdict(list)
        for one, two in product(from_input(net), repeat=2):
            origins[_edge_multiset((one, two, one, two))].append((one, two))
        for pairs in origins.values():
            counted += 1
            most = max(most, len(pairs))
            free = len(loops(pairs[0] * 2)) + (len(neurons_at(pairs[0], 0)) == 2)
            right &= len(pairs) == ways**free
    return Statement(
        "lemma-9",
        "An even edge multiset E comes from exactly 2^{#loops + [|V(0)|=2]} ordered pairs of paths V with E = 2 E^V.",
        f"counting all pairs of paths of the networks {names(_PAIRED)} by edge multiset",
        {"edge multisets": counted, "most pairs for one": most},
        right,
    )
