"""Figures of the kernel and its first move: what they refuse."""

from __future__ import annotations

import pytest

import finwidth


def test_networks_that_do_not_move_have_no_figure_of_their_moves() -> None:
    with pytest.raises(finwidth.FinwidthError, match="do not move on average: give another input"):
        finwidth.plots.update_over_depth([8, 1], (2,), [0, 0], activation="linear")
