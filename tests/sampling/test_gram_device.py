"""Kernel matrices on a torch device: the same law; on the CPU here, which is a torch device like any other."""

from __future__ import annotations

import numpy as np
import pytest

from devices import DEVICE
from finwidth import MLP, SmoothActivation, sample_gram
from finwidth.networks.activations import ACTIVATIONS
from sampling.test_gram import DRAWS, NETWORKS, TARGETS, VIEWS, X, in_law
from stats import same_law

torch = pytest.importorskip("torch")


def on_device(net: MLP, draws: int = DRAWS, seed: int = 3) -> dict[str, np.ndarray]:
    found = sample_gram(net, X, draws, seed, y=TARGETS, device=DEVICE)
    return {str(name): found[name].to_numpy() for name in found}


@pytest.mark.parametrize("name", ["gelu", "relu that dies, frozen random biases", "deep", "fewer neurons than inputs"])
def test_a_device_draws_the_same_law(name: str) -> None:
    here, there = in_law(NETWORKS[name]), on_device(NETWORKS[name])
    for view, function in VIEWS.items():
        assert same_law(function(here).round(9), function(there).round(9)), view


def test_another_activation_on_a_device_is_rejected() -> None:
    wrong = MLP(NETWORKS["gelu"].widths, activation="silu", gains=NETWORKS["gelu"].gains)
    here, there = in_law(NETWORKS["gelu"]), on_device(wrong)
    assert not same_law(VIEWS["dK 00"](here), VIEWS["dK 00"](there))


def test_a_seed_fixes_the_numbers_of_a_device() -> None:
    one, same, other = (on_device(NETWORKS["gelu"], 100, seed) for seed in (1, 1, 2))
    assert np.array_equal(one["dK"], same["dK"])
    assert not np.array_equal(one["dK"], other["dK"])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_the_same_functions_of_tensors(name: str) -> None:
    phi, y = ACTIVATIONS[name], np.array([-30.0, -2.0, -0.3, 0.0, 1e-9, 0.7, 3.0, 40.0])
    for function in (phi.value, phi.derivative, phi.second_derivative):
        found = function(torch.tensor(y))
        assert found.dtype == torch.float64
        assert found.numpy() == pytest.approx(function(y), rel=1e-14, abs=1e-15)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivatives_are_those_of_autograd(name: str) -> None:
    phi = ACTIVATIONS[name]
    y = torch.linspace(-3, 3, 41, dtype=torch.float64, requires_grad=True)[:-1] + 0.01
    (slope,) = torch.autograd.grad(phi.value(y).sum(), y, create_graph=True)
    assert slope.detach().numpy() == pytest.approx(phi.derivative(y).detach().numpy(), abs=1e-12)
    if isinstance(phi, SmoothActivation):
        (bend,) = torch.autograd.grad(phi.derivative(y).sum(), y)
        assert bend.numpy() == pytest.approx(phi.second_derivative(y).detach().numpy(), abs=1e-12)
