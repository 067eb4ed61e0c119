"""Networks as PyTorch makes and differentiates them: against the exact moments, and against the brute-force kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import pytest

from exact.test_networks import STEEP, VIEWS, Drawn, kernel_variances, means
from finwidth import MLP, Activation
from finwidth.empirical.reference.brute_force import draw_networks, kernel_at_input
from finwidth.networks.laws import FloatArray
from stats import same_mean

torch = pytest.importorskip("torch")
nn = torch.nn

Tensor: TypeAlias = Any
Module: TypeAlias = Any
Initialize: TypeAlias = Callable[[Module], object]  # what a user does to an nn.Linear after making it

X = [0.4, -0.5, 0.2]  # small enough for the initial biases to matter
WIDTHS = (3, 4, 4, 1)
NETWORKS_DRAWN = 200_000


def sequential(widths: Sequence[int], initialize: Initialize, activation: Callable[[], Module] = nn.ReLU) -> Module:
    linear = [nn.Linear(n, m) for n, m in pairwise(widths)]
    for layer in linear:
        initialize(layer)
    return nn.Sequential(linear[0], *(module for layer in linear[1:] for module in (activation(), layer)))


def kernels(model: Module, parameters: dict[str, Tensor], x: Sequence[float]) -> Drawn:
    """K_w, K_b and K of many networks by automatic differentiation: their parameters stacked, ``model`` one of them."""

    def output(one: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, one, (torch.tensor(x, dtype=torch.float64),)).squeeze()

    stacked = {name: each.detach().double() for name, each in parameters.items()}
    gradients = torch.func.vmap(torch.func.grad(output))(stacked)
    squares = {name: each.square().flatten(1).sum(1).numpy() for name, each in gradients.items()}
    K_w, K_b = (sum(each for name, each in squares.items() if name.endswith(kind)) for kind in ("weight", "bias"))
    return {"K_w": K_w, "K_b": K_b, "K": K_w + K_b}


def default(_: Module) -> None:
    """Leave the layer as nn.Linear makes it."""


def kaiming_normal(layer: Module) -> None:
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")


def kaiming_normal_leaky(layer: Module) -> None:
    nn.init.kaiming_normal_(layer.weight, a=0.5, nonlinearity="leaky_relu")


def kaiming_uniform(layer: Module) -> None:
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")


def zeroed(initialize: Initialize) -> Initialize:
    def both(layer: Module) -> None:
        initialize(layer)
        nn.init.zeros_(layer.bias)

    return both


def many(widths: Sequence[int], initialize: Initialize, networks: int) -> dict[str, Tensor]:
    """Stacked parameters of networks: one nn.Linear a layer holds the rows of all of them.

    PyTorch's initializations see the fan-in only, and draw every row alike.
    """
    parameters: dict[str, Tensor] = {}
    for i, (n, m) in enumerate(pairwise(widths)):
        layer = nn.Linear(n, m * networks)
        initialize(layer)
        parameters |= {f"{2 * i}.weight": layer.weight.view(networks, m, n)}
        parameters |= {f"{2 * i}.bias": layer.bias.view(networks, m)}
    return parameters


LEAKY = Activation("leaky", 1, 0.5)
INITIALIZATIONS: dict[str, tuple[Initialize, MLP]] = {
    "default": (default, MLP.pytorch(WIDTHS)),
    "default, zeros": (zeroed(default), MLP.pytorch(WIDTHS, biases="zeros")),
    "kaiming_normal": (kaiming_normal, MLP.pytorch(WIDTHS, "kaiming_normal")),
    "kaiming_normal, zeros": (zeroed(kaiming_normal), MLP.pytorch(WIDTHS, "kaiming_normal", biases="zeros")),
    "kaiming_uniform": (kaiming_uniform, MLP.pytorch(WIDTHS, "kaiming_uniform")),
    "kaiming_uniform, zeros": (zeroed(kaiming_uniform), MLP.pytorch(WIDTHS, "kaiming_uniform", biases="zeros")),
    "kaiming_normal, leaky": (kaiming_normal_leaky, MLP.pytorch(WIDTHS, "kaiming_normal", LEAKY)),
}
# Another initialization, and a moment that tells the two apart.
CONTROLS = {
    "default": ("default, zeros", "K"),
    "default, zeros": ("default", "K"),
    "kaiming_normal": ("kaiming_normal, zeros", "K_w"),
    "kaiming_normal, zeros": ("kaiming_normal", "K_w"),
    "kaiming_uniform": ("kaiming_normal", "K^2"),
    "kaiming_uniform, zeros": ("kaiming_uniform", "K_w"),
    "kaiming_normal, leaky": ("kaiming_normal", "K^2"),
}
KERNEL_VIEWS = {view: function for view, function in VIEWS.items() if view != "dK"}


@pytest.mark.parametrize("name", INITIALIZATIONS)
def test_moments_are_those_of_torch(name: str) -> None:
    initialize, net = INITIALIZATIONS[name]
    torch.manual_seed(31)
    model = sequential(WIDTHS, initialize, (lambda: nn.LeakyReLU(0.5)) if "leaky" in name else nn.ReLU)
    drawn = kernels(model, many(WIDTHS, initialize, NETWORKS_DRAWN), X)
    right, variances = means(net, X), kernel_variances(net, X)
    for view, function in KERNEL_VIEWS.items():
        assert same_mean(function(drawn), right[view], variances[view]), view
    other, view = CONTROLS[name]
    assert not same_mean(KERNEL_VIEWS[view](drawn), means(INITIALIZATIONS[other][1], X)[view], variances[view])


@pytest.mark.parametrize("name", ["default", "kaiming_normal, zeros"])
def test_moments_are_those_of_models(name: str) -> None:
    """Fewer networks, each a model of its own."""
    initialize, net = INITIALIZATIONS[name]
    torch.manual_seed(32)
    models = [sequential(WIDTHS, initialize) for _ in range(4_000)]
    drawn = kernels(models[0], torch.func.stack_module_state(models)[0], X)
    right, variances = means(net, X), kernel_variances(net, X)
    for view, function in KERNEL_VIEWS.items():
        assert same_mean(function(drawn), right[view], variances[view]), view
    wrong = INITIALIZATIONS["kaiming_normal" if name == "default" else "default"][1]
    assert not same_mean(drawn["K"], means(wrong, X)["K"], variances["K"])


# ---- given weights: the brute-force kernel and its update against derivatives and steps by torch


class Parameterized:
    """One network in the parameters that its parameterization trains, and their rates under SGD, as MLP states them."""

    def __init__(self, net: MLP, weights: list[FloatArray], biases: list[FloatArray]) -> None:
        self.net = net
        ntk, mup = net.parameterization == "ntk", net.parameterization == "mup"
        last = net.depth - 1
        self.scales = [(float(gain) / n) ** 0.5 if ntk else 1.0 for gain, n in zip(net.gains, net.widths, strict=False)]
        self.weights = [self._parameter(W / scale) for W, scale in zip(weights, self.scales, strict=True)]
        self.bias_scales = [float(scale) for scale in net.bias_scale]
        self.biases = [self._parameter(b / (s or 1)) for b, s in zip(biases, self.bias_scales, strict=True)]
        self.weight_rates = [1.0] * net.depth
        units = [n / base for n, base in zip(net.widths, net.base_widths, strict=True)]
        self.bias_rates = [float(kind == "trained") for kind in net.bias]
        if mup:
            self.bias_rates = [unit * rate for unit, rate in zip(units[1:], self.bias_rates, strict=True)]
            self.weight_rates[0] = units[1]
            self.weight_rates[last] = 1 / units[last]
        self.parameters = [*self.weights, *self.biases]
        self.rates = [*self.weight_rates, *self.bias_rates]
        self.gates: list[list[bool]] = []  # of the latest forward pass

    @staticmethod
    def _parameter(values: FloatArray) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, requires_grad=True)

    def output(self, x: Sequence[float]) -> Tensor:
        phi = self.net.activation
        y, self.gates = torch.tensor(x, dtype=torch.float64), []
        layers = zip(self.weights, self.biases, self.scales, self.bias_scales, strict=True)
        for i, (W, b, scale, bias_scale) in enumerate(layers):
            if i:
                self.gates.append((y > 0).tolist())
                y = float(phi.positive) * torch.relu(y) - float(phi.negative) * torch.relu(-y)
            y = scale * W @ y + bias_scale * b
        return y

    def gradient(self, value: Tensor) -> list[Tensor]:
        """With respect to every parameter, ready to be differentiated again."""
        if not value.requires_grad:  # in one layer the gradient is constant
            return [torch.zeros_like(each) for each in self.parameters]
        found = torch.autograd.grad(value, self.parameters, create_graph=True, materialize_grads=True)
        return list(found)

    def kernel(self, x: Sequence[float]) -> dict[str, float]:
        """Of the first output."""
        gradient = self.gradient(self.output(x)[0])
        squares = [rate * each.detach().square().sum() for rate, each in zip(self.rates, gradient, strict=True)]
        K_w, K_b = float(sum(squares[: self.net.depth])), float(sum(squares[self.net.depth :]))
        return {"K_w": K_w, "K_b": K_b, "K": K_w + K_b}

    def update(self, x: Sequence[float]) -> float:
        """-2 sum_c N_c (C g_c)^T H_0 (C g_0), with the Hessian of the first output applied to C g_0."""
        outputs = self.output(x)
        g_0 = self.gradient(outputs[0])
        moved = [rate * each.detach() for rate, each in zip(self.rates, g_0, strict=True)]
        Hv = self.gradient(sum((each * v).sum() for each, v in zip(g_0, moved, strict=True)))
        total = 0.0
        for N_c in outputs:
            terms = zip(self.rates, self.gradient(N_c), Hv, strict=True)
            total -= 2 * N_c.item() * sum((rate * g_c * h).sum().item() for rate, g_c, h in terms)
        return total

    def step(self, x: Sequence[float], learning_rate: float) -> None:
        """One step of torch's SGD on half the sum of the squared outputs."""
        rated = zip(self.parameters, self.rates, strict=True)
        groups = [{"params": [each], "lr": learning_rate * rate} for each, rate in rated]
        optimizer = torch.optim.SGD(groups, lr=learning_rate)
        optimizer.zero_grad()
        (self.output(x).square().sum() / 2).backward()
        optimizer.step()


