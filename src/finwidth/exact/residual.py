"""The transfer through residual blocks: the value of a path state on the stream, block by block from the input up.

Down a block the paths of a state take five steps (docs/theory/residual.md)::

    stream -> chosen      an even number of each neuron's paths passes through the block, the rest stay where they are
    chosen -> tied        those that pass leave their neurons by the outer layer
    tied -> hidden        and meet in hidden neurons, whose gates they take
    hidden -> returning   they leave these by the inner layer
    returning -> stream   and come back to the stream, also to neurons where others stayed

The head brings paths from the outputs to "returning" and the stem from "stream" to the input.  Each step is a sparse
matrix; the values go up the other way.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
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
from finwidth.networks.description import Layer
from finwidth.networks.resnet import Block, ResNet
from finwidth.progress import stage

Node: TypeAlias = Any  # a state of the stream, or a pair
Weight: TypeAlias = Any  # what the number of a step depends on, beside the layer: a tuple
Row: TypeAlias = dict[tuple[Node, Weight], int]  # (node below, weight) -> ways
Rows: TypeAlias = dict[Node, Row]
Weigh: TypeAlias = Callable[[Weight], Number]  # the number of a weight in some layer


@dataclass(frozen=True)
class Step:
    """A step between two lists of nodes, as indices: of each node above (below, weight, multiplicity)."""

    rows: tuple[tuple[tuple[int, int, int], ...], ...]
    weights: tuple[Weight, ...]

    @classmethod
    def of(cls, rows: Rows, below: Iterable[Node]) -> Step:
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

    def matrix(self, number: Weigh) -> Matrix:
        """The step in numbers, without zeros."""
        numbers = list(map(number, self.weights))
        found = []
        for row in self.rows:
            entries = [(state, ways * numbers[weight]) for state, weight, ways in row]
            kept = [(state, entry) for state, entry in entries if not is_zero(entry)]
            found.append(([state for state, _ in kept], [entry for _, entry in kept]))
        return found


@dataclass(frozen=True)
class ResidualProgram:
    """The states that can be reached from some starts, and the steps between them."""

    head: Step
    block: tuple[Step, ...]  # from the stream down to the stream
    stem: Step
    returning: tuple[Pair, ...]
    input: tuple[State, ...]


def _descents(occurring: frozenset[Tie]) -> dict[str, Callable[[Node], Row]]:
    """By kind of node, in the order of a block, the step down to the next kind."""

    def chosen(stream: State) -> Row:
        return {(pair, tuple(sum(map(len, half)) for half in pair)): ways for pair, ways in choices(stream).items()}

    def split(pair: Pair) -> Row:
        return dict(pair_splits(pair, occurring))

    def landed(pair: Pair) -> Row:
        return {(each, tuple(map(len, each[1]))): ways for each, ways in pair_landings(pair).items()}

    def returned(pair: Pair) -> Row:
        return {(stream, (len(pair[0]), len(stream))): ways for stream, ways in returns(pair).items()}

    return {"stream": chosen, "chosen": split, "tied": landed, "hidden": split, "returning": returned}


def compile_residual(starts: Sequence[State], net: ResNet) -> ResidualProgram:
    """All states below ``starts`` and the steps between them; done once for each kind of moment and of law."""
    highest = max(sum(map(len, start)) for start in starts)
    return _residual_program(tuple(starts), frozenset(cumulants(net, highest)))


@cache
def _residual_program(starts: tuple[State, ...], occurring: frozenset[Tie]) -> ResidualProgram:
    descents = _descents(occurring)
    after = dict(zip(descents, [*descents][1:] + [*descents][:1], strict=True))
    head: Rows = {place: dict(pair_splits(((), start), occurring)) for place, start in enumerate(starts)}
    rows: dict[str, Rows] = {kind: {} for kind in descents}
    waiting = [("returning", pair) for row in head.values() for pair, _ in row]
    while waiting:
        kind, node = waiting.pop()
        if node not in rows[kind]:
            rows[kind][node] = descents[kind](node)
            waiting.extend((after[kind], below) for below, _ in rows[kind][node])
    stem: Rows = {stream: dict(splits(stream, occurring)) for stream in rows["stream"]}
    given = tuple(dict.fromkeys(ties for row in stem.values() for ties, _ in row))
    return ResidualProgram(
        head=Step.of(head, rows["returning"]),
        block=tuple(Step.of(rows[kind], rows[after[kind]]) for kind in descents),
        stem=Step.of(stem, given),
        returning=tuple(rows["returning"]),
        input=given,
    )


class ResidualTransfer:
    """One pass up a residual network: the values of all states of a program on the stream.

    Parameters
    ----------
    program
        What to compute.
    net
        The network.
    x
        The input.
    convert
        Sets the arithmetic.
    """

    def __init__(self, program: ResidualProgram, net: ResNet, x: Input, convert: Convert) -> None:
        self.program, self.net, self.convert = program, net, convert
        self._one = convert(Fraction(1))
        by_layers = program.head, program.stem, program.block[1], program.block[3]
        ties = {tie for step in by_layers for factor in step.weights for tie in factor}
        highest = max((order for _, order in ties), default=0)
        self._cumulants = {tie: convert(value) for tie, value in cumulants(net, highest).items()}
        # At the input zero the stream is exactly zero up to the first random bias.
        self._vanishing = x.zero and not net.stem.bias_variance
        self._latest: tuple[Block, bool, list[Matrix]] | None = None
        given = [x.value(state, convert) for state in program.input]
        self.stream = self._times(program.stem.matrix(self._split(net.stem)), given)

    def block(self, block: Block) -> None:
        """Go up one block."""
        zero = self._vanishing and not block.inner.bias_variance
        self._vanishing = zero and not (block.outer.bias_variance and block.branch_squared)
        if self._latest is None or self._latest[:2] != (block, zero):
            weighs = self._choice(block), self._split(block.outer), self._landing(block, zero=zero)
            all_weighs = (*weighs, self._split(block.inner), self._meeting)
            steps = zip(self.program.block, all_weighs, strict=True)
            self._latest = block, zero, [step.matrix(weigh) for step, weigh in steps]
        for matrix in reversed(self._latest[2]):
            self.stream = self._times(matrix, self.stream)

    def returning(self) -> list[Number]:
        """Values of all ties that arrive at the neurons of the stream from above."""
        return self._times(self.program.block[-1].matrix(self._meeting), self.stream)

    def output(self) -> list[Number]:
        """Values of the program's starts."""
        return self._times(self.program.head.matrix(self._split(self.net.head)), self.returning())

    def _times(self, matrix: Matrix, values: list[Number]) -> list[Number]:
        value, zero = values.__getitem__, self.convert(Fraction(0))
        return [sum(map(operator.mul, row, map(value, below)), zero) for below, row in matrix]

    def _split(self, layer: Layer) -> Weigh:
        numbers = LayerNumbers.of([layer], lambda values: self.convert(values[0]))

        def weigh(factor: Factor) -> Number:
            return math.prod((tie_number(numbers, tie, self._cumulants) for tie in factor), start=self._one)

        return weigh

    def _choice(self, block: Block) -> Weigh:
        skip, branch = self.convert(block.skip_squared), self.convert(block.branch_squared)
        return lambda paths: self._one * power(skip, paths[0] // 2) * power(branch, paths[1] // 2)

    def _landing(self, block: Block, *, zero: bool) -> Weigh:
        """The gates of hidden neurons, and the ways to choose these."""
        phi = self.net.activation.frozen_at_zero() if zero else self.net.activation
        gates = gate_numbers(phi, self.program.block[2].weights, self.convert)
        width = self.convert(Fraction(block.inner.fan_out))
        return lambda sizes: neuron_choices(width, len(sizes), gates[sizes])

    def _meeting(self, neurons: tuple[int, int]) -> Number:
        """The ways to choose the neurons of the stream that are new: those of the paths that stayed are taken."""
        taken, after = neurons
        return neuron_choices(self.convert(Fraction(self.net.widths[1] - taken)), after - taken, self._one)


class ResNetMoments:
    """What `finwidth.moments` and its like do for a `ResNet`."""

    @staticmethod
    def unsupported(net: ResNet) -> list[str]:
        """Reasons why there are no moments of this network; none if there are."""
        reasons = unsupported_laws(net)
        revived = any(net.bias_variance[place] and net.bias_scale[place] for place in (1, 2))  # V and W
        if not (all(net.skip_squared) or revived) and net.activation.can_die and "trained" in net.bias:
            reasons.append("it has trained biases and a block without skip, in which the stream can die")
        return reasons

    @staticmethod
    def values(
        starts: Sequence[State],
        net: ResNet,
        x: Input,
        convert: Convert,
        *,
        dead_layers: bool = True,
        watched: Sequence[State] = (),
    ) -> tuple[list[Number], list[list[Number]]]:
        """As `finwidth.exact.transfer.MLPMoments.values`; watched are the neurons of the stream, from x_0 to x_L."""
        program = compile_residual(starts, net)
        transfer = ResidualTransfer(program, net, x, convert)
        wanted = [program.returning.index(canonical_pair((), ties)) for ties in watched]
        seen = [list(map(transfer.returning().__getitem__, wanted))] if watched else []
        # Fractions get longer from block to block, and what it takes to reduce them grows like the square of that.
        exponent, every = (3, 1) if convert is Fraction else (1, 64)
        with stage("exact moments", net.depth**exponent) as told:
            for i, block in enumerate(net.blocks, 1):
                transfer.block(block)
                if watched:
                    seen.append(list(map(transfer.returning().__getitem__, wanted)))
                if not i % every:
                    told(i**exponent)
        return transfer.output(), seen
