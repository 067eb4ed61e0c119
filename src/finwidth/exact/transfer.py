"""The transfer engine: the value of a path state at the output, layer by layer from the input up.

The value of a state at layer i is the expected sum over everything below it (docs/theory/transfer.md)::

    value_i(S) = sum over steps S -> T of factor_i(S -> T) gate_{i-1}(T) value_{i-1}(T)

so one pass of d layers gives the values of all states.  The engine is generic in the kind of number:
`fractions.Fraction` (exact), `decimal.Decimal` (50 digits, and exponents that never overflow), NumPy
arrays (many networks at once), SymPy expressions (closed forms).
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Any, TypeAlias

from finwidth.activations import Activation
from finwidth.exact.partitions import END, Factor, State, canonical, steps
from finwidth.network import MLP, Layer
from finwidth.progress import stage

Number: TypeAlias = Any  # whatever the arithmetic of the call is
Convert: TypeAlias = Callable[[Fraction], Number]

Matrix: TypeAlias = list[tuple[list[int], list[Number]]]

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


@dataclass(frozen=True)
class LayerNumbers:
    """The numbers of a `Layer` in some arithmetic; as arrays, of the same layer of many networks at once."""

    random_bias: bool
    fan_in: Number
    fan_out: Number
    weight_variance: Number
    weight_multiplier: Number
    bias_variance: Number
    bias_multiplier: Number

    @classmethod
    def of(cls, layers: Sequence[Layer], stack: Callable[[list[Fraction]], Number]) -> LayerNumbers:
        """The numbers of a layer of one or several networks; ``stack`` makes one number of the values of all."""
        names = [field.name for field in dataclasses.fields(Layer)]
        numbers = {name: stack([Fraction(getattr(layer, name)) for layer in layers]) for name in names}
        return cls(random_bias=bool(layers[0].bias_variance), **numbers)


def survival_matters(net: MLP) -> bool:
    """Whether a moment can depend on a layer being entirely closed: through trained biases that start at zero."""
    return net.activation.can_die and net.bias == "trained"


class Transfer:
    """One pass up a network: the values of all states of a program, layer by layer.

    Parameters
    ----------
    program
        What to compute.
    net
        Weight and bias laws, activation and kind of biases; its widths are not looked at.
    x
        The input.
    convert
        Sets the arithmetic.
    dead_layers
        Whether a layer may be entirely closed, as at any finite width.
    """

    def __init__(self, program: Program, net: MLP, x: Input, convert: Convert, *, dead_layers: bool = True) -> None:
        self.program, self.net, self.convert = program, net, convert
        self._one, self._zero = convert(Fraction(1)), convert(Fraction(0))
        self._half = convert(Fraction(1, 2))
        self._can_die = dead_layers and survival_matters(net)
        # Before the first random bias, a zero input makes every pre-activation exactly zero.
        self._vanishing = x.zero
        self._alive = self._one  # probability that x^(i-1) is not zero
        self._first = True
        self._scale = self._one
        self._open = self._gates(net.activation)
        self._frozen = self._gates(net.activation.frozen_at_zero())
        self.values = [self._zero if s.marks else x.monomial(s.sizes, convert) for s in program.states]
        self._all = tuple(range(len(program.states)))
        self._matrices: dict[tuple[bool, Sequence[int]], tuple[LayerNumbers, Matrix]] = {}  # of the latest layers

    def hidden(self, layer: LayerNumbers) -> None:
        """Go up one hidden layer."""
        # Paths that all end in this layer's biases need its gates to be coins: its pre-activations not all zero.
        coins = self._one if layer.random_bias else self._alive
        self._vanishing = self._vanishing and not layer.random_bias
        gates = self._frozen if self._vanishing else self._open
        self.values = [gate * each for gate, each in zip(gates, self._apply(layer, coins, self._all), strict=True)]
        if self._can_die and not self._vanishing:
            self._alive = coins * (self._one - self._half**layer.fan_out)
        self._first = False

    def output(self, layer: LayerNumbers) -> list[Number]:
        """Values of the program's starts if ``layer`` is the last one; the pass can go on as if it were not."""
        return self._apply(layer, self._one, self.program.starts)

    def rescale(self, factor: Number) -> None:
        """Multiply all values, now and from now on, by ``factor``: for arithmetic that overflows."""
        self._scale = self._scale * factor
        self.values = [value * factor for value in self.values]

    def _apply(self, layer: LayerNumbers, end: Number, states: Sequence[int]) -> list[Number]:
        """Values of ``states`` above ``layer``; ``end`` is the value of the state in which every path has ended."""
        self.values[0] = end * self._scale
        value = self.values
        key = (self._first, states)
        if key not in self._matrices or self._matrices[key][0] is not layer:
            self._matrices[key] = layer, self._matrix(layer, states)
        rows = self._matrices[key][1]
        return [sum(map(operator.mul, row, [value[t] for t in targets]), self._zero) for targets, row in rows]

    def _gates(self, phi: Activation) -> list[Number]:
        """For each state, the product over its neurons of E[phi'^(number of paths)]."""
        sizes = {size for state in self.program.states for size in state.sizes}
        moments = {size: self.convert(phi.gate_moment(size)) for size in sizes}
        return [math.prod((moments[size] for size in state.sizes), start=self._one) for state in self.program.states]

    def _matrix(self, layer: LayerNumbers, states: Sequence[int]) -> Matrix:
        """The steps of one layer as numbers: for each state its targets and their entries, same targets added up."""
        factors = [self._factor(layer, factor) for factor in self.program.factors]
        matrix = []
        for row in (self.program.rows[state] for state in states):
            entries: dict[int, Number] = {}
            for target, factor, multiplicity in row:
                entry = multiplicity * factors[factor]
                entries[target] = entries[target] + entry if target in entries else entry
            kept = {target: entry for target, entry in entries.items() if not _is_zero(entry)}
            matrix.append((list(kept), list(kept.values())))
        return matrix

    def _factor(self, layer: LayerNumbers, factor: Factor) -> Number:
        """The number that the exponents of ``factor`` stand for in this layer."""
        result = power(layer.weight_multiplier, factor.weight_marks) * power(layer.bias_multiplier, factor.bias_marks)
        if not self._first:  # the coordinates of x were summed by `Input.monomial`
            result = math.prod((layer.fan_in - j for j in range(factor.neurons)), start=result)
        for order in factor.weight_orders:
            result = result * self.convert(self.net.weight_law.moment(order)) * layer.weight_variance ** (order // 2)
        for order in factor.bias_orders:
            result = result * self.convert(self.net.bias_law.moment(order)) * layer.bias_variance ** (order // 2)
        return result


def _is_zero(entry: Number) -> bool:
    return isinstance(entry, Fraction | Decimal) and not entry


def evaluate(program: Program, net: MLP, x: Input, convert: Convert, *, dead_layers: bool = True) -> list[Number]:
    """Values of the program's starts at the output of ``net`` at input ``x``, in the arithmetic of ``convert``."""
    transfer = Transfer(program, net, x, convert, dead_layers=dead_layers)
    *hidden, last = net.layers

    def one(values: list[Fraction]) -> Number:
        return convert(values[0])

    # Fractions get longer from layer to layer, and what it takes to reduce them grows like the square of that.
    power, every = (3, 1) if convert is Fraction else (1, 64)
    latest: tuple[Layer, LayerNumbers] | None = None
    with stage("exact moments", net.depth**power) as told:
        for i, layer in enumerate(hidden, 1):
            if latest is None or latest[0] != layer:
                latest = layer, LayerNumbers.of([layer], one)
            transfer.hidden(latest[1])
            if not i % every:
                told(i**power)
    return transfer.output(LayerNumbers.of([last], one))


def pairs(kinds: Iterable[str]) -> State:
    """The state at the output of a product of kernels: for each of ``kinds`` ("w", "b") a pair of marked paths."""
    marks = tuple((2 * j, 2 * j + 1, kind) for j, kind in enumerate(kinds))
    return State((tuple(range(2 * len(marks))),), marks)