NETWORKS = {
    "ntk": MLP([3, 5, 4, 1]),
    "ntk, gains": MLP([3, 5, 4, 1], "uniform", gains=(1, 3, 0.5), bias_variance=1),
    "standard": MLP([3, 5, 4, 1], parameterization="standard", bias_variance=0.25),
    "mup": MLP([3, 5, 4, 1], parameterization="mup", bias_variance=(1, 0, 2)),
    "PyTorch": MLP.pytorch([3, 4, 4, 4, 1]),
    "another activation": MLP([3, 5, 4, 1], "uniform", STEEP, bias_variance=1),
    "frozen": MLP([3, 5, 4, 1], bias="frozen", bias_variance=1),
    "one layer": MLP([3, 1]),
    "several outputs": MLP([3, 5, 4, 3], bias_variance=1),
    "several outputs, mup": MLP([3, 5, 4, 2], parameterization="mup", bias_variance=1),
    "scaled biases": MLP([3, 5, 4, 1], bias_variance=1, bias_scale=0.1),
    "scales by layer": MLP([3, 5, 4, 1], parameterization="standard", bias_variance=1, bias_scale=(0.5, 0, 2)),
    "biases by layer": MLP([3, 5, 4, 1], bias=("frozen", "none", "trained"), bias_variance=(1, 0, 0.5)),
    "mup, base width": MLP([3, 5, 4, 2], parameterization="mup", bias_variance=1, base_widths=2),
    "mup, base widths": MLP([3, 5, 4, 1], parameterization="mup", bias_scale=0.5, base_widths=(3, 2, 8, 1)),
}
FEW = 25


