"""Paths through a small network, and moments of its kernel by listing every one of them (paper, definitions 1-3).

Nothing here is clever: a product of derivatives of the output is a sum over tuples of paths, with one
marked edge for every pair of paths that is differentiated by the same parameter (Lemma 6, Lemma 12),
and the functions below list the tuples.  The cost grows like the number of paths to the power of the
tuple, so this is for networks of a handful of neurons; `finwidth.exact` does the same sums for any size.

The expectation of one product of edges and gates is itself a product.  Integrate the layers from the
output down.  Given x^(i-1) other than zero, flipping the sign of all parameters of one neuron flips its
pre-activation and nothing else below, so a gate met by an even number of paths is a fair coin between
the two slopes, independent of the sizes of the edges::

    E = prod_edges mu_power v_i^{power/2}  prod_neurons E[phi'^{visits}]  P(y^(l) is not zero)

with l the lowest layer with a gate on a path, and 0 where an edge has an odd power.  The last factor
counts only for paths that all begin in biases: those that come from the input have open gates on their
way.  A layer in which every pre-activation is exactly zero for certain (x = 0, and no random bias yet)
has slope phi'(0) instead of a coin.
"""

from __future__ import annotations

import math
import operator
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate, product, takewhile
from typing import NamedTuple, TypeAlias

import numpy.typing as npt

from finwidth.arguments import index, items
from finwidth.errors import FinwidthError, SizeError, shown
from finwidth.networks.inputs import exact_input
from finwidth.networks.mlp import MLP
from finwidth.networks.routes import check_mlp

CONSTANT = -1  # the neuron below a bias: its value is always 1

Outputs: TypeAlias = Sequence[tuple[int, int]]


class Edge(NamedTuple):
    """One weight, between ``left`` in layer ``layer - 1`` and ``right`` in layer ``layer``; neurons count from 0."""

    layer: int
    left: int
    right: int


class Gate(NamedTuple):
    """The factor phi'(y) of one hidden neuron."""

    layer: int
    neuron: int


@dataclass(frozen=True)
class Path:
    """A path (definition 1): one neuron in each of the layers ``layer``, ..., d.

    With ``bias`` the path begins in the bias of its first neuron, which is an edge from a constant one.

    Examples
    --------
    >>> Path(0, (1, 2, 0)).edges
    (Edge(layer=1, left=1, right=2), Edge(layer=2, left=2, right=0))
    >>> Path(1, (2, 0), bias=True).edges
    (Edge(layer=1, left=-1, right=2), Edge(layer=2, left=2, right=0))
    """

    layer: int
    neurons: tuple[int, ...]
    bias: bool = False

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """The edges of the path, lowest first."""
        first = [Edge(self.layer, CONSTANT, self.neurons[0])] if self.bias else []
        steps = zip(self.neurons, self.neurons[1:], strict=False)
        return (*first, *(Edge(i, left, right) for i, (left, right) in enumerate(steps, self.layer + 1)))

    @cached_property
    def gates(self) -> tuple[Gate, ...]:
        """The gates of the path: the hidden neurons it passes, its first one included."""
        hidden = enumerate(self.neurons[:-1], self.layer)
        return tuple(Gate(i, neuron) for i, neuron in hidden if i > 0)

    @property
    def output(self) -> int:
        """The output neuron in which the path ends."""
        return self.neurons[-1]


def paths_from(net: MLP, layer: int, neuron: int) -> tuple[Path, ...]:
    """Every path from z(layer, neuron) to the output (definition 1); layer 0 is the input.

    Examples
    --------
    >>> len(paths_from(MLP([2, 3, 3, 1]), 0, 1)), len(paths_from(MLP([2, 3, 3, 1]), 2, 1))
    (9, 1)
    """
    return tuple(Path(layer, (neuron, *above)) for above in product(*(range(n) for n in net.widths[layer + 1 :])))


