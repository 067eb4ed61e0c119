"""Layers in law: the same numbers as layers that hold the matrix they reveal, and the same law as layers that draw it."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import stats

torch = pytest.importorskip("torch", reason="needs the torch extra")

from law_modules import Attention, ConvNet, DrawnConv2d, DrawnLinear, ResidualMLP, inputs_for  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from finwidth import FinwidthError, LawConv2d, LawLinear, tangent_kernel  # noqa: E402
from finwidth.sampling.combinations import Combination, SharedMatrix  # noqa: E402
from finwidth.sampling.revealed import _Side  # noqa: E402

MODULES = [ResidualMLP, ConvNet, Attention]
PHI = {"relu": functional.relu, "gelu": functional.gelu}


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


class InLaw:
    """Makes layers in law, and remembers their initial matrices."""

    def __init__(self, draws: int | None = None) -> None:
        self.draws, self.initial = draws, dict[Any, Combination]()

    def _made(self, layer: Any) -> Any:
        self.initial[layer] = layer.weight.made.copy()
        return layer

    def linear(self, fan_in: int, fan_out: int, gain: float) -> Any:
        return self._made(LawLinear(fan_in, fan_out, gain=gain, draws=self.draws))

    def conv(self, fan_in: int, fan_out: int, kernel: int, gain: float, **where: int) -> Any:
        return self._made(LawConv2d(fan_in, fan_out, kernel, gain=gain, draws=self.draws, **where))


class Usual:
    """Makes torch's own layers."""

    def linear(self, fan_in: int, fan_out: int, gain: float) -> Any:
        return nn.Linear(fan_in, fan_out)

    def conv(self, fan_in: int, fan_out: int, kernel: int, gain: float, **where: Any) -> Any:
        return nn.Conv2d(fan_in, fan_out, kernel, **where)


def entries(initial: Combination) -> Any:
    """The initial matrix of one draw, read off by meeting all right vectors."""
    return initial.from_right(initial.matrix.right(torch.eye(initial.matrix.shape[1])[None]))[0].T


def twin(module: Any, layers: InLaw, phi: Any, width: int) -> Any:
    """The module with torch's layers, at the values where the module in law began."""
    usual = type(module)(Usual(), phi, width)
    for name, layer in module.named_children():
        weight = usual.get_submodule(name).weight
        weight.data.copy_(entries(layers.initial[layer]).reshape(weight.shape))
        usual.get_submodule(name).bias.data.zero_()
    return usual


def trained(module: Any, X: Any, steps: int, clip: float | None = None, **options: Any) -> Any:
    """Outputs at all inputs before each step on mini-batches, and the gradient by the inputs at the end."""
    optimizer, y = torch.optim.SGD(module.parameters(), **options), torch.arange(len(X)) - 1.0
    outputs = []
    for step in range(steps):
        with torch.no_grad():
            outputs.append(module(X))
        batch = [step % len(X), (step + 1) % len(X)]
        optimizer.zero_grad(set_to_none=bool(step % 2))
        (module(X[batch]) - y[batch]).square().sum().backward()
        if clip:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
    last = X.clone().requires_grad_()
    out = module(last)
    out.sum().backward()
    return [torch.stack([*outputs, out.detach()]), last.grad]


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"lr": 0.002},
    "momentum": {"lr": 0.001, "momentum": 0.9},
    "all": {"lr": 0.01, "momentum": 0.8, "nesterov": True, "weight_decay": 0.05, "clip": 0.7},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("completed", [True, False], ids=["completed", "revealed"])
