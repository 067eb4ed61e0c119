"""The transfer engine: the value of a path state at the output, layer by layer from the input up.

The value of a state at layer i is the expected sum over everything below it (docs/theory/transfer.md)::

    value_i(S) = sum over steps S -> T of factor_i(S -> T) gate_{i-1}(T) value_{i-1}(T)

so one pass of d layers gives the values of all states.  The engine is generic in the kind of number:
`fractions.Fraction` (exact), `decimal.Decimal` (50 digits, and exponents that never overflow), NumPy
arrays (many networks at once), SymPy expressions (closed forms).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Any, TypeAlias

from finwidth.activations import Activation
from finwidth.exact.partitions import END, Factor, State, canonical, steps
from finwidth.network import MLP, Layer

Number: TypeAlias = Any  # whatever the arithmetic of the call is
Convert: TypeAlias = Callable[[Fraction], Number]

DIGITS = 50  # of the Decimal arithmetic: enough to lose 30 to cancellation in a central moment


def to_decimal(value: Fraction) -> Decimal:
    """A fraction in the precision of the current decimal context."""
    return Decimal(value.numerator) / Decimal(value.denominator)


def power(base: Number, exponent: int) -> Number:
    """``base ** exponent`` with 0 ** 0 = 1, which decimals refuse."""
    return base**exponent if exponent else 1


@dataclass(frozen=True)
class Program:
    """The states that can be reached from ``starts``, and the steps between them, as indices."""

    starts: tuple[int, ...]
    states: tuple[State, ...]
    factors: tuple[Factor, ...]
    rows: tuple[tuple[tuple[int, int, int], ...], ...]  # for each state: (target state, factor, multiplicity)


@cache
def compile_program(starts: tuple[State, ...], random_bias: bool) -> Program:
    """All states below ``starts`` and their steps; done once for each kind of moment."""
    index: dict[State, int] = {END: 0}
    factors: dict[Factor, int] = {}
    rows: dict[int, tuple[tuple[int, int, int], ...]] = {0: ()}
    names = [canonical(start) for start in starts]
    waiting = list(dict.fromkeys(names))
    for state in waiting:
        index.setdefault(state, len(index))
    while waiting:
        state = waiting.pop()
        row = []
        for (target, factor), multiplicity in steps(state, random_bias).items():
            if target not in index:
                index[target] = len(index)
                waiting.append(target)
            row.append((index[target], factors.setdefault(factor, len(factors)), multiplicity))
        rows[index[state]] = tuple(row)
    return Program(
        tuple(index[name] for name in names), tuple(index), tuple(factors), tuple(rows[i] for i in range(len(index)))
    )


@dataclass(frozen=True)
class Input:
    """What the transfer needs of x: its power sums sum_a x_a^k for even k."""

    power_sums: dict[int, Fraction]
    zero: bool

    @classmethod
    def of(cls, x: Sequence[Fraction], order: int) -> Input:
        """Power sums up to ``order`` of an input given as fractions."""
        return cls({k: sum((a**k for a in x), Fraction(0)) for k in range(2, order + 1, 2)}, not any(x))

    def monomial(self, sizes: tuple[int, ...], convert: Convert) -> Number:
        """Sum over distinct coordinates a_1, a_2, ... of prod x_{a_j}^{sizes_j} (1 for no sizes)."""
        if not sizes:
            return convert(Fraction(1))
        first, rest = sizes[0], sizes[1:]
        total = convert(self.power_sums[first]) * self.monomial(rest, convert)
        for j, size in enumerate(rest):
            total = total - self.monomial((*rest[:j], size + first, *rest[j + 1 :]), convert)
        return total


class Coefficients:
    """The numbers of one layer, in the arithmetic of the call.

    In the ``first`` layer the neurons below are the coordinates of x, which `Input.monomial` has summed already.
    """

    def __init__(self, net: MLP, layer: Layer, convert: Convert, *, first: bool) -> None:
        self.fan_in = None if first else convert(Fraction(layer.fan_in))
        self.weight_variance = convert(layer.weight_variance)
        self.weight_multiplier = convert(layer.weight_multiplier)
        self.bias_variance = convert(layer.bias_variance)
        self.bias_multiplier = convert(layer.bias_multiplier)
        self._convert, self._weight_law, self._bias_law = convert, net.weight_law, net.bias_law

    def of(self, factor: Factor) -> Number:
        """The number that the exponents of ``factor`` stand for in this layer."""
        result = power(self.weight_multiplier, factor.weight_marks) * power(self.bias_multiplier, factor.bias_marks)
        if self.fan_in is not None:
            result = math.prod((self.fan_in - j for j in range(factor.neurons)), start=result)
        for order in factor.weight_orders:
            result = result * self._convert(self._weight_law.moment(order)) * self.weight_variance ** (order // 2)
        for order in factor.bias_orders:
            result = result * self._convert(self._bias_law.moment(order)) * self.bias_variance ** (order // 2)
        return result


def survival_matters(net: MLP) -> bool:
    """Whether a moment can depend on a layer being entirely closed: through trained biases that start at zero."""
    return net.activation.can_die and net.bias == "trained"


def evaluate(program: Program, net: MLP, x: Input, convert: Convert, *, dead_layers: bool = True) -> list[Number]:
    """Values of the program's starts at the output of ``net`` at input ``x``.

    ``convert`` sets the arithmetic.  Without ``dead_layers`` no layer is ever entirely closed, as at infinite width.
    """
    one, zero, half = convert(Fraction(1)), convert(Fraction(0)), convert(Fraction(1, 2))
    frozen = net.activation.frozen_at_zero()
    can_die = dead_layers and survival_matters(net)
    # Before the first random bias, a zero input makes every pre-activation exactly zero.
    vanishing = x.zero
    alive = one  # probability that x^(i-1) is not zero
    value = [zero if state.marks else x.monomial(state.sizes, convert) for state in program.states]
    previous: Layer | None = None
    phi: Activation | None = None
    for i, layer in enumerate(net.layers, 1):
        if layer != previous or i == 2:
            matrix = _matrix(program, Coefficients(net, layer, convert, first=i == 1))
            previous = layer
        # Paths that all end in this layer's biases need its gates to be coins: its pre-activations not all zero.
        coins = one if layer.bias_variance or i == net.depth else alive
        value[0] = coins
        value = [sum((entry * value[target] for target, entry in row), zero) for row in matrix]
        if i < net.depth:
            vanishing = vanishing and not layer.bias_variance
            slopes = frozen if vanishing else net.activation
            if slopes is not phi:
                gates, phi = _gates(program, slopes, convert), slopes
            value = [gate * each for gate, each in zip(gates, value, strict=True)]
            if can_die and not vanishing:
                alive = coins * (one - half**layer.fan_out)
    return [value[start] for start in program.starts]


def _gates(program: Program, phi: Activation, convert: Convert) -> list[Number]:
    """For each state, the product over its neurons of E[phi'^(number of paths)]."""
    one = convert(Fraction(1))
    sizes = {size for state in program.states for size in state.sizes}
    moments = {size: convert(phi.gate_moment(size)) for size in sizes}
    return [math.prod((moments[size] for size in state.sizes), start=one) for state in program.states]


def _matrix(program: Program, numbers: Coefficients) -> list[list[tuple[int, Number]]]:
    """The steps of one layer as numbers, entries with the same target added up."""
    factors = [numbers.of(factor) for factor in program.factors]
    matrix = []
    for row in program.rows:
        entries: dict[int, Number] = {}
        for target, factor, multiplicity in row:
            entry = multiplicity * factors[factor]
            entries[target] = entries[target] + entry if target in entries else entry
        matrix.append([(target, entry) for target, entry in entries.items() if not _is_zero(entry)])
    return matrix


def _is_zero(entry: Number) -> bool:
    return isinstance(entry, Fraction | Decimal) and not entry


def pairs(kinds: Iterable[str]) -> State:
    """The state at the output of a product of kernels: for each of ``kinds`` ("w", "b") a pair of marked paths."""
    marks = tuple((2 * j, 2 * j + 1, kind) for j, kind in enumerate(kinds))
    return State((tuple(range(2 * len(marks))),), marks)