def _paths_from_bias(net: MLP, layer: int, neuron: int) -> tuple[Path, ...]:
    """Every path to the output from the bias of z(layer, neuron), for layers 1, ..., d.

    Examples
    --------
    >>> _paths_from_bias(MLP([2, 3, 1]), 1, 2)
    (Path(layer=1, neurons=(2, 0), bias=True),)
    """
    return tuple(Path(path.layer, path.neurons, bias=True) for path in paths_from(net, layer, neuron))


def neurons_at(gammas: Iterable[Path], layer: int) -> frozenset[int]:
    """Gamma(i), the distinct neurons of a tuple of paths at layer i; its length is |Gamma(i)| (definition 2).

    Examples
    --------
    >>> sorted(neurons_at([Path(0, (0, 0, 0)), Path(0, (1, 0, 0))], 0))
    [0, 1]
    """
    inside = (gamma for gamma in gammas if 0 <= layer - gamma.layer < len(gamma.neurons))
    return frozenset(gamma.neurons[layer - gamma.layer] for gamma in inside)


def edges_at(gammas: Iterable[Path], layer: int) -> Counter[Edge]:
    """E^Gamma(i), the unordered multiset of the edges of a tuple between layers i - 1 and i (definition 2).

    Examples
    --------
    >>> edges_at([Path(0, (0, 0, 0)), Path(0, (1, 0, 0))], 2)
    Counter({Edge(layer=2, left=0, right=0): 2})
    """
    return Counter(edge for gamma in gammas for edge in gamma.edges if edge.layer == layer)


def left_ends(edges: Iterable[Edge]) -> frozenset[int]:
    """L(E), the neurons in which the edges begin (definition 3)."""
    return frozenset(edge.left for edge in edges)


def right_ends(edges: Iterable[Edge]) -> frozenset[int]:
    """R(E), the neurons in which the edges end (definition 3)."""
    return frozenset(edge.right for edge in edges)


def is_even(gammas: Iterable[Path]) -> bool:
    """Whether every edge is covered an even number of times (definition 2); only such tuples have a mean.

    Examples
    --------
    >>> left, right = Path(0, (0, 0, 0)), Path(0, (0, 1, 0))
    >>> is_even([left, right, left, right]), is_even([left, right])
    (True, False)
    """
    covered = Counter(edge for gamma in gammas for edge in gamma.edges)
    return all(times % 2 == 0 for times in covered.values())


def loops(gammas: Sequence[Path]) -> tuple[int, ...]:
    """Layers i with a loop: |L(E(i))| = 1 and |R(E(i))| = 2, the paths meet at i - 1 and leave to two neurons.

    Examples
    --------
    >>> left, right = Path(0, (0, 0, 0)), Path(0, (0, 1, 0))
    >>> loops([left, right, left, right]), collisions([left, right, left, right])
    ((1,), (0, 2))
    """
    edges = {layer: edges_at(gammas, layer) for layer in _layers(gammas)}
    return tuple(i for i, each in edges.items() if len(left_ends(each)) == 1 and len(right_ends(each)) == 2)


def collisions(gammas: Sequence[Path]) -> tuple[int, ...]:
    """Layers i with a collision, where all paths are in one neuron: |Gamma(i)| = 1."""
    return tuple(i for i in _layers(gammas) if len(neurons_at(gammas, i)) == 1)


def _layers(gammas: Sequence[Path]) -> range:
    lowest = min((gamma.layer for gamma in gammas), default=0)
    return range(lowest, max((gamma.layer + len(gamma.neurons) for gamma in gammas), default=0))


_MANY = 10**6  # paths; a list of them takes about a gigabyte

_Product: TypeAlias = tuple[int, ...]
_PathSum: TypeAlias = dict[_Product, Fraction]
_MarkedTuple: TypeAlias = tuple[tuple[Path, ...], tuple[Edge, ...], Fraction]


