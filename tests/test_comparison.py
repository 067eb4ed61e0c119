"""The three routes side by side agree, and say so or say why not."""

from __future__ import annotations

import json
from typing import Any

import pytest

import finwidth
from finwidth import MLP, BalancedResNet, Norm, ResNet, compare
from finwidth.cli import tables
from finwidth.comparison import Comparison, ExpandedComparison, QuantileComparison, QuantileRow
from finwidth.exact.expansion.one_input import to_first_order
from finwidth.exact.moments import exact_values
from finwidth.networks.description import Network
from finwidth.quantities import DRAWN, MOMENTS, Moment
from finwidth.sampling.statistics.quantile_sketch import QuantileSketch

NETWORKS = {
    "relu": MLP([2, 16, 16, 1]),
    "leaky": MLP([2, 32, 32, 1], activation="leaky_relu"),
    "abs": MLP([2, 16, 16, 1], activation="abs", parameterization="standard"),
    "linear": MLP([2, 32, 32, 1], activation="linear", parameterization="mup"),
    "random biases": MLP([2, 16, 16, 1], bias_variance=0.3),
    "several outputs": MLP([2, 16, 16, 3]),
    "residual": ResNet([2, 24, 1], 3, 12, branch=0.3),
    "balanced": BalancedResNet([2, 24, 1], 3, branch=0.3),
    "residual, random biases": ResNet([2, 24, 1], 2, activation="leaky_relu", bias_variance=0.3, branch=0.3),
}


def of_means(net: Network, x: list[float], **options: Any) -> Comparison:
    found = compare(net, x, **options)
    assert isinstance(found, Comparison)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_routes_agree(name: str) -> None:
    net = NETWORKS[name]
    found = of_means(net, [1, 2], draws=200_000, networks=20_000, seed=1)
    exact = finwidth.moments(net, [1, 2])
    assert found.rows[0].exact == exact.mean
    assert found.not_sampled is None
    for row in found.rows:
        assert row.sampled is not None
        assert row.tilted is None
        for estimate in (row.sampled, row.networks):
            assert estimate.trust, (row.quantity, estimate.verdict)
    assert {row.quantity for row in found.rows} >= {"K", "K_w", "K_b", "K^2", "dK"}
    json.dumps(found.to_json(), allow_nan=False)


def test_tilted_draws_where_plain_ones_cannot_be_trusted() -> None:
    found = of_means(MLP([2, *[5] * 15, 1]), [1, 2], draws=50_000, networks=500)
    for row in found.rows:
        assert row.sampled is not None
        assert row.tilted is not None
        assert row.tilted.trust
        assert abs(row.tilted.z(row.exact) or 0) < 5
    by_name = {row.quantity: row for row in found.rows}
    assert not any(by_name[name].sampled.trust for name in ("K^2", "dK"))  # type: ignore[union-attr]
    document: Any = found.to_json()
    assert document["results"]["quantities"]["dK"]["tilted"]["trust"] is True


def test_residual_networks_where_plain_draws_cannot_be_trusted() -> None:
    found = of_means(ResNet([2, 4, 1], 14), [1, 2], draws=40_000, networks=500)
    by_name = {row.quantity: row for row in found.rows}
    assert by_name["K^2"].sampled is not None
    assert not by_name["K^2"].sampled.trust
    for row in found.rows:
        assert row.tilted is not None
        assert row.tilted.trust
        assert abs(row.tilted.z(row.exact) or 0) < 5


def test_residual_networks_without_the_sampled_route() -> None:
    found = of_means(ResNet([2, 12, 2], 2, weight_law="uniform", branch=0.5), [1, 2], networks=20_000)
    assert "its weights are uniform" in str(found.not_sampled)
    assert all(row.networks.trust for row in found.rows)
    with pytest.raises(finwidth.FinwidthError, match=r"without signs \(signs=False\), where gates are no fair coins"):
        compare(BalancedResNet([2, 6, 1], 2, signs=False), [1, 2])
    with pytest.raises(finwidth.FinwidthError, match=r"has 4e\+08 weights, too many to draw; finwidth\.moments"):
        compare(ResNet([2, 10_000, 1], 2), [1, 2])


