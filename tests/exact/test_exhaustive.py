"""The transfer engine, and the sums over paths, against every real network that discrete weights allow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import islice, pairwise, product
from typing import Any, TypeAlias

import pytest

from exhaustive import (
    FOUR_VALUED,
    TWO_VALUED,
    Direction,
    RealNetwork,
    TieError,
    average,
    discrete_law,
    every_network,
    single_output,
)
from finwidth.exact.partitions import State, pairs, start_state
from finwidth.exact.transfer import Input, compile_program, evaluate
from finwidth.networks.activations import Activation
from finwidth.networks.laws import Rational, WeightLaw
from finwidth.networks.mlp import MLP
from finwidth.paper.paths import PathEnumeration

Entries: TypeAlias = Sequence[Any]  # integers and fractions

STEEP = Activation("steep", 3, -1)
REVERSED = Activation("reversed", 0, 2)


def four(*widths: int, **options: Any) -> MLP:
    """Weights that are whole numbers: 1 or 7, and a sign."""
    return MLP(widths, FOUR_VALUED, gains=_gains(widths, 5, **options), bias_law=TWO_VALUED, **options)


def two(*widths: int, scale: int = 1, **options: Any) -> MLP:
    """Weights that are a sign times ``scale``; biases, where ``bias_variance`` says so, are a sign times its root."""
    return MLP(widths, TWO_VALUED, gains=_gains(widths, scale, **options), bias_law=TWO_VALUED, **options)


def _gains(widths: Sequence[int], scale: int, **options: Any) -> list[int]:
    gains = [scale**2 * n for n in widths[:-1]]
    if options.get("parameterization") == "mup":
        gains[-1] *= widths[-2]
    return gains


# In all of these no pre-activation can be zero by coincidence, or the activation has one slope only.
NETWORKS: dict[str, tuple[MLP, Entries]] = {
    "the paper's gains": (MLP([2, 1, 1], FOUR_VALUED), [1, 10]),
    "one layer": (four(2, 1), [1, 2]),
    "width one": (four(1, 1, 1, 1), [1]),
    "one hidden layer": (four(2, 2, 1), [1, 10]),
    "three hidden neurons": (four(1, 3, 1), [1]),
    "bottleneck": (four(2, 1, 2, 1), [1, 10]),
    "two ways to die": (four(1, 1, 2, 1), [2]),
    "three ways to die": (two(1, 1, 1, 2, 1), [1]),
    "three inputs": (four(3, 1, 1), [1, -10, 100]),
    "standard": (four(1, 1, 2, 1, parameterization="standard"), [1]),
    "mup": (four(1, 1, 2, 1, parameterization="mup"), [1]),
    "slopes of both signs": (four(1, 1, 2, 1, activation=STEEP), [1]),
    "abs": (four(1, 1, 2, 1, activation="abs"), [1]),
    "open below zero": (four(1, 1, 2, 1, activation=REVERSED), [1]),
    "linear, ties allowed": (two(1, 2, 2, 1, activation="linear"), [1]),
    "frozen": (four(1, 1, 2, 1, bias="frozen"), [1]),
    "none": (four(1, 2, 1, bias="none"), [3]),
    "no input, leaky": (four(1, 1, 2, 1, activation=STEEP), [0]),
    "no input, slope at zero": (four(1, 1, 2, 1, activation=Activation("kink", 1, -1, at_zero=2)), [0]),
    "no input, ReLU": (four(1, 1, 2, 1), [0]),
    "random biases": (two(1, 2, 2, 1, scale=10, bias_variance=(16, 1, 0)), [1]),
    "random biases in layer 1": (four(1, 1, 2, 1, bias_variance=(4, 0, 0)), [1]),
    "random biases in layer 2": (four(1, 2, 1, 1, bias_variance=(0, Fraction(1, 4), 0)), [1]),
    "random biases in layer 2, two inputs": (two(2, 2, 1, 1, scale=2, bias_variance=(0, 1, 0)), [1, 10]),
    "random biases in layers 3 and 4": (two(1, 1, 2, 1, 1, scale=2, bias_variance=(0, 0, 1, 9)), [1]),
    "random biases between layers that die": (two(1, 1, 1, 2, 1, bias_variance=(0, 4, 0, 0)), [1]),
    "random biases, leaky, mup": (
        two(1, 2, 1, 1, scale=10, bias_variance=(16, 1, 4), activation=STEEP, parameterization="mup"),
        [1],
    ),
    "random biases in layer 2, no input": (four(1, 1, 2, 1, bias_variance=(0, 4, 0)), [0]),
    "random biases in layer 2, no input, leaky": (four(1, 1, 2, 1, bias_variance=(0, 4, 0), activation=STEEP), [0]),
}
WITH_EIGHT_PATHS = ("one hidden layer", "two ways to die", "mup", "slopes of both signs", "random biases in layer 2")
KERNELS = ("w", "b", "ww", "wb", "bb", "www", "wwb", "wbb", "bbb", "wwww", "wwbb", "bbbb")
DELTAS = ("ww", "wb")
STARTS: dict[str, State] = {
    **{kinds: pairs(kinds) for kinds in KERNELS},
    **{f"delta {k}": start_state([(0, 1, 2, 3)], [(0, 1, k[0]), (1, 2, k[1])]) for k in DELTAS},
    **{
        f"delta {k} {k}": start_state([range(8)], [(0, 1, k[0]), (1, 2, k[1]), (4, 5, k[0]), (5, 6, k[1])])
        for k in DELTAS
    },
}
UP_TO_SIX_PATHS = {name: start for name, start in STARTS.items() if sum(map(len, start)) <= 6}


def engine(net: MLP, x: Entries, states: dict[str, State], *, dead_layers: bool = True) -> dict[str, Fraction]:
    program = compile_program(tuple(states.values()), net)
    powers = Input.of([Fraction(each) for each in x], 8)
    values = evaluate(program, net, powers, lambda number: number, dead_layers=dead_layers)
    return dict(zip(states, values, strict=True))


def enumerated(net: MLP, x: Entries) -> dict[str, Fraction]:
    listed = PathEnumeration(net, x)
    kernels = {kind: listed.kernel(kind) for kind in "wb"}
    moments = {
        kinds: listed.expectation(*(kernels[kind] for kind in kinds)) for kinds in KERNELS if kinds in UP_TO_SIX_PATHS
    }
    return moments | {f"delta {k}": listed.expectation(listed.output(), listed.curvature(k)) for k in DELTAS}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_real_network(name: str) -> None:
    net, x = NETWORKS[name]
    real = average(net, x, single_output)
    assert enumerated(net, x) == {name: real[name] for name in UP_TO_SIX_PATHS}
    assert engine(net, x, UP_TO_SIX_PATHS) == {name: real[name] for name in UP_TO_SIX_PATHS}
    if name in WITH_EIGHT_PATHS:
        assert engine(net, x, STARTS) == {name: real[name] for name in STARTS}


def both_outputs(network: RealNetwork) -> dict[str, Rational]:
    """Kernel products of two outputs, and for output 0 the sum over c of N_c g_c^T H_0 g_0."""
    found: dict[str, Rational] = {}
    for one, two in ("ww", "wb", "bb"):
        found[f"{one}01 {two}01"] = network.kernel(one, 0, 1) * network.kernel(two, 0, 1)
        found[f"{one}00 {two}11"] = network.kernel(one, 0, 0) * network.kernel(two, 1, 1)
    for kinds in ("ww", "wb", "bw", "bb"):
        found[kinds] = sum(network.output(c) * network.curvature(kinds, c, 0) for c in range(2))
    return found


def engine_of_both_outputs(net: MLP, x: Entries) -> dict[str, Fraction]:
    states: dict[str, State] = {}
    for one, two in ("ww", "wb", "bb"):
        marks = ((0, 1, one), (2, 3, two))
        states[f"{one}01 {two}01"] = start_state([(0, 2), (1, 3)], marks)
        states[f"{one}00 {two}11"] = start_state([(0, 1), (2, 3)], marks)
    for kinds in ("ww", "wb", "bw", "bb"):
        marks = ((0, 1, kinds[0]), (1, 2, kinds[1]))
        states[f"{kinds} 0"] = start_state([(0, 1, 2, 3)], marks)
        states[f"{kinds} 1"] = start_state([(0, 3), (1, 2)], marks)
    values = engine(net, x, states)
    return {name: value for name, value in values.items() if len(name) > 4} | {
        kinds: values[f"{kinds} 0"] + values[f"{kinds} 1"] for kinds in ("ww", "wb", "bw", "bb")
    }


@pytest.mark.parametrize(
    ("net", "x"),
    [
        (four(2, 2), [1, 3]),
        (four(1, 2, 2), [1]),
        (four(1, 1, 2), [1]),
        (two(1, 1, 2, 2), [1]),
        (two(2, 2, 2, activation=STEEP, parameterization="mup"), [1, 10]),
        (two(1, 1, 2, 2, scale=2, bias_variance=(1, 0, 0)), [1]),
    ],
    ids=str,
)
def test_several_outputs(net: MLP, x: Entries) -> None:
    assert engine_of_both_outputs(net, x) == average(net, x, both_outputs)


@pytest.mark.parametrize("name", ["width one", "two ways to die", "open below zero", "random biases in layer 1"])
def test_without_dead_layers_the_biases_are_wrong(name: str) -> None:
    net, x = NETWORKS[name]
    real = average(net, x, single_output)
    wrong = engine(net, x, UP_TO_SIX_PATHS, dead_layers=False)
    assert {name for name in wrong if real[name] != wrong[name]} == {"b", "bb", "bbb"}


def test_another_law_is_told_apart() -> None:
    """A law with another eighth moment only, and the first moment that it enters."""
    net, x = NETWORKS["width one"]
    nearly = WeightLaw("nearly", (*FOUR_VALUED.even_moments[:3], Fraction(95)), FOUR_VALUED.sample)
    states = {name: STARTS[name] for name in ("ww", "www", "wwww")}
    right, wrong = engine(net, x, states), engine(MLP(net.widths, nearly, gains=net.gains), x, states)
    assert {name for name in right if right[name] != wrong[name]} == {"wwww"}


def test_ties_are_refused() -> None:
    with pytest.raises(TieError, match="exactly zero"):
        average(four(1, 2, 1, 1), [1], single_output)
    with pytest.raises(TieError, match="exactly zero"):
        average(four(2, 1, 1), [1, 1], single_output)


def test_the_law_is_the_one_intended() -> None:
    assert FOUR_VALUED.even_moments[:2] == (1, Fraction(1201, 625))
    assert discrete_law("signs", Fraction(1), Fraction(-1)).even_moments == (1, 1, 1, 1)
    assert len(list(every_network(four(2, 1, 1), [1, 10]))) == 4**3


def test_a_variance_must_be_a_square() -> None:
    with pytest.raises(ValueError, match="not the square of a fraction"):
        next(every_network(MLP([1, 1, 1], FOUR_VALUED), [1]))


def _moved(network: RealNetwork, *steps: tuple[Fraction, Direction]) -> RealNetwork:
    weights, biases = network.parameters.weights, network.parameters.biases
    for size, direction in steps:
        weights = [
            [[a + size * b for a, b in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]
            for matrices in zip(weights, direction.weights, strict=True)
        ]
        biases = [
            [a + size * b for a, b in zip(*vectors, strict=True)]
            for vectors in zip(biases, direction.biases, strict=True)
        ]
    return replace(network, parameters=Direction(weights, biases))


def _unit_directions(net: MLP) -> Iterator[Direction]:
    """One direction for every weight and every bias."""
    count = sum((n + 1) * m for n, m in pairwise(net.widths))
    for chosen in range(count):
        numbers: Iterator[Rational] = iter([int(place == chosen) for place in range(count)])
        yield Direction(
            [[[next(numbers) for _ in range(n)] for _ in range(m)] for n, m in pairwise(net.widths)],
            [[next(numbers) for _ in range(m)] for m in net.widths[1:]],
        )


@pytest.mark.parametrize("activation", [STEEP, Activation("relu", 1, 0)], ids=["leaky", "relu"])
def test_derivatives_are_those_of_the_network(activation: Activation) -> None:
    """With three layers N is cubic away from ties, and linear in each parameter: differences are exact."""
    h = Fraction(1, 10**15)
    net = four(2, 1, 2, 2, activation=activation)
    for network in islice(every_network(net, [1, 10]), 0, 4**7, 1001):
        u, v = network.steps[0]["w"], network.steps[1]["b"]
        signs = product((1, -1), repeat=2)
        mixed = sum(s * t * _moved(network, (s * h, u), (t * h, v)).output(1) for s, t in signs)
        assert mixed / (4 * h**2) == network.second_derivative(u, v, 1)
        if any(network.hidden[0]):  # in a dead layer the slope at zero is a convention
            for unit in _unit_directions(net):
                difference = _moved(network, (h, unit)).output(1) - network.output(1)
                assert difference / h == network.gradients[1].dot(unit)
