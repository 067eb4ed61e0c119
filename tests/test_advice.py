"""Advice is what the exact values say."""

from __future__ import annotations

import pytest

import finwidth
from finwidth import MLP, depth_for, moments, regime, width_for


def cv(width: int, depth: int, **network: str) -> float:
    return moments(MLP([64, *[width] * (depth - 1), 1], **network), [1.0] * 64).cv  # type: ignore[arg-type]


@pytest.mark.parametrize(("depth", "wanted"), [(2, 0.5), (5, 0.1), (40, 1.0), (100, 0.02)])
def test_width_for_is_the_smallest(depth: int, wanted: float) -> None:
    width = width_for(depth, wanted)
    assert cv(width, depth) <= wanted < cv(width - 1, depth)


@pytest.mark.parametrize(("width", "wanted"), [(10, 0.5), (100, 0.1), (64, 2.0), (1, 0.1)])
def test_depth_for_is_the_largest(width: int, wanted: float) -> None:
    depth = depth_for(width, wanted)
    assert cv(width, depth) <= wanted < cv(width, depth + 1)


def test_advice_follows_the_network() -> None:
    assert width_for(8, 0.1, weight_law="laplace") > width_for(8, 0.1) > width_for(8, 0.1, weight_law="uniform")
    assert width_for(1, 0.1) == 1


def test_width_grows_with_depth_over_spread_squared() -> None:
    """CV^2 is about a constant times d/n when small."""
    assert width_for(64, 0.05) / width_for(32, 0.05) == pytest.approx(2, rel=0.05)
    assert width_for(32, 0.02) / width_for(32, 0.04) == pytest.approx(4, rel=0.05)


def test_regime_states_its_thresholds() -> None:
    for hidden in (20, 200, 2000):
        net = MLP([10, *[hidden] * 4, 1])
        exact, found = moments(net, [1.0] * 10), regime(net)
        assert found.cv == exact.cv
        assert found.movement == pytest.approx(-exact.update["dK"] / exact.mean**2)
        wanted = "moving" if found.movement > 0.1 else "noisy" if found.cv > 0.1 else "near-deterministic"
        assert found.name == wanted


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: width_for(0, 0.1), "depth is 0"),
        (lambda: width_for(4.5, 0.1), "depth is 4.5"),  # type: ignore[arg-type]
        (lambda: width_for(4, 0), "cv is 0"),
        (lambda: width_for(4, float("nan")), "cv is nan"),
        (lambda: width_for(4, 1e-9), "no width up to"),
        (lambda: depth_for(-3, 0.1), "width is -3"),
        (lambda: depth_for(10, 0.1, norm=-1), "norm is -1"),
        (lambda: regime(MLP([2, 3, 1], bias="none"), [0, 0]), "nothing is trained"),
    ],
)
def test_mistakes_are_told(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(finwidth.FinwidthError, match=words):
        call()
