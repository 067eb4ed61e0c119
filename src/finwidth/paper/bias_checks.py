"""Lemmas 13 and 14: moments of K_b as sums over paths that begin in biases, in fractions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import product

from finwidth.exact.moments import moments
from finwidth.networks.mlp import MLP
from finwidth.paper.path_checks import HALF, even_fours, names, printed_weight
from finwidth.paper.paths import enumerate_moments, neurons_at, paths_from
from finwidth.paper.records import Statement

SMALL = (MLP([1, 2, 2, 1], "laplace"), MLP([2, 3, 2, 1]), MLP([1, 2, 1, 2, 1], "uniform"), MLP([2, 2, 2, 2, 1]))


def lemma_13(exponent_sign: int = 1) -> Statement:
    """Lemma 13: E[K_b] and E[K_b^2] as sums over neurons and even tuples of paths from them."""
    equal = True
    for net in SMALL:
        x = [1] * net.widths[0]
        first, second = bias_sums(net, exponent_sign)
        exact = moments(net, x, exact=True)
        equal &= [first, second] == [exact.K_b.mean, exact.K_b.second_moment]
        equal &= [first, second] == [enumerate_moments(net, x, kinds) for kinds in ("b", "bb")]
        equal &= bias_sums(net, exponent_sign, as_printed=True)[0] == Fraction(net.depth, 2)
    first, second = bias_sums(SMALL[0])
    printed = bias_sums(SMALL[0], as_printed=True)
    return Statement(
        "lemma-13",
        "E[K_b] is 1/2 times a sum over neurons and even pairs of paths from them, E[K_b^2] a sum over two neurons and "
        "even 4-tuples with the weights of Lemma 7 above the later neuron.",
        f"summing over all tuples of the networks {names(SMALL)} in fractions: equal to the exact moments by two other "
        "routes, with an output bias that has no gate and the probability that no layer below is dead",
        {
            "example": names(SMALL[:1]),
            "E[K_b] exact": first,
            "E[K_b] as printed": printed[0],
            "E[K_b^2] exact": second,
            "E[K_b^2] as printed": printed[1],
        },
        equal,
        "As printed, the output neuron is gated, dead layers do not count, and the exponent in (52) has the other sign "
        "(findings 1, 2, 3); the figure as printed has the right sign.",
    )


def bias_sums(net: MLP, sign: int = 1, *, as_printed: bool = False) -> tuple[Fraction, Fraction]:
    """E[K_b] and E[K_b^2] by Lemma 13; ``as_printed`` gates the output neuron and forgets dead layers."""
    neurons = [(i, a) for i in range(1, net.depth + 1) for a in range(net.widths[i])]
    first = second = Fraction(0)
    for layer, neuron in neurons:
        own = sum(Fraction(1, math.prod(net.widths[layer:-1])) for _ in paths_from(net, layer, neuron))
        first += own * _start(net, layer, as_printed) * (HALF if layer < net.depth else 1)
    for one, two in product(neurons, repeat=2):
        low, high = sorted((one, two))
        second += _inner_sum(net, low, high, sign) * _start(net, low[0], as_printed, both=high[0])
    return first, second


def _start(net: MLP, layer: int, as_printed: bool, both: int = 0) -> Fraction:
    """The factor in which exact and printed differ: P(no layer below a hidden ``layer`` is dead), or an output gate."""
    if as_printed:
        return HALF if net.depth in (layer, both) else Fraction(1)
    below = net.widths[1:layer] if layer < net.depth else ()
    return math.prod((1 - Fraction(1, 2**n) for n in below), start=Fraction(1))


def _inner_sum(net: MLP, low: tuple[int, int], high: tuple[int, int], sign: int = 1) -> Fraction:
    """The sum over even 4-tuples with two paths from each of two neurons (layer, index), the lower one first."""
    (bottom, _), (top, _) = low, high
    hidden = top < net.depth
    below = Fraction(1, math.prod(net.widths[bottom:top]))  # edges and gates of the lower pair alone
    output = HALF if bottom < top else Fraction(1)
    total = Fraction(0)
    for gammas in even_fours(paths_from(net, *low), paths_from(net, *high)):
        gates = HALF ** len(neurons_at(gammas, top)) if hidden else output
        total += below * gates * printed_weight(net, gammas, sign=sign, start=top)
    return total


# Lemma 14

_GRID = tuple(
    MLP(widths, law)
    for law in ("gaussian", "uniform", "laplace")
    for widths in (
        [1, *[16] * 48, 1],
        [4, *[64] * 64, 1],
        [4, *[64] * 192, 1],
        [2, *[16, 64, 32, 128] * 12, 1],
    )
)
_CONSTANT, _SPREAD = 16.0, 30.0


def lemma_14(constant: float = _CONSTANT, growth: float = 5.0) -> Statement:
    """Lemma 14: the inner sum of Lemma 13 against exp(growth sum_{i>l2} 1/n_i) / (n_l1 n_l2)."""
    agree = all(
        _pair_sum(net, low[0], high[0], same=low == high) == _inner_sum(net, low, high)
        for net in SMALL
        for low, high in _ordered_pairs(net)
    )
    ratios = [ratio for net in _GRID for ratio in _ratios(net, growth)]
    inside = all(abs(math.log(ratio)) <= math.log(constant) + _SPREAD * error for ratio, error in ratios)
    return Statement(
        "lemma-14",
        "For two neurons in layers l1 <= l2 the inner sum of Lemma 13 is ~ exp(5 sum_{i>l2} 1/n_i) / (n_l1 n_l2).",
        "a recursion for the inner sum, equal in fractions to the sum over all paths of small networks, on deep "
        f"networks: the ratio within [1/{constant:g}, {constant:g}] exp(±{_SPREAD:g} sum 1/n_i^2), hidden layers only",
        {
            "networks": len(_GRID),
            "least ratio": min(ratio for ratio, _ in ratios),
            "largest ratio": max(ratio for ratio, _ in ratios),
        },
        agree and inside,
    )


def _ordered_pairs(net: MLP) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    neurons = [(i, a) for i in range(1, net.depth + 1) for a in range(net.widths[i])]
    return ((low, high) for low, high in product(neurons, repeat=2) if low <= high)


def _ratios(net: MLP, growth: float) -> Iterator[tuple[float, float]]:
    """Exact over form, and sum 1/n_i^2 above the later neuron, for pairs of layers."""
    table = list(_arrivals(net))
    for top in range(1, net.depth):
        above = net.widths[top + 1 : -1]
        form = math.exp(growth * sum(1 / n for n in above)) / net.widths[top]
        error = sum(1 / n**2 for n in above)
        for same in (True, False):
            yield float(_from_table(net, table, top, same=same, lower=False)) * net.widths[top] / form, error
        yield float(_from_table(net, table, top, same=False, lower=True)) / form, error


def _pair_sum(net: MLP, bottom: int, top: int, *, same: bool) -> Fraction:
    """`_inner_sum` at any width and depth: for one neuron (``same``) or two, in layers bottom <= top."""
    if top == net.depth:
        return Fraction(1) if bottom == top else Fraction(1, 2 * net.widths[bottom])
    value = _from_table(net, list(_arrivals(net)), top, same=same, lower=bottom < top)
    return value / net.widths[bottom] if bottom < top else value


def _from_table(net: MLP, table: list[tuple[Fraction, Fraction]], top: int, *, same: bool, lower: bool) -> Fraction:
    """Gates at ``top``; with ``lower`` the other pair comes from below, and arrives at every neuron alike."""
    apart, together = table[net.depth - 1 - top]
    if lower:
        return together / 2 + (net.widths[top] - 1) * apart / 4
    return together / 2 if same else apart / 4


def _arrivals(net: MLP) -> Iterator[tuple[Fraction, Fraction]]:
    """For layers d-1, d-2, ..., 1: even 4-tuples from that layer up, from two neurons in pairs, and from one."""
    apart, together = Fraction(0), Fraction(1)
    mu = net.weight_law.moment(4)
    coin = Fraction(1)
    for layer in reversed(net.layers[1:]):
        n, v = layer.fan_out, layer.weight_variance
        two, one = n * (n - 1) * coin**2 * apart, n * coin * together
        apart, together = v**2 * (two + one), v**2 * (3 * two + mu * one)
        coin = HALF
        yield apart, together
