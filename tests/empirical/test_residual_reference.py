"""The ground truth for residual networks against torch, whose derivatives are its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finwidth import Activation, BalancedResNet, ResNet
from finwidth.empirical.reference.residual import draw_residual_networks, residual_kernel
from finwidth.networks.description import Layer

torch = pytest.importorskip("torch")

X = [1.0, -2.0, 0.5]
NETWORKS: dict[str, ResNet | BalancedResNet] = {
    "relu": ResNet([3, 4, 1], 2, [5, 3], skip=0.7, branch="1/sqrt(depth)"),
    "standard": ResNet([3, 4, 1], 3, 2, parameterization="standard", activation=Activation("bent", 1, -0.4)),
    "biases": ResNet([3, 4, 2], 1, bias=["frozen", "trained", "trained", "none"], bias_variance=[1, 0.5, 2, 0]),
    "gelu": ResNet([3, 4, 1], 2, activation="gelu", bias_scale=[0.5, 1, 2, 3], bias_variance=0.3),
    "balanced": BalancedResNet([3, 4, 1], 3, skip=[0.7, 1, 0.5], bias_variance=[1, 0.5, 2]),
    "no signs": BalancedResNet([3, 4, 2], 2, signs=False, branch="1/sqrt(depth)", activation="gelu"),
}


def torch_kernel(net: ResNet | BalancedResNet, parameters: list[Any], signs: list[Any]) -> dict[str, float]:
    """Output 0, K_w, K_b, and the derivative of K along the SGD step on |N|^2/2, of one network."""

    def phi(y: Any) -> Any:
        if net.activation.name == "gelu":
            return torch.nn.functional.gelu(y)
        return torch.where(y > 0, float(net.activation.positive) * y, float(net.activation.negative) * y)

    layers, given = [net.stem], iter(zip(parameters[::2], parameters[1::2], strict=True))

    def through(layer: Layer, x: Any) -> Any:
        layers.append(layer)
        weight, bias = next(given)
        return weight @ x + bias

    x = through(layers.pop(), torch.tensor(X, dtype=torch.float64))
    for i, block in enumerate(list[Any](net.blocks)):
        inner = through(block.inner, x) if isinstance(net, ResNet) else signs[i] * x
        outer = through(block.outer, phi(inner))
        x = float(block.skip_squared) ** 0.5 * x + float(block.branch_squared) ** 0.5 * outer
    outputs = through(net.head, x)
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
        fixed = drawn[1:-1:2] if isinstance(net, BalancedResNet) else []
        parameters = [
            torch.tensor(values[network], requires_grad=True)
            for layer in drawn
            if not any(layer is each for each in fixed)
            for values in (layer.weight, layer.bias)
        ]
        signs = [torch.tensor(np.diagonal(layer.weight[network])) for layer in fixed]
        for quantity, value in torch_kernel(net, parameters, signs).items():
            assert found[quantity][network] == pytest.approx(value, rel=1e-9, abs=1e-12), quantity


def test_signs_are_fair_or_none() -> None:
    for signs, mean in ((True, 0.0), (False, 1.0)):
        net = BalancedResNet([3, 50, 1], 1, signs=signs)
        sigma = np.diagonal(draw_residual_networks(net, 200, np.random.default_rng(0))[1].weight, axis1=1, axis2=2)
        assert set(np.unique(sigma)) == ({-1.0, 1.0} if signs else {1.0})
        assert abs(sigma.mean() - mean) < 0.06  # six deviations
