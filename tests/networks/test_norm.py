"""Descriptions of normalised networks, and that nothing takes one for a network without a norm."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest

import finwidth
from finwidth import MLP, FinwidthError, Norm, ResNet
from finwidth.networks.mlp import options_of


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


def _calls(net: Any) -> dict[str, Callable[[], object]]:
    X = [[1.0, 2.0], [0.5, -1.0]]
    return {
        "moments": lambda: finwidth.moments(net, X[0]),
        "signal_moments": lambda: finwidth.signal_moments(net, X[0]),
        "bounds": lambda: finwidth.bounds(net, X[0]),
        "sample": lambda: finwidth.sample(net, X[0], 2),
        "summarize": lambda: finwidth.summarize(net, X[0], 100),
        "sample_gram": lambda: finwidth.sample_gram(net, X, 2),
        "train": lambda: finwidth.train(net, X, [1, 2], draws=2, steps=1, lr=0.1),
        "infinite_width_gram": lambda: finwidth.infinite_width_gram(net, X),
        "infinite_width": lambda: finwidth.infinite_width(net, X[0]),
        "regime": lambda: finwidth.regime(net, X[0], draws=32),
        "compare": lambda: finwidth.compare(net, X[0], draws=1000, networks=10),
    }


KINDS: dict[str, Callable[[Any], Any]] = {
    "MLP": lambda norm: MLP([2, 8, 8, 1], norm=norm),
    "ResNet": lambda norm: ResNet([2, 8, 1], 2, norm=norm),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", _calls(None))
def test_each_function_serves_or_refuses_a_norm_but_never_overlooks_it(kind: str, name: str) -> None:
    """What is refused is told in one line; what is returned is not what the network without its norm gives."""
    try:
        found = _calls(KINDS[kind]("rms"))[name]()
    except FinwidthError as error:
        told = str(error)
    else:
        told = "" if repr(found) == repr(_calls(KINDS[kind](None))[name]()) else "normalised"
    assert "normalised" in told or f"is a {kind}" in told


def test_no_size_is_given_of_a_normalised_network_by_moments_it_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("these are moments of a network without a norm")

    for name in ("moments", "spread_by_depth", "spread_by_width"):
        monkeypatch.setattr(finwidth.sizing, name, refuse)
    for call in (finwidth.width_for, finwidth.depth_for):
        assert call(8, 0.5, norm="rms") > 0
        with pytest.raises(AssertionError):
            call(8, 0.5)
