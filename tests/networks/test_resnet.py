"""`ResNet`: its numbers against their definition, what it refuses, and who refuses it."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import finwidth
from finwidth import FinwidthError, ResNet
from finwidth.networks.description import Layer
from finwidth.paper import paths


def test_numbers_of_the_layers() -> None:
    net = ResNet(
        [3, 4, 2],
        2,
        [5, 6],
        skip=[1, Fraction(1, 2)],
        branch=["sqrt(3/4)", 2],
        gains=[1, 2, 3, 5],
        bias=["trained", "frozen", "none", "trained"],
        bias_variance=[0, 1, 0, Fraction(1, 4)],
        bias_scale=[1, 2, 1, 3],
    )
    first, second = net.blocks
    assert net.stem == Layer(3, 4, Fraction(1, 3), Fraction(1, 3), Fraction(0), Fraction(1))
    assert first.inner == Layer(4, 5, Fraction(1, 2), Fraction(1, 2), Fraction(4), Fraction(0))
    assert second.outer == Layer(6, 4, Fraction(1, 2), Fraction(1, 2), Fraction(0), Fraction(0))
    assert net.head == Layer(4, 2, Fraction(5, 4), Fraction(5, 4), Fraction(9, 4), Fraction(9))
    assert [(block.skip_squared, block.branch_squared) for block in net.blocks] == [
        (1, Fraction(3, 4)),
        (Fraction(1, 4), 4),
    ]
    standard = ResNet([3, 4, 2], 2, parameterization="standard")
    assert {layer.weight_multiplier for layer in (standard.stem, standard.blocks[0].inner, standard.head)} == {1}


def test_defaults() -> None:
    net = ResNet([3, 4, 1], 1000, activation="leaky_relu")
    assert net.hidden == (4,) * 1000
    assert len(set(map(id, net.blocks))) == 1
    assert net.gains == (Fraction(1), net.activation.default_gain, Fraction(1), Fraction(1))
    assert {block.branch_squared for block in ResNet([3, 4, 1], 7, branch="1/sqrt(depth)").blocks} == {Fraction(1, 7)}


def test_equal_networks_are_equal() -> None:
    assert ResNet([2, 3, 1], 2, branch="sqrt(1/4)") == ResNet([2, 3, 1], 2, 3, branch=[0.5, Fraction(1, 2)])
    assert ResNet([2, 3, 1], 2) != ResNet([2, 3, 1], 3)
    assert len({ResNet([2, 3, 1], 2), ResNet([2, 3, 1], 2, branch=1.0)}) == 1


def test_described() -> None:
    net = ResNet([2, 3, 1], 2, 4, skip=0.5, branch="1/sqrt(depth)", bias="frozen")
    assert json.loads(json.dumps(net.describe())) == {
        "kind": "ResNet",
        "widths": [2, 3, 1],
        "hidden": [4, 4],
        "skip_squared": ["1/4", "1/4"],
        "branch_squared": ["1/2", "1/2"],
        "weight_law": "gaussian",
        "activation": "relu",
        "parameterization": "ntk",
        "gains": ["1", "2", "1", "1"],
        "bias": ["frozen"] * 4,
        "bias_variance": ["0"] * 4,
        "bias_law": "gaussian",
        "bias_scale": ["1"] * 4,
    }
    assert str(net) == (
        "ResNet 2,3,1 of 2 blocks (hidden width 4; skip 0.5; branch 0.7071) relu, gaussian weights, ntk "
        "parameterization, frozen biases"
    )
    assert str(ResNet([2, 3, 1], 1, gains=1)) == (
        "ResNet 2,3,1 of 1 block relu, gaussian weights (gains 1), ntk parameterization"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"widths": [2, 3, 3, 1]}, "widths has 4 entries; a ResNet has three"),
        ({"depth": 0}, "depth is 0"),
        ({"depth": 10**8}, "at most 10,000,000"),
        ({"hidden": 0}, "hidden is 0; give a whole number"),
        ({"hidden": [1, 2, 3]}, "hidden has 3 entries for 2 blocks; give one number, or 2"),
        ({"hidden": [1, 0]}, "hidden of block 2 is 0; give a whole number"),
        ({"hidden": 10**101}, "hidden is 1.*; give at most 1e+100".replace("+", r"\+")),
        ({"branch": -1}, "branch is -1; give numbers, 0 or more"),
        ({"branch": 1e200}, "branch is 1e"),
        ({"branch": "sqrt(1/0)"}, r"roots such as \"sqrt\(3/4\)\""),
        ({"branch": "1/sqrt(width)"}, "1/sqrt"),
        ({"branch": [1, "x"]}, "branch of block 2 is 'x'"),
        ({"skip": [1, 2, 3]}, "skip has 3 entries for 2 blocks"),
        ({"skip": [1, 0], "branch": [1, 0]}, "skip and branch are 0 in the same block"),
        ({"parameterization": "mup"}, "how their branches scale is not settled"),
        ({"parameterization": "x"}, "choose one of ntk, standard"),
        ({"gains": [1, 2]}, r"gains has 2 entries for 4 kinds of layers \(stem, V, W, head\)"),
        ({"bias": ["none"] * 4, "bias_variance": 1}, "bias_variance that is not 0"),
    ],
)
def test_refused(arguments: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"widths": [2, 3, 1], "depth": 2}
    with pytest.raises(FinwidthError, match=said):
        ResNet(**{**given, **arguments})


NET = ResNet([2, 3, 1], 2)
X = np.eye(2)
OF_MLPS: dict[str, Callable[[], Any]] = {
    "bounds": lambda: finwidth.bounds(NET, X[0]),  # type: ignore[arg-type]
    "empirical.MLP": lambda: finwidth.empirical.MLP(NET),
    "infinite_width_gram": lambda: finwidth.infinite_width_gram(NET, X),  # type: ignore[arg-type]
    "paper": lambda: paths.enumerate_moments(NET, X[0], "w"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", OF_MLPS)
def test_what_is_for_mlps_says_so(name: str) -> None:
    if name == "empirical.MLP":
        pytest.importorskip("torch")
    with pytest.raises(FinwidthError, match=r"it is a ResNet \(MLP is supported\); finwidth\.moments has exact"):
        OF_MLPS[name]()


def test_an_ensemble_says_what_it_takes() -> None:
    pytest.importorskip("torch")
    with pytest.raises(FinwidthError, match=r"give a finwidth\.MLP or ResNet, or a function that makes a torch module"):
        finwidth.empirical.Ensemble(3, 2)  # type: ignore[arg-type]
