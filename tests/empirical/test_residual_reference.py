"""The ground truth for residual networks against torch, whose derivatives are its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finwidth import Activation, ResNet
from finwidth.empirical.reference.residual import draw_residual_networks, residual_kernel

torch = pytest.importorskip("torch")

X = [1.0, -2.0, 0.5]
NETWORKS = {
    "relu": ResNet([3, 4, 1], 2, [5, 3], skip=0.7, branch="1/sqrt(depth)"),
    "standard": ResNet([3, 4, 1], 3, 2, parameterization="standard", activation=Activation("bent", 1, -0.4)),
    "biases": ResNet([3, 4, 2], 1, bias=["frozen", "trained", "trained", "none"], bias_variance=[1, 0.5, 2, 0]),
    "gelu": ResNet([3, 4, 1], 2, activation="gelu", bias_scale=[0.5, 1, 2, 3], bias_variance=0.3),
}


def torch_kernel(net: ResNet, parameters: list[Any]) -> dict[str, float]:
    """Output 0, K_w, K_b, and the derivative of K along the SGD step on |N|^2/2, of one network."""

    def phi(y: Any) -> Any:
        if net.activation.name == "gelu":
            return torch.nn.functional.gelu(y)
        return torch.where(y > 0, float(net.activation.positive) * y, float(net.activation.negative) * y)

    layers = [net.stem, *(layer for block in net.blocks for layer in (block.inner, block.outer)), net.head]
    weights, biases = parameters[::2], parameters[1::2]
    x = weights[0] @ torch.tensor(X, dtype=torch.float64) + biases[0]
    for i, block in enumerate(net.blocks):
        inner = weights[1 + 2 * i] @ x + biases[1 + 2 * i]
        outer = weights[2 + 2 * i] @ phi(inner) + biases[2 + 2 * i]
        x = float(block.skip_squared) ** 0.5 * x + float(block.branch_squared) ** 0.5 * outer
    outputs = weights[-1] @ x + biases[-1]
    output, loss = outputs[0], outputs.square().sum() / 2
    gradients = torch.autograd.grad(output, parameters, create_graph=True)
    forces = torch.autograd.grad(loss, parameters, retain_graph=True)
    rates = [float(rate) for layer in layers for rate in (layer.weight_multiplier, layer.bias_multiplier)]
    shares = [rate * gradient.square().sum() for rate, gradient in zip(rates, gradients, strict=True)]
    K_w, K_b = sum(shares[::2]), sum(shares[1::2])
    turned = torch.autograd.grad(K_w + K_b, parameters, allow_unused=True)
    dK = sum(
        -rate * (force * turn).sum()
        for rate, force, turn in zip(rates, forces, turned, strict=True)
        if turn is not None
    )
    found = {"output": output, "K_w": K_w, "K_b": K_b, "dK": dK}
    return {name: value.item() for name, value in found.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_reference_is_what_autograd_finds(name: str) -> None:
    net = NETWORKS[name]
    drawn = draw_residual_networks(net, 5, np.random.default_rng(0))
    found = residual_kernel(net, drawn, X)
    for network in range(5):
        parameters = [
            torch.tensor(values[network], requires_grad=True)
            for layer in drawn
            for values in (layer.weight, layer.bias)
        ]
        for quantity, value in torch_kernel(net, parameters).items():
            assert found[quantity][network] == pytest.approx(value, rel=1e-9, abs=1e-12), quantity