@pytest.mark.parametrize("name", NETWORKS)
def test_kernel_and_update_are_those_of_autograd(name: str) -> None:
    net = NETWORKS[name]
    weights, biases = draw_networks(net, FEW, np.random.default_rng(33))
    drawn = kernel_at_input(net, weights, biases, X)
    for j in range(FEW):
        network = Parameterized(net, [W[j] for W in weights], [b[j] for b in biases])
        assert network.output(X).detach().numpy() == pytest.approx(drawn["output"][j], rel=1e-10, abs=1e-10)
        found = network.kernel(X) | {"dK": network.update(X)}
        for key, value in found.items():
            assert value == pytest.approx(drawn[key][j], rel=1e-10, abs=1e-10), (key, j)


@pytest.mark.parametrize(("name", "other"), [("ntk", "standard"), ("standard", "mup"), ("mup", "ntk")])
def test_another_parameterization_is_another_kernel(name: str, other: str) -> None:
    net = NETWORKS[name]
    weights, biases = draw_networks(net, 1, np.random.default_rng(34))
    K = kernel_at_input(net, weights, biases, X)["K"]
    wrong = Parameterized(MLP(net.widths, parameterization=other), [W[0] for W in weights], [b[0] for b in biases])
    assert abs(wrong.kernel(X)["K"] / float(K[0]) - 1) > 1e-3


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "one layer"])
def test_update_is_the_limit_of_a_step(name: str) -> None:
    """(K after a step - K before) / lr tends to dK with an error in proportion to lr, while no gate changes."""
    net = NETWORKS[name]
    weights, biases = draw_networks(net, FEW, np.random.default_rng(35))
    drawn = kernel_at_input(net, weights, biases, X)
    tried = 0
    for j, (K, dK) in enumerate(zip(drawn["K"].tolist(), drawn["dK"].tolist(), strict=True)):
        errors, crossed = [], False
        for learning_rate in (1e-3 / K, 1e-4 / K, 1e-5 / K):
            network = Parameterized(net, [W[j] for W in weights], [b[j] for b in biases])
            before, gates = network.kernel(X)["K"], network.gates
            network.step(X, learning_rate)
            errors.append((network.kernel(X)["K"] - before) / learning_rate - dK)
            crossed = crossed or network.gates != gates
        if crossed or abs(errors[-1]) < 1e-8 * K**2:
            continue  # a gate opened or closed; or a layer is dead, and what is left is rounding
        tried += 1
        assert [errors[0] / errors[1], errors[1] / errors[2]] == pytest.approx([10, 10], rel=0.05), j
        wrong = [error - 0.001 * dK for error in errors]  # a dK that is too large by 0.1%
        assert wrong[1] / wrong[2] != pytest.approx(10, rel=0.05), j
    assert tried >= 10
