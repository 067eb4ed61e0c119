"""The torch backend draws the same law; on the CPU here, which is a torch device like any other."""

from __future__ import annotations

import numpy as np
import pytest

import finwidth
from devices import DEVICE
from finwidth import MLP, Activation
from finwidth.sampling.random.device import DeviceGenerator
from stats import same_law, same_mean

pytest.importorskip("torch", reason="needs the torch extra")

DRAWS = 100_000
NETWORKS = {
    "relu": (MLP([2, 3, 3, 1]), [1.0, 2.0]),
    "leaky": (MLP([2, 3, 4, 1], activation=Activation("leaky", 1, 0.3)), [1.0, 2.0]),
    "random biases": (MLP([2, 3, 2, 3, 1], bias_variance=[0.5, 0.3, 0, 1]), [1.0, 2.0]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_device_draws_the_same_law(name: str) -> None:
    net, x = NETWORKS[name]
    here = finwidth.sample(net, x, DRAWS, seed=1)
    there = finwidth.sample(net, x, DRAWS, seed=2, device=DEVICE)
    for quantity in ("output", "K_w", "K_b", "dK"):
        assert same_law(*(each[quantity].to_numpy().round(12) for each in (here, there))), quantity
    assert same_law((here.dK / here.K**2).to_numpy().round(12), (there.dK / there.K**2).to_numpy().round(12))
    exact = finwidth.moments(net, x)
    assert same_mean(there.K.to_numpy(), float(exact.mean), float(exact.variance))


def test_other_biases_on_a_device_are_rejected() -> None:
    net, x = NETWORKS["random biases"]
    wrong = MLP(net.widths, bias_variance=[0.5, 0.3, 0, 0.7])
    one, other = finwidth.sample(net, x, DRAWS, seed=1), finwidth.sample(wrong, x, DRAWS, seed=2, device=DEVICE)
    assert not same_law(one.output.to_numpy(), other.output.to_numpy())


def test_a_seed_fixes_the_numbers_of_a_device() -> None:
    net, x = NETWORKS["leaky"]
    one, same, other = (finwidth.sample(net, x, 1000, seed=seed, device=DEVICE) for seed in (5, 5, 6))
    assert one.identical(same)
    assert not np.array_equal(one.K, other.K)
    assert one.attrs["method"] == f"norm chain on a torch device ({DEVICE})"


def test_generators_follow_their_laws() -> None:
    rng = DeviceGenerator(DEVICE, seed=3, chunk=0)
    assert not rng.chi_square(rng.full(5, 0.0)).any()
    assert same_mean(rng.chi_square(rng.full(DRAWS, 6.0), less=1).cpu().numpy(), 5, 10)
    assert same_mean(rng.coins(10**9, DRAWS).cpu().numpy(), 5e8, 2.5e8)
    assert same_mean(rng.standard_normal(DRAWS).cpu().numpy(), 0, 1)


@pytest.mark.parametrize("device", ["cuda:77", "nowhere"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(finwidth.FinwidthError, match=rf"device='{device}' cannot be used"):
        finwidth.sample(MLP([2, 3, 1]), [1, 2], 10, device=device)
