"""The transfer engine: the value of a path state at the output, layer by layer from the input up.

The value of a state at layer i is the expected sum over everything below it (docs/theory/transfer.md)::

    value_i(S)     = sum over splits S -> U of factor_i(S -> U) tied_{i-1}(U)
    tied_{i-1}(U)  = sum over landings U -> T of choices_{i-1}(T) gate_{i-1}(T) value_{i-1}(T)

so one pass of d layers gives the values of all states.  The engine is generic in the kind of number:
`fractions.Fraction` (exact), `decimal.Decimal` (50 digits, and exponents that never overflow), NumPy
arrays (many networks at once), SymPy expressions (closed forms).
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Any, TypeAlias

from finwidth.exact.normalised import why_no_moments
from finwidth.exact.partitions import END, Factor, Splits, State, Tie, landings, splits
from finwidth.networks.activations import Activation, SmoothActivation
from finwidth.networks.description import Layer, Network
from finwidth.networks.mlp import MLP
from finwidth.progress import stage

Number: TypeAlias = Any  # whatever the arithmetic of the call is
Convert: TypeAlias = Callable[[Fraction], Number]

_KEPT = 8  # layers, of which a pass keeps the numbers

Matrix: TypeAlias = list[tuple[list[int], list[Number]]]
_Gates: TypeAlias = dict[tuple[int, ...], Number]  # by the numbers of paths in the neurons of a state

DIGITS = 50  # of the Decimal arithmetic: enough to lose 30 to cancellation in a central moment


def to_decimal(value: Fraction) -> Decimal:
    """A fraction in the precision of the current decimal context."""
    return Decimal(value.numerator) / Decimal(value.denominator)


def power(base: Number, exponent: int) -> Number:
    """``base ** exponent`` with 0 ** 0 = 1, which decimals refuse."""
    return base**exponent if exponent else 1


@dataclass(frozen=True)
class Program:
    """The states that can be reached from some starts, and the halves of the steps between them, as indices."""

    starts: tuple[int, ...]  # in `neurons`
    neurons: tuple[State, ...]
    ties: tuple[State, ...]  # the first is END
    factors: tuple[Factor, ...]
    splits: tuple[tuple[tuple[int, int, int], ...], ...]  # of each of `neurons`: (ties, factor, multiplicity)
    landings: tuple[tuple[int, ...], ...]  # of each of `ties`: the neurons of every way to land


def compile_program(starts: Sequence[State], net: MLP) -> Program:
    """All states below ``starts`` and the steps between them; done once for each kind of moment and of law."""
    highest = max(sum(map(len, start)) for start in starts)  # all paths can meet in one neuron
    return _compiled(tuple(starts), frozenset(cumulants(net, highest)))


@cache
def _compiled(starts: tuple[State, ...], occurring: frozenset[Tie]) -> Program:
    # END is in no neuron: its value is set layer by layer.
    split: dict[State, Splits] = {}
    land: dict[State, tuple[State, ...]] = {END: ()}
    waiting = list(starts)
    while waiting:
        neurons = waiting.pop()
        if neurons not in split:
            split[neurons] = splits(neurons, occurring)
            for ties, _ in split[neurons]:
                if ties not in land:
                    land[ties] = tuple(landings(ties))
                    waiting.extend(land[ties])
    factors = dict.fromkeys(factor for row in split.values() for _, factor in row)
    neuron_at = {neurons: index for index, neurons in enumerate(split)}
    tie_at = {ties: index for index, ties in enumerate(land)}
    factor_at = {factor: index for index, factor in enumerate(factors)}
    return Program(
        starts=tuple(neuron_at[start] for start in starts),
        neurons=tuple(split),
        ties=tuple(land),
        factors=tuple(factors),
        splits=tuple(
            tuple((tie_at[ties], factor_at[factor], ways) for (ties, factor), ways in row.items())
            for row in split.values()
        ),
        landings=tuple(tuple(neuron_at[neurons] for neurons in row) for row in land.values()),
    )


def cumulants(net: Network, highest: int) -> dict[Tie, Fraction]:
    """The even cumulants, up to an order, of the laws of the weights and the random biases; those that are not zero.

    Examples
    --------
    >>> {tie: str(value) for tie, value in cumulants(MLP([1, 1], "uniform"), 4).items()}
    {('w', 2): '1', ('w', 4): '-6/5'}
    """
    laws = {"w": net.weight_law} | ({"b": net.bias_law} if net.random_bias else {})
    found: dict[Tie, Fraction] = {}
    for kind, law in laws.items():
        moment = {k: law.moment(k) for k in range(0, highest + 1, 2)}
        for k in range(2, highest + 1, 2):
            # A moment is a sum over the part which its first factor belongs to.
            parts = (math.comb(k - 1, j - 1) * found[kind, j] * moment[k - j] for j in range(2, k, 2))
            found[kind, k] = moment[k] - sum(parts)
    return {tie: value for tie, value in found.items() if value}


@dataclass(frozen=True)
class Input:
    """What the transfer needs of x: its power sums sum_a x_a^k for even k."""

    power_sums: dict[int, Fraction]
    zero: bool

    @classmethod
    def of(cls, x: Sequence[Fraction], order: int) -> Input:
        """Power sums up to ``order`` of an input given as fractions."""
        return cls({k: sum((a**k for a in x), Fraction(0)) for k in range(2, order + 1, 2)}, not any(x))

    def value(self, ties: State, convert: Convert) -> Number:
        """Sum over the coordinates in which each of ``ties`` can land; 0 if a mark is left."""
        if any(path for tie in ties for path in tie):
            return convert(Fraction(0))
        return math.prod((convert(self.power_sums[len(tie)]) for tie in ties), start=convert(Fraction(1)))


@dataclass(frozen=True)
class LayerNumbers:
    """The numbers of a `Layer` in some arithmetic; as arrays, of the same layer of many networks at once."""

    random_bias: bool
    fan_out: Number
    weight_variance: Number
    weight_multiplier: Number
    bias_variance: Number
    bias_multiplier: Number

    @classmethod
    def of(cls, layers: Sequence[Layer], stack: Callable[[list[Fraction]], Number]) -> LayerNumbers:
        """The numbers of a layer of one or several networks; ``stack`` makes one number of the values of all."""
        names = [field.name for field in dataclasses.fields(cls) if field.name != "random_bias"]
        numbers = {name: stack([Fraction(getattr(layer, name)) for layer in layers]) for name in names}
        return cls(random_bias=bool(layers[0].bias_variance), **numbers)


def survival_matters(net: MLP) -> bool:
    """Whether a moment can depend on a layer being entirely closed: through trained biases that start at zero."""
    return net.activation.can_die and "trained" in net.bias


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
        self.program, self.convert = program, convert
        self._one, self._zero = convert(Fraction(1)), convert(Fraction(0))
        self._half = convert(Fraction(1, 2))
        self._can_die = dead_layers and survival_matters(net)
        # Before the first random bias, a zero input makes every pre-activation exactly zero.
        self._vanishing = x.zero
        self._alive = self._one  # probability that x^(i-1) is not zero
        self._scale = self._one
        self._sizes = [tuple(map(len, neurons)) for neurons in program.neurons]
        # For each state, the product over its neurons of E[phi'^(number of paths)].
        self._open = gate_numbers(net.activation, set(self._sizes), convert)
        self._frozen = gate_numbers(net.activation.frozen_at_zero(), set(self._sizes), convert)
        self._ties = {tie for factor in program.factors for tie in factor}
        highest = max((order for _, order in self._ties), default=0)
        self._cumulants = {tie: convert(value) for tie, value in cumulants(net, highest).items()}
        self.values = [x.value(ties, convert) for ties in program.ties]
        self._all = tuple(range(len(program.neurons)))
        # Of the latest layers, which may come again:
        self._matrices: dict[tuple[int, Sequence[int]], tuple[LayerNumbers, Matrix]] = {}
        self._weights: tuple[LayerNumbers, _Gates, list[Number]] | None = None

    def hidden(self, layer: LayerNumbers) -> None:
        """Go up one hidden layer."""
        # Paths that all end in this layer's biases need its gates to be coins: its pre-activations not all zero.
        coins = self._one if layer.random_bias else self._alive
        self._vanishing = self._vanishing and not layer.random_bias
        landed = list(map(operator.mul, self._landing_weights(layer), self._split(layer, coins, self._all)))
        self.values = [sum(map(landed.__getitem__, row), self._zero) for row in self.program.landings]
        if self._can_die and not self._vanishing:
            self._alive = coins * (self._one - self._half**layer.fan_out)

    def output(self, layer: LayerNumbers) -> list[Number]:
        """Values of the program's starts if ``layer`` is the last one; the pass can go on as if it were not."""
        return self._split(layer, self._one, self.program.starts)

    def rescale(self, factor: Number) -> None:
        """Multiply all values, now and from now on, by ``factor``: for arithmetic that overflows."""
        self._scale = self._scale * factor
        self.values = [value * factor for value in self.values]

    def _split(self, layer: LayerNumbers, end: Number, neurons: Sequence[int]) -> list[Number]:
        """Values of states of ``neurons`` of ``layer``; ``end`` is the value of the state in which every path ended."""
        self.values[0] = end * self._scale
        value = self.values.__getitem__
        key = id(layer), neurons
        if key not in self._matrices:
            if len(self._matrices) == _KEPT:
                del self._matrices[next(iter(self._matrices))]
            self._matrices[key] = layer, self._matrix(layer, neurons)  # while it is kept, no other layer has its id
        rows = self._matrices[key][1]
        return [sum(map(operator.mul, row, map(value, targets)), self._zero) for targets, row in rows]

    def _landing_weights(self, layer: LayerNumbers) -> list[Number]:
        """The gates of each state times the number of ways to choose its neurons, distinct ones of the layer."""
        gates = self._frozen if self._vanishing else self._open
        if self._weights is None or self._weights[0] is not layer or self._weights[1] is not gates:
            number = {sizes: neuron_choices(layer.fan_out, len(sizes), gate) for sizes, gate in gates.items()}
            self._weights = layer, gates, [number[sizes] for sizes in self._sizes]
        return self._weights[2]

    def _matrix(self, layer: LayerNumbers, neurons: Sequence[int]) -> Matrix:
        """The splits of one layer as numbers: for each state its targets and their entries."""
        numbers = {tie: tie_number(layer, tie, self._cumulants) for tie in self._ties}
        factors = [math.prod((numbers[tie] for tie in factor), start=self._one) for factor in self.program.factors]
        matrix = []
        for row in (self.program.splits[state] for state in neurons):
            entries = [(ties, ways * factors[factor]) for ties, factor, ways in row]
            kept = [(ties, entry) for ties, entry in entries if not is_zero(entry)]
            matrix.append(([ties for ties, _ in kept], [entry for _, entry in kept]))
        return matrix


