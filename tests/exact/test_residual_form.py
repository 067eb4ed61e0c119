"""Closed forms of residual networks against the engine, and their limit of infinite depth against both."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest

import finwidth
from exact.test_residual import deep_limit
from finwidth import FinwidthError, ResNet

sympy = pytest.importorskip("sympy", reason="needs the paper extra")
from finwidth.exact.residual_form import (  # noqa: E402
    QUANTITIES,
    L,
    a,
    b,
    c,
    closed_form_of_blocks,
    g,
    infinite_depth,
    m,
    n,
    n_0,
    r2,
)


def number(value: Fraction) -> Any:
    return sympy.Rational(value.numerator, value.denominator)


def value(quantity: str, net: ResNet, x: Sequence[int]) -> Fraction:
    phi, block = net.activation, net.blocks[0]
    kink = phi.gate_moment(4) / phi.gate_moment(2) ** 2
    at = {n: net.widths[1], m: net.hidden[0], L: net.depth, n_0: len(x), r2: sum(each * each for each in x)}
    at |= {a: sympy.sqrt(number(block.skip_squared)), b: sympy.sqrt(number(block.branch_squared)), g: number(kink)}
    found = sympy.expand(closed_form_of_blocks(quantity).subs(at))
    return Fraction(int(found.p), int(found.q))


def engine(net: ResNet, x: Sequence[int]) -> dict[str, Any]:
    found = finwidth.moments(net, x, exact=True)
    return dict(zip(QUANTITIES, (found.mean, found.second_moment, found.update["dK"]), strict=True))


@pytest.mark.parametrize(
    ("activation", "widths", "skip", "branch"),
    [
        ("relu", (1, 1), 1, 1),
        ("relu", (1, 3), 1, "sqrt(2/7)"),
        ("relu", (2, 1), "sqrt(1/2)", "sqrt(1/2)"),
        ("relu", (5, 2), 3, 0.25),
        ("relu", (40, 60), 1, 0.5),
        ("leaky_relu", (2, 3), 0, 2),
        ("leaky_relu", (5, 1), 1, "sqrt(2/7)"),
        ("abs", (3, 2), 1, 1),
        ("abs", (1, 2), 0, 1),
    ],
)
def test_equal_to_the_engine(activation: str, widths: tuple[int, int], skip: Any, branch: Any) -> None:
    for depth in (1, 2, 3, 6):
        net = ResNet([2, widths[0], 1], depth, widths[1], skip=skip, branch=branch, activation=activation, bias="none")
        assert {each: value(each, net, [1, 2]) for each in QUANTITIES} == engine(net, [1, 2])


def test_another_activation_is_another_number() -> None:
    net = ResNet([1, 3, 1], 2, 2, bias="none")
    other = ResNet([1, 3, 1], 2, 2, bias="none", activation="abs")
    assert value("K^2", net, [1]) != engine(other, [1])["K^2"]


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_limit_of_the_forms(quantity: str) -> None:
    """Reached at rate 1/L, which is extrapolated; the hidden width and the kink of ReLU drop out."""
    at = {n_0: 1, r2: 1, m: 3, g: 2, a: 1, b: sympy.sqrt(c / L)}
    of_depth = sympy.lambdify((n, c, L), closed_form_of_blocks(quantity).subs(at))
    limit = sympy.lambdify((n, c), infinite_depth(quantity).subs({n_0: 1, r2: 1}))
    for width, weight in ((1, 1), (8, 1), (20, 3), (5, 4)):
        rows = [of_depth(width, weight, depth) for depth in (1000, 2000, 4000, 8000)]
        assert rows[0] != pytest.approx(limit(width, weight), rel=1e-6)
        for order in (1, 2, 3):
            rows = [(2**order * y - x) / (2**order - 1) for x, y in pairwise(rows)]
        assert rows == [pytest.approx(limit(width, weight), rel=1e-6)]


@pytest.mark.parametrize(("width", "weight"), [(1, 1), (8, 1), (20, 3)])
def test_limit_by_hand(width: int, weight: int) -> None:
    at = {n: width, c: weight, n_0: 1, r2: 1}
    assert [float(infinite_depth(name).subs(at)) for name in QUANTITIES] == pytest.approx(deep_limit(width, weight))


@pytest.mark.parametrize("function", [closed_form_of_blocks, infinite_depth])
def test_unknown_quantities(function: Any) -> None:
    with pytest.raises(FinwidthError, match=r"choose one of K, K\^2, dK"):
        function("K_w")
