"""The brute-force kernel matrix and its first change against real SGD steps by torch, whose derivatives are its own."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import pytest

from finwidth import MLP
from finwidth.empirical.reference.brute_force import draw_networks, kernel_at_input, kernel_matrix

torch = pytest.importorskip("torch")

Tensor: TypeAlias = Any

X = np.array([[0.5, -1.0, 0.2], [1.0, 0.3, -0.4], [-0.7, 0.1, 0.9]])
TARGETS = {1: np.array([1.0, -0.5, 2.0]), 2: np.array([[1.0, 0.2], [-0.5, 0.0], [2.0, -1.0]])}
PHI = {"gelu": torch.nn.functional.gelu, "tanh": torch.tanh, "silu": torch.nn.functional.silu, "relu": torch.relu}
NETWORKS = {
    "gelu": MLP([3, 5, 4, 1], activation="gelu"),
    "tanh, standard": MLP([3, 5, 4, 6, 1], activation="tanh", parameterization="standard", bias_variance=0.3),
    "silu, mup, frozen": MLP([3, 5, 4, 1], activation="silu", parameterization="mup", bias="frozen", bias_variance=1),
    "relu": MLP([3, 5, 4, 1]),
    "two outputs": MLP([3, 5, 4, 2], activation="gelu", bias_variance=0.1),
    "two outputs, one neuron": MLP([3, 4, 1, 2], activation="tanh", parameterization="mup"),
}


def as_tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def outputs(net: MLP, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """The outputs, shape (m,), or (m, n_d) if there are several."""
    y = torch.tensor(X).T
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        y = weight @ (PHI[net.activation.name](y) if i else y) + bias[:, None]
    return y[0] if len(y) == 1 else y.T


def torch_kernel(net: MLP, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """K: products of derivatives by autograd, times the multipliers; over input, input, output, output."""
    rates = [float(layer.weight_multiplier) for layer in net.layers]
    rates += [float(layer.bias_multiplier) for layer in net.layers]
    N = outputs(net, weights, biases)
    K = torch.zeros(N.numel(), N.numel(), dtype=torch.float64)
    rows = [torch.autograd.grad(each, [*weights, *biases], retain_graph=True) for each in N.flatten()]
    for k, rate in enumerate(rates):
        G = torch.stack([row[k].flatten() for row in rows])
        K += rate * G @ G.T
    return K if N.ndim == 1 else K.reshape(*N.shape, *N.shape).permute(0, 2, 1, 3)


def after_a_step(net: MLP, weights: list[Tensor], biases: list[Tensor], learning_rate: float) -> Tensor:
    """K after one SGD step on sum (N - t)^2 / 2 in the network's parameterization."""
    parameters = [*weights, *biases]
    loss = (outputs(net, weights, biases) - torch.tensor(TARGETS[net.widths[-1]])).square().sum() / 2
    gradients = torch.autograd.grad(loss, parameters)
    rates = [layer.weight_multiplier for layer in net.layers] + [layer.bias_multiplier for layer in net.layers]
    moved = [
        as_tensor((each - learning_rate * float(rate) * gradient).detach().numpy())
        for each, gradient, rate in zip(parameters, gradients, rates, strict=True)
    ]
    return torch_kernel(net, moved[: net.depth], moved[net.depth :])


@pytest.mark.parametrize("name", NETWORKS)
def test_matrix_and_its_change_are_those_of_torch(name: str) -> None:
    """The error of (K after - K before) / lr falls tenfold with lr."""
    net = NETWORKS[name]
    weights, biases = draw_networks(net, 5, np.random.default_rng(3))
    found = kernel_matrix(net, weights, biases, X, TARGETS[net.widths[-1]])
    tried = 0
    for j in range(5):
        ours = [as_tensor(W[j]) for W in weights], [as_tensor(b[j]) for b in biases]
        before = torch_kernel(net, *ours)
        assert found["output"][j] == pytest.approx(outputs(net, *ours).detach().numpy(), rel=1e-12)
        assert found["K"][j] == pytest.approx(before.numpy(), rel=1e-10)
        scale = float(before.abs().max())
        rates = (1e-4 / scale, 1e-5 / scale)
        errors = [
            float(((after_a_step(net, *ours, rate) - before) / rate - torch.tensor(found["dK"][j])).norm())
            for rate in rates
        ]
        wrong = float((after_a_step(net, *ours, rates[1]) - before).norm()) / rates[1]
        assert errors[1] < 1e-3 * wrong
        if name != "relu":
            assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
        tried += errors[1] > 0
    assert tried >= 3


@pytest.mark.parametrize("name", ["gelu", "relu"])
def test_one_input_agrees_with_the_vector_code(name: str) -> None:
    net = NETWORKS[name]
    weights, biases = draw_networks(net, 5, np.random.default_rng(4))
    matrix, vector = kernel_matrix(net, weights, biases, X[:1], [0.0]), kernel_at_input(net, weights, biases, X[0])
    assert matrix["K"][:, 0, 0] == pytest.approx(vector["K"], rel=1e-12)
    assert matrix["dK"][:, 0, 0] == pytest.approx(vector["dK"], rel=1e-10)
