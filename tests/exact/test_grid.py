"""Grids of networks at once against one network at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import finwidth
from finwidth import MLP, BalancedResNet, ResNet, moments
from finwidth.exact.grid import moments_grid, spread_by_depth, spread_by_width
from finwidth.exact.residual_form import infinite_depth
from finwidth.networks.family import Family, family_of

KINDS: dict[str, dict[str, Any]] = {
    "paper": {},
    "uniform, mup": {"weight_law": "uniform", "parameterization": "mup"},
    "leaky, standard": {"activation": "leaky_relu", "parameterization": "standard"},
    "random biases": {"bias_variance": 0.25, "gains": 1.5},
    "frozen biases": {"bias": "frozen"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_cell_is_that_of_its_network(kind: str) -> None:
    widths, depths, x = [1, 3, 50], [1, 2, 3, 7, 20], [1.0, -2.0, 0.5]
    grid = moments_grid(widths, depths, x, **KINDS[kind])
    for n in widths:
        for d in depths:
            one = moments(MLP([3, *[n] * (d - 1), 1], **KINDS[kind]), x)
            cell = grid.sel(width=n, depth=d)
            assert float(cell["mean"]) == pytest.approx(one.mean, rel=1e-12)
            assert float(cell.log_second_moment) == pytest.approx(one.log_second_moment, rel=1e-12, abs=1e-13)
            assert float(cell.cv) == pytest.approx(one.cv, rel=1e-10, abs=1e-7)
            assert float(cell.dK) == pytest.approx(float(one.update["dK"]), rel=1e-11)


RESIDUAL: dict[str, tuple[type[ResNet | BalancedResNet], dict[str, Any]]] = {
    "plain": (ResNet, {}),
    "1/sqrt(depth)": (ResNet, {"branch": "1/sqrt(depth)"}),
    "leaky, standard, hidden": (
        ResNet,
        {"activation": "leaky_relu", "parameterization": "standard", "skip": 0.5, "branch": 0.8, "hidden": 3},
    ),
    "random biases": (ResNet, {"bias_variance": [0.25, 1, 2, 0.5], "gains": [1, 2, 1, 0.5], "weight_law": "uniform"}),
    "balanced": (BalancedResNet, {"branch": "1/sqrt(depth)", "weight_law": "smoothed-rademacher", "bias": "frozen"}),
}


@pytest.mark.parametrize("x", [[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]])
@pytest.mark.parametrize("name", RESIDUAL)
def test_every_cell_of_residual_networks_is_that_of_its_network(name: str, x: list[float]) -> None:
    """Powers of a matrix in double precision, against decimals block by block."""
    (kind, options), widths, depths = RESIDUAL[name], [1, 3, 50], [1, 2, 3, 7, 65]
    grid = moments_grid(widths, depths, x, kind=kind, **options)
    for n in widths:
        for d in depths:
            one = moments(kind([3, n, 1], d, **options), x)
            cell = grid.sel(width=n, depth=d)
            assert float(cell["mean"]) == pytest.approx(one.mean, rel=1e-11)
            assert float(cell.log_second_moment) == pytest.approx(one.log_second_moment, rel=1e-11, abs=1e-12)
            assert float(cell.cv) == pytest.approx(one.cv, rel=1e-10, abs=1e-6)
            assert float(cell.dK) == pytest.approx(float(one.update["dK"]), rel=1e-10)
    spreads = spread_by_width(widths, 7, x, kind=kind, **options)
    assert spreads == pytest.approx(grid.cv.sel(depth=7).to_numpy(), rel=1e-9, abs=1e-7)
    down = spread_by_depth(3, [7, 1, 7], x, kind=kind, **options)
    assert down == pytest.approx(grid.cv.sel(width=3, depth=[7, 1, 7]).to_numpy(), rel=1e-9, abs=1e-7)


def test_the_limit_of_infinite_depth() -> None:
    """Depths far beyond what block by block could reach, against the closed form of the limit."""
    from finwidth.exact import residual_form

    n = [2, 16]
    grid = moments_grid(n, [10**4, 2 * 10**4], [1.0], kind=ResNet, branch="1/sqrt(depth)", bias="none")
    for width in n:
        at = {residual_form.n: width, residual_form.c: 1, residual_form.n_0: 1, residual_form.r2: 1}
        limit = float((infinite_depth("K^2") / infinite_depth("K") ** 2).subs(at))
        half, full = (1 + grid.cv.sel(width=width, depth=depth) ** 2 for depth in grid.depth.to_numpy())
        assert float(2 * full - half) == pytest.approx(limit, rel=1e-7)  # takes out 1/L
        assert abs(float(half) - limit) > 1e-6 * limit


def test_residual_networks_past_a_double() -> None:
    grid = moments_grid([2], [3000], [1.0], kind=ResNet)
    one = moments(ResNet([1, 2, 1], 3000), [1.0])
    assert one.second_moment == math.inf
    assert float(grid.log_second_moment[0, 0]) == pytest.approx(one.log_second_moment, rel=1e-12)


@pytest.mark.parametrize(
    "net",
    [
        MLP([2, 3, 3, 1], gains=1),
        ResNet([2, 3, 1], 4),
        ResNet([2, 3, 1], 5, 7, branch="1/sqrt(depth)", skip=0.5, gains=[1, 2, 3, 4], bias_variance=[0, 1, 0, 2]),
        ResNet([2, 3, 1], 1, norm="rms"),
        BalancedResNet([2, 3, 1], 3, branch="sqrt(1/2)", activation="abs"),
    ],
)
def test_the_family_of_a_network_has_it(net: MLP | ResNet | BalancedResNet) -> None:
    family = family_of(net)
    assert family is not None
    assert family.net(net.widths[0], net.widths[1], net.depth) == net
    assert family.of_depth(net.depth).net(net.widths[0], net.widths[1], net.depth) == net


def test_networks_whose_blocks_differ_have_no_family() -> None:
    assert family_of(MLP([2, 3, 3, 1], gains=[1, 1, 2])) is None
    assert family_of(ResNet([2, 3, 1], 2, [3, 4])) is None
    assert family_of(ResNet([2, 3, 1], 2, skip=[1, 2])) is None
    assert family_of(ResNet([2, 3, 2], 2)) is None
    assert not Family(ResNet, {}).bounded
    assert not Family(ResNet, {"branch": "1/sqrt(depth)", "skip": 2}).bounded


def test_past_a_double() -> None:
    grid = moments_grid([2], [2000], [1.0])
    one = moments(MLP([1, *[2] * 1999, 1]), [1.0])
    assert one.second_moment == math.inf
    assert float(grid.log_second_moment[0, 0]) == pytest.approx(one.log_second_moment, rel=1e-12)
    assert float(grid.log_dK[0, 0]) == pytest.approx(one.log_update["dK"], rel=1e-12)
    assert np.isneginf(grid.dK[0, 0])


def test_more_depth_and_less_width_spread_the_kernel() -> None:
    """What width_for and depth_for rest on, for all of a grid of the paper's networks."""
    grid = moments_grid(np.unique(np.geomspace(1, 10_000, 60).astype(int)).tolist(), range(1, 200), [1.0])
    assert (np.diff(grid.cv, axis=1) > 0).all()
    assert (np.diff(grid.cv[:, 1:], axis=0) < 0).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: moments_grid([], [1], [1.0]), "the grid is empty"),
        (lambda: moments_grid([2], [], [1.0]), "the grid is empty"),
        (lambda: moments_grid([2], [0], [1.0]), "depth is 0"),
        (lambda: moments_grid([0], [2], [1.0]), "width is 0"),
        (lambda: moments_grid([2], [2], [math.nan]), "nan"),
        (lambda: moments_grid([2], [2], [1.0], kind="resnet"), "give one of finwidth.MLP"),  # type: ignore[arg-type]
        (lambda: moments_grid([2], [2], [1.0], branch=2), "branch is no option of kind=MLP"),
        (lambda: moments_grid([2], [2], [1.0], kind=ResNet, skip=[1, 2]), "give one value, for blocks"),
        (lambda: moments_grid([2], [2], [1.0], kind=ResNet, activation="tanh"), "its activation is tanh"),
        (lambda: moments_grid([2], [2], [1.0], kind=ResNet, norm="rms"), "normalised"),
        (lambda: moments_grid([2], [2], [1e200], kind=ResNet), "a double's range"),
    ],
)
def test_mistakes_are_told(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(finwidth.FinwidthError, match=words):
        call()
