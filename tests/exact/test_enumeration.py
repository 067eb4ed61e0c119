"""The transfer engine against sums over every path, as fractions: they must be equal, not close."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import pytest

from finwidth.errors import FinwidthError
from finwidth.exact.partitions import State, start_state
from finwidth.exact.transfer import Input, compile_program, evaluate
from finwidth.networks.activations import Activation
from finwidth.networks.laws import WeightLaw
from finwidth.networks.mlp import MLP
from finwidth.paper.paths import (
    CONSTANT,
    Edge,
    Outputs,
    Path,
    PathEnumeration,
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

Entries: TypeAlias = Sequence[Any]  # integers and fractions

HALF = Fraction(1, 2)
SIGNS = WeightLaw("signs", (1, 1, 1, 1), lambda rng, shape: rng.choice([-1.0, 1.0], shape))
LEAKY = Activation("leaky", 1, Fraction(1, 3))
STEEP = Activation("steep", 3, Fraction(-1, 2))
REVERSED = Activation("reversed", 0, 2)


def state(ends: Sequence[int], marks: Sequence[tuple[int, int, str]]) -> State:
    """Paths that end in the outputs ``ends``."""
    blocks = [[path for path, end in enumerate(ends) if end == output] for output in sorted(set(ends))]
    return start_state(blocks, marks)


def moment(kinds: str, outputs: Outputs | None = None) -> State:
    ends = [end for pair in outputs or [(0, 0)] * len(kinds) for end in pair]
    return state(ends, [(2 * j, 2 * j + 1, kind) for j, kind in enumerate(kinds)])


def delta(kinds: Sequence[str], outputs: Outputs | None = None) -> State:
    """For each factor paths to c, a, a, c: the first and the second share a parameter, the second and the third."""
    ends = [end for c, a in outputs or [(0, 0)] * len(kinds) for end in (c, a, a, c)]
    marks = [(4 * j + k, 4 * j + k + 1, kind) for j, both in enumerate(kinds) for k, kind in enumerate(both)]
    return state(ends, marks)


def engine(net: MLP, x: Entries, starts: Sequence[State], *, dead_layers: bool = True) -> list[Fraction]:
    program = compile_program(tuple(starts), net)
    powers = Input.of([Fraction(each) for each in x], 8)
    return evaluate(program, net, powers, lambda number: number, dead_layers=dead_layers)


NETWORKS: dict[str, tuple[MLP, Entries]] = {
    "the paper's": (MLP([2, 3, 3, 1]), [1, 2]),
    "one layer": (MLP([3, 1]), [1, -2, HALF]),
    "one layer, one input": (MLP([1, 1], "laplace"), [3]),
    "one layer, random bias": (MLP([2, 1], bias_variance=2), [1, 3]),
    "one hidden layer": (MLP([3, 2, 1]), [1, -2, HALF]),
    "width one": (MLP([1, 1, 1, 1, 1]), [3]),
    "bottleneck first": (MLP([2, 1, 3, 1]), [1, 2]),
    "bottleneck between": (MLP([1, 3, 1, 2, 1]), [2]),
    "shrinking": (MLP([1, 3, 2, 1]), [1]),
    "growing": (MLP([2, 1, 2, 3, 1]), [1, -1]),
    "uniform": (MLP([2, 2, 2, 1], "uniform"), [1, 2]),
    "laplace": (MLP([2, 2, 2, 1], "laplace"), [1, 2]),
    "smoothed-rademacher": (MLP([2, 2, 2, 1], "smoothed-rademacher"), [1, 2]),
    "truncated-normal": (MLP([2, 2, 2, 1], "truncated-normal"), [1, 2]),
    "signs": (MLP([2, 3, 2, 1], SIGNS), [1, 2]),
    "one gain": (MLP([2, 2, 3, 1], gains=Fraction(3, 2)), [1, 2]),
    "a gain for each layer": (MLP([2, 3, 2, 1], "uniform", gains=(1, 3, HALF)), [1, 2]),
    "standard": (MLP([2, 3, 2, 1], "uniform", parameterization="standard"), [1, 2]),
    "mup": (MLP([2, 3, 2, 1], parameterization="mup"), [1, 2]),
    "mup, one layer": (MLP([2, 1], parameterization="mup"), [1, 2]),
    "mup, leaky, random biases": (
        MLP([2, 2, 2, 1], "laplace", LEAKY, "mup", bias_variance=HALF, bias_law="uniform"),
        [1, 2],
    ),
    "leaky": (MLP([2, 3, 2, 1], activation=LEAKY), [1, 2]),
    "leaky_relu": (MLP([1, 2, 2, 1], activation="leaky_relu"), [1]),
    "linear": (MLP([2, 2, 3, 1], activation="linear"), [1, 2]),
    "abs": (MLP([2, 2, 2, 1], "uniform", "abs"), [1, 2]),
    "slopes of both signs": (MLP([2, 2, 2, 1], activation=STEEP, gains=1), [1, 2]),
    "open below zero": (MLP([2, 2, 2, 1], activation=REVERSED), [1, 2]),
    "frozen": (MLP([2, 2, 2, 1], bias="frozen"), [1, 2]),
    "none": (MLP([2, 2, 2, 1], bias="none"), [1, 2]),
    "random biases": (MLP([2, 2, 2, 1], bias_variance=1), [1, 2]),
    "random biases, abs, standard": (MLP([2, 2, 2, 1], "uniform", "abs", "standard", bias_variance=HALF), [1, 2]),
    "random biases of another law": (MLP([1, 3, 2, 1], bias_variance=(1, 2, 3), bias_law="laplace"), [2]),
    "random biases, frozen": (MLP([2, 2, 2, 1], bias="frozen", bias_variance=HALF), [1, 2]),
    "random biases in layer 1": (MLP([1, 2, 2, 2, 1], bias_variance=(1, 0, 0, 0)), [1]),
    "random biases in layer 2": (MLP([1, 2, 2, 2, 1], bias_variance=(0, 1, 0, 0)), [1]),
    "random biases in layer 3": (MLP([1, 2, 2, 2, 1], "uniform", bias_variance=(0, 0, 2, 0)), [1]),
    "random bias of the output": (MLP([2, 2, 2, 1], bias_variance=(0, 0, 1)), [1, 2]),
    "no input": (MLP([2, 2, 2, 1]), [0, 0]),
    "no input, leaky": (MLP([2, 2, 2, 1], activation=LEAKY), [0, 0]),
    "no input, linear": (MLP([1, 2, 3, 1], "uniform", "linear"), [0]),
    "no input, abs": (MLP([2, 2, 2, 1], activation="abs"), [0, 0]),
    "no input, slope at zero": (MLP([2, 2, 2, 1], activation=Activation("kink", 1, HALF, at_zero=2)), [0, 0]),
    "no input, random biases": (MLP([2, 2, 2, 1], bias_variance=1), [0, 0]),
    "no input, leaky, random biases in layer 2": (
        MLP([1, 2, 2, 2, 1], "gaussian", LEAKY, bias_variance=(0, 1, 0, 0)),
        [0],
    ),
    "no input, ReLU, random biases in layer 2": (MLP([1, 2, 2, 2, 1], bias_variance=(0, 1, 0, 0)), [0]),
    "no input, abs, random biases in layer 3": (
        MLP([1, 2, 2, 2, 1], "gaussian", "abs", bias_variance=(0, 0, 1, 0)),
        [0],
    ),
    "one coordinate is zero": (MLP([3, 2, 2, 1]), [0, 2, -1]),
    "scaled biases": (MLP([2, 2, 2, 1], "uniform", bias_variance=1, bias_scale=(HALF, 2, 3)), [1, 2]),
    "scaled biases, zero-initialised": (MLP([2, 3, 2, 1], bias_scale=Fraction(1, 3)), [1, 2]),
    "biases without weight": (MLP([1, 2, 2, 1], bias_variance=(1, 0, 0), bias_scale=(0, 1, 1)), [0]),
    "biases by layer": (MLP([2, 2, 2, 1], bias=("none", "trained", "frozen"), bias_variance=(0, 0, 1)), [1, 2]),
    "mup, base widths": (MLP([2, 3, 2, 1], parameterization="mup", base_widths=(2, 2, 5, 1)), [1, 2]),
}
KERNELS = ("w", "b", "ww", "wb", "bb")
DELTAS = (["ww"], ["wb"], ["bw"], ["bb"])
STARTS = (*map(moment, KERNELS), *map(delta, DELTAS))


def enumerated(net: MLP, x: Entries) -> list[Fraction]:
    listed = PathEnumeration(net, x)
    kernels = {kind: listed.kernel(kind) for kind in "wb"}
    return [
        *(listed.expectation(*(kernels[kind] for kind in kinds)) for kinds in KERNELS),
        *(listed.expectation(listed.output(), listed.curvature(kinds)) for (kinds,) in DELTAS),
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_second_moments_and_first_update(name: str) -> None:
    net, x = NETWORKS[name]
    assert engine(net, x, STARTS) == enumerated(net, x)


def test_the_value_to_recognise() -> None:
    expected = ["15/2", "31/16", "2300/9", "65/2", "473/72", "650/9", "35/6", "35/6", "0"]
    assert [str(each) for each in enumerated(*NETWORKS["the paper's"])] == expected


TINY: dict[str, tuple[MLP, Entries]] = {
    "one layer": (MLP([2, 1]), [1, 2]),
    "width one": (MLP([1, 1, 1, 1], "laplace"), [2]),
    "one hidden layer": (MLP([2, 2, 1], "uniform"), [1, 2]),
    "two hidden layers": (MLP([1, 2, 2, 1]), [1]),
    "bottleneck": (MLP([2, 1, 2, 1], "smoothed-rademacher"), [1, 3]),
    "three widths": (MLP([1, 3, 1], SIGNS, parameterization="standard"), [1]),
    "leaky, mup": (MLP([1, 2, 2, 1], "uniform", LEAKY, "mup"), [1]),
    "abs, gains": (MLP([2, 2, 1], activation="abs", gains=(3, HALF)), [1, -1]),
    "no input, leaky": (MLP([1, 1, 2, 1], activation=LEAKY), [0]),
    "random biases": (MLP([2, 2, 1], "uniform", bias_variance=HALF), [1, 2]),
    "random biases in layer 2": (MLP([1, 2, 2, 1], bias_variance=(0, 1, 0), bias_law="laplace"), [1]),
    "random biases, no input": (MLP([1, 1, 2, 1], bias_variance=(0, 1, 1), activation=LEAKY), [0]),
}


@pytest.mark.parametrize("name", TINY)
def test_third_moments(name: str) -> None:
    net, x = TINY[name]
    kinds = ["www", "wwb", "wbb", "bbb"]
    assert engine(net, x, [moment(each) for each in kinds]) == [enumerate_moments(net, x, each) for each in kinds]


@pytest.mark.parametrize("name", TINY)
def test_fourth_moments(name: str) -> None:
    net, x = TINY[name]
    kinds = ["wwww", "wwbb", "bbbb"]
    assert engine(net, x, [moment(each) for each in kinds]) == [enumerate_moments(net, x, each) for each in kinds]


@pytest.mark.parametrize("name", ["one hidden layer", "leaky, mup"])
def test_second_moment_of_the_update(name: str) -> None:
    net, x = TINY[name]
    kinds = [("ww", "ww"), ("wb", "wb")]
    assert engine(net, x, [delta(each) for each in kinds]) == [enumerate_deltas(net, x, each) for each in kinds]


def test_second_moment_of_the_update_with_random_biases() -> None:
    net, x = TINY["random biases"]
    assert engine(net, x, [delta(["wb", "wb"])]) == [enumerate_deltas(net, x, ["wb", "wb"])]


@pytest.mark.parametrize("name", ["one hidden layer", "bottleneck", "random biases"])
def test_kernel_and_update_together(name: str) -> None:
    net, x = TINY[name]
    listed = PathEnumeration(net, x)
    starts = [state([0] * 6, [(0, 1, "w"), (1, 2, kind), (4, 5, other)]) for kind, other in product("wb", "wb")]
    assert engine(net, x, starts) == [
        listed.expectation(listed.output(), listed.curvature("w" + kind), listed.kernel(other))
        for kind, other in product("wb", "wb")
    ]


SEVERAL_OUTPUTS: dict[str, tuple[MLP, Entries]] = {
    "one layer": (MLP([2, 2], "uniform"), [1, 2]),
    "one hidden layer": (MLP([2, 2, 2]), [1, 2]),
    "two hidden layers": (MLP([1, 2, 2, 3], "laplace"), [1]),
    "mup, leaky": (MLP([2, 3, 2], "uniform", LEAKY, "mup"), [1, 2]),
    "standard, bottleneck": (MLP([2, 1, 2, 2], parameterization="standard"), [1, 2]),
    "random biases": (MLP([1, 2, 2, 2], "uniform", bias_variance=(0, 1, 2)), [1]),
    "no input": (MLP([1, 2, 2], activation=LEAKY), [0]),
}


@pytest.mark.parametrize("name", SEVERAL_OUTPUTS)
def test_several_outputs(name: str) -> None:
    net, x = SEVERAL_OUTPUTS[name]
    moments: list[tuple[str, Outputs]] = [
        *((kind, [(a, b)]) for kind in "wb" for a, b in ((1, 1), (0, 1))),
        *(
            (one + two, pairs)
            for one, two in product("wb", "wb")
            for pairs in ([(0, 1), (0, 1)], [(0, 1), (1, 0)], [(0, 0), (1, 1)], [(0, 0), (0, 1)])
        ),
    ]
    deltas: list[tuple[str, Outputs]] = [
        (one + two, [pair]) for one, two in product("wb", "wb") for pair in ((0, 0), (1, 0))
    ]
    starts = [*(moment(*each) for each in moments), *(delta([k], pair) for k, pair in deltas)]
    listed = [
        *(enumerate_moments(net, x, *each) for each in moments),
        *(enumerate_deltas(net, x, [k], pair) for k, pair in deltas),
    ]
    assert engine(net, x, starts) == listed
    assert [engine(net, x, [start])[0] for start in starts] == listed


def test_second_moment_of_the_update_of_several_outputs() -> None:
    net, x = SEVERAL_OUTPUTS["one hidden layer"]
    cases: list[tuple[list[str], Outputs]] = [
        (["ww", "ww"], [(1, 0), (1, 0)]),
        (["ww", "ww"], [(0, 0), (1, 0)]),
    ]
    assert engine(net, x, [delta(*each) for each in cases]) == [enumerate_deltas(net, x, *each) for each in cases]


@pytest.mark.parametrize("name", ["the paper's", "open below zero", "random biases in layer 1", "mup"])
def test_only_biases_feel_dead_layers(name: str) -> None:
    net, x = NETWORKS[name]
    right = dict(zip((*KERNELS, *map(tuple, DELTAS)), enumerated(net, x), strict=True))
    without = dict(zip(right, engine(net, x, STARTS, dead_layers=False), strict=True))
    differ = {kinds for kinds, value in right.items() if value != without[kinds]}
    assert differ == {"b", "bb"}
    assert all(without[kinds] > right[kinds] for kinds in differ)


def test_wrong_networks_are_told_apart() -> None:
    net, x = NETWORKS["uniform"]
    right = enumerated(net, x)
    for wrong in (
        MLP([2, 2, 2, 1], "laplace"),
        MLP([2, 2, 2, 1], "uniform", parameterization="standard"),
        MLP([2, 2, 2, 1], "uniform", LEAKY),
        MLP([2, 2, 2, 1], "uniform", gains=(2, 2, 2)),
        MLP([2, 2, 3, 1], "uniform"),
        MLP([2, 2, 2, 1], "uniform", bias_variance=(0, 1, 0)),
    ):
        assert engine(wrong, x, STARTS) != right
    assert engine(net, [1, Fraction(201, 100)], STARTS) != right


def test_literal_tuples_give_the_same() -> None:
    """E[K_w K_b] with every tuple on its own: nothing collected, nothing left out."""
    net, x = MLP([2, 2, 1], "uniform", LEAKY, bias_variance=(0, 1)), [1, 2]
    listed = PathEnumeration(net, x)
    total = Fraction(0)
    for e1, e2 in product(listed.edges["w"], listed.edges["b"]):
        multiplier = net.layers[e1.layer - 1].weight_multiplier * net.layers[e2.layer - 1].bias_multiplier
        for gammas in product(listed.paths, repeat=4):
            if all(e1 in gamma.edges for gamma in gammas[:2]) and all(e2 in gamma.edges for gamma in gammas[2:]):
                start = np.prod([x[gamma.neurons[0]] for gamma in gammas if not gamma.bias], dtype=object)
                total += multiplier * start * listed.mean(listed.product_of(gammas, (e1, e2)))
    assert total == enumerate_moments(net, x, "wb") == engine(net, x, [moment("wb")])[0]


@pytest.mark.parametrize("widths", [(2, 2, 2, 1), (1, 2, 3, 1), (2, 2, 1)])
def test_lemma_7(widths: tuple[int, ...]) -> None:
    """The printed formula for the weight of an even 4-tuple with two marked edges (Lemma 7)."""
    net, x = MLP(widths, "laplace"), [1, 2][: widths[0]]
    layers = range(1, net.depth + 1)
    paths = [path for a in range(widths[0]) for path in paths_from(net, 0, a)]
    total = Fraction(0)
    for gammas in filter(is_even, product(paths, repeat=4)):
        met = [len(neurons_at(gammas, i)) for i in range(net.depth + 1)]
        sizes = np.prod([x[gamma.neurons[0]] for gamma in gammas], dtype=object)
        common = (set(gammas[k].edges) & set(gammas[k + 1].edges) for k in (0, 2))
        for e1, e2 in product(*common):
            weight = Fraction(1, 2)
            for i in layers:
                weight *= Fraction(4, 2 ** met[i]) / widths[i - 1] ** 2
                if i not in (e1.layer, e2.layer) and met[i - 1] == met[i] == 1:
                    weight *= 6
            total += sizes * weight
    assert total == enumerate_moments(net, x, "ww")


@pytest.mark.parametrize("widths", [(2, 2, 2, 1), (1, 2, 2, 1), (2, 3, 1), (2, 2, 1, 2, 1)])
def test_lemma_9(widths: tuple[int, ...]) -> None:
    """An even edge multiset comes from 2^(loops + [two starts]) ordered pairs of paths, each path taken twice."""
    net = MLP(widths)
    paths = [path for a in range(widths[0]) for path in paths_from(net, 0, a)]
    origins: dict[frozenset[tuple[Edge, int]], list[tuple[Path, ...]]] = {}
    for pair in product(paths, repeat=2):
        edges = sum((edges_at(pair * 2, i) for i in range(1, net.depth + 1)), start=edges_at((), 1))
        origins.setdefault(frozenset(edges.items()), []).append(pair)
    for pairs in origins.values():
        starts = len(neurons_at(pairs[0], 0))
        assert len(pairs) == 2 ** (len(loops(pairs[0] * 2)) + (starts == 2))


def test_definitions() -> None:
    net = MLP([2, 3, 2, 1])
    first, second = Path(0, (0, 2, 1, 0)), Path(1, (2, 0, 0), bias=True)
    assert first in paths_from(net, 0, 0)
    assert len(paths_from(net, 0, 0)) == 6
    assert second.edges[0] == Edge(1, CONSTANT, 2)
    assert second.gates == (*first.gates[:1], (2, 0))
    assert neurons_at([first, second], 2) == {0, 1}
    assert neurons_at([first, second], 0) == {0}
    edges = edges_at([first, second, first], 2)
    assert edges == {Edge(2, 2, 1): 2, Edge(2, 2, 0): 1}
    assert left_ends(edges) == {2}
    assert right_ends(edges) == {0, 1}
    assert not is_even([first, second, first])
    assert is_even([first, second] * 2)


def test_what_cannot_be_asked_is_refused() -> None:
    net = MLP([1, 2, 2])
    with pytest.raises(FinwidthError, match="letters"):
        enumerate_moments(net, [1], "wx")
    with pytest.raises(FinwidthError, match="letters"):
        enumerate_moments(net, [1], "")
    with pytest.raises(FinwidthError, match="2 of the letters"):
        enumerate_deltas(net, [1], ["w"])
    with pytest.raises(FinwidthError, match="each from 0 to 1"):
        enumerate_moments(net, [1], "w", [(0, 2)])
    with pytest.raises(FinwidthError, match="give 1 pairs"):
        enumerate_moments(net, [1], "w", [(0, 0), (0, 0)])
    with pytest.raises(FinwidthError, match="mu_6"):
        enumerate_moments(MLP([1, 1, 1], replace(SIGNS, even_moments=(1, 3))), [1], "www")
