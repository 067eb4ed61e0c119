"""The figure of log K against the normal law, and what it shows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

import finwidth
from finwidth import MLP
from finwidth.plots.lognormal import law_against_log_normal, standardised_log


def distance(layers: int, part: str) -> float:
    """Kolmogorov-Smirnov distance of the standardised logarithm from the normal law, at width 20."""
    drawn = finwidth.sample(MLP([4, *[20] * layers, 1]), np.ones(4), 100_000, seed=1)
    return float(stats.kstest(standardised_log(drawn[part].to_numpy())[0], "norm").statistic)


def test_the_weight_part_tends_to_a_log_normal_law_and_the_kernel_does_not() -> None:
    near, far = distance(80, "K_w"), distance(2, "K_w")
    assert near < 0.01 < far
    assert distance(80, "K") > 0.05


def test_standardised() -> None:
    logs, deviation = standardised_log(np.exp([0.0, 2.0, 4.0]) * np.array([1, 1, 1]))
    assert logs == pytest.approx([-1.224745, 0, 1.224745])
    assert deviation == pytest.approx(1.632993)
    assert len(standardised_log(np.array([0.0, 1.0, 2.0]))[0]) == 2  # dead networks without an output bias


def test_the_figure_shows_one_line_for_each_beta() -> None:
    figure = law_against_log_normal([0.5, 1, 2], width=4, draws=2_000)
    density, quantiles = figure.axes[0], figure.axes[2]
    assert len(density.patches) == 3
    assert len(quantiles.lines) == 4
    assert density.get_legend_handles_labels()[1][0].startswith(r"$\beta = 0.5$")
