"""Figures of the kernel and its first move: what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

import finwidth
from finwidth import MLP
from finwidth.exact.expansion.one_input import to_first_order


def test_networks_that_do_not_move_have_no_figure_of_their_moves() -> None:
    with pytest.raises(finwidth.FinwidthError, match="do not move on average: give another input"):
        finwidth.plots.update_over_depth([8, 1], (2,), [0, 0], activation="linear")


def test_moves_to_first_order_have_a_sign() -> None:
    """Tanh's kernel grows under a step; lines are whole where first order serves, and go through the draws."""
    figure = finwidth.plots.update_over_depth([100, 16], [3, 2], [1.0, 2.0], activation="tanh", draws=3000)
    lines = {str(line.get_label()): line for line in figure.axes[0].lines}
    wide = np.asarray(lines["$n = 100$"].get_ydata(), float)
    known = [to_first_order(MLP([2, *[100] * (d - 1), 1], activation="tanh"), [1, 2]) for d in (2, 3)]
    assert wide == pytest.approx([(each.change or 0) / each.mean for each in known])
    assert (wide > 0).all()
    assert np.isnan(np.asarray(lines["$n = 16$"].get_ydata(), float)).all()
    drawn = finwidth.plots.update_over_depth([100], [2], [1.0, 2.0], activation="relu", draws=3000)
    assert "-" in drawn.axes[0].get_ylabel()
    bare = finwidth.SmoothActivation("bare", np.tanh, lambda y: 1 - np.tanh(y) ** 2)
    with pytest.raises(finwidth.FinwidthError, match="has no second derivative"):
        finwidth.plots.update_over_depth([8], [2], [1.0, 2.0], activation=bare)
    with pytest.raises(finwidth.FinwidthError, match="zero at this input"):
        finwidth.plots.update_over_depth([8], [2], [0.0, 0.0], activation="tanh", bias="none")
