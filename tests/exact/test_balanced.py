"""Exact moments of residual networks with one matrix a block and random signs: every network of a discrete law."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest

import finwidth
from exact.test_exhaustive import STARTS, STEEP, UP_TO_SIX_PATHS
from exact.test_residual import KINK, engine
from exhaustive import TWO_VALUED
from finwidth import BalancedResNet, FinwidthError
from finwidth.exact import residual
from finwidth.exact.partitions import returns
from residual_networks import ODD, VALUES, EveryBalancedResNet, mean, single_output


def small(n_0: int, n: int, depth: int = 1, outputs: int = 1, **options: Any) -> BalancedResNet:
    """A network whose weights are whole numbers: signs, or 1 or 3 and a sign."""
    law = options.pop("law", TWO_VALUED)
    gains = [VALUES[law.name][0] * fan_in for fan_in in (n_0, n, n)]
    return BalancedResNet([n_0, n, outputs], depth, weight_law=law, bias_law=TWO_VALUED, gains=gains, **options)


NETWORKS: dict[str, tuple[BalancedResNet, Sequence[int]]] = {
    "width one": (small(1, 1, law=ODD), [1]),
    "width one, two blocks": (small(1, 1, 2, law=ODD), [1]),
    "three blocks": (small(1, 1, 3), [1]),
    "two in the stream": (small(1, 2), [1]),
    "two in the stream, linear, another law": (small(1, 2, law=ODD, bias="none", activation="linear"), [1]),
    "two inputs": (small(2, 1, 2, law=ODD), [1, 2]),
    "skip and branch": (small(1, 2, skip=3, branch=2), [1]),
    "by block": (small(1, 1, 2, skip=[1, 2], branch=[3, 1]), [1]),
    "no skip, no biases": (small(1, 1, 3, skip=[1, 0, 1], bias="none"), [1]),
    "no skip, abs": (small(1, 2, skip=0, activation="abs"), [1]),
    "slopes of both signs": (small(1, 2, activation=STEEP), [1]),
    "standard": (small(1, 1, 2, parameterization="standard", law=ODD), [1]),
    "bias scales": (small(1, 1, bias_scale=[1, 2, 3]), [1]),
    "biases of each kind": (small(1, 1, 2, bias=["trained", "frozen", "none"]), [1]),
    "random biases": (small(1, 1, 2, bias_variance=[1, 4, 9]), [1]),
    "random biases in the stem": (small(1, 2, bias_variance=[4, 0, 0]), [1]),
    "random biases in W": (small(1, 2, bias_variance=[0, 4, 0]), [1]),
    "no input": (small(1, 2), [0]),
    "no input, slope at zero": (small(1, 2, activation=KINK), [0]),
    "no input, random biases in W": (small(1, 1, 3, activation=KINK, bias_variance=[0, 4, 0]), [0]),
}
WITH_EIGHT_PATHS = ("by block", "two in the stream, linear, another law")


@pytest.mark.parametrize("name", NETWORKS)
def test_every_real_network(name: str) -> None:
    net, x = NETWORKS[name]
    real = single_output(EveryBalancedResNet(net, x))
    starts = STARTS if name in WITH_EIGHT_PATHS else UP_TO_SIX_PATHS
    assert engine(net, x, starts) == {kinds: real[kinds] for kinds in starts}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*NETWORKS} - {*WITH_EIGHT_PATHS}))
def test_every_real_network_with_eight_paths(name: str) -> None:
    net, x = NETWORKS[name]
    real = single_output(EveryBalancedResNet(net, x))
    assert engine(net, x, STARTS) == {kinds: real[kinds] for kinds in STARTS}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_stream_of_every_real_network(name: str) -> None:
    net, x = NETWORKS[name]
    networks, found = EveryBalancedResNet(net, x), finwidth.signal_moments(net, x, exact=True, order=4)
    for vector, moments in zip(networks.stream, found.hidden, strict=True):
        assert moments.raw == tuple(mean(*[(vector**2).sum(1)] * p) for p in range(1, 5))


@pytest.mark.parametrize(
    ("net", "x", "values"),
    [
        (
            BalancedResNet([3, 6, 1], 3, skip="sqrt(1/2)", branch="sqrt(1/2)"),
            [1, 1, 1],
            "7 1896181/20736 -597611/20736",
        ),
        (
            BalancedResNet([4, 10, 1], 4, branch=0.5),
            [2, 0, 0, 0],
            "375/32 298857906381/1638400000 -13568100929/409600000",
        ),
    ],
    ids=str,
)
def test_gaussian_weights(net: BalancedResNet, x: list[int], values: str) -> None:
    found = finwidth.moments(net, x, exact=True)
    assert [found.mean, found.second_moment, found.update["dK"]] == [*map(Fraction, values.split())]


@pytest.mark.parametrize("n", [1, 3, 10])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_growth_of_the_stream(n: int, activation: str) -> None:
    """E|x_l|^4 grows by alpha a block: one matrix takes 1 + 5/n, as a layer of an MLP does."""
    a2, b2 = Fraction(1, 4), Fraction(2, 3)
    net = BalancedResNet([2, n, 1], 4, skip=0.5, branch="sqrt(2/3)", activation=activation)
    five = 3 * net.activation.gate_moment(4) / net.activation.gate_moment(2) ** 2 - 1
    alpha = a2**2 + 2 * a2 * b2 * (1 + Fraction(2, n)) + b2**2 * (1 + five / n)
    hidden = finwidth.signal_moments(net, [1, 2], exact=True).hidden
    for below, above in pairwise(hidden):
        assert above.mean == (a2 + b2) * below.mean
        assert above.second_moment == alpha * below.second_moment


def test_groups_that_met_take_different_neurons(monkeypatch: pytest.MonkeyPatch) -> None:
    """If they could meet again in the stream, their gates would be counted as those of two neurons."""
    net, x = NETWORKS["two in the stream"]
    right = engine(net, x, UP_TO_SIX_PATHS)
    monkeypatch.setitem(residual._DOWN, "gated", (returns, residual._new_neurons))
    residual._residual_program.cache_clear()
    wrong = engine(net, x, UP_TO_SIX_PATHS)
    residual._residual_program.cache_clear()
    assert {name for name in right if right[name] == wrong[name]} == {"w", "b"}


def test_no_other_route_takes_it_for_a_resnet() -> None:
    net = BalancedResNet([2, 3, 1], 2)
    with pytest.raises(FinwidthError, match=r"it is a BalancedResNet \(.* supported\); finwidth\.moments has"):
        finwidth.bounds(net, [1, 2])  # type: ignore[arg-type]
    with pytest.raises(FinwidthError, match="a block without skip, in which the stream can die"):
        finwidth.moments(BalancedResNet([2, 3, 1], 2, skip=0), [1, 2])


def test_described() -> None:
    net = BalancedResNet([2, 3, 1], 2, branch=0.5)
    assert str(net) == ("BalancedResNet 2,3,1 of 2 blocks (branch 0.5) relu, gaussian weights, ntk parameterization")
    assert net.describe()["kind"] == "BalancedResNet"
    assert net.gains == (Fraction(1), Fraction(2), Fraction(1))
    with pytest.raises(FinwidthError, match="a BalancedResNet has three"):
        BalancedResNet([2, 3], 2)