class PathEnumeration:
    """Every path of a small network at one input, and the expectation of products of sums over tuples of them.

    A sum over tuples is a dict: from a product (the power of every edge and every gate of the network) to
    its coefficient, so that tuples with the same product are kept together.  No other work is saved.

    Parameters
    ----------
    net
        Any network, small enough that its paths can be listed.
    x
        The input, of shape (n_0,); integers and fractions stay exact.

    Examples
    --------
    >>> listed = PathEnumeration(MLP([2, 3, 3, 1]), [1, 2])
    >>> listed.expectation(listed.kernel("w"))
    Fraction(15, 2)
    >>> listed.expectation(listed.output(), listed.curvature("wb"))
    Fraction(35, 6)
    """

    def __init__(self, net: MLP, x: npt.ArrayLike) -> None:
        self.net = net
        self.x = exact_input(net, x)
        net.activation.gate_moment(2)  # refuses activations that have no exact moments
        self._layers = net.layers
        paths = list(takewhile(lambda some: some < _MANY, accumulate(reversed(net.widths), operator.mul)))
        if len(paths) < len(net.widths):
            raise SizeError(f"the network has over {_MANY} paths; take a smaller one, or finwidth.moments")
        neurons = [(i, a) for i in range(1, net.depth + 1) for a in range(net.widths[i])]
        from_input = [path for a in range(net.widths[0]) for path in paths_from(net, 0, a)]
        from_biases = [path for i, a in neurons for path in _paths_from_bias(net, i, a)]
        self.paths = (*from_input, *from_biases)
        self.edges = {
            "w": tuple(Edge(i, b, a) for i, a in neurons for b in range(net.widths[i - 1])),
            "b": tuple(Edge(i, CONSTANT, a) for i, a in neurons),
        }
        self._edges = (*self.edges["w"], *self.edges["b"])
        self._gates = tuple(Gate(i, a) for i, a in neurons if i < net.depth)
        self._place = {factor: place for place, factor in enumerate((*self._edges, *self._gates))}
        self._absent = [self._place[edge] for edge in self._edges if not self._variance(edge)]

    def output(self, a: int = 0) -> _PathSum:
        """N_a(x) = sum over paths to output a (paper, section 2)."""
        return self._sum(((gamma,), (), Fraction(1)) for gamma in self._through(a))

    def kernel(self, kind: str, a: int = 0, b: int = 0) -> _PathSum:
        """K_ab = sum over parameters of dN_a dN_b, by weights or biases: pairs with a common edge (Lemmas 6, 12)."""
        return self._sum(
            ((gamma1, gamma2), (e,), self._multiplier(e))
            for e in self.edges[kind]
            for gamma1 in self._through(a, e)
            for gamma2 in self._through(b, e)
        )

    def curvature(self, kinds: str, c: int = 0, a: int = 0) -> _PathSum:
        """Sum over parameters e1, e2 of dN_c/de1 d^2N_a/de1 de2 dN_a/de2: three paths, two marked edges (Lemma 6).

        ``kinds`` says which parameters, e1 first.  N times the sums for "ww" and "wb" is Delta_ww, Delta_wb.
        """
        return self._sum(
            ((gamma1, gamma2, gamma3), (e1, e2), self._multiplier(e1) * self._multiplier(e2))
            for e1, e2 in product(self.edges[kinds[0]], self.edges[kinds[1]])
            if e1 != e2  # N is linear in each parameter
            for gamma2 in self._through(a, e1, e2)
            for gamma1 in self._through(c, e1)
            for gamma3 in self._through(a, e2)
        )

    def expectation(self, *sums: _PathSum) -> Fraction:
        """E of the product of the sums, each of them taken in full."""
        half = len(sums) // 2
        partners: defaultdict[_Product, list[tuple[_Product, Fraction]]] = defaultdict(list)
        for right, number in self._multiplied(sums[half:]).items():
            partners[self._parity(right)].append((right, number))
        total: defaultdict[_Product, Fraction] = defaultdict(Fraction)
        for left, factor in self._multiplied(sums[:half]).items():
            # Unless both halves have the same odd edges, some edge is odd in the product.
            for right, number in partners[self._parity(left)]:
                total[_add_exponents(left, right)] += factor * number
        return sum((number * self.mean(each) for each, number in total.items()), Fraction(0))

    def product_of(self, gammas: Iterable[Path], marks: Iterable[Edge]) -> _Product:
        """The edges and gates of a tuple of paths, without what its marked edges have lost."""
        powers = [0] * len(self._place)
        for gamma in gammas:
            for factor in (*gamma.edges, *gamma.gates):
                powers[self._place[factor]] += 1
        for edge in marks:
            powers[self._place[edge]] -= 2  # both paths of the pair have lost it
        return tuple(powers)

    def mean(self, powers: _Product) -> Fraction:
        """E of one product of edges and gates (the formula at the head of this module)."""
        result = Fraction(1)
        for edge, power in zip(self._edges, powers, strict=False):
            if power % 2:
                return Fraction(0)
            if power:
                law = self.net.bias_law if edge.left == CONSTANT else self.net.weight_law
                result *= law.moment(power) * self._variance(edge) ** (power // 2)
        visits = {gate: n for gate, n in zip(self._gates, powers[len(self._edges) :], strict=True) if n}
        result *= math.prod(self._slope_moment(gate.layer, n) for gate, n in visits.items())
        return result * self._not_zero(min((gate.layer for gate in visits), default=1))

    def _slope_moment(self, layer: int, order: int) -> Fraction:
        """E[phi'(y)^order] at a hidden layer."""
        phi = self.net.activation
        if self._certainly_zero(layer):
            return phi.at_zero**order
        return Fraction(1, 2) * phi.positive**order + Fraction(1, 2) * phi.negative**order

    def _certainly_zero(self, layer: int) -> bool:
        """Whether y^(layer) is zero in every realisation."""
        return not any(self.x) and not any(each.bias_variance for each in self.net.layers[:layer])

    def _not_zero(self, layer: int) -> Fraction:
        """P(y^(layer) is not zero): no layer below is dead; a random bias brings the dead to life.

        Where y^(layer) is zero for certain, its slopes are known and this is 1.
        """
        if self._certainly_zero(layer) or self.net.layers[layer - 1].bias_variance or layer == 1:
            return Fraction(1)
        phi = self.net.activation
        dies = Fraction(1, 2 ** self.net.widths[layer - 1]) if phi.positive * phi.negative == 0 else Fraction(0)
        return self._not_zero(layer - 1) * (1 - dies)

    def _variance(self, edge: Edge) -> Fraction:
        layer = self._layers[edge.layer - 1]
        return layer.bias_variance if edge.left == CONSTANT else layer.weight_variance

    def _multiplier(self, edge: Edge) -> Fraction:
        layer = self._layers[edge.layer - 1]
        return layer.bias_multiplier if edge.left == CONSTANT else layer.weight_multiplier

    def _through(self, output: int, *edges: Edge) -> list[Path]:
        """The paths to ``output`` that contain all of ``edges``."""
        return [gamma for gamma in self.paths if gamma.output == output and all(e in gamma.edges for e in edges)]

    def _sum(self, tuples: Iterable[_MarkedTuple]) -> _PathSum:
        total: _PathSum = {}
        for gammas, marks, multiplier in tuples:
            powers = self.product_of(gammas, marks)
            coefficient = multiplier * math.prod(self.x[g.neurons[0]] for g in gammas if g.layer == 0)
            # A bias that starts at zero is a factor 0, unless it is differentiated out.
            if coefficient and not any(powers[place] for place in self._absent):
                total[powers] = total.get(powers, Fraction(0)) + coefficient
        return total

    def _multiplied(self, sums: Sequence[_PathSum]) -> _PathSum:
        """The product of sums over tuples: the sum over their concatenations."""
        result: _PathSum = {(0,) * len(self._place): Fraction(1)}
        for each in sums:
            longer: defaultdict[_Product, Fraction] = defaultdict(Fraction)
            for (left, factor), (right, number) in product(result.items(), each.items()):
                longer[_add_exponents(left, right)] += factor * number
            result = longer
        return result

    def _parity(self, powers: _Product) -> _Product:
        return tuple(power % 2 for power in powers[: len(self._edges)])


def _add_exponents(left: _Product, right: _Product) -> _Product:
    return tuple(a + b for a, b in zip(left, right, strict=True))


def enumerate_moments(net: MLP, x: npt.ArrayLike, kinds: str, outputs: Outputs | None = None) -> Fraction:
    """E of a product of kernels, one for each letter of ``kinds``, by listing 2 len(kinds) paths (Lemmas 6, 7, 12, 13).

    Parameters
    ----------
    net, x
        A small network, and its input of shape (n_0,).
    kinds
        "w" stands for K_w and "b" for K_b: "wwb" is E[K_w^2 K_b].
    outputs
        For each letter the outputs (a, b) of K_ab = sum over parameters of dN_a dN_b; by default all (0, 0).

    Raises
    ------
    FinwidthError
        For letters other than "w" and "b", or outputs that the network does not have.

    Examples
    --------
    >>> net = MLP([2, 3, 3, 1])
    >>> [str(enumerate_moments(net, [1, 2], kinds)) for kinds in ("w", "b", "ww", "wb", "bb")]
    ['15/2', '31/16', '2300/9', '65/2', '473/72']
    """
    pairs = _checked(net, kinds, outputs, letters=1)
    listed = PathEnumeration(net, x)
    factors = [(kind, a, b) for kind, (a, b) in zip(kinds, pairs, strict=True)]
    kernels = {factor: listed.kernel(*factor) for factor in set(factors)}
    return listed.expectation(*(kernels[factor] for factor in factors))


def enumerate_deltas(net: MLP, x: npt.ArrayLike, kinds: Sequence[str], outputs: Outputs | None = None) -> Fraction:
    """E of a product of Delta's, by listing 4 len(kinds) paths (Lemma 6).

    With kinds "wb" and outputs (c, a) a factor is N_c times the sum, over weights w and biases b, of
    dN_c/dw d^2N_a/dw db dN_a/db.  With one output and N* = 0 the first update of the kernel is
    -Delta K / (2 lambda) = Delta_ww + Delta_wb + Delta_bw, the last two equal and Delta_bb zero; with
    several, it is the sum of all four over c.

    Parameters
    ----------
    net, x
        A small network, and its input of shape (n_0,).
    kinds
        For each factor the parameters, "ww", "wb", "bw" or "bb": the first letter is the one of N_c.
    outputs
        For each factor (c, a); by default all (0, 0).

    Raises
    ------
    FinwidthError
        For letters other than "w" and "b", or outputs that the network does not have.

    Examples
    --------
    >>> net = MLP([2, 3, 3, 1])
    >>> [str(enumerate_deltas(net, [1, 2], [kinds])) for kinds in ("ww", "wb", "bw", "bb")]
    ['650/9', '35/6', '35/6', '0']
    """
    pairs = _checked(net, kinds, outputs, letters=2)
    listed = PathEnumeration(net, x)
    factors = [(each, c, a) for each, (c, a) in zip(kinds, pairs, strict=True)]
    deltas = {factor: (listed.output(factor[1]), listed.curvature(*factor)) for factor in set(factors)}
    return listed.expectation(*(each for factor in factors for each in deltas[factor]))


def _checked(net: MLP, kinds: Sequence[str], outputs: Outputs | None, *, letters: int) -> Outputs:
    listed, most = (
        list(kinds) if isinstance(kinds, str) else items("kinds", kinds, "letters"),
        check_mlp(net).widths[-1],
    )
    if not listed or not all(isinstance(each, str) and not set(each) - {"w", "b"} for each in listed):
        raise FinwidthError(f"kinds is {shown(kinds)}; use the letters 'w' (weights) and 'b' (biases)")
    if any(len(each) != letters for each in listed):
        raise FinwidthError(f"kinds is {shown(kinds)}; give {letters} of the letters for each factor")
    wanted = f"{len(listed)} pairs of outputs, each from 0 to {most - 1}"
    if outputs is None:
        return [(0, 0)] * len(listed)
    pairs = [items("an entry of outputs", pair, wanted) for pair in items("outputs", outputs, wanted)]
    numbers = [[index(each) for each in pair] for pair in pairs]
    if len(pairs) != len(listed) or not all(len(pair) == 2 and all(a in range(most) for a in pair) for pair in numbers):
        raise FinwidthError(f"outputs is {shown(outputs)}; give {wanted}")
    return [(int(a), int(b)) for a, b in pairs]
