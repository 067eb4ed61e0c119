"""What all figures share: axes that are given, titles, and lines that do not differ by colour alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import finwidth
from finwidth import MLP, FinwidthError, Norm, ResNet, plots
from finwidth.plots.lognormal import law_against_log_normal
from finwidth.plots.style import titled

X = [1.0, 2.0]
DRAWING: dict[str, Callable[..., Figure]] = {
    "law": lambda **more: plots.law_of_kernel(np.array([1.0, 2.0, 3.0]), 2.0, 2.0, "a title", **more),
    "growth": lambda **more: plots.growth_with_depth(X, [8, 16], [1, 2, 4], **more),
    "growth to first order": lambda **more: plots.growth_with_depth(
        X, [50, 100], [2, 4], activation="tanh", draws=50, **more
    ),
    "spread": lambda **more: plots.spread_over_depth(X, [8, 16], [1, 2], norm="rms", draws=50, **more),
    "update": lambda **more: plots.update_over_depth([8, 16], [2, 4], X, draws=100, **more),
    "update to first order": lambda **more: plots.update_over_depth(
        [50, 100], [2, 4], X, activation="tanh", draws=50, **more
    ),
}


@pytest.mark.parametrize("draw", DRAWING.values(), ids=DRAWING)
def test_it_draws_into_axes_that_are_given(draw: Callable[..., Figure]) -> None:
    whole = Figure()
    left, right = whole.subplots(1, 2)
    assert draw(ax=right) is whole
    assert len(whole.axes) == 2
    assert right.has_data()
    assert not left.has_data()
    assert right.get_title()
    part: Any = whole.subfigures(1, 1)
    inner = part.subplots()
    assert draw(ax=inner) is whole
    other = draw()
    assert other is not whole
    assert other.axes[0].get_title() == right.get_title()
    with pytest.raises(FinwidthError, match=r"ax is 'left'.*plt\.subplots"):
        draw(ax="left")
    inner.remove()
    with pytest.raises(FinwidthError, match="in no figure any more"):
        draw(ax=inner)


def _training() -> Any:
    return finwidth.train(MLP([2, 4, 1]), np.eye(2), [1.0, -1.0], 2, 0.05, draws=2)


PANELS: dict[str, tuple[int, Callable[..., Figure]]] = {
    "circle": (2, lambda **more: plots.kernel_on_a_circle([4, 8], 2, draws=2, points=5, **more)),
    "training": (4, lambda **more: plots.kernel_in_training(_training(), "a title", **more)),
    "log-normal": (4, lambda **more: law_against_log_normal([0.5], width=8, draws=200, **more)),
}


@pytest.mark.parametrize(("panels", "draw"), PANELS.values(), ids=PANELS)
def test_it_draws_into_a_panel_each(panels: int, draw: Callable[..., Figure]) -> None:
    whole = Figure()
    axes = whole.subplots(2, 3)
    given = axes.ravel()[:panels].reshape(2, -1)
    assert draw(ax=given) is whole
    assert [each.has_data() for each in axes.flat] == [place < panels for place in range(6)]
    assert whole.get_suptitle() == ""  # what is above them is the user's
    own = draw()
    for mine, theirs in zip(own.axes, given.flat, strict=True):
        assert [line.get_label() for line in mine.lines] == [line.get_label() for line in theirs.lines]
        assert (mine.get_xlim(), mine.get_xscale()) == (theirs.get_xlim(), theirs.get_xscale())
    with pytest.raises(FinwidthError, match=rf"ax holds 1 axes, and the figure has {panels} panels"):
        draw(ax=axes[0, :1])
    with pytest.raises(FinwidthError, match=r"ax is 'left'.*plt\.subplots"):
        draw(ax=["left"] * panels)


def test_fonts_in_a_pdf_are_truetype(tmp_path: Path) -> None:
    _, pdf = plots.save(DRAWING["law"](), tmp_path / "law")
    content = pdf.read_bytes()
    assert b"/Subtype /Type3" not in content
    assert b"/FontFile2" in content


def test_lines_do_not_cross_the_legend_of_a_law() -> None:
    frame = DRAWING["law"]().axes[0].get_legend().get_frame()  # type: ignore[union-attr]
    assert frame.get_visible()
    assert frame.get_alpha() == 1


@pytest.mark.parametrize("name", [name for name in DRAWING if name != "law"])
def test_the_title_names_law_activation_and_input(name: str) -> None:
    title = DRAWING[name]().axes[0].get_title()
    phi = "tanh" if "first order" in name else "relu"
    assert title.startswith(phi)
    assert "gaussian weights" in title
    assert "$|x|^2/n_0 = 2.5$" in title


def test_titles() -> None:
    net = ResNet([2, 64, 1], 3, hidden=[1, 2, 3], norm=Norm("layer", epsilon=1e-5))
    lines = titled(net, X, widths=True, more="10 draws").splitlines()
    assert max(map(len, lines)) <= 64
    assert " ".join(lines[:-1]) == str(net)
    assert lines[-1] == "$|x|^2/n_0 = 2.5$, 10 draws"
    assert titled(MLP([2, 8, 1], "uniform", "abs")) == "abs, uniform weights"
    assert titled(MLP([2, 8, 1], gains=1, bias="none")) == "relu, gaussian weights (gains 1), no biases"


def test_titles_of_residual_networks_name_their_factors() -> None:
    for branch in (0.25, "1/sqrt(depth)"):
        figure = plots.growth_with_depth(X, [8], [1, 2], kind=ResNet, branch=branch, skip=0.5)
        title = figure.axes[0].get_title().replace("\n", ", ")
        assert title == f"ResNet (skip 0.5; branch {branch}) relu, gaussian weights, $|x|^2/n_0 = 2.5$"


def _look(line: Any) -> tuple[object, ...]:
    return line.get_marker(), line.get_linestyle()


@pytest.mark.parametrize("name", ["growth", "spread", "update"])
def test_lines_differ_by_more_than_colour(name: str) -> None:
    axes = DRAWING[name]().axes[0]
    lines = [line for line in axes.get_lines() if line.get_linestyle() == "-"]
    assert len(lines) == 2
    assert len({_look(line) for line in lines}) == 2


def test_laws_beside_the_log_normal_one_differ_by_dashes() -> None:
    figure = law_against_log_normal([0.5, 1, 2], width=8, draws=200)
    quantiles = figure.axes[2].get_lines()[:3]
    assert len({str(line._dash_pattern) for line in quantiles}) == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(("activation", "r"), [("relu", 5), ("linear", 2)])
def test_dashes_are_the_exponent_of_the_activation(activation: str, r: int) -> None:
    """Of one slope as of ReLU: in deep networks a layer more multiplies E[K^2]/E[K]^2 by about 1 + r/n."""
    axes = plots.growth_with_depth(X, [100], [800, 1000], activation=activation).axes[0]
    exact, dashes, form = axes.lines
    assert form.get_label() == rf"$\exp({r}\,d/n)$"
    np.testing.assert_allclose(np.asarray(dashes.get_ydata(), float), np.exp([8.0 * r, 10.0 * r]), rtol=1e-12)
    growth = np.diff(np.log(np.asarray(exact.get_ydata(), float)))
    np.testing.assert_allclose(growth, 2 * r, rtol=0.1)
