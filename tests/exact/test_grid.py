"""Grids of networks at once against one network at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import finwidth
from finwidth import MLP, moments
from finwidth.exact.grid import moments_grid

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
    ],
)
def test_mistakes_are_told(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(finwidth.FinwidthError, match=words):
        call()
