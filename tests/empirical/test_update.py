"""The first move of a torch module's kernel: against steps that SGD takes, brute force, and the exact mean."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import finwidth
from finwidth import MLP
from finwidth.empirical.reference.brute_force import draw_networks, kernel_matrix
from stats import same_mean

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from empirical.test_kernel import CASES, make  # noqa: E402
from finwidth.empirical import ntk, sgd_update  # noqa: E402

Tensor = Any


def stepped(module: nn.Module, x: Tensor, y: Tensor, lr: float) -> nn.Module:
    """The module after one step of torch's SGD on half the sum of squares."""
    moved = copy.deepcopy(module)
    optimizer = torch.optim.SGD(moved.parameters(), lr=abs(lr), maximize=lr < 0)
    ((moved(x) - y).square().sum() / 2).backward()
    optimizer.step()
    return moved


def targets(module: nn.Module, x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, module(x).numel(), dtype=torch.float64).reshape(module(x).shape)


@pytest.mark.parametrize("name", CASES)
def test_is_the_slope_of_steps(name: str) -> None:
    """Steps forth and back: their difference is off by lr^2, and so small that no gate opens or closes."""
    module, x, probe = make(name)
    y, lr = targets(module, x), 1e-6
    with torch.no_grad():
        before = copy.deepcopy(module.state_dict())
    dK = sgd_update(module, x, y, probe=probe)
    after = module.state_dict()
    assert all(torch.equal(after[key], each) for key, each in before.items())
    forth, back = (ntk(stepped(module, x, y, sign * lr), probe) for sign in (1, -1))
    scale = (dK.abs().max() + ntk(module, probe).abs().max()).item()
    assert (dK - (forth - back) / (2 * lr)).abs().max().item() < 1e-6 * max(scale, dK.abs().max().item())
    summed = sgd_update(module, x, y, probe=probe, outputs="trace", entries="diagonal", lr=0.5)
    right = 0.5 * dK.diagonal(dim1=0, dim2=1).diagonal(dim1=0, dim2=1).sum(-1)
    assert torch.allclose(summed, right, rtol=1e-9, atol=1e-10 * scale)


@pytest.mark.parametrize("name", ["perceptron, no biases", "used twice", "layer norm", "tied", "parametrized"])
def test_error_of_a_step_falls_with_the_rate(name: str) -> None:
    module, x, probe = make(name)
    y, K = targets(module, x), ntk(module, probe)
    dK = sgd_update(module, x, y, probe=probe)
    rates = [each / K.abs().max().item() for each in (1e-3, 1e-4, 1e-5)]
    errors = [((ntk(stepped(module, x, y, lr), probe) - K) / lr - dK).norm().item() for lr in rates]
    assert [errors[0] / errors[1], errors[1] / errors[2]] == pytest.approx([10, 10], rel=0.1)
    wrong = [((ntk(stepped(module, x, y, lr), probe) - K) / lr - 1.001 * dK).norm().item() for lr in rates]
    assert wrong[1] / wrong[2] != pytest.approx(10, rel=0.1)


def test_of_several_outputs_is_that_of_brute_force() -> None:
    """All pairs of outputs, under a step on all."""
    net = MLP([3, 6, 5, 2], activation="gelu", bias_variance=0.3)
    X, y = np.random.default_rng(1).normal(size=(4, 3)), np.array([[1.0, 0.5], [-1.0, 0.0], [0.5, 2.0], [2.0, -0.5]])
    right = kernel_matrix(net, *draw_networks(net, 1, np.random.default_rng(5)), X, y)["dK"][0]
    module = finwidth.empirical.MLP(net, 5)
    dK = sgd_update(module, X, y, outputs="full", scale=module.scale).numpy()
    assert np.allclose(dK, right, rtol=1e-10, atol=1e-10 * np.abs(right).max())


@pytest.mark.parametrize("parameterization", ["ntk", "standard", "mup"])
def test_is_that_of_brute_force(parameterization: str) -> None:
    net = MLP([3, 6, 5, 1], activation="gelu", parameterization=parameterization, bias_variance=0.3)
    X, y = np.random.default_rng(1).normal(size=(4, 3)), np.array([1.0, -1.0, 0.5, 2.0])
    right = kernel_matrix(net, *draw_networks(net, 1, np.random.default_rng(5)), X, y)["dK"][0]
    module = finwidth.empirical.MLP(net, 5)
    dK = sgd_update(module, X, y[:, None], outputs="trace", scale=module.scale).numpy()
    assert np.allclose(dK, right, rtol=1e-10, atol=1e-10 * np.abs(right).max())
    if parameterization == "mup":
        assert not np.allclose(sgd_update(module, X, y[:, None], outputs="trace"), right, rtol=1e-2)


def test_mean_over_fresh_networks_is_exact() -> None:
    net, x = MLP([2, 30, 1]), [1.0, 2.0]
    exact = finwidth.moments(net, x, order=4)
    X, y = torch.tensor([x], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    rng = np.random.default_rng(41)
    drawn = np.array([float(sgd_update(finwidth.empirical.MLP(net, rng), X, y, outputs="trace")) for _ in range(1200)])
    variance = float(exact.update_variance())
    assert same_mean(drawn, float(exact.update["dK"]), variance)
    assert not same_mean(drawn, -float(exact.update["dK"]), variance)  # the sign is what is easily wrong


def test_any_loss_and_a_part_of_the_parameters() -> None:
    module, x, probe = make("small CNN")
    labels = torch.tensor([1, 0, 9, 3, 3])
    names = ["4.weight", "7.bias"]
    dK = sgd_update(
        module, x, labels, probe=probe, loss=functional.cross_entropy, parameters=names, scale={"7.bias": 3}, outputs=2
    )
    found = []
    for lr in (1e-6, -1e-6):
        moved = copy.deepcopy(module)
        rates = {"4.weight": lr, "7.bias": 3 * lr}
        by_name = dict(moved.named_parameters())
        gradients = torch.autograd.grad(functional.cross_entropy(moved(x), labels), [by_name[each] for each in names])
        with torch.no_grad():
            for each, gradient in zip(names, gradients, strict=True):
                by_name[each].sub_(rates[each] * gradient)
        found.append(ntk(moved, probe, outputs=2, parameters=names, scale={"7.bias": 3}))
    slope = (found[0] - found[1]) / 2e-6
    assert torch.allclose(dK, slope, rtol=1e-6, atol=1e-6 * slope.abs().max().item())


def test_names_of_the_dimensions() -> None:
    module, x, probe = make("perceptron")
    dK = sgd_update(module, x, targets(module, x), probe=probe, outputs="diagonal", labelled=True)
    assert dK.name == "dK"
    assert dict(dK.sizes) == {"input": 4, "input_": 4, "output": 3}
    assert dK.attrs["units"] == "learning rate"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"y": torch.zeros(5)}, r"targets have shape \(5,\) and the module's output \(5, 3\)"),
        ({"y": "no"}, "y is 'no'"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"loss": lambda output, y: output}, "the loss is not one number"),
        ({"loss": lambda output, y: output.detach().sum()}, "the loss is not one number"),
        ({"loss": lambda output, y: output.sum() * float("inf")}, "the loss is"),
        ({"outputs": 3}, "outputs is 3, and the module has 3"),
    ],
)
def test_mistakes_are_told(arguments: dict[str, Any], words: str) -> None:
    module, x, _ = make("perceptron")
    with pytest.raises(finwidth.FinwidthError, match=words):
        sgd_update(**{"module": module, "x": x, "y": targets(module, x), **arguments})