def gate_numbers(phi: Activation, kinds: Iterable[tuple[int, ...]], convert: Convert) -> _Gates:
    """For neurons with these numbers of paths, the product of E[phi'^(number of paths)]."""
    moments = {size: convert(phi.gate_moment(size)) for size in {size for sizes in kinds for size in sizes}}
    return {sizes: math.prod((moments[size] for size in sizes), start=convert(Fraction(1))) for sizes in kinds}


def neuron_choices(width: Number, neurons: int, start: Number) -> Number:
    """``start`` times the number of ways to choose distinct neurons of a layer, one after another."""
    return math.prod((width - taken for taken in range(neurons)), start=start)


def tie_number(layer: LayerNumbers, tie: Tie, cumulants: Mapping[Tie, Number]) -> Number:
    """The factor that a tie has in a layer: a multiplier if it is a mark, else a cumulant."""
    kind, order = tie
    if not order:
        return layer.weight_multiplier if kind == "w" else layer.bias_multiplier
    variance = layer.weight_variance if kind == "w" else layer.bias_variance
    return cumulants[tie] * variance ** (order // 2)


def is_zero(entry: Number) -> bool:
    """Whether an entry need not be kept."""
    return isinstance(entry, Fraction | Decimal) and not entry


def unsupported_laws(net: Network) -> list[str]:
    """Reasons why there are no second moments of a network, whatever its architecture; none if there are."""
    if isinstance(net.activation, SmoothActivation):
        return [f"its activation is {net.activation.name}, which is not positively homogeneous"]
    if net.norm is not None:
        return [why_no_moments(net)]
    laws = {"weights": net.weight_law} | ({"initial biases": net.bias_law} if net.random_bias else {})
    return [
        f"its {what} are {law.name}, a law whose moment mu_4 is not given"
        for what, law in laws.items()
        if len(law.even_moments) < 2
    ]


class MLPMoments:
    """What `finwidth.moments` and its like do for an `MLP`."""

    unsupported = staticmethod(unsupported_laws)

    @staticmethod
    def values(
        starts: Sequence[State],
        net: MLP,
        x: Input,
        convert: Convert,
        *,
        dead_layers: bool = True,
        watched: Sequence[State] = (),
    ) -> tuple[list[Number], list[list[Number]]]:
        """Values of the starts at the output, and after each hidden layer those of the ``watched`` ties."""
        program = compile_program(starts, net)
        places = list(map(program.ties.index, watched))
        seen: list[list[Number]] = []
        values = evaluate(
            program,
            net,
            x,
            convert,
            dead_layers=dead_layers,
            watch=lambda ties: seen.append(list(map(ties.__getitem__, places))),
        )
        return values, seen


def evaluate(
    program: Program,
    net: MLP,
    x: Input,
    convert: Convert,
    *,
    dead_layers: bool = True,
    watch: Callable[[list[Number]], None] | None = None,
) -> list[Number]:
    """Values of the program's starts at the output of ``net`` at input ``x``, in the arithmetic of ``convert``.

    ``watch`` is called after each hidden layer with the values of the program's ties there.
    """
    transfer = Transfer(program, net, x, convert, dead_layers=dead_layers)
    *hidden, last = net.layers

    def one(values: list[Fraction]) -> Number:
        return convert(values[0])

    # Fractions get longer from layer to layer, and what it takes to reduce them grows like the square of that.
    power, every = (3, 1) if convert is Fraction else (1, 64)
    known: dict[tuple[int, int], tuple[Layer, LayerNumbers]] = {}  # by the sides; layers that may come again
    with stage("exact moments", net.depth**power) as told:
        for i, layer in enumerate(hidden, 1):
            sides = layer.fan_in, layer.fan_out
            if sides not in known or known[sides][0] != layer:
                if len(known) == _KEPT:
                    del known[next(iter(known))]
                known[sides] = layer, LayerNumbers.of([layer], one)
            transfer.hidden(known[sides][1])
            if watch:
                watch(transfer.values)
            if not i % every:
                told(i**power)
    return transfer.output(LayerNumbers.of([last], one))