@pytest.mark.parametrize("kind", MODULES)
def test_training_is_that_of_the_matrix_revealed(
    kind: Any, completed: bool, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 steps, then the initial matrices are read off, and torch's own layers repeat them from there."""
    if not completed:
        monkeypatch.setattr(SharedMatrix, "settle", lambda self, coming=0: None)
    torch.manual_seed(0)
    layers, width = InLaw(), 40
    module, X = kind(layers, functional.gelu, width), inputs_for(kind, 3)
    outputs, slope = trained(module, X, 20, **options)
    hidden = module.two if kind is ConvNet else module.down
    assert (hidden.weight.made.matrix.whole is not None) == completed
    usual_outputs, usual_slope = trained(twin(module, layers, functional.gelu, width), X, 20, **options)
    assert (outputs[-1] - outputs[0]).abs().max() > 0.1
    assert torch.allclose(outputs, usual_outputs, rtol=0, atol=1e-9)
    assert torch.allclose(slope, usual_slope, rtol=0, atol=1e-9)
    initial, gain = entries(layers.initial[hidden]), hidden.gain
    assert initial.square().mean() == pytest.approx(gain / initial.shape[1], rel=6 * (2 / initial.numel()) ** 0.5)


@pytest.mark.parametrize("kind", MODULES)
def test_kernel_is_that_of_the_matrix_revealed(kind: Any) -> None:
    torch.manual_seed(0)
    layers, width = InLaw(), 100
    module, X = kind(layers, functional.gelu, width), inputs_for(kind, 3)
    trained(module, X, 2, lr=0.001)
    kernel = tangent_kernel(module(X), module.parameters())
    usual = twin(module, layers, functional.gelu, width)
    trained(usual, X, 2, lr=0.001)
    outputs = usual(X)
    slopes = [torch.autograd.grad(each, [*usual.parameters()], retain_graph=True) for each in outputs]
    flat = torch.stack([torch.cat([part.flatten() for part in of_one]) for of_one in slopes])
    assert torch.allclose(kernel, flat @ flat.T, rtol=1e-9)
    assert layers.initial[module.two if kind is ConvNet else module.down].matrix.whole is None


@pytest.mark.parametrize("kind", MODULES)
def test_draws_are_the_layers_one_by_one(kind: Any) -> None:
    """Each draw of a module that follows three is trained as torch's layers from its initial matrices."""
    torch.manual_seed(0)
    layers, width = InLaw(draws=3), 30
    module, X = kind(layers, functional.relu, width), inputs_for(kind, 2)
    values = recorded(module, X, (0, 3), lr=0.002, momentum=0.9)
    for draw in range(3):
        usual = kind(Usual(), functional.relu, width)
        for name, layer in module.named_children():
            initial = layers.initial[layer]
            matrix = initial.from_right(initial.matrix.right(torch.eye(initial.matrix.shape[1])[None]))[draw].T
            usual.get_submodule(name).weight.data.copy_(matrix.reshape(usual.get_submodule(name).weight.shape))
            usual.get_submodule(name).bias.data.zero_()
        one = Lifted(usual)
        for each, expected in recorded(one, X, (0, 3), lr=0.002, momentum=0.9).items():
            assert values[each][draw] == pytest.approx(expected[0], rel=1e-9), each


class Lifted(nn.Module):
    """A module of one draw, with the leading axis of draws."""

    draws = 1

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Any) -> Any:
        return self.module(x[0])[None]


# Laws, against layers that draw their weights

RECORDED = (0, 1, 2, 5, 20)


class Drawing:
    """Makes layers that draw the weights of many networks."""

    def __init__(self, draws: int) -> None:
        self.draws = draws

    def linear(self, fan_in: int, fan_out: int, gain: float) -> Any:
        return DrawnLinear(fan_in, fan_out, gain, self.draws)

    def conv(self, fan_in: int, fan_out: int, kernel: int, gain: float, **where: int) -> Any:
        return DrawnConv2d(fan_in, fan_out, kernel, gain, self.draws, **where)


def dense_kernel(module: Any, X: Any) -> Any:
    """K of each draw, (draws, m, m), from the gradients of all its parameters."""
    parameters = list(module.parameters())
    out = module(X)
    rows = []
    for a in range(out.shape[1]):
        gradients = torch.autograd.grad(out[:, a].sum(), parameters, retain_graph=True)
        rows.append(torch.cat([each.reshape(len(out), -1) for each in gradients], 1))
    return torch.stack([torch.stack([(one * other).sum(1) for other in rows], 1) for one in rows], 1)


def recorded(module: Any, X: Any, steps: tuple[int, ...], **options: Any) -> dict[str, Any]:
    """Output at a probe input, loss, and kernel entries of each draw after some steps on mini-batches of one."""
    in_law = any(isinstance(each, LawLinear) for each in module.modules())
    draws = next(each for each in module.parameters()).shape[0] if not isinstance(module, Lifted) else 1
    inputs = X.expand(draws, *X.shape)
    optimizer, y = torch.optim.SGD(module.parameters(), **options), torch.tensor([1.0, -1.0])
    values = {}
    for step in range(max(steps) + 1):
        if step in steps:
            kernel = tangent_kernel(module(inputs), module.parameters()) if in_law else dense_kernel(module, inputs)
            out = module(inputs).detach()
            values[f"output after {step}"] = out[:, 0]
            values[f"loss after {step}"] = (out - y).square().sum(1)
            values[f"K_00 after {step}"], values[f"K_01 after {step}"] = kernel[:, 0, 0], kernel[:, 0, 1]
        batch = slice(None) if step % 3 == 0 else [step % 2]  # both inputs, then one of them
        optimizer.zero_grad()
        (module(inputs[:, batch]) - y[batch]).square().sum().backward()
        optimizer.step()
    return {name: each.numpy() for name, each in values.items()}


def samples(kind: Any, phi: str, width: int, draws: int, lr: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """The recorded values in law, and of networks that draw their weights."""
    X = inputs_for(kind, 2)
    torch.manual_seed(1)
    in_law = recorded(kind(InLaw(draws), PHI[phi], width), X, RECORDED, lr=lr, momentum=0.8)
    torch.manual_seed(2)
    drawn = recorded(kind(Drawing(draws), PHI[phi], width), X, RECORDED, lr=lr, momentum=0.8)
    return in_law, drawn
