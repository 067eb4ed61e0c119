"""The transfer through residual blocks: the value of a path state on the stream, block by block from the input up.

Down a block the paths of a state take five steps (docs/theory/residual.md)::

    stream -> chosen      an even number of each neuron's paths passes through the block, the rest stay where they are
    chosen -> tied        those that pass leave their neurons by the outer layer
    tied -> hidden        and meet in hidden neurons, whose gates they take
    hidden -> returning   they leave these by the inner layer
    returning -> stream   and come back to the stream, also to neurons where others stayed

A block of one matrix has no inner layer: paths that met in neurons come back to the stream with the gates they took::

    tied -> gated         those that pass meet in neurons, whose gates they take
    gated -> stream       which are neurons of the stream, also of paths that stayed

The head brings paths from the outputs to "returning" and the stem from "stream" to the input.  Each step is a sparse
matrix; the values go up the other way.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, TypeAlias

from finwidth.exact.partitions import (
    Factor,
    Pair,
    State,
    Tie,
    canonical_pair,
    choices,
    meetings,
    pair_landings,
    pair_splits,
    returns,
    splits,
)
from finwidth.exact.transfer import (
    Convert,
    Input,
    LayerNumbers,
    Matrix,
    Number,
    cumulants,
    gate_numbers,
    is_zero,
    neuron_choices,
    power,
    tie_number,
    unsupported_laws,
)
from finwidth.networks.balanced import BalancedBlock, BalancedResNet
from finwidth.networks.description import Layer
from finwidth.networks.residual import ResidualNetwork
from finwidth.networks.resnet import ResNet, ResNetBlock
from finwidth.networks.routes import gates_no_coins
from finwidth.progress import stage

_Node: TypeAlias = Any  # a state of the stream, or a pair
_Weight: TypeAlias = Any  # what the number of a step depends on, beside the layer: a tuple
_Row: TypeAlias = dict[tuple[_Node, _Weight], int]  # (node below, weight) -> ways
Rows: TypeAlias = dict[_Node, _Row]
_Weigh: TypeAlias = Callable[[_Weight], Number]  # the number of a weight in some layer


@dataclass(frozen=True)
class Transition:
    """A step between two lists of nodes, as indices: of each node above (below, weight, multiplicity)."""

    rows: tuple[tuple[tuple[int, int, int], ...], ...]
    weights: tuple[_Weight, ...]

    @classmethod
    def of(cls, rows: Rows, below: Iterable[_Node]) -> Transition:
        """The step that ``rows`` say, to the nodes ``below``."""
        weights = dict.fromkeys(weight for row in rows.values() for _, weight in row)
        state_at = {state: index for index, state in enumerate(below)}
        weight_at = {weight: index for index, weight in enumerate(weights)}
        return cls(
            tuple(
                tuple((state_at[state], weight_at[weight], ways) for (state, weight), ways in row.items())
                for row in rows.values()
            ),
            tuple(weights),
        )

    def matrix(self, numbers: Sequence[Number]) -> Matrix:
        """The step in numbers, without zeros, from those of its weights."""
        found = []
        for row in self.rows:
            entries = [(state, ways * numbers[weight]) for state, weight, ways in row]
            kept = [(state, entry) for state, entry in entries if not is_zero(entry)]
            found.append(([state for state, _ in kept], [entry for _, entry in kept]))
        return found


@dataclass(frozen=True)
class ResidualProgram:
    """The states that can be reached from some starts, and the steps between them."""

    head: tuple[Transition, Transition]  # from the outputs to ties, and to the stream
    block: dict[str, Transition]  # from the stream down to the stream, by the kind of node above
    stem: Transition
    returning: tuple[Pair, ...]
    input: tuple[State, ...]


def _new_neurons(pair: Pair, stream: State) -> _Weight:
    """How many neurons of the stream are taken by paths that stayed, and how many after the others are there."""
    return len(pair[0]), len(stream)


# By kind of node the step down from it, and what the number of a way depends on.
_DOWN: dict[str, tuple[Callable[[_Node], Mapping[_Node, int]], Callable[[_Node, _Node], _Weight]]] = {
    "stream": (choices, lambda _, pair: tuple(sum(map(len, half)) for half in pair)),
    "tied": (pair_landings, lambda _, pair: tuple(map(len, pair[1]))),
    "returning": (returns, _new_neurons),
    "gated": (meetings, _new_neurons),
}
_SPLITTING = ("chosen", "hidden")  # the others, whose ways depend on the laws
_TWO_MATRICES = ("stream", "chosen", "tied", "hidden", "returning")
_ONE_MATRIX = ("stream", "chosen", "tied", "gated")


def compile_residual(starts: Sequence[State], net: ResidualNetwork) -> ResidualProgram:
    """All states below ``starts`` and the steps between them; done once for each kind of moment and of law."""
    highest = max(sum(map(len, start)) for start in starts)
    kinds = _TWO_MATRICES if isinstance(net, ResNet) else _ONE_MATRIX
    return _residual_program(tuple(starts), frozenset(cumulants(net, highest)), kinds)


@cache
def _residual_program(starts: tuple[State, ...], occurring: frozenset[Tie], kinds: tuple[str, ...]) -> ResidualProgram:
    after = {"returning": "stream"} | dict(zip(kinds, (*kinds[1:], kinds[0]), strict=True))
    head: Rows = {place: dict(pair_splits(((), start), occurring)) for place, start in enumerate(starts)}
    rows: dict[str, Rows] = {kind: {} for kind in after}
    waiting = [("returning", pair) for row in head.values() for pair, _ in row]
    while waiting:
        kind, node = waiting.pop()
        if node not in rows[kind]:
            if kind in _SPLITTING:
                row: _Row = pair_splits(node, occurring)
            else:
                down, weight = _DOWN[kind]
                row = {(below, weight(node, below)): ways for below, ways in down(node).items()}
            rows[kind][node] = row
            waiting.extend((after[kind], below) for below, _ in row)
    stem: Rows = {stream: dict(splits(stream, occurring)) for stream in rows["stream"]}
    given = tuple(dict.fromkeys(ties for row in stem.values() for ties, _ in row))
    return ResidualProgram(
        head=(Transition.of(head, rows["returning"]), Transition.of(rows["returning"], rows["stream"])),
        block={kind: Transition.of(rows[kind], rows[after[kind]]) for kind in kinds},
        stem=Transition.of(stem, given),
        returning=tuple(rows["returning"]),
        input=given,
    )


class ResidualTransfer:
    """One pass up residual networks of one kind: the values of all states of a program on the stream.

    Parameters
    ----------
    program
        What to compute.
    nets
        One network, or several that differ in widths, gains and factors only.
    x
        The input.
    convert
        Sets the arithmetic.
    gather
        Makes one number, such as an array, of the values that the networks have; by default that of the first.
    """

    def __init__(
        self,
        program: ResidualProgram,
        nets: Sequence[ResidualNetwork],
        x: Input,
        convert: Convert,
        gather: Callable[[Sequence[Fraction]], Number] | None = None,
    ) -> None:
        self.program, self.nets, self.convert = program, nets, convert
        self._gather = gather or (lambda values: convert(values[0]))
        self._one = convert(Fraction(1))
        split = [program.block[kind] for kind in ("chosen", "hidden") if kind in program.block]
        ties = {tie for step in (program.head[0], program.stem, *split) for factor in step.weights for tie in factor}
        highest = max((order for _, order in ties), default=0)
        self._cumulants = {tie: convert(value) for tie, value in cumulants(nets[0], highest).items()}
        # At the input zero the stream is exactly zero up to the first random bias.
        self._vanishing = x.zero and not nets[0].stem.bias_variance
        self._latest: tuple[Sequence[ResNetBlock | BalancedBlock], bool, list[Matrix]] | None = None
        given = [x.value(state, convert) for state in program.input]
        numbers = list(map(self._split([net.stem for net in nets]), program.stem.weights))
        self.stream = self._times(program.stem.matrix(numbers), given)

    def block(self, *blocks: ResNetBlock | BalancedBlock) -> None:
        """Go up one block, of each network."""
        first = blocks[0]
        zero = self._vanishing and not (isinstance(first, ResNetBlock) and first.inner.bias_variance)
        self._vanishing = zero and not (first.outer.bias_variance and first.branch_squared)
        if self._latest is None or self._latest[:2] != (blocks, zero):
            weigh = {
                "stream": self._choice(blocks),
                "chosen": self._split([block.outer for block in blocks]),
                "tied": self._landing(blocks, zero=zero),
                "gated": self._meeting,
                "returning": self._meeting,
            }
            inner = [block.inner for block in blocks if isinstance(block, ResNetBlock)]
            if inner:
                weigh["hidden"] = self._split(inner)
            matrices = [step.matrix(list(map(weigh[kind], step.weights))) for kind, step in self.program.block.items()]
            self._latest = blocks, zero, matrices
        for matrix in reversed(self._latest[2]):
            self.stream = self._times(matrix, self.stream)

    def returning(self) -> list[Number]:
        """Values of all ties that arrive at the neurons of the stream from above."""
        step = self.program.head[1]
        return self._times(step.matrix(list(map(self._meeting, step.weights))), self.stream)

    def output(self) -> list[Number]:
        """Values of the program's starts."""
        step, weigh = self.program.head[0], self._split([net.head for net in self.nets])
        return self._times(step.matrix(list(map(weigh, step.weights))), self.returning())

    def _times(self, matrix: Matrix, values: list[Number]) -> list[Number]:
        value, zero = values.__getitem__, self.convert(Fraction(0))
        return [sum(map(operator.mul, row, map(value, below)), zero) for below, row in matrix]

    def _split(self, layers: Sequence[Layer]) -> _Weigh:
        numbers = LayerNumbers.of(layers, self._gather)

        def weigh(factor: Factor) -> Number:
            return math.prod((tie_number(numbers, tie, self._cumulants) for tie in factor), start=self._one)

        return weigh

    def _choice(self, blocks: Sequence[ResNetBlock | BalancedBlock]) -> _Weigh:
        skip = self._gather([block.skip_squared for block in blocks])
        branch = self._gather([block.branch_squared for block in blocks])
        return lambda paths: self._one * power(skip, paths[0] // 2) * power(branch, paths[1] // 2)

    def _landing(self, blocks: Sequence[ResNetBlock | BalancedBlock], *, zero: bool) -> _Weigh:
        """The gates of the neurons, and the ways to choose these if they are hidden ones."""
        activation = self.nets[0].activation
        phi = activation.frozen_at_zero() if zero else activation
        gates = gate_numbers(phi, self.program.block["tied"].weights, self.convert)
        inner = [block.inner for block in blocks if isinstance(block, ResNetBlock)]
        if not inner:
            return gates.__getitem__
        width = self._gather([Fraction(layer.fan_out) for layer in inner])
        return lambda sizes: neuron_choices(width, len(sizes), gates[sizes])

    def _meeting(self, neurons: tuple[int, int]) -> Number:
        """The ways to choose the neurons of the stream that are new: those of the paths that stayed are taken."""
        taken, after = neurons
        free = self._gather([Fraction(net.widths[1] - taken) for net in self.nets])
        return neuron_choices(free, after - taken, self._one)


class ResNetMoments:
    """What `finwidth.moments` and its like do for a `ResNet` and a `BalancedResNet`."""

    @staticmethod
    def unsupported(net: ResidualNetwork) -> list[str]:
        """Reasons why there are no moments of this network; none if there are."""
        reasons = unsupported_laws(net) + gates_no_coins(net)
        if net.outlived:
            reasons.append("it has trained biases above a block without skip, in which the stream can die")
        return reasons

    @staticmethod
    def values(
        starts: Sequence[State],
        net: ResNet | BalancedResNet,
        x: Input,
        convert: Convert,
        *,
        dead_layers: bool = True,
        watched: Sequence[State] = (),
    ) -> tuple[list[Number], list[list[Number]]]:
        """As `finwidth.exact.transfer.MLPMoments.values`; watched are the neurons of the stream, from x_0 to x_L."""
        program = compile_residual(starts, net)
        transfer = ResidualTransfer(program, [net], x, convert)
        wanted = [program.returning.index(canonical_pair((), ties)) for ties in watched]
        seen = [list(map(transfer.returning().__getitem__, wanted))] if watched else []
        # Fractions get longer from block to block, and what it takes to reduce them grows like the square of that.
        exponent, every = (3, 1) if convert is Fraction else (1, 64)
        with stage("exact moments", net.depth**exponent) as told:
            blocks: Sequence[ResNetBlock | BalancedBlock] = net.blocks
            for i, block in enumerate(blocks, 1):
                transfer.block(block)
                if watched:
                    seen.append(list(map(transfer.returning().__getitem__, wanted)))
                if not i % every:
                    told(i**exponent)
        return transfer.output(), seen
