"""Refusals: what one names instead does serve the network, and nothing that serves is left out."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

import finwidth
from finwidth import MLP, Activation, BalancedResNet, FinwidthError, ResNet, SmoothActivation, WeightLaw
from finwidth.networks.description import Network
from finwidth.networks.routes import FUNCTIONS, unsupported_by
from finwidth.sampling.one_input import importance, sample

X, Y = np.eye(2), [1.0, -1.0]
CALLS: dict[str, Callable[[Any], Any]] = {
    "finwidth.moments": lambda net: finwidth.moments(net, X[0]),
    "finwidth.sample": lambda net: finwidth.sample(net, X[0], draws=10),
    "finwidth.sample_gram": lambda net: finwidth.sample_gram(net, X, draws=10),
    "finwidth.train": lambda net: finwidth.train(net, X, np.zeros((2, net.widths[-1])), steps=1, lr=0.1, draws=1),
    "finwidth.infinite_width_gram": lambda net: finwidth.infinite_width_gram(net, X),
    "finwidth.empirical.Ensemble": lambda net: finwidth.empirical.Ensemble(net, 2).kernels(X),
}
SOFTPLUS = SmoothActivation("softplus", lambda y: np.logaddexp(0, y), lambda y: 1 / (1 + np.exp(-y)))
NAMED = SmoothActivation("named", SOFTPLUS.phi, SOFTPLUS.dphi, torch_module="Softplus")
MISNAMED = SmoothActivation("misnamed", SOFTPLUS.phi, SOFTPLUS.dphi, torch_module="Tanh")
FEW_MOMENTS = WeightLaw("signs", (1,), lambda rng, shape: rng.choice([-1.0, 1.0], shape))
ACTIVATIONS: list[str | Activation] = ["relu", "leaky_relu", "linear", "abs", "tanh", "erf", SOFTPLUS, NAMED, MISNAMED]
LAWS: list[str | WeightLaw] = ["gaussian", "uniform", "truncated-normal", FEW_MOMENTS]
BIASES: list[tuple[int, str | WeightLaw]] = [(0, "gaussian"), (1, "gaussian"), (1, "laplace"), (1, FEW_MOMENTS)]
NETWORKS = [
    MLP([2, 3, outputs], law, activation, bias_variance=variance, bias_law=bias_law)
    for outputs, law, activation, (variance, bias_law) in product((1, 2), LAWS, ACTIVATIONS, BIASES)
]
RESNETS = [
    kind([2, 3, outputs], 2, weight_law=law, activation=activation, skip=skip)
    for kind in (ResNet, BalancedResNet)
    for outputs, law, activation, skip in product((1, 2), (LAWS[0], FEW_MOMENTS), ("relu", "abs", "tanh"), (1, 0))
]


def test_every_route_is_called_here() -> None:
    assert CALLS.keys() == {route.function for route in FUNCTIONS}


def serves(function: str, net: Network) -> str | None:
    """None if a function serves a network, and else what it says."""
    try:
        CALLS[function](net)
    except FinwidthError as error:
        return str(error)
    return None


@pytest.mark.parametrize("place", range(len(NETWORKS + RESNETS)), ids=lambda place: str([*NETWORKS, *RESNETS][place]))
def test_a_refusal_names_all_that_serve_and_nothing_else(place: int) -> None:
    pytest.importorskip("torch")
    net: Network = [*NETWORKS, *RESNETS][place]
    said = {function: serves(function, net) for function in CALLS}
    serving = {function for function, refusal in said.items() if refusal is None}
    assert ("finwidth.infinite_width_gram" in serving) == isinstance(net, MLP)
    for route in FUNCTIONS:
        assert (not route.unsupported(net)) == (route.function in serving), (route.function, said[route.function])
        refusal = said[route.function]
        if refusal is not None and route.function != "finwidth.empirical.Ensemble":  # its refusals say what to give it
            named = set(re.findall(r"(finwidth\.[\w.]+) (?!cannot)", refusal.split("network: ", 1)[1]))
            assert named == serving, refusal
            assert all(reason in refusal for reason in route.unsupported(net))


def test_importance_sampling_knows_its_networks() -> None:
    for net in [*NETWORKS, *RESNETS]:
        refused = bool(importance.unsupported(net))
        try:
            importance.importance_estimates(net, X[0], 10)
        except FinwidthError:
            assert refused, net
        else:
            assert not refused, net


def test_a_missing_extra_is_told_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finwidth.networks.routes.find_spec", lambda name: None)
    with pytest.raises(FinwidthError, match=r"Ensemble real networks \(pip install 'finwidth\[torch\]'\)"):
        finwidth.sample(MLP([2, 3, 1], "uniform"), X[0], 10)


class Residual(MLP):
    """A description of its own; what is derived from `MLP` and has no entry is taken as one."""


def test_a_new_description_needs_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unable(sample.MLPAtOneInput):
        @staticmethod
        def unsupported(net: MLP) -> list[str]:
            return ["it has skip connections"]

    net = Residual([2, 3, 1])
    assert serves("finwidth.sample", net) is None
    monkeypatch.setitem(sample.SAMPLERS, Residual, Unable)
    refusal = serves("finwidth.sample", net)
    assert refusal is not None
    assert "cannot draw this network: it has skip connections; finwidth.moments" in refusal
    monkeypatch.setattr(sample, "SAMPLERS", {})
    assert unsupported_by(sample.SAMPLERS, net) == ["it is a Residual (nothing is supported)"]
