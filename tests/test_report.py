"""The report's figure over depth, and what a report refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import finwidth
from finwidth import MLP, BalancedResNet, FinwidthError, Norm, ResNet
from finwidth.exact.expansion.one_input import to_first_order
from finwidth.plots.style import rendered
from finwidth.report import ExpandedReport, QuantileReport, Report, _depth_figure, report, verify, write

X = [1.0, 1.0, 1.0, 1.0]
ALIKE: dict[str, dict[str, Any]] = {
    "usual": {},
    "scaled biases": {"bias_scale": 10},
    "no weight of biases": {"bias_scale": 0},
    "random biases": {"bias_variance": 1, "bias_law": "uniform"},
    "muP": {"parameterization": "mup", "base_widths": 16},
    "gains": {"gains": 2},
    "no biases, uniform weights": {"bias": "none", "weight_law": "uniform"},
}


@pytest.mark.parametrize("name", ALIKE)
def test_a_network_stands_on_the_line_of_its_width(name: str) -> None:
    figure = _depth_figure(MLP([4, 16, 16, 16, 1], **ALIKE[name]), X)
    lines = {str(line.get_label()): line for line in figure.axes[0].lines}
    on_line = dict(zip(*(np.asarray(each) for each in lines["$n = 16$"].get_data()), strict=True))
    assert on_line[4] == pytest.approx(float(np.asarray(lines["this network"].get_ydata())[0]), rel=1e-10)


def test_a_network_of_unlike_layers_is_said_to_be_one() -> None:
    figure = _depth_figure(MLP([4, 16, 16, 1], gains=[2, 2, 5]), X)
    assert "layers differ" in figure.axes[0].get_title()


RESIDUAL: dict[str, ResNet] = {
    "plain": ResNet([4, 16, 1], 5),
    "1/sqrt(depth)": ResNet([4, 16, 1], 6, branch="1/sqrt(depth)"),
    "hidden, leaky": ResNet([4, 16, 1], 5, 7, activation="leaky_relu", bias_variance=1, skip=0.5),
}


@pytest.mark.parametrize("name", RESIDUAL)
def test_a_residual_network_stands_on_the_line_of_its_width(name: str) -> None:
    net = RESIDUAL[name]
    figure = _depth_figure(net, X)
    lines = {str(line.get_label()): line for line in figure.axes[0].lines}
    on_line = dict(zip(*(np.asarray(each) for each in lines["$n = 16$"].get_data()), strict=True))
    assert on_line[net.depth] == pytest.approx(float(np.asarray(lines["this network"].get_ydata())[0]), rel=1e-9)
    assert figure.axes[0].get_xlabel() == "depth $L$ (blocks)"


def test_a_residual_network_of_unlike_blocks_is_said_to_be_one() -> None:
    figure = _depth_figure(ResNet([4, 16, 1], 3, branch=[1, 0.5, 1]), X)
    assert "blocks differ" in figure.axes[0].get_title()


def test_reports_of_residual_networks(tmp_path: Path) -> None:
    found = report(RESIDUAL["plain"], X, 20_000)
    assert isinstance(found, Report)
    assert found.bounds is None
    assert found.provenance["method"] == "exact transfer; residual chain"
    z = {row.quantity: row.sampled.z(row.exact) for row in found.rows}
    assert all(abs(z[name] or 0) < 5 for name in ("K", "K_w", "K_b", "dK"))
    write(found, X, tmp_path)
    verify(tmp_path)


@pytest.mark.parametrize(
    "net", [MLP([4, 16, 16, 1], norm="rms"), ResNet([4, 16, 1], 3, norm=Norm("layer", epsilon=1e-5))], ids=str
)
def test_reports_of_normalised_networks(net: MLP | ResNet, tmp_path: Path) -> None:
    """Quantiles and the spread against real networks, which torch differentiates; no mean in the figure."""
    pytest.importorskip("torch")
    from autograd_networks import autograd_networks

    found = report(net, X, 20_000)
    assert isinstance(found, QuantileReport)
    law, K = found.summary.K, autograd_networks(net, [X], [0.0], 4000, seed=1)["K"][:, 0, 0]
    assert law is not None
    for share in (0.16, 0.5, 0.84):
        here = law.quantile(share)
        assert abs(here.value - np.quantile(K, share)) < 15 * here.se  # that of 4000 is over twice as large
        assert abs(here.value - np.quantile(K, share - 0.1)) > 15 * here.se
    write(found, X, tmp_path)
    verify(tmp_path)
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["results"]["no_moments"] == found.reason
    assert ("K" not in told["results"]["quantities"]) == (net.norm is not None and not net.norm.epsilon)
    labels = [str(line.get_label()) for line in found.law("").axes[0].lines]
    assert [label[:6] for label in labels] == ["median"]
    figure = _depth_figure(net, X).axes[0]
    assert "q_{84}" in figure.get_ylabel()
    assert {"$n = 8$", "$n = 16$", "$n = 32$", "this network"} <= set(figure.get_legend_handles_labels()[1])


def test_reports_are_of_networks_that_are_drawn() -> None:
    with pytest.raises(FinwidthError, match=r"it has 2 outputs.*finwidth\.moments"):
        report(BalancedResNet([2, 3, 2], 2), [1, 2], 1000)
    with pytest.raises(FinwidthError, match=r"finwidth\.sample cannot draw.*its LayerNorm.*finwidth\.sample_gram"):
        report(MLP([2, 3, 3, 1], norm="layer"), [1, 2], 1000)
    with pytest.raises(FinwidthError, match="zero at this input"):
        report(MLP([2, *[1] * 40, 1], bias="none", norm="rms"), [1, 2], 1000)
    with pytest.raises(FinwidthError, match=r"its activation is tanh"):
        finwidth.plots.growth_with_depth([1, 2], [3], [1, 2], here=ResNet([2, 5, 1], 3, activation="tanh"))


def test_summaries_are_of_all_that_is_drawn() -> None:
    found = finwidth.summarize(ResNet([2, 6, 1], 2), [1, 2], draws=20_000)
    assert found.exact is not None
    z = found.estimates["K"].z(found.exact["K"])
    assert z is not None
    assert abs(z) < 5
    with pytest.raises(FinwidthError, match="2 outputs"):
        finwidth.summarize(ResNet([2, 6, 2], 2), [1, 2], draws=100, method="importance")


def test_quantiles_lie_between_the_draws() -> None:
    found = finwidth.summarize(MLP([2, 3, 1]), [0, 0], draws=1000)
    assert found.K is not None
    assert {found.K.quantile(share).value for share in (0.05, 0.5, 0.95)} == {1.0}


def test_reports_to_first_order(tmp_path: Path) -> None:
    """A smooth activation: first order beside draws of the same network; outside its range it says so."""
    net = MLP([4, 100, 100, 1], activation="tanh")
    found = report(net, X, 20_000, seed=3)
    assert isinstance(found, ExpandedReport)
    assert found.first_order == to_first_order(net, X)
    assert found.first_order.serves
    for name, known in found.first_order.means.items():
        assert abs(found.estimates[name].z(known) or 0) < 5, name
    assert abs(found.estimates["dK"].z(-found.first_order.means["dK"]) or 0) > 5  # the negative control: its sign
    write(found, X, tmp_path)
    verify(tmp_path)
    told = json.loads((tmp_path / "report.json").read_text())
    quantities = told["results"]["quantities"]
    assert quantities["var(K)"]["first_order"]["value"] == found.first_order.variance
    assert quantities["K"]["first_order"]["value"] == found.first_order.mean
    assert {*quantities["K_w"]} == {"sampled"}
    narrow = report(MLP([4, 8, 8, 1], activation="tanh"), X, 1000)
    assert isinstance(narrow, ExpandedReport)
    assert "does not serve" in narrow.first_order.verdict


def test_the_figure_to_first_order() -> None:
    """Whole lines where first order serves, dashes beyond; the network on its line; draws beside them."""
    net = MLP([4, 64, 64, 1], activation="gelu")
    axes = _depth_figure(net, X).axes[0]
    lines = {str(line.get_label()): line for line in axes.lines}
    depths = np.asarray(lines["$n = 64$"].get_xdata(), int).tolist()
    serves = [to_first_order(MLP([4, *[64] * (d - 1), 1], activation="gelu"), X).serves for d in depths]
    assert (~np.isnan(np.asarray(lines["$n = 64$"].get_ydata(), float))).tolist() == serves
    assert True in serves
    assert False in serves
    here = float(np.asarray(lines["this network"].get_ydata())[0])
    assert here == pytest.approx(1 + to_first_order(net, X).cv ** 2)
    assert "out of its range" in " ".join(lines)


def test_a_figure_is_the_same_file_whatever_was_made_of_it_before() -> None:
    found = report(MLP([2, 8, 8, 1]), [1.0, 2.0], 500)
    first, second = (found.law("title") for _ in range(2))
    rendered(second, ".png")
    assert rendered(first, ".pdf") == rendered(second, ".pdf") == rendered(first, ".pdf")
