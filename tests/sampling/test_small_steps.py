"""dK of the chains of one input against small real steps of networks that hold their weights."""

from __future__ import annotations

from typing import Any

import pytest

import finwidth
from finwidth import MLP, BalancedResNet, Norm, ResNet
from finwidth.networks.description import Network
from stats import same_law

torch = pytest.importorskip("torch", reason="differentiates the networks")

from autograd_networks import AutogradNetworks, Tensors  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # of torch.func.jvp

X = [1.0, -2.0, 2.0]
STEP = 1e-5  # so small that hardly a gate flips
NETWORKS = {
    "resnet": ResNet([3, 6, 1], 2, 5, branch=0.7),
    "balanced": BalancedResNet([3, 6, 1], 3, branch="1/sqrt(depth)"),
    "no signs": BalancedResNet([3, 6, 1], 3, branch="1/sqrt(depth)", signs=False),
    "rms": MLP([3, 6, 5, 1], norm="rms"),
    "rms after": MLP([3, 6, 5, 1], norm=Norm("rms", "after", epsilon=0.1)),
    "pre-norm": ResNet([3, 6, 1], 2, 5, norm="layer"),
    "post-norm": ResNet([3, 6, 1], 2, 5, norm=Norm("rms", "after")),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_change_is_that_of_small_real_steps(name: str) -> None:
    net: Network = NETWORKS[name]
    networks, draws = AutogradNetworks(net), 5000
    x, target = torch.tensor([X], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)

    def moved(at: Tensors, signs: Tensors) -> tuple[Any, Any]:
        step = networks.step(at, signs, x, target)
        after = {each: value + STEP * step[each] for each, value in at.items()}
        before, then = (torch.stack(networks.kernels(where, signs, x)).sum() for where in (at, after))
        return before, (then - before) / STEP

    with torch.no_grad():
        K, dK = (each.numpy() for each in torch.func.vmap(moved)(*networks.draw(draws, 1)))
    drawn = finwidth.sample(net, X, draws, seed=2)
    ours, relative = drawn.dK.to_numpy(), (drawn.dK / drawn.K**2).to_numpy()
    assert same_law(ours.round(3), dK.round(3))
    assert same_law(relative.round(5), (dK / K**2).round(5))
    assert not same_law(relative.round(5), (3 * dK / K**2).round(5))
