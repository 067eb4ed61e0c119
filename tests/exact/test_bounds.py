"""The paper's forms against the sums as the paper prints them, and against the exact values."""

from __future__ import annotations

import json
import math

import pytest

import finwidth
from finwidth import MLP, bounds


def printed(net: MLP, x: list[float]) -> dict[str, float]:
    """Theorems 1 and 2 and their parts, by the loops that the sums stand for."""
    d, n = net.depth, (0, *net.widths[1:])
    norm = sum(a * a for a in x) / net.widths[0]

    def inverse(first: int, last: int) -> float:
        return sum(1 / n[i] for i in range(first, last + 1))

    e5beta = math.exp(5 * inverse(1, d))
    one = sum(math.exp(-5 * inverse(1, j)) for j in range(1, d + 1))
    two = sum(math.exp(-5 * inverse(1, j)) for j in range(1, d + 1) for i in range(1, j + 1))
    ww = wb = 0.0
    for i1 in range(1, d + 1):
        for i2 in range(i1 + 1, d + 1):
            for k in range(i1, i2):
                ww += math.exp(-5 / n[k] - 6 * inverse(i1, k - 1)) / n[k]
                wb += math.exp(-5 * inverse(1, i1)) * math.exp(-6 * inverse(i1 + 1, k - 1)) / n[k]
    return {
        "K": d * (0.5 + norm),
        "K^2": e5beta * (d * d * norm**2 + d * norm * one + two),
        "K_w^2": e5beta * d * d * norm**2,
        "K_b^2": e5beta * two,
        "K_w*K_b": e5beta * d * norm * one,
        "D_ww": e5beta * norm**2 * ww,
        "D_wb": e5beta * norm * wb,
        "dK": e5beta * (norm**2 * ww + norm * wb),
    }


@pytest.mark.parametrize("widths", [[2, 1], [2, 5, 1], [3, 4, 7, 2, 9, 1], [1, *[20] * 12, 1]])
def test_forms_are_as_printed(widths: list[int]) -> None:
    net = MLP(widths)
    x = [1.0, -2.0, 0.5][: widths[0]]
    form = bounds(net, x).form
    assert form == pytest.approx(printed(net, x), rel=1e-12)


def test_ratio_is_exact_over_form() -> None:
    net, x = MLP([2, 6, 6, 6, 1]), [1.0, 2.0]
    exact, forms = finwidth.moments(net, x), bounds(net, x)
    assert forms.ratio["K^2"] == pytest.approx(exact.second_moment / forms.form["K^2"])
    assert forms.ratio["dK"] == pytest.approx(-exact.update["dK"] / forms.form["dK"])
    assert forms.hidden_ratio["K^2"] == pytest.approx(forms.ratio["K^2"] * math.exp(5))
    assert forms.hidden_ratio["K"] == forms.ratio["K"]


def test_ratio_stays_bounded_as_depth_and_width_grow_together() -> None:
    """At fixed d/n the forms have the right shape: the ratios converge."""
    for share in (0.1, 0.5):
        ratios = [bounds(MLP([2, *[n] * round(share * n), 1]), [1.0, 1.0]).hidden_ratio for n in (100, 200, 400)]
        for name in ("K^2", "K_w^2", "K_b^2", "K_w*K_b", "D_ww", "D_wb", "dK"):
            first, second, third = (ratio[name] for ratio in ratios)
            assert abs(third - second) < 0.75 * abs(second - first) + 1e-6, name
            assert 0.2 < third < 12, name


def test_beta_1000_does_not_overflow_the_logarithms() -> None:
    forms = bounds(MLP([1] * 1001 + [1]), [1.0])
    assert forms.form["K^2"] == math.inf
    assert all(map(math.isfinite, forms.log_form.values()))
    assert json.loads(json.dumps(forms.to_json()))["results"]["quantities"]["K^2"]["form"]["value"] is None