@pytest.mark.parametrize(
    ("net", "plain"),
    [
        (MLP([3, 16, 16, 1], norm="rms"), MLP([3, 16, 16, 1])),
        (
            MLP([3, 12, 12, 2], activation="tanh", norm=Norm("layer", epsilon=1e-5, parameters="trained")),
            MLP([3, 12, 12, 2], activation="tanh"),
        ),
        (ResNet([3, 16, 1], 2, norm=Norm("rms", "after")), ResNet([3, 16, 1], 2)),
    ],
    ids=str,
)
def test_normalised_networks_by_their_quantiles(
    net: Network, plain: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    x = [1.0, -0.5, 1.5]
    found = compare(net, x, draws=20_000, networks=2_000, seed=1)
    assert isinstance(found, QuantileComparison)
    assert [row.quantity for row in found.rows] == ["q16", "median", "q84", "spread"]
    assert all(abs(row.z) < 5 for row in found.rows)
    assert (found.draws, found.networks) == (20_000, 2_000)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["results"]["no_moments"] == found.reason
    without = finwidth.sample_gram(plain, [x], 20_000).K.to_numpy().reshape(20_000, -1)[:, 0]
    wrong = QuantileRow("median", QuantileSketch.of(without).quantile(0.5), found.rows[1].networks)
    assert abs(wrong.z) > 5  # the negative control: no norm
    tables.show(found)
    assert "(q84 - q16) / (2 median)" in capsys.readouterr().out


def test_normalised_networks_of_other_laws_are_refused() -> None:
    with pytest.raises(finwidth.FinwidthError, match=r"its weights are uniform.*finwidth\.empirical\.Ensemble"):
        compare(MLP([2, 3, 1], "uniform", norm="rms"), [1, 2])


def test_networks_without_the_sampled_route() -> None:
    found = of_means(MLP([2, 8, 1], "uniform", "abs"), [1, 2], networks=5_000)
    assert found.not_sampled is not None
    assert "its weights are uniform" in found.not_sampled
    assert all(row.sampled is None and row.networks.trust for row in found.rows)
    document: Any = found.to_json()
    assert "sampled" not in document["results"]["quantities"]["K"]


def test_a_wrong_exact_value_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: an exact value that is 10% off loses the trust of both other routes."""
    from finwidth import comparison

    right = exact_values

    monkeypatch.setattr(comparison, "exact_values", lambda found: {k: 1.1 * v for k, v in right(found).items()})
    row = of_means(MLP([2, 16, 16, 1]), [1, 2], draws=50_000, networks=20_000).rows[0]
    assert row.sampled is not None
    assert not row.sampled.trust
    assert not row.networks.trust
    assert "standard errors from the exact value" in row.networks.verdict


def test_a_new_moment_is_one_entry(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All routes know it, and tables show it; one that draws and exact means read differently is not trusted."""
    right = Moment("K*K_b", "E[K K_b]", lambda E: E[1, 1] + E[0, 2], lambda draw: draw["K"] * draw["K_b"])
    wrong = Moment("wrong", "E[wrong]", lambda E: E[1, 1], right.drawn)
    for each in (right, wrong):
        monkeypatch.setitem(MOMENTS, each.name, each)
        monkeypatch.setitem(DRAWN, each.name, each.drawn)
    net = MLP([2, 16, 16, 1])
    found = of_means(net, [1, 2], draws=50_000, networks=20_000)
    rows = {row.quantity: row for row in found.rows}
    for name in ("K*K_b", "wrong"):
        row = rows[name]
        assert row.sampled is not None
        assert {row.sampled.trust, row.networks.trust} == {name == "K*K_b"}
    tables.show(found)
    tables.show(finwidth.moments(net, [1, 2], exact=True))
    assert capsys.readouterr().out.count("E[K K_b]") == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"draws": 0}, "draws is 0"), ({"networks": -1}, "networks is -1"), ({"seed": 0.5}, "seed is 0.5")],
)
def test_mistakes_are_told(arguments: dict[str, int], words: str) -> None:
    with pytest.raises(finwidth.FinwidthError, match=words):
        compare(MLP([2, 3, 1]), [1, 2], **arguments)  # type: ignore[call-overload]


def test_networks_of_very_many_outputs_are_not_drawn_in_law() -> None:
    """A draw takes a time in proportion to the cube of their number; real networks are drawn all the same."""
    found = of_means(MLP([3, 4, 40]), [1, 2, 3], draws=100, networks=100)
    assert "40 outputs" in str(found.not_sampled)
    assert found.rows[0].networks.draws == 100


def test_smooth_activations_to_first_order(capsys: pytest.CaptureFixture[str]) -> None:
    """First order beside draws in law and real networks, which share no code."""
    net = MLP([2, 40, 40, 1], activation="tanh")
    found = compare(net, [1, 2], draws=20_000, networks=5_000, seed=1)
    assert isinstance(found, ExpandedComparison)
    rows = {row.quantity: row for row in found.rows}
    assert all(abs(row.z) < 5 for row in found.rows)
    known = to_first_order(net, [1, 2])
    assert {name: row.first_order for name, row in rows.items() if row.first_order is not None} == known.means
    for name, value in known.means.items():
        assert abs(rows[name].sampled.z(value) or 0) < 5
    other = compare(MLP([2, 40, 40, 1], activation="erf"), [1, 2], draws=20_000, networks=500, seed=1)
    assert isinstance(other, ExpandedComparison)
    assert abs(other.rows[0].sampled.z(known.mean) or 0) > 5  # the negative control: another activation
    document: Any = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["results"]["quantities"]["K"]["first_order"]["value"] == known.mean
    assert document["results"]["first_order"]["verdict"] == known.verdict
    tables.show(found)
    told = capsys.readouterr().out
    assert "first order" in told
    assert "First order serves" in told
