"""Descriptions of normalised networks, and that nothing takes one for a network without a norm."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import finwidth
from finwidth import MLP, FinwidthError, Norm, ResNet, plots
from finwidth.exact.grid import grid_moments, moments_grid, spread_by_depth, spread_by_width
from finwidth.networks.mlp import options_of
from finwidth.paper.paths import enumerate_moments
from finwidth.report import report
from finwidth.sampling.one_input.importance import importance_estimates
from finwidth.sampling.training.train import default_rate
from fuzz.surface import public


def test_what_a_norm_is() -> None:
    norm = Norm("layer", epsilon=1e-5)
    assert (norm.kind, norm.position, norm.epsilon, norm.parameters) == ("layer", "before", Fraction(1e-5), "none")
    assert norm.centred
    assert not Norm("rms").centred
    assert MLP([2, 8, 8, 1], norm="rms").norm == Norm("rms") != Norm("rms", "after")


def test_a_norm_is_told_and_described_where_there_is_one() -> None:
    assert "norm" not in MLP([2, 8, 1]).describe()
    assert "norm" not in ResNet([2, 8, 1], 2).describe()
    net = ResNet([2, 8, 1], 2, hidden=4, norm=Norm("rms", "after", parameters="trained"))
    described = {"kind": "rms", "position": "after", "epsilon": "0", "parameters": "trained"}
    assert net.describe()["norm"] == described
    assert "(rms norm (trained parameters) after each sum; hidden width 4)" in str(net)
    assert "layer norm before each block" in str(ResNet([2, 8, 1], 2, norm="layer"))


def test_networks_that_differ_in_their_norm_differ() -> None:
    nets = [MLP([2, 8, 8, 1], norm=norm) for norm in (None, "rms", "layer", Norm("rms", "after"))]
    assert len(set(nets)) == 4
    for net in nets:
        found = options_of(net)
        assert found is not None
        assert MLP(net.widths, **found) == net


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP([2, 8, 1], norm="batch"), r"norm is 'batch'; give None, \"rms\", \"layer\""),
        (lambda: MLP([2, 8, 1], norm=1), "norm is 1; give None"),  # type: ignore[arg-type]
        (lambda: Norm("batch"), "choose one of rms, layer"),
        (lambda: Norm("rms", "pre"), "choose one of before, after"),
        (lambda: Norm("rms", epsilon=-1), "epsilon is -1; give a finite number, 0 or more"),
        (lambda: Norm("rms", parameters="yes"), "choose one of none, trained"),
        (lambda: MLP([2, 8, 1, 1], norm="layer"), "of width 1 is always zero"),
        (lambda: MLP([2, 8, 1], parameterization="mup", norm=Norm("rms", parameters="trained")), "not settled"),
    ],
)
def test_what_is_not_allowed_is_told(make: Callable[[], object], message: str) -> None:
    with pytest.raises(FinwidthError, match=message):
        make()


X = [[1.0, 2.0], [0.5, -1.0]]
OF_NETWORKS: dict[str, Callable[[Any], object]] = {
    "finwidth.moments": lambda net: finwidth.moments(net, X[0]),
    "finwidth.signal_moments": lambda net: finwidth.signal_moments(net, X[0]),
    "finwidth.bounds": lambda net: finwidth.bounds(net, X[0]),
    "finwidth.growth": finwidth.growth,
    "finwidth.sample": lambda net: finwidth.sample(net, X[0], 2),
    "finwidth.summarize": lambda net: finwidth.summarize(net, X[0], 100),
    "finwidth.sample_gram": lambda net: finwidth.sample_gram(net, X, 2),
    "finwidth.train": lambda net: finwidth.train(net, X, [1, 2], draws=2, steps=1, lr=0.1),
    "finwidth.infinite_width_gram": lambda net: finwidth.infinite_width_gram(net, X),
    "finwidth.infinite_width": lambda net: finwidth.infinite_width(net, X[0]),
    "finwidth.expansion": lambda net: finwidth.expansion(net, X),
    "finwidth.regime": lambda net: finwidth.regime(net, X[0], draws=32),
    "finwidth.compare": lambda net: finwidth.compare(net, X[0], draws=1000, networks=10),
    "finwidth.report.report": lambda net: report(net, X[0], 1000),
    "finwidth.paper.paths.enumerate_moments": lambda net: enumerate_moments(net, X[0], "w"),
    "finwidth.sampling.one_input.importance.importance_estimates": lambda net: importance_estimates(net, X[0], 100),
    "finwidth.sampling.training.train.default_rate": lambda net: default_rate(net, np.array(X)),
    "finwidth.empirical.Ensemble": lambda net: finwidth.empirical.Ensemble(net, 2).kernels(X),
    "finwidth.empirical.MLP": lambda net: finwidth.empirical.MLP(net, 0),
    "finwidth.empirical.ResNet": lambda net: finwidth.empirical.ResNet(net, 0),
}
OF_OPTIONS: dict[str, Callable[[Any], object]] = {  # which make networks themselves
    "finwidth.width_for": lambda norm: finwidth.width_for(8, 0.7, norm=norm),
    "finwidth.depth_for": lambda norm: finwidth.depth_for(40, 1.0, norm=norm),
    "finwidth.exact.grid.moments_grid": lambda norm: moments_grid([4], [3], X[0], norm=norm),
    "finwidth.exact.grid.grid_moments": lambda norm: grid_moments([4], [3], X[0], norm=norm),
    "finwidth.exact.grid.spread_by_width": lambda norm: spread_by_width([4], 3, X[0], norm=norm),
    "finwidth.exact.grid.spread_by_depth": lambda norm: spread_by_depth(4, [3], X[0], norm=norm),
    "finwidth.plots.growth_with_depth": lambda norm: plots.growth_with_depth(X[0], [4], [3], norm=norm),
    "finwidth.plots.spread_over_depth": lambda norm: plots.spread_over_depth(X[0], [4], [3], draws=200, norm=norm),
    "finwidth.plots.update_over_depth": lambda norm: plots.update_over_depth([4], [3], X[0], draws=200, norm=norm),
    "finwidth.plots.kernel_on_a_circle": lambda norm: plots.kernel_on_a_circle([4], 3, points=5, norm=norm),
}
KINDS: dict[str, Callable[[Any], Any]] = {
    "MLP": lambda norm: MLP([2, 3, 3, 1], norm=norm),
    "ResNet": lambda norm: ResNet([2, 3, 1], 2, norm=norm),
}


def _seen(found: object) -> str:
    """What tells one result from another."""
    if hasattr(found, "axes"):  # a figure
        return str([line.get_ydata().tolist() for axes in found.axes for line in axes.lines])
    return repr(found)


def _told(call: Callable[[Any], object], normed: object, plain: object) -> str:
    """The refusal of what is normalised; "served" if that gives something else than what is not."""
    try:
        found = _seen(call(normed))
    except FinwidthError as error:
        return str(error)
    return "overlooked" if found == _seen(call(plain)) else "served"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OF_NETWORKS)
def test_each_function_serves_or_refuses_a_norm_but_never_overlooks_it(kind: str, name: str) -> None:
    """What is refused is told in one line; what is returned is not what the network without its norm gives."""
    if name.startswith("finwidth.empirical"):
        pytest.importorskip("torch")
    told = _told(OF_NETWORKS[name], KINDS[kind]("rms"), KINDS[kind](None))
    assert told == "served" or "normalised" in told or f"is a {kind}" in told


@pytest.mark.parametrize("name", OF_OPTIONS)
def test_no_norm_among_options_is_overlooked(name: str) -> None:
    told = _told(OF_OPTIONS[name], "rms", None)
    assert told == "served" or "normalised" in told


def test_every_public_function_of_networks_is_called_here() -> None:
    pytest.importorskip("torch")
    takes = {name: set(inspect.signature(each).parameters) for name, each in public().items()}
    assert {name for name, of in takes.items() if "net" in of} == set(OF_NETWORKS)
    assert {name for name, of in takes.items() if "network" in of} == set(OF_OPTIONS)


def test_no_size_is_given_of_a_normalised_network_by_moments_it_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("these are moments of a network without a norm")

    for name in ("moments", "spread_by_depth", "spread_by_width"):
        monkeypatch.setattr(finwidth.sizing, name, refuse)
    for call in (finwidth.width_for, finwidth.depth_for):
        assert call(8, 0.5, norm="rms") > 0
        with pytest.raises(AssertionError):
            call(8, 0.5)
